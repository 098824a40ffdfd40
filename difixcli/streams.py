"""stdout and stderr as they are found: closed, full, without a reader, or unable to encode what is printed.

What is printed never ends the work: what cannot be written is dropped, and what cannot be encoded is said in ASCII.
"""

from __future__ import annotations

import codecs
import errno
import os
import sys
import unicodedata
from typing import Any

_PLAIN = {
    **{"↑": "^", "↓": "v", "×": "x", "−": "-", "–": "-", "·": ".", "±": "~", "…": ".", "²": "2", "³": "3", "⚠": "!"},
    **dict(zip("▁▂▃▄▅▆▇█", "12345678", strict=True)),
    **dict.fromkeys("“”„", '"'),
    **dict.fromkeys("‘’", "'"),
}  # one character for one, so that tables stay aligned
_HANDLER = "difix-plain"


def prepare() -> None:
    """Makes the process's streams harmless; for a whole program, before anything is printed."""
    _open_what_is_closed()
    codecs.register_error(_HANDLER, _plainly)
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_HANDLER)
        setattr(sys, name, _Harmless(stream))


def failure() -> str | None:
    """Why what was printed on stdout did not arrive, in the system's words; None where it did, or its reader has left
    of his own will."""
    error = getattr(sys.stdout, "failure", None)
    return None if error is None or error.errno == errno.EPIPE else str(error.strerror or error)


def _open_what_is_closed() -> None:
    """A stream that was closed (`>&-`) becomes the null device: else the next file to be opened would take its place,
    and be printed into."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            mode = "r" if number == 0 else "w"
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))


class _Harmless:
    """A text stream whose writes never fail: after the first that does, they go to the null device."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.failure: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError as error:
            self._fail(error)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        """What is still in the stream's buffer goes to the null device, too, when Python ends."""
        self.failure = self.failure or error
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)


def _plainly(error: UnicodeError) -> tuple[str | bytes, int]:
    """The handler of codecs: what an encoding lacks, in ASCII. A name's bytes that are not UTF-8 are escaped."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_plain, error.object[error.start : error.end])), error.end


def _plain(character: str) -> str:
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    if character in _PLAIN:
        return _PLAIN[character]
    if "\u2500" <= character <= "\u257f":  # of tables' frames
        words = unicodedata.name(character).split()
        across, along = {"HORIZONTAL", "LEFT", "RIGHT"} & {*words}, {"VERTICAL", "UP", "DOWN"} & {*words}
        return "+" if across and along else "-" if across else "|"
    decomposed = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return decomposed or "?"
