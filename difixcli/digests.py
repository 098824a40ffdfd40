"""Hashes of files' contents, kept in the user's cache for large files, so that no file is read at every start.

A hash stands while its file has the same place, size and times; the time of its last change of any kind is the system's
and no copying program sets it back, so a file that was replaced by another of the same size and date is read again.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from difixcli.cache import cache_folder

_LARGE = 2**20  # bytes; smaller files are read faster than looked up
_MOST = 50_000  # files


def digests_of(files: Sequence[Path]) -> list[str]:
    """A hash of each file's content."""
    kept: dict[str, Any] | None = None
    changed = False
    found = []
    for path in files:
        facts = path.stat()
        if facts.st_size < _LARGE:
            found.append(hashlib.sha256(path.read_bytes()).hexdigest())
            continue
        kept = _kept() if kept is None else kept
        key, state = os.path.abspath(path), [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino]
        if (held := kept.get(key)) is None or held[:-1] != state:
            digest = hashlib.sha256()
            with path.open("rb") as file:
                while part := file.read(2**22):
                    digest.update(part)
            kept[key] = [*state, digest.hexdigest()]
            changed = True
        found.append(str(kept[key][-1]))
    if kept is not None and changed:
        # any of them: the oldest are what the next pass over the same files asks for first, so all would be read again
        for key in random.Random().sample(list(kept), max(len(kept) - _MOST, 0)):
            del kept[key]
        _keep(kept)
    return found


def _file() -> Path:
    return cache_folder() / "digests.json"


def _kept() -> dict[str, Any]:
    """What the cache holds; nothing where it cannot be read."""
    from difixcli.errors import InputError
    from difixcli.runs import read_json
    from difixcli.shapes import Each

    try:
        held: dict[str, Any] = read_json(_file(), Each(list))
    except InputError:
        return {}
    return {key: value for key, value in held.items() if len(value) == 5}


def _keep(held: dict[str, Any]) -> None:
    """Write the cache, if that is allowed: without it files are read again."""
    from difixcli.runs import atomic

    try:
        with atomic(_file()) as temporary:
            temporary.write_text(json.dumps(held), encoding="utf-8")
    except OSError:
        return
