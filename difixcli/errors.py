"""The one error that is the caller's to mend; `console` turns it into a sentence and exit code 2."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Collection, Iterable

_FEW = 16
_LONG = 400  # characters of a word; few folders' paths have as many


class InputError(Exception):
    """Bad input or an impossible request.

    The message is one plain sentence that names the file or value at fault and says what to do about it. Of words that
    are very long (a name or value that was made to be) the middle is left out.
    """

    def __init__(self, message: str) -> None:
        super().__init__(re.sub(rf"\S{{{_LONG},}}", lambda word: short(word[0], _LONG // 2), message))


class DamagedError(InputError):
    """A file was read, and does not hold what it should: it is damaged, or of another version. To be read again would
    not help it; what can be made anew may be.
    """


def short(text: str, most: int = 100) -> str:
    """A text of at most so many characters: the middle of a longer one is left out, and its length is said."""
    if len(text) <= most:
        return text
    told = f"… ({len(text)} characters) …"
    half = max(most - len(told), 2) // 2
    return f"{text[:half]}{told}{text[-half:]}"


def unknown(what: str, name: str, known: Iterable[str], tail: str = "") -> InputError:
    """The error for a name that is none of the known ones, with the nearest of them, or all where they are few.

    `tail` is what else to do about it: a whole sentence or more, put at the end.
    """
    choices = sorted(known)
    name = short(name)  # to be compared, too: the time that takes grows with the square of a name's length
    hint = "."
    if close := near(name, choices):
        hint = f"; did you mean {' or '.join(close)}?"
    elif choices and len(choices) <= _FEW:
        *first, last = choices
        hint = "; there " + (f"are {', '.join(first)} and {last}." if first else f"is {last}.")
    return InputError(f"There is no {what} called {name}{hint}{' ' if tail else ''}{tail}")


def near(name: str, known: Iterable[str]) -> list[str]:
    """At most three of the known names that may have been meant; their last part counts too, and case does not."""
    keys: dict[str, str] = {}
    for choice in known:
        for key in (choice, choice.rsplit("/", maxsplit=1)[-1]):
            keys.setdefault(key.lower(), choice)
    wanted = (name.lower(), name.lower().rsplit("/", maxsplit=1)[-1])
    found = [keys[key] for text in wanted for key in difflib.get_close_matches(text, keys, n=3, cutoff=0.6)]
    return list(dict.fromkeys(found))[:3]


def less_memory(options: Collection[str]) -> str:
    """What is said where the memory was too small, with the cures that a command of these options (their names in
    Python) has.
    """
    cures = ["work at a smaller --size"] if "size" in options else []
    if "crop" in options:
        cures.append("train on a smaller --batch or --crop")
    if {"settings", "method"} <= set(options):
        cures.append("bound splats with --set max_gaussians=N")
    cure = ", or ".join(cures) or "end what else uses it, or take a machine that has more"
    return f"The memory was too small for this; {cure}. Nothing already written is lost."


def out_of_memory(error: Exception) -> bool:
    """Whether the memory of the GPU, or what torch may have of the machine's, was too small."""
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")  # where it was never imported, it has not run out of memory
    if torch is None or not isinstance(error, RuntimeError):
        return False
    signs = ("can't allocate memory", "STATUS_ALLOC_FAILED")  # the machine's; cuDNN's and cuBLAS's
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in signs)


def runs_in_a_circle(error: Exception) -> bool:
    """Whether a path could not be followed because a link on its way leads back to itself."""
    return isinstance(error, RuntimeError) and str(error).startswith("Symlink loop")  # as Python 3.12 and older say it
