"""How much room a disk has, and copies of folders."""

from __future__ import annotations

import fnmatch
import math
import os
import shutil
from pathlib import Path


def free_bytes(folder: Path) -> float:
    """What may still be written where the folder lies; infinity where the file system does not say how large it is."""
    usage = shutil.disk_usage(folder)
    return usage.free if usage.total else math.inf


def copy_folder(source: Path, target: Path, left_out: tuple[str, ...] = (), shared: tuple[str, ...] = ()) -> None:
    """Copy a folder to a `target` that is not there, without what is called like a pattern of `left_out`.

    Files called like a pattern of `shared`, which nobody writes again, become second names of the same file where the
    file system knows such. Raises the OSError of what cannot be copied: shutil.copytree's does not say why.
    """
    target.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        if any(fnmatch.fnmatch(path.name, pattern) for pattern in left_out):
            continue
        place = target / path.name
        if path.is_dir():
            copy_folder(path, place, left_out, shared)
            continue
        if any(fnmatch.fnmatch(path.name, pattern) for pattern in shared):
            name_again(path, place)
        else:
            shutil.copy2(path, place)


def name_again(source: Path, target: Path) -> None:
    """Give a file a second name, which costs nothing; where the file system knows none, copy it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
