"""Being asked to end: SIGINT from a person, SIGTERM and SIGUSR1 from a scheduler that wants its machine back.

All of them end a command as an interruption does, with exit code 130 after SIGINT and 143 after the others. Work that
can be saved in the middle goes on to the next moment at which it can, and saves first.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []))
_asked: int | None = None  # the first signal that asked for the end
_raised = False
_saving = 0  # how many blocks are open that save before they end
_SOON = 0.1  # seconds until an interruption that was lost comes again


class Terminated(KeyboardInterrupt):
    """A scheduler asked the process to end, not a person."""


def interruption(number: int) -> KeyboardInterrupt:
    """What such a signal raises."""
    return KeyboardInterrupt() if number == signal.SIGINT else Terminated()


def interruption_behind(error: BaseException | None) -> KeyboardInterrupt | None:
    """The interruption that an error is or was raised from, if any: Python 3.11 and older make a RuntimeError of
    whatever interrupts them while a class gets its descriptors' names, as half of an import may.
    """
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__
    return error


def listen() -> None:
    """From now on each of the signals interrupts the program; a second SIGINT does so without saving.

    Processes that this one forks end as before.
    """
    owner = os.getpid()

    def hear(number: int, frame: FrameType | None) -> None:
        if os.getpid() == owner:
            _hear(number)
        elif number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, hear)
        sys.unraisablehook = partial(_lost, owner, sys.unraisablehook)


def leave_to_parent(_: int = 0) -> None:
    """In a process that works for this one: the signals, which schedulers send to all, are for this one to hear."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def asked() -> bool:
    """Whether a signal has asked for the end, and the block that saves first should come to its own."""
    return _asked is not None


@contextmanager
def saving() -> Iterator[None]:
    """A block that looks at `asked` often and ends soon after; KeyboardInterrupt at its end if it was asked to."""
    global _saving  # noqa: PLW0603
    _saving += 1
    try:
        yield
    finally:
        _saving -= 1
    if _asked is not None and not _saving:
        _interrupt()


def _hear(number: int) -> None:
    global _asked  # noqa: PLW0603
    insisting = number == signal.SIGINT and _asked == signal.SIGINT
    _asked = _asked if _asked is not None else number
    # one signal may come from several sides (a terminal's whole group, a scheduler and whoever forwards it)
    if insisting or not (_saving or _raised):
        _interrupt()


def _lost(owner: int, tell: Callable[[Any], object], problem: Any) -> None:
    """An interruption that came while something was being destroyed, where nothing can be raised, comes once more."""
    global _asked, _raised  # noqa: PLW0603
    if os.getpid() != owner or not isinstance(problem.exc_value, KeyboardInterrupt):
        tell(problem)
        return
    number = _asked or signal.SIGINT
    _raised = False
    if not _saving:
        _asked = None  # or the same one would be taken for a second
    again = threading.Timer(_SOON, os.kill, (owner, number))
    again.daemon = True
    again.start()


def _interrupt() -> None:
    global _raised  # noqa: PLW0603
    _raised = True
    raise interruption(_asked or signal.SIGINT)
