"""A line over several scenes is checked once, before anything begins: a command over the first of them runs up to where
it has told all that its options alone can be wrong in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextvars import ContextVar

from difixcli.errors import InputError

_alone: ContextVar[bool] = ContextVar("only the options are checked", default=False)


class _Checked(Exception):
    """A command has come to the end of its checks."""


def are_alone() -> bool:
    """Whether only options are checked, of lines that may be done on another machine."""
    return _alone.get()


def options_end() -> None:
    """A command says here that what follows takes long; where only its options are checked it goes no further."""
    if _alone.get():
        raise _Checked


def check_options(lines: Iterable[Callable[[], None]]) -> None:
    """Run each line's checks until one passes them all: what is wrong with a scene alone is its own job's to tell.

    Raises InputError, the first line's, where none passes.
    """
    faults: list[InputError] = []
    token = _alone.set(True)
    try:
        for line in lines:
            try:
                line()
            except _Checked:
                return
            except InputError as fault:
                faults.append(fault)
    finally:
        _alone.reset(token)
    if faults:
        raise faults[0]
