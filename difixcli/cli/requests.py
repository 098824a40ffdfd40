"""What a command is asked for, as a dataclass whose fields are the command's options.

The line, a file of options (`--config`) and Python callers fill one and the same request. It is checked in one place,
`validate`, before anything that takes long is imported.
"""

from __future__ import annotations

import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import typer
from typer.models import ArgumentInfo, OptionInfo

from difixcli.cli import checking
from difixcli.cli.inputs import check_device
from difixcli.cli.lines import flag_of, words
from difixcli.cli.options import (
    Device,
    DeviceOption,
    ForceOption,
    OutputOption,
    Preset,
    PresetOption,
    SeedOption,
    SetOption,
    SizeOption,
)
from difixcli.errors import InputError, runs_in_a_circle, short, unknown
from difixcli.runs import drop_empty_runs, forget_runs

_KINDS: dict[type, str] = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
}
R = TypeVar("R", bound="Request")


@dataclass(frozen=True)
class Request:
    """Fields annotated as typer takes them, each with a default, None where nothing was asked for; one without it must
    be given.

    Values may be given as they stand on the line: "cpu" for `Device.cpu`, "out" for `Path("out")`.
    """

    def __post_init__(self) -> None:
        """Raises InputError for a value that the line would not take: of another kind, or out of its bounds."""
        for name, (kind, info) in options_of(type(self)).items():
            object.__setattr__(self, name, _taken(name, kind, info, getattr(self, name)))

    def validate(self) -> None:
        """Raises InputError for what can be told to be wrong without torch and nerfstudio, which take long to import:
        unknown names, values that make no sense, and options that contradict each other.
        """
        try:
            if not checking.are_alone():
                self._check_device()
            self._check()
        except OSError as error:  # of a name that is too long, or of what may not be read
            named = "" if error.filename is None else f" ({short(str(error.filename))})"
            raise InputError(f"{error.strerror}{named}; mend the name, or who may read it.") from error
        except RuntimeError as error:
            if not runs_in_a_circle(error):
                raise
            raise InputError(f"{error}, which leads back to itself; name another path.") from error

    def _check(self) -> None:
        """What `validate` does; an OSError is told by it."""

    def _check_device(self) -> None:
        """InputError for a device that this machine has not."""
        if (device := getattr(self, "device", None)) is not None:
            check_device(device)

    def given(self, *names: str) -> list[str]:
        """Those of the options called so that have not their default, as they are called on the line."""
        defaults = {field.name: field.default for field in fields(self)}
        options = options_of(type(self))
        values = {name: value for name in names if (value := getattr(self, name)) != defaults[name]}
        return [flag_of(name, options[name][1], value) for name, value in values.items()]

    def words(self, leave_out: Collection[str] = ()) -> list[str]:
        """What asks for the same on the line, but for the fields left out; what has its default is not said."""
        return words(inspect.Signature(parameters_of(type(self))), vars(self), leave_out)


@dataclass(frozen=True, kw_only=True)
class ReconstructionRequest(Request):
    """What a command that trains reconstructions is asked for beside its own: how, where, and where to."""

    size: SizeOption = None
    seed: SeedOption = 0
    preset: PresetOption = Preset.auto
    device: DeviceOption = Device.auto
    settings: SetOption = None
    output: OutputOption = None
    force: ForceOption = False


def options_of(kind: type[Request]) -> dict[str, tuple[Any, ArgumentInfo | OptionInfo]]:
    """Each field's type, and what typer is told of it, by name."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: typing.get_args(hints[field.name])[:2] for field in fields(kind)}  # type: ignore[misc]


def parameters_of(kind: type[Request]) -> list[inspect.Parameter]:
    """The fields as a command's parameters, in the order in which the request takes them."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in sorted(fields(kind), key=lambda field: field.kw_only is True)  # last, though a base's stand first
    ]


def filling(request: type[R]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command that takes the request as its first parameter made one that has the request's fields for options."""
    own = parameters_of(request)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        others = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

        @functools.wraps(command)
        def run(**values: Any) -> None:
            asked = request(
                **{parameter.name: values.pop(parameter.name) for parameter in own if parameter.name in values}
            )
            command(asked, **values)

        del run.__wrapped__  # type: ignore[attr-defined]
        run.__signature__ = inspect.Signature([*own, *others])  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in [*own, *others]}
        return run

    return decorate


@contextmanager
def working() -> Iterator[None]:
    """Runs that are open when the block is refused, and hold nothing yet, are removed."""
    forget_runs()
    try:
        yield
    except InputError:
        drop_empty_runs()
        raise


def _taken(name: str, kind: Any, info: ArgumentInfo | OptionInfo, value: Any) -> Any:
    """A value as its option has it."""
    wanted, optional = _without_none(kind)
    if optional and (value is None or (isinstance(value, (list, tuple)) and not value)):
        return None
    option = flag_of(name, info, value)
    if typing.get_origin(wanted) is list:
        if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
            raise InputError(f"{option} is a list, not {short(repr(value))}.")
        if not value:
            raise InputError(f"{option} is an empty list; name one at least.")
        (item,) = typing.get_args(wanted)
        return [_one(option, item, one) for one in value]
    value = _one(option, wanted, value)
    for bound, outside in ((info.min, "least"), (info.max, "most")):
        if bound is not None and (value < bound if outside == "least" else value > bound):
            raise InputError(f"{option} {value} is out of its bounds: at {outside} {bound}.")
    if info.callback is not None:
        try:
            value = info.callback(value)
        except typer.BadParameter as error:
            raise InputError(f"{option}: {error.message}") from None
    return value


def _one(option: str, kind: Any, value: Any) -> Any:
    if isinstance(kind, type) and issubclass(kind, Enum):
        choices = [str(one.value) for one in kind]
        if str(getattr(value, "value", value)) not in choices:
            raise unknown(f"choice of {option}", short(str(value)), choices)
        return kind(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is str and isinstance(value, Path):
        return str(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise InputError(f"{option} is {_KINDS[kind]}, not {short(repr(value))}.")
    if kind is float and not math.isfinite(value):
        raise InputError(f"{option} is a number, not {value}.")
    return value


def _without_none(kind: Any) -> tuple[Any, bool]:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        (wanted,) = [one for one in typing.get_args(kind) if one is not type(None)]
        return wanted, True
    return kind, False
