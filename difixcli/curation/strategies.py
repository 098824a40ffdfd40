"""The strategies by name, and what their options say: known without importing torch, which the strategies need."""

from __future__ import annotations

from difixcli.errors import InputError

STRATEGIES = ("sparse", "cycle", "underfit", "cross-camera", "clips")


def parse_stop(text: str) -> float:
    """`25%` or `0.25` as a share; InputError for anything outside (0, 1)."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError as error:
        raise InputError(f"--stop {text} is not a share of the schedule; write 25% or 0.25.") from error
    if not 0 < share < 1:
        raise InputError(f"--stop {text} is not between 0 and 100 % of the schedule; write for example 25%.")
    return share
