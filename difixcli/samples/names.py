"""The names of the sample scenes, which are known before anything is painted."""

from __future__ import annotations

from difixcli.errors import unknown

NAMES = ("room", "street", "table", "interior")


def check_sample(name: str) -> None:
    """Raises InputError, with near matches, if there is no sample scene of that name."""
    if name not in NAMES:
        raise unknown("sample scene", name, NAMES)
