"""The shape of JSON that is read, checked once, so that nothing after it need doubt a key.

A shape is written as the JSON itself is.

    str, bool, int, float     a text, a truth value, a whole number, a finite number (whole or not)
    dict, list, object        any object, any list, anything
    None                      null
    [shape]                   a list of such
    {"key": shape}            an object with these keys; "key?" may be missing; keys that are not named may be anything
    Each(shape)               an object of such, whatever its keys
    OneOf(values)             one of these texts
    (shape, shape)            any of these

`shape_of` makes the shape of a dataclass.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from difixcli.errors import DamagedError, short

T = TypeVar("T")

RESTORE = "restore it or remove it"
DEEPEST = 64
"""How many levels of objects and lists are read; what is deeper was made to break its readers."""

_TYPES: dict[Any, str] = {
    str: "a text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    dict: "an object",
    list: "a list",
    None: "null",
}
_LARGEST = 1e300  # whole numbers have no limit in JSON, and those beyond are no floats


@dataclass(frozen=True)
class Each:
    """The shape of an object whose keys may be any and whose values have one shape."""

    shape: Any


@dataclass(frozen=True)
class OneOf:
    """The shape of a text that is one of a few."""

    values: tuple[str, ...]


def shape_of(kind: type) -> dict[str, Any]:
    """The shape of a dataclass of plain values; a field with a default may be missing."""
    hints = typing.get_type_hints(kind)
    optional = {f.name for f in dataclasses.fields(kind) if not (f.default is f.default_factory is dataclasses.MISSING)}
    return {f"{name}?" if name in optional else name: _shape_of_hint(hint) for name, hint in hints.items()}


def built(kind: type[T], value: Any, where: object, cure: str) -> T:
    """The dataclass that a value of JSON describes. InputError, naming `where` it stands, for one of another shape, and
    with the `cure` for one with entries that the dataclass does not have.
    """
    check_shape(value, shape_of(kind), where)
    if extra := sorted(set(value) - {field.name for field in dataclasses.fields(kind)}):  # type: ignore[arg-type]
        raise DamagedError(f"{where} has unknown entries ({short(', '.join(extra))}); {cure}.")
    return kind(**value)


def _shape_of_hint(hint: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return tuple(map(_shape_of_hint, arguments))
    if origin is typing.Literal:
        return OneOf(arguments)
    if origin is list:
        return [_shape_of_hint(arguments[0])]
    if origin is dict:
        return Each(_shape_of_hint(arguments[1]))
    if hint is Any:
        return object
    return None if hint is types.NoneType else hint


def parsed(text: str, where: object, cure: str = RESTORE) -> Any:
    """What a JSON text says. InputError, naming `where` it stands, for one that is none, that is nested too deeply, or
    that has texts which are no Unicode or hold the character 0.
    """
    try:
        value = json.loads(text)
        if text.count("[") + text.count("{") > DEEPEST and _depth_exceeds(value, DEEPEST):
            raise RecursionError
    except RecursionError:
        raise DamagedError(f"{where} is nested more than {DEEPEST} levels deep; {cure}.") from None
    except ValueError as error:  # json's own, and that of whole numbers of thousands of digits
        raise DamagedError(f"{where} is not valid JSON ({short(str(error))}); {cure}.") from None
    if "\\u0000" in text or "\\ud" in text.lower():
        for one in _texts(value):
            if not _is_text(one):
                raise DamagedError(f"{where} has the text {short(one)!a}, which is none; {cure}.")
    return value


def check_shape(value: Any, shape: Any, where: object, cure: str = RESTORE) -> None:
    """Raises InputError, naming `where` and the first entry that does not fit, where a value has another shape."""
    if (fault := fault_of(value, shape)) is not None:
        raise DamagedError(f"{where} has another form than expected: {fault}; {cure}.")


def fault_of(value: Any, shape: Any, name: str = "") -> str | None:
    """What is wrong with the entry `name` (empty for the whole), in words; None where nothing is."""
    said = short(name.removeprefix(".")) or "the whole"
    if isinstance(shape, tuple):
        faults = [fault_of(value, one, name) for one in shape]
        if None in faults:
            return None
        # of the choices that are of the right kind the fault may lie deeper
        deeper = [fault for fault in faults if fault is not None and not fault.startswith(f"{said} is ")]
        return deeper[0] if deeper else f"{said} is {_shown(value)}, not {' or '.join(map(_kind, shape))}"
    if shape is object:
        return None
    if not _is_of_kind(value, shape):
        return f"{said} is {_shown(value)}, not {_kind(shape)}"
    if isinstance(shape, list):
        return next((f for i, one in enumerate(value) if (f := fault_of(one, shape[0], f"{name}[{i}]"))), None)
    if isinstance(shape, Each):
        return next((f for key, one in value.items() if (f := fault_of(one, shape.shape, f"{name}.{key}"))), None)
    if isinstance(shape, Mapping):
        for key, one in shape.items():
            plain = key.removesuffix("?")
            if plain not in value:
                if plain == key:
                    return f"{short(f'{name}.{plain}'.removeprefix('.'))} is missing"
            elif fault := fault_of(value[plain], one, f"{name}.{plain}"):
                return fault
    return None


def _is_of_kind(value: Any, shape: Any) -> bool:
    """Whether a value is what a shape is on its outside."""
    if shape is None:
        return value is None
    if isinstance(shape, (Mapping, Each)):
        return isinstance(value, dict)
    if isinstance(shape, list):
        return isinstance(value, list)
    if isinstance(shape, OneOf):
        return value in shape.values
    if shape in (int, float):
        kinds = (int, float) if shape is float else int
        return isinstance(value, kinds) and not isinstance(value, bool) and _is_float(value)
    return isinstance(value, shape)


def _is_float(value: float) -> bool:
    return -_LARGEST < value < _LARGEST  # NaN is not


def _kind(shape: Any) -> str:
    if isinstance(shape, (Mapping, Each)):
        return _TYPES[dict]
    if isinstance(shape, OneOf):
        return " or ".join(map(repr, shape.values))
    return _TYPES[list] if isinstance(shape, list) else _TYPES[shape]


def _shown(value: Any) -> str:
    """A value for people: short, and of objects and lists only that they are such."""
    if isinstance(value, (dict, list)):
        return _TYPES[type(value)]
    if isinstance(value, str):
        return repr(short(value))
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return repr(value) if not isinstance(value, int) or _is_float(value) else "a number of hundreds of digits"


def _depth_exceeds(value: Any, most: int) -> bool:
    """Whether objects and lists lie in each other more than `most` times."""
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(most):
        inner = (item for one in level for item in (one.values() if isinstance(one, dict) else one))
        level = [item for item in inner if isinstance(item, (dict, list))]
    return bool(level)


def _texts(value: Any) -> list[str]:
    """All texts in a value, keys among them."""
    found, left = [], [value]
    while left:
        one = left.pop()
        if isinstance(one, str):
            found.append(one)
        elif isinstance(one, dict):
            left += [*one, *one.values()]
        elif isinstance(one, list):
            left += one
    return found


def _is_text(text: str) -> bool:
    """Whether a text may stand in a file's name: names that are not UTF-8 are kept with surrogates of their bytes."""
    if "\0" in text:
        return False
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True
