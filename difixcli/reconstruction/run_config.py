"""A nerfstudio run's `config.yml`, read without trust.

nerfstudio writes its configuration as YAML whose tags name Python objects, and reads it back with a loader that
imports and calls whatever a tag names. Here tags become plain data: nothing is imported or called, and a file that
asks for calls which no configuration of nerfstudio needs is refused. What is learned from it are values for fields
that the registered configuration of the same method has.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from difixcli.errors import InputError
from difixcli.reconstruction.methods import known_packages, method_config
from difixcli.reconstruction.presets import PRESET_FIELDS
from difixcli.runs import unreadable

_PYTHON = "tag:yaml.org,2002:python/"
_HARMLESS = frozenset({"pathlib", "_operator.getitem", "operator.getitem", "collections.OrderedDict"})


@dataclass(frozen=True)
class _Tagged:
    """A node with one of Python's tags: what it names, and the plain data below it."""

    name: str
    value: Any


@dataclass(frozen=True)
class RunConfig:
    """What a run's configuration says: the method, and fields of the method's configuration by their paths."""

    method: str
    settings: dict[str, Any]


def read_config(path: Path) -> RunConfig:
    """Read the `config.yml` of a nerfstudio run.

    `settings` has the model's fields, but for those that the preset decides (schedules, the machine, per-photo
    corrections). Raises InputError for a missing or broken file, one that asks to run code, and a method that is not
    installed.
    """
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_loader(path))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path} is missing; name the folder of a nerfstudio run.") from None
    except OSError as error:
        raise unreadable(path, error) from error
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        # what PyYAML's own constructors raise for scalars that are not what their tag says, and for odd keys
        reason = " ".join(str(error).split())
        raise InputError(f"{path} cannot be read as YAML ({reason}); restore it.") from None
    if not isinstance(data, _Tagged) or not isinstance(data.value, dict):
        raise InputError(f"{path} is no configuration of nerfstudio; name the folder of a nerfstudio run.")
    method, pipeline = data.value.get("method_name"), data.value.get("pipeline")
    model = pipeline.value.get("model") if isinstance(pipeline, _Tagged) and isinstance(pipeline.value, dict) else None
    if not isinstance(method, str) or not isinstance(model, _Tagged) or not isinstance(model.value, dict):
        raise InputError(f"{path} names no method or model; name the folder of a nerfstudio run.")
    registered = method_config(method).pipeline.model
    if model.name != _name_of(type(registered)):
        raise InputError(f"{path} describes a {model.name}, but the method {method} is a {_name_of(type(registered))}.")
    settings = dict(_settings(model.value, registered, "pipeline.model"))
    for name, value in settings.items():
        current = registered
        for part in name.split(".")[2:]:
            current = getattr(current, part)
        if not _is_alike(value, current):
            raise InputError(f"{path} gives {name} the value {value!r}, where the method has {current!r}; restore it.")
    return RunConfig(method, settings)


def _settings(values: Any, registered: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """The fields of `registered` that a file gives plain values for."""
    for field in dataclasses.fields(registered):
        if field.name.startswith("_") or field.name in PRESET_FIELDS or field.name not in values:
            continue
        value, current, path = values[field.name], getattr(registered, field.name), f"{prefix}.{field.name}"
        if dataclasses.is_dataclass(current):
            if isinstance(value, _Tagged) and value.name == _name_of(type(current)) and isinstance(value.value, dict):
                yield from _settings(value.value, current, path)
        elif isinstance(current, enum.Enum) or not _is_plain(value):
            continue  # kinds of losses, classes: the method's own
        else:
            yield path, value


def _is_alike(value: Any, current: Any) -> bool:
    """Whether a value is of the kind that a field has; of a field that is None nothing is known."""
    if value is None or current is None:
        return True
    if isinstance(current, (bool, str, dict)):
        return isinstance(value, type(current))
    if isinstance(current, (int, float)):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, (list, tuple)) if isinstance(current, (list, tuple)) else True


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))


def _name_of(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _loader(path: Path) -> type[yaml.SafeLoader]:
    """A safe loader in whose output Python's tags are `_Tagged`."""

    class Loader(yaml.SafeLoader):
        pass

    packages = known_packages()

    def construct(loader: Any, suffix: str, node: yaml.Node) -> Any:
        kind, _, name = suffix.partition(":")
        if kind == "tuple":
            return tuple(loader.construct_sequence(node, deep=True))
        harmless = name in _HARMLESS or name.split(".")[0] in packages | {"pathlib"}
        if kind not in ("name", "object", "object/apply", "object/new") or (kind != "name" and not harmless):
            line = node.start_mark.line + 1
            raise InputError(
                f"{path} asks to run code that is none of nerfstudio's (!!python/{suffix}, line {line}); nothing was "
                "run. Do not open it with nerfstudio's tools either unless you know where it comes from."
            )
        return _Tagged(name, _content(loader, node))

    def refuse(loader: Any, node: yaml.Node) -> Any:
        raise InputError(f"{path} has the tag {node.tag}, which no configuration of nerfstudio has; restore it.")

    Loader.add_multi_constructor(_PYTHON, construct)
    Loader.add_constructor(None, refuse)
    return Loader


def _content(loader: Any, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_scalar(node)
