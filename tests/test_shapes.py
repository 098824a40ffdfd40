"""The shape of JSON that is read: what fits, and which entry is named where one does not."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from difixcli.errors import InputError
from difixcli.runs import read_json
from difixcli.shapes import DEEPEST, Each, OneOf, built, check_shape, fault_of, parsed

SHAPE = {"name": str, "views": [{"size": int, "gain?": (None, float)}], "figures?": Each(float)}


def test_what_fits_has_no_fault() -> None:
    for value in (
        {"name": "a", "views": []},
        {"name": "a", "views": [{"size": 3, "gain": None, "more": [1]}], "figures": {"x": 1, "y": 0.5}},
    ):
        assert fault_of(value, SHAPE) is None


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (3, "the whole is 3, not an object"),
        ({"views": []}, "name is missing"),
        ({"name": None, "views": []}, "name is null, not a text"),
        ({"name": "a", "views": {}}, "views is an object, not a list"),
        ({"name": "a", "views": [{"size": 1}, {"size": True}]}, "views[1].size is true, not a whole number"),
        ({"name": "a", "views": [{"size": 1, "gain": "9"}]}, "views[0].gain is '9', not null or a number"),
        ({"name": "a", "views": [], "figures": {"x": float("nan")}}, "figures.x is nan, not a number"),
        ({"name": "a", "views": [], "figures": {"x": 10**400}}, "figures.x is a number of hundreds of digits"),
    ],
)
def test_the_first_entry_that_does_not_fit_is_named(value: object, fault: str) -> None:
    with pytest.raises(InputError) as raised:
        check_shape(value, SHAPE, "run.json")
    assert "run.json" in str(raised.value) and fault in str(raised.value)


def test_of_several_choices_the_fault_inside_the_right_one_is_named() -> None:
    assert fault_of({"a": {}}, {"a": (None, {"b": int})}) == "a.b is missing"
    assert fault_of({"a": 2}, {"a": (None, {"b": int})}) == "a is 2, not null or an object"
    assert fault_of("y", OneOf(("x", "z"))) == "the whole is 'y', not 'x' or 'z'"


@dataclass
class _Box:
    kind: Literal["small", "large"]
    sides: list[float]
    label: str | None = None
    notes: dict[str, int] = field(default_factory=dict)


def test_a_dataclass_is_built_of_what_fits_it() -> None:
    assert built(_Box, {"kind": "small", "sides": [1, 2.5]}, "f", "update") == _Box("small", [1, 2.5])
    for value, words in (
        ({"kind": "small"}, "sides is missing"),
        ({"kind": "huge", "sides": []}, "kind is 'huge'"),
        ({"kind": "large", "sides": [], "notes": {"a": "b"}}, "notes.a is 'b'"),
        ({"kind": "large", "sides": [], "hue": 1}, r"unknown entries \(hue\); update"),
    ):
        with pytest.raises(InputError, match=words):
            built(_Box, value, "f", "update")


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), '{"a":' * 5000 + "1" + "}" * 5000, "9" * 5000,
     '"\\ud800"', '{"a\\u0000": 1}', "{", "", '{"a": 1} 2'],
)  # fmt: skip
def test_texts_that_would_break_a_reader_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=r"a\.json"):
        read_json(tmp_path / "a.json")


def test_a_name_that_is_not_utf8_comes_back_as_it_was_written() -> None:
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    assert parsed(json.dumps({"name": name}), "f") == {"name": name}
    deep = "[" * DEEPEST + "]" * DEEPEST
    assert fault_of(parsed(deep, "f"), list) is None
