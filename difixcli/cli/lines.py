"""A command's words, put together again from what it was given: the line of a job over one of several scenes."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from enum import Enum
from typing import Any

from typer.models import ArgumentInfo, OptionInfo


def words(signature: inspect.Signature, values: Mapping[str, Any], leave_out: Collection[str] = ()) -> list[str]:
    """Arguments and options that give a command these values; what has its default is not said."""
    arguments: list[str] = []
    options: list[str] = []
    for name, parameter in signature.parameters.items():
        value = values.get(name, parameter.default)
        if name in leave_out or value == parameter.default or value is None:
            continue
        (info,) = (one for one in parameter.annotation.__metadata__ if isinstance(one, (ArgumentInfo, OptionInfo)))
        each = value if isinstance(value, (list, tuple)) else [value]
        if isinstance(info, ArgumentInfo):
            arguments += [text if text[:1] != "-" else f"./{text}" for text in map(_text, each)]  # else an option
            continue
        flag = flag_of(name, info, value)
        options += [flag] if isinstance(value, bool) else [f"{flag}={_text(one)}" for one in each]
    return [*arguments, *options]


def flag_of(name: str, info: ArgumentInfo | OptionInfo, value: Any = None) -> str:
    """What a parameter is called on the line: --option, of a flag its negation where the value is False, of an argument
    its name."""
    if isinstance(info, ArgumentInfo):
        return f"the {name.replace('_', ' ')}"
    flags = [one for one in flags_of(name, info, isinstance(value, bool)) if one.startswith("--")]
    negated = [one for one in flags if one.startswith("--no-")]
    return negated[0] if value is False and negated else flags[0]


def flags_of(name: str, info: OptionInfo, of_two: bool) -> list[str]:
    """All that an option may be called, negations included, as --output and -o; `of_two` says that it is yes or no."""
    # in Annotated the first name stands where a default would
    given = [one for one in (info.default, *(info.param_decls or ())) if isinstance(one, str) and one[:1] == "-"]
    if given:
        return [flag for one in given for flag in one.split("/")]
    flag = f"--{name.replace('_', '-')}"
    return [flag, f"--no-{flag[2:]}"] if of_two else [flag]


def _text(value: Any) -> str:
    return str(value.value if isinstance(value, Enum) else value)
