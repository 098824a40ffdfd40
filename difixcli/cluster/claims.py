"""Claims: at most one process at a time works on a thing, on file systems that machines share.

NFS has no lock that can be relied on, but to link a file to a name that must not exist yet is atomic there, too. So the
claims on NAME are files NAME.000001, NAME.000002, … of which none is ever removed, and the last counts: whoever makes
the next one, which is allowed when the last is released or its holder is dead, holds NAME. As numbers only grow and a
number is made by one process alone, there is nothing that two processes could take over at the same time.

A holder touches its file every few seconds, and goes on with that where a touch fails. It is dead when its process is
gone from this machine, or when nobody has touched the file for two minutes by the watching process's own clock, so that
clocks need not agree. A holder that was only suspended finds the next number when it wakes up, and is told that it has
lost its claim.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

BEAT = 10.0  # seconds between two touches
DEAD = 120.0  # seconds without one: NFS may hide a touch for a minute
_UNKNOWN = "unknown"  # when a process began that may not be looked at


class Claim:
    """A claim that this process holds, until `release` or its end.

    `beat` is called after every touch, `lost` once if another process has taken the claim over; both by another thread.
    What the system refuses to either of them (a full disk, a server that does not answer) ends nothing.
    """

    def __init__(self, path: Path, beat: Callable[[], None] | None, lost: Callable[[], None] | None) -> None:
        self.path = path
        self._beat, self._lost = beat, lost
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True, name=f"claim {path.name}")
        self._thread.start()

    @property
    def held(self) -> bool:
        """Whether nobody has taken it over."""
        return not _numbered(*_parts(self.path, 1)).exists()

    def release(self) -> None:
        """Let others have it."""
        self._over.set()
        self._thread.join()
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        temporary.write_text(json.dumps({**_myself(), "released": True}), encoding="utf-8")
        os.replace(temporary, self.path)  # its own number, whatever others have made since

    def _live(self) -> None:
        while not self._over.wait(BEAT):
            # a thread that ended by an error would leave the claim to others while its holder works on
            with suppress(OSError):
                if not self.held:
                    if self._lost is not None:
                        self._lost()
                    return
                with suppress(OSError):
                    os.utime(self.path)
                if self._beat is not None:
                    self._beat()


class Claims:
    """The claims in a folder, as one process sees them; what it has seen of others' touches is kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen: dict[Path, tuple[int, float]] = {}  # a file's last touch, and when it was first seen

    def free(self, name: str) -> bool:
        """Whether nobody holds it at the moment."""
        last = self._last(name)
        return last == 0 or self._ended(_numbered(self.folder, name, last))

    def take(
        self, name: str, beat: Callable[[], None] | None = None, lost: Callable[[], None] | None = None
    ) -> Claim | None:
        """The claim on a name (a file's), or None where another process holds it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        last = self._last(name)
        if last and not self._ended(_numbered(self.folder, name, last)):
            return None
        path = _numbered(self.folder, name, last + 1)
        try:
            _create(path, json.dumps({**_myself(), "released": False}))
        except FileExistsError:
            return None
        return Claim(path, beat, lost)

    def _last(self, name: str) -> int:
        """The highest number there is; 0 for none."""
        numbers = [
            int(path.name.removeprefix(f"{name}."))
            for path in self.folder.glob(f"{glob.escape(name)}.*")
            if path.name.removeprefix(f"{name}.").isdecimal()
        ]
        number = max(numbers, default=0)
        while _numbered(self.folder, name, number + 1).exists():  # a folder's listing may be a moment old
            number += 1
        return number

    def _ended(self, path: Path) -> bool:
        """Whether a claim is released or its holder dead."""
        try:
            with path.open(encoding="utf-8") as file:  # opening asks a server for what is there now
                touched = os.fstat(file.fileno()).st_mtime_ns
                text = file.read()
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):  # released, and so replaced, at this very moment
                return False
            raise
        now = time.monotonic()
        before, since = self._seen.get(path, (None, now))
        if before != touched:
            since = now
        self._seen[path] = (touched, since)
        try:
            holder = json.loads(text)
        except json.JSONDecodeError:  # without links: made a moment ago, or by a process that died in between
            holder = {}
        if holder.get("released"):
            return True
        if holder.get("machine") == _machine() and _begun(holder["pid"]) not in (holder["begun"], _UNKNOWN):
            return True
        return now - since > DEAD


def _create(path: Path, text: str) -> None:
    """Make a file that must not exist yet, whole from its first moment on; FileExistsError where it does."""
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")
    temporary.write_text(text, encoding="utf-8")
    try:
        os.link(temporary, path)
    except FileExistsError:
        if os.stat(temporary).st_nlink == 1:  # else it was made, and a server's first answer was lost
            raise
    except OSError:  # a file system without links: what it says follows a moment later
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    finally:
        temporary.unlink()


def _machine() -> str:
    """What tells machines apart, and the namespaces of processes on one: pids mean something only within it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:  # not Linux
        return platform.node()


def _myself() -> dict[str, Any]:
    pid = os.getpid()
    return {"machine": _machine(), "node": platform.node(), "pid": pid, "begun": _begun(pid)}


def _begun(pid: int) -> str:
    """When a process began, by the system's count; empty for one that is gone."""
    try:
        facts = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except PermissionError:  # another user's, on a system that hides them
        return _UNKNOWN
    except (FileNotFoundError, ProcessLookupError):  # gone, or going while it was read
        if Path("/proc/self/stat").exists():
            return _UNKNOWN if _hidden(pid) else ""
    else:
        # a zombie works on nothing, once its last thread has ended and given back what it held
        return "" if facts[0] in "ZX" and int(facts[17]) <= 1 else facts[19]
    try:  # without /proc a number that has been given out again looks alive, until nobody touches its file
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "alive"


def _hidden(pid: int) -> bool:
    """Whether there is such a process of another user's, although /proc does not show it."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except ProcessLookupError:
        pass
    return False


def _numbered(folder: Path, name: str, number: int) -> Path:
    return folder / f"{name}.{number:06d}"


def _parts(path: Path, further: int) -> tuple[Path, str, int]:
    name, _, number = path.name.rpartition(".")
    return path.parent, name, int(number) + further
