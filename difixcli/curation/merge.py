"""Merging what shards, or runs of several strategies, have made."""

from __future__ import annotations

import filecmp
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from difixcli.curation.curate import Curated, Failure, finish
from difixcli.curation.manifest import SCENE_FILE, STAGE_FILE, SceneRecord, read_scene, scene_records
from difixcli.errors import InputError
from difixcli.runs import RECORD, read_json, write_json
from difixcli.shapes import Each

_RECORD = {**RECORD, "results": {"failed?": Each(str)}}


def merge(folders: Sequence[Path], output: Path) -> Curated:
    """Gather the pairs of finished runs, and of all shards of runs, into `output` with one manifest.

    Several shards may have written into one folder; `output` may be that folder. Files of other folders are linked
    where the file system can, else copied; nothing is removed, and merging again changes nothing.

    Raises InputError for a folder without pairs, a run or shard that is missing or unfinished, pairs in different
    formats, a scene that is for training here and for testing there, and files of one name with different content.
    """
    failed = check_merge(folders)
    for folder in folders:
        if folder.resolve() == output.resolve():
            continue
        for home, record in scene_records(folder).items():
            held = output / home.name / SCENE_FILE
            if held.is_file() and read_scene(held) != record:
                raise InputError(
                    f"{held} and {home / SCENE_FILE} disagree about the scene's photos or whether it is for testing; "
                    "curate it the same way in both."
                )
            write_json(held, asdict(record))
        for path in _files(folder):
            _place(path, output / path.relative_to(folder))
    return finish(output, failed)


def check_merge(folders: Sequence[Path]) -> dict[str, Failure]:
    """The failed scenes of all runs in the folders; raises InputError for folders that cannot be merged (see `merge`),
    as far as that can be told before files are compared. Nothing is written."""
    failed = _finished(folders)
    seen: dict[str, SceneRecord] = {}
    for folder in folders:
        for home, record in scene_records(folder).items():
            if (other := seen.setdefault(home.name, record)) == record:
                continue
            if other.format != record.format:
                break
            raise InputError(
                f"{home / SCENE_FILE} and another of that scene disagree about the scene's photos or whether it is for "
                "testing; curate it the same way in both."
            )
    formats = {record.format for folder in folders for record in scene_records(folder).values()}
    if len(formats) > 1:
        raise InputError("One of the folders holds tars and another images; merge those of one --format.")
    return failed


def _finished(folders: Sequence[Path]) -> dict[str, Failure]:
    """The failed scenes of all runs in the folders; InputError unless all runs and all their shards are done."""
    shards: dict[tuple[str, int], set[int]] = {}
    failed: dict[str, Failure] = {}
    for folder in folders:
        records = sorted([*folder.glob("run.json"), *folder.glob("run-*-of-*.json")])
        held_by_file = {file: read_json(file, _RECORD) for file in records}
        if not records or any(held["command"] != "curate" for held in held_by_file.values()):
            raise InputError(f"{folder} holds no pairs of difix curate; name the folders it wrote.")
        for file, held in held_by_file.items():
            if held["state"] != "done":
                raise InputError(f"The run of {file} has not finished; run its line again, then merge.")
            failed |= {name: Failure(message) for name, message in held["results"].get("failed", {}).items()}
            if shard := re.fullmatch(r"run-(\d{1,9})-of-(\d{1,9})", file.stem):
                index, count = shard.groups()
                shards.setdefault((_identity(held), int(count)), set()).add(int(index))
    for (_, total), found in shards.items():
        if missing := sorted(set(range(total)) - found):
            raise InputError(f"Shard {missing[0]}/{total} is not among the folders; run it, or name its folder too.")
    return failed


def _identity(record: dict[str, Any]) -> str:
    """What shards of one run have in common."""
    return json.dumps(record["arguments"], sort_keys=True)


def _files(folder: Path) -> Iterator[Path]:
    """The files of finished stages, each stage's record after its images; photos and tars."""
    for kind in ("train", "test"):
        yield from sorted((folder / kind).glob("*.tar"))
    for scene in scene_records(folder):
        yield from sorted(_whole(scene / "photos"))
        for record in sorted(scene.glob(f"*/{STAGE_FILE}")):
            yield from sorted(path for path in _whole(record.parent) if path != record)
            yield record


def _same(path: Path, target: Path) -> bool:
    """Whether two files say the same; how long a stage took does not count."""
    if path.name != STAGE_FILE:
        return filecmp.cmp(path, target, shallow=False)
    one, other = ({**read_json(file, dict), "seconds": None} for file in (path, target))
    return one == other


def _whole(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and path.name[0] != ".")


def _place(path: Path, target: Path) -> None:
    """Link or copy a file to where nothing is yet, or the same content."""
    if target.is_file():
        if not path.samefile(target) and not _same(path, target):
            raise InputError(f"{path} and {target} differ; merge runs of one --size, or into another --output.")
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        os.link(path, temporary)
    except OSError:  # another file system, or one without links
        shutil.copyfile(path, temporary)
    os.replace(temporary, target)
