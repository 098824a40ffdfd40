"""Pairs in tars of webdataset's layout, read where they stand.

Training wants any pair at any step, so that a run that was stopped goes on exactly as it would have. A tar has no
index, but the places of its members are soon found.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from difixcli.errors import InputError


@dataclass(frozen=True)
class Member:
    """A file in a tar: `size` bytes from `offset` on. It opens as a path does."""

    tar: Path
    name: str
    offset: int
    size: int

    def open(self, mode: Literal["rb"]) -> BinaryIO:
        with self.tar.open(mode) as file:
            file.seek(self.offset)
            return io.BytesIO(file.read(self.size))

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
        raise InputError(f"{tar} cannot be read as a tar ({error}); make it again with difix curate.") from error
    return found
