"""Decoded photos and masks, held for all who need them in this process, within bounds of memory and disk."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import fields
from pathlib import Path

import numpy as np

from difixcli.scenes.image_paths import image_header
from difixcli.scenes.photos import decode_mask, decode_photo, let_go
from difixcli.scenes.scene import Camera, Frame
from difixcli.scenes.spill import Spill

_MOST = 2**30  # bytes
_SHARE = 8  # never more than so small a part of the machine's memory

Pixels = np.ndarray | None


class PhotoStore:
    """What frames' files decode to: `bound` bytes of it in memory (0: nothing is held), the least recently used beyond
    them on disk, in `spill`.

    What is given out is shared, and therefore read-only. Safe to use from several threads: of those that ask for the
    same at once, one decodes and the others wait for it. A file that has changed since is decoded again.
    """

    def __init__(self, bound: int, spill: Spill) -> None:
        self.bound = bound
        self.spill = spill
        self._held: OrderedDict[Hashable, np.ndarray] = OrderedDict()
        self._bytes = 0
        self._unmasked: set[Hashable] = set()  # of which the mask is None
        self._underway: dict[Hashable, Future[dict[str, Pixels]]] = {}
        self._lock = threading.Lock()

    def photo(self, frame: Frame) -> np.ndarray:
        """As `load_photo`."""
        photo = self._get(frame, "photo")
        assert photo is not None
        return photo

    def mask(self, frame: Frame) -> np.ndarray | None:
        """As `load_mask`."""
        return self._get(frame, "mask")

    def clear(self) -> None:
        """Give up what is held."""
        with self._lock:
            self._held.clear()
            self._bytes = 0
            self._unmasked.clear()
            self.spill.clear()

    def _get(self, frame: Frame, kind: str) -> Pixels:
        source = _identity(frame)
        with self._lock:
            found, pixels = self._look_up((source, kind))
        if found:
            return pixels
        # transparency is a part of the mask that only decoding the photo tells: then both are made at once
        kinds = ("photo", "mask") if image_header(frame.image_path).transparent else (kind,)
        work = (source, kinds)
        with self._lock:
            found, pixels = self._look_up((source, kind))
            if found:
                return pixels
            underway = self._underway.get(work)
            if underway is None:
                mine = self._underway[work] = Future()
        if underway is not None:
            return underway.result()[kind]
        try:
            made = _decoded(frame, kinds)
        except BaseException as error:
            with self._lock:
                del self._underway[work]
            mine.set_exception(error)
            raise
        with self._lock:
            for name, pixels in made.items():
                self._hold((source, name), pixels)
            del self._underway[work]
        mine.set_result(made)
        return made[kind]

    def _look_up(self, key: Hashable) -> tuple[bool, Pixels]:
        """Whether something is held, and what."""
        if key in self._unmasked:
            return True, None
        pixels = self._held.get(key)
        if pixels is not None:
            self._held.move_to_end(key)
            return True, pixels
        pixels = self.spill.get(key)
        if pixels is not None:
            self._hold(key, pixels)
        return pixels is not None, pixels

    def _hold(self, key: Hashable, pixels: Pixels) -> None:
        if not self.bound or key in self._held:
            return
        if pixels is None:
            self._unmasked.add(key)
            return
        if pixels.nbytes > self.bound:
            self.spill.put(key, pixels)
            return
        self._held[key] = pixels
        self._bytes += pixels.nbytes
        while self._bytes > self.bound:
            oldest, given_up = self._held.popitem(last=False)
            self._bytes -= given_up.nbytes
            self.spill.put(oldest, given_up)


def default_bound() -> int:
    """How many bytes of photos a process holds: 1 GiB, or an eighth of the machine's memory if that is less."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows does not tell
        return _MOST
    return min(_MOST, memory // _SHARE)


STORE = PhotoStore(default_bound(), Spill())
"""The process's own."""


def load_photo(frame: Frame) -> np.ndarray:
    """The photo of a frame at its working size, undistorted: (H, W, 3) float32 RGB in [0, 1].

    It is shared with all who ask for it, and read-only. Raises InputError if the file cannot be decoded.
    """
    return STORE.photo(frame)


def load_mask(frame: Frame) -> np.ndarray | None:
    """Which pixels of a frame count: (H, W) bool at working size, True where the photo is to be used; None for all.

    Joins the mask file (white counts, as in nerfstudio), the photo's transparency, and the pixels that undistortion
    could not fill. It is shared with all who ask for it, and read-only. Raises InputError if a file cannot be decoded
    or a mask is of another shape than its photo.
    """
    return STORE.mask(frame)


def _decoded(frame: Frame, kinds: tuple[str, ...]) -> dict[str, Pixels]:
    decode: dict[str, Callable[[Frame], Pixels]] = {"photo": decode_photo, "mask": decode_mask}
    try:
        made = {kind: decode[kind](frame) for kind in kinds}
    finally:
        let_go()
    for pixels in made.values():
        if pixels is not None:
            pixels.flags.writeable = False
    return made


def _identity(frame: Frame) -> Hashable:
    """What a frame's pixels depend on: its files as they are now, and all it says of itself but where it stood."""
    return tuple(_part(getattr(frame, field.name)) for field in fields(frame))


def _part(value: object) -> Hashable:
    if isinstance(value, Camera):
        return (value.fx, value.fy, value.cx, value.cy, value.width, value.height)
    if isinstance(value, np.ndarray):
        return (value.shape, value.tobytes())
    if isinstance(value, Path):
        try:
            status = value.stat()
        except OSError:  # decoding it says so
            return (str(value), None)
        return (str(value), status.st_mtime_ns, status.st_size)
    return value  # type: ignore[return-value]
