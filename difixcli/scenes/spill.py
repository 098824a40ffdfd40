"""Decoded pixels that memory has no room for, in a file of this process's own."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np

from difixcli.cache import cache_folder
from difixcli.disk import free_bytes

_MOST = 2**34  # bytes: 10,000 photos of 480×270
_SHARE = 4  # never more than so small a part of what is free on the disk
_LEAST = 2**30  # bytes that must be free for more to be written: others may be filling the disk too


@dataclass(frozen=True)
class _Place:
    """Where an array's bytes lie in the file, and what they are."""

    start: int
    end: int
    shape: tuple[int, ...]
    dtype: np.dtype


class Spill:
    """Arrays by key in one file of at most `bound` bytes in the user's cache; the oldest make room for new ones.

    None stands for 16 GiB, or a quarter of what is free on the disk if that is less. The file has no name where the
    system allows that, and goes with its process, however that ends: nothing in it is ever stale. What cannot be
    written (no folder, a full disk) is not held, and where the disk fills up it is given back. Not safe to use from
    several threads at once. In a process that was forked from the one that filled it, it is empty.
    """

    def __init__(self, bound: int | None = None) -> None:
        self._bound = bound
        self._file: Any = None
        self._most = self._next = 0
        self._places: dict[Hashable, _Place] = {}
        self._broken = bound == 0
        self._owner = os.getpid()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._places and self._owner == os.getpid()

    def put(self, key: Hashable, array: np.ndarray) -> None:
        """Hold an array, if that can be; one that is held stays as it is."""
        if self._owner != os.getpid():
            self.clear()  # the file is the parent's
        if key in self._places or self._broken:
            return
        try:
            file = self._opened()
            if array.nbytes > self._most:
                return
            if self._bound is None and free_bytes(cache_folder()) < _LEAST:
                raise OSError("the disk is nearly full")
            # round and round, so that the oldest lie where it goes on
            start = self._next if self._next + array.nbytes <= self._most else 0
            end = start + array.nbytes
            self._drop(start, end)
            file.seek(start)
            data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            while len(data):
                data = data[file.write(data) :]
        except (OSError, RuntimeError):  # no room, no folder, nobody's home
            self.clear()  # what is left of the disk is for those who cannot do without
            self._broken = True
            return
        self._places[key] = _Place(start, end, array.shape, array.dtype)
        self._next = end

    def get(self, key: Hashable) -> np.ndarray | None:
        """The array as it was put, read-only; None where it is not held."""
        if key not in self:
            return None
        place = self._places[key]
        array = np.empty(place.shape, place.dtype)
        data = array.reshape(-1).view(np.uint8)
        try:
            self._file.seek(place.start)
            while len(data):
                count = self._file.readinto(data)
                if not count:
                    raise OSError("the file is shorter than what was written")
                data = data[count:]
        except OSError:
            del self._places[key]
            return None
        array.flags.writeable = False
        return array

    def clear(self) -> None:
        """Hold nothing, and give the disk back."""
        self._file = None
        self._most = self._next = 0
        self._places = {}
        self._broken = self._bound == 0
        self._owner = os.getpid()

    def _opened(self) -> Any:
        if self._file is None:
            folder = cache_folder()
            folder.mkdir(parents=True, exist_ok=True)
            self._most = int(min(_MOST, free_bytes(folder) / _SHARE)) if self._bound is None else self._bound
            self._file = tempfile.TemporaryFile(prefix="photos-", dir=folder, buffering=0)  # noqa: SIM115
        return self._file

    def _drop(self, start: int, end: int) -> None:
        """Forget what the bytes from `start` to `end` held."""
        over = [key for key, place in self._places.items() if place.start < end and start < place.end]
        for key in over:
            del self._places[key]
