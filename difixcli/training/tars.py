"""Pairs in tars of webdataset's layout, read where they stand.

Training wants any pair at any step, so that a run that was stopped goes on exactly as it would have. A tar has no
index, but the places of its members are soon found. (Tars that cannot be looked up like this are streamed instead.)
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from difixcli.errors import InputError
from difixcli.runs import is_the_systems, unreadable


class _Part(io.RawIOBase):
    """`size` bytes of a file from `offset` on, as a file; no more is read than is asked for."""

    def __init__(self, file: IO[bytes], offset: int, size: int) -> None:
        self._file, self._offset, self._size, self._at = file, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        self._file.seek(self._offset + self._at)
        read = self._file.read(max(0, min(len(buffer), self._size - self._at)))
        buffer[: len(read)] = read
        self._at += len(read)
        return len(read)

    def close(self) -> None:
        self._file.close()
        super().close()


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar: `size` bytes from `offset` on. It opens as a path does."""

    tar: Path
    name: str
    offset: int
    size: int

    def open(self, mode: Literal["rb"]) -> IO[bytes]:
        return io.BufferedReader(_Part(self.tar.open(mode), self.offset, self.size))

    def __str__(self) -> str:
        return f"{self.name} in {self.tar}"


def members_by_key(tar: Path) -> Mapping[str, Mapping[str, Member]]:
    """The samples of a tar by key, and each one's members by name without the file's suffix.

    As in webdataset a name's first dot ends the key: `KEY.opacity.png` is the member `opacity` of KEY. Raises
    InputError for a file that is no whole tar.
    """
    found: dict[str, dict[str, Member]] = {}
    try:
        with tarfile.open(tar, "r:") as opened:
            for info in opened:
                key, _, name = info.name.partition(".")
                member = Member(tar, info.name, info.offset_data, info.size)
                found.setdefault(key, {})[name.partition(".")[0]] = member
    except (OSError, tarfile.TarError) as error:
        if is_the_systems(error):
            raise unreadable(tar, error) from error
        raise InputError(f"{tar} cannot be read as a tar ({error}); make it again with difix curate.") from error
    return found
