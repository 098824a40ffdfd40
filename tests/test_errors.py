"""Unknown names are answered with those that may have been meant."""

from __future__ import annotations

from commands import difix, refused

from difixcli.errors import InputError, near, short, unknown


def test_near_names_come_first_and_few_names_all() -> None:
    assert str(unknown("method", "Nerfakto", ["nerfacto", "tensorf"])) == (
        "There is no method called Nerfakto; did you mean nerfacto?"
    )
    assert str(unknown("scene", "x", ["room", "street", "hall"], "Name one.")) == (
        "There is no scene called x; there are hall, room and street. Name one."
    )
    assert str(unknown("model", "x", [], "Make one.")) == "There is no model called x. Make one."
    assert str(unknown("name", "zzz", map(str, range(50)))) == "There is no name called zzz."


def test_the_last_part_of_a_name_is_enough() -> None:
    assert near("difix_reff", ["nvidia/difix_ref", "bundled"]) == ["nvidia/difix_ref"]
    assert near("runs/my-fixr", ["my-fixer", "other"]) == ["my-fixer"]


def test_very_long_names_of_the_system_are_not_either() -> None:
    result = difix("distill", "x" * 5000)
    refused(result, "too long")
    assert len(result.stderr) < 400


def test_very_long_names_are_not_echoed_whole() -> None:
    assert len(str(unknown("scene", "a" * 100_000, ["room"]))) < 300
    said = str(InputError(f"The image {'b' * 5000} is missing; check its name."))
    assert len(said) < 400 and "5000 characters" in said and said.endswith("is missing; check its name.")
    path = "/".join(["folder"] * 40)
    assert path in str(InputError(f"{path} is missing."))
    assert short("c" * 100) == "c" * 100 and len(short("c" * 101)) <= 100
