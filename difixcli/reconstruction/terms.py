"""The names of the loss's terms and what they say, without torch: `objective` measures them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from difixcli.errors import InputError, unknown
from difixcli.images import Operator, check_operator

METHOD = "method"


def check_known(names: Iterable[str]) -> None:
    """InputError for a term that is none of ours, and for a parameter that makes no sense."""
    for name in names:
        kind, colon, parameter = name.partition(":")
        if name != METHOD and kind not in PARAMETERS:
            raise unknown("loss term", kind, [METHOD, *PARAMETERS])
        if name != METHOD:
            PARAMETERS[kind](parameter if colon else None)


def check_parameters(names: Iterable[str]) -> None:
    """InputError for a parameter of one of our terms that makes no sense; other names are let pass."""
    check_known(name for name in names if name.partition(":")[0] in PARAMETERS)


def check_weights(terms: Mapping[str, float]) -> None:
    """InputError for a weight that is no number of 0 or more, and where none of the terms counts."""
    for name, weight in terms.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise InputError(f"The weight {weight} of the loss term {name} is no number of 0 or more.")
    if not any(weight > 0 for weight in terms.values()):
        raise InputError("A pseudo-view has no term of the loss that counts; give it for example method: 1.")


def share_of(kind: str, parameter: str | None) -> float:
    """The part of an image's shorter side that `d_ssim` or `perceptual` look at."""
    share = 0.5 if parameter is None else _number(parameter)
    if not 0 < share <= 1:
        raise InputError(f"{kind}:{parameter} is no part of an image's side; write for example {kind}:0.5.")
    return share


def reduction_of(parameter: str | None) -> tuple[int, Operator]:
    """How many times smaller `low_resolution` makes images, and how."""
    number, _, operator = (parameter or "").partition(":")
    factor = _number(number)
    if factor != int(factor) or factor < 1:
        given = "low_resolution" if parameter is None else f"low_resolution:{parameter}"
        raise InputError(f"{given} does not say how many pixels are averaged; write for example low_resolution:4.")
    return int(factor), check_operator(operator or "area")


def no_parameter(kind: str, parameter: str | None) -> None:
    """InputError for a parameter where none is taken."""
    if parameter is not None:
        raise InputError(f"The loss term {kind} takes no parameter; leave :{parameter} out.")


def _number(text: str) -> float:
    """The number that a parameter says, -1 where it says none."""
    try:
        number = float(text)
    except ValueError:
        return -1.0
    return number if math.isfinite(number) else -1.0


PARAMETERS: dict[str, Callable[[str | None], Any]] = {
    "l2": lambda parameter: no_parameter("l2", parameter),
    "l1": lambda parameter: no_parameter("l1", parameter),
    "d_ssim": lambda parameter: share_of("d_ssim", parameter),
    "perceptual": lambda parameter: share_of("perceptual", parameter),
    "low_resolution": reduction_of,
}
"""Our terms beside the method's own loss; each function reads the parameter, or raises InputError."""
