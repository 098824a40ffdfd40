"""Functions compiled for a CPU by numba, which keeps them on disk where it may."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

FAST = {"nnan", "ninf", "nsz", "arcp", "contract", "afn"}
"""For `fastmath`: all but another order of sums. What the optimiser makes of that is not the same in the process that
compiles a function and in those that read it from disk, and a run that is taken up again must be the same to a bit.
"""

_unkept: set[str] = set()


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """`numba.njit` with these options; what it compiles is kept on disk for the next process.

    Where neither NUMBA_CACHE_DIR, nor this package's folder, nor the user's cache can be written to (a container run
    by a user without a home) every process compiles for itself; see `kept_on_disk`.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError as error:
            if "cannot cache" not in str(error):
                raise
            _unkept.add(function.__qualname__)
            return njit(**options)(function)

    return decorate


def kept_on_disk() -> bool:
    """Whether what the functions made so far compile to outlives this process."""
    return not _unkept
