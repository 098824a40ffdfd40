"""The one error that is the caller's to mend; `console` turns it into a sentence and exit code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(Exception):
    """Bad input or an impossible request.

    The message is one plain sentence that names the file or value at fault and says what to do about it.
    """


def unknown(what: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that is none of the known ones, with the nearest matches, or all where few."""
    choices = sorted(known)
    near = difflib.get_close_matches(name, choices, n=3, cutoff=0.5) or choices[:12]
    return InputError(f"There is no {what} called {name}; did you mean {' or '.join(near)}?")
