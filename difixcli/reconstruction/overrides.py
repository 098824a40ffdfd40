"""`--set a.b.c=value`: any field of a method's configuration, typed as the field is."""

from __future__ import annotations

import enum
import json
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from difixcli.errors import InputError, unknown

# What a run decides itself; changing it behind its back would break the run's folder or its world.
_OWNED = (
    "data",
    "output_dir",
    "experiment_name",
    "method_name",
    "timestamp",
    "relative_model_dir",
    "max_num_iterations",
    "load_dir",
    "load_step",
    "load_config",
    "load_checkpoint",
    "machine.device_type",
    "machine.seed",
    "pipeline.datamanager.data",
    "pipeline.datamanager.dataparser",
    # these change a list that every datamanager of the process shares
    "pipeline.datamanager.images_on_gpu",
    "pipeline.datamanager.masks_on_gpu",
)


OWN_SETTINGS: dict[str, dict[str, float]] = {
    "cpu": {"max_gaussians": 25_000, "seed_depth_mult": 0.05},
    "gpu": {"max_gaussians": 1_000_000, "seed_depth_mult": 0.0},
}
"""Settings that nerfstudio has no field for: an upper bound for splats (see `presets.most_gaussians`), and how much
seed points say about depth.
"""

_FEWEST = 100  # Gaussians


def apply_overrides(config: Any, overrides: Sequence[str], method: str) -> None:
    """Set fields of the nested configuration `config` in place.

    Each override is `path=value`, the path's parts being field names, keys or list positions
    (`optimizers.means.optimizer.lr=1e-3`). The value is read as the field's annotation or present value asks: numbers,
    true/false, none, text, and JSON or comma-separated items for lists and tuples.

    Raises InputError for an override without `=`, an unknown path (with the nearest ones), a value of the wrong kind,
    or a field that the run sets itself.
    """
    for override in overrides:
        _set(config, *read_override(override), method)


def read_override(override: str) -> tuple[str, str]:
    """The path and the value of `path=value`.

    Raises InputError for an override without `=`, and for a field that the run sets itself.
    """
    path, equals, text = override.partition("=")
    path = path.strip()
    if not equals or not path:
        raise InputError(f"The setting {override!r} has no value; write it as a.b.c=value.")
    if any(path == owned or path.startswith(owned + ".") for owned in _OWNED):
        raise InputError(f"{path} is decided by the run itself and cannot be set.")
    return path, text.strip()


def read_own_settings(overrides: Sequence[str], preset: str) -> dict[str, float]:
    """The settings that are ours rather than nerfstudio's, of those that the overrides give.

    Raises InputError for what is no number, and for one that makes no sense.
    """
    values: dict[str, float] = {}
    for override in overrides:
        name, _, text = override.partition("=")
        if name in OWN_SETTINGS[preset]:
            usual = OWN_SETTINGS[preset][name]
            try:
                values[name] = type(usual)(text)
            except ValueError:
                raise InputError(f"{name}={text} is not a number; write for example {name}={usual}.") from None
    if values.get("max_gaussians", _FEWEST) < _FEWEST:
        raise InputError(f"max_gaussians={values['max_gaussians']} is too few to show anything; give at least 100.")
    if values.get("seed_depth_mult", 0) < 0:
        raise InputError(f"seed_depth_mult={values['seed_depth_mult']} is negative; give 0 or more.")
    return values


def _set(config: Any, path: str, text: str, method: str) -> None:
    *parents, last = path.split(".")
    holder = config
    for depth, part in enumerate(parents):
        holder = _child(config, holder, part, ".".join(parents[: depth + 1]), method)
    current = _child(config, holder, last, path, method)
    value = _parse(text, _annotation(holder, last), current, path)
    if isinstance(holder, dict):
        holder[last] = value
    elif isinstance(holder, list):
        holder[int(last)] = value
    else:
        setattr(holder, last, value)


def _child(root: Any, holder: Any, name: str, path: str, method: str) -> Any:
    if name in _names(holder):
        if isinstance(holder, dict):
            return holder[name]
        return holder[int(name)] if isinstance(holder, (list, tuple)) else getattr(holder, name)
    raise unknown(f"setting of {method}", path, _paths(root), "nerfstudio's configuration of the method has them all.")


def _names(holder: Any) -> list[str]:
    if isinstance(holder, dict):
        return [str(key) for key in holder]
    if isinstance(holder, list):
        return [str(i) for i in range(len(holder))]
    return [name for name in getattr(holder, "__dict__", {}) if not name.startswith("_")]


def _paths(holder: Any, prefix: str = "") -> list[str]:
    """Every path under `holder`."""
    found = []
    for name in _names(holder):
        found.append(prefix + name)
        child = _child(holder, holder, name, name, "")
        if not isinstance(child, (str, int, float, Path, type, enum.Enum)):
            found += _paths(child, f"{prefix}{name}.")
    return found


def _annotation(holder: Any, name: str) -> Any:
    """The declared type of a field, or None where there is no usable one."""
    if isinstance(holder, (dict, list)):
        return None
    try:
        return typing.get_type_hints(type(holder)).get(name)
    except (NameError, TypeError):  # annotations that only a type checker can resolve
        return None


def _parse(text: str, annotation: Any, current: Any, path: str) -> Any:
    if annotation is None or annotation is Any:
        if current is None:
            return _guess(text)
        annotation = type(current)
    try:
        return _convert(text, annotation)
    except (ValueError, TypeError):
        raise InputError(f"{text!r} is no value for {path}, which is {_spell(annotation)} (now {current!r}).") from None


def _convert(text: str, annotation: Any) -> Any:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _convert(text, arguments[0])
    if origin is typing.Union or origin is types.UnionType:
        if type(None) in arguments and text.lower() in {"none", "null"}:
            return None
        for choice in arguments:
            try:
                return _convert(text, choice)
            except (ValueError, TypeError):
                continue
        raise ValueError(text)
    if origin is typing.Literal:
        for choice in arguments:
            if str(choice) == text:
                return choice
        raise ValueError(text)
    kind = origin or annotation
    if kind is bool:
        if text.lower() not in {"true", "false", "1", "0", "yes", "no"}:
            raise ValueError(text)
        return text.lower() in {"true", "1", "yes"}
    if kind in (int, float, str, Path):
        return kind(text)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind[text]
    if kind in (list, tuple):
        return kind(_items(text, kind, arguments))
    if kind is dict:
        value = json.loads(text)
        if not isinstance(value, dict):
            raise ValueError(text)
        return value
    raise TypeError(annotation)


def _items(text: str, kind: type, arguments: tuple[Any, ...]) -> list[Any]:
    if text.startswith("["):
        values = json.loads(text)
    else:
        values = [part.strip() for part in text.strip("()").split(",") if part.strip()]
    if not arguments:
        return [_guess(value) if isinstance(value, str) else value for value in values]
    if kind is list or arguments[-1] is Ellipsis:
        arguments = (arguments[0],) * len(values)
    if len(arguments) != len(values):
        raise ValueError(text)
    return [
        _convert(value if isinstance(value, str) else json.dumps(value), item)
        for value, item in zip(values, arguments, strict=True)
    ]


def _guess(text: str) -> Any:
    """A value for a field that says nothing about its type."""
    try:
        return json.loads(text.lower() if text in {"True", "False"} else text)
    except json.JSONDecodeError:
        return None if text.lower() == "none" else text


def _spell(annotation: Any) -> str:
    choices = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return "one of " + ", ".join(str(choice) for choice in choices)
    return str(annotation).replace("typing.", "") if choices else str(getattr(annotation, "__name__", annotation))
