"""Merging what several processes, or runs of several strategies, have made."""

from __future__ import annotations

import filecmp
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from difixcli.cluster.jobs import DONE, FAILED, Job, Jobs
from difixcli.curation.curated import Curated, Failure, finish
from difixcli.curation.manifest import SCENE_FILE, STAGE_FILE, SceneRecord, read_scene, read_stage, scene_records
from difixcli.disk import name_again
from difixcli.errors import InputError, short
from difixcli.runs import run_record, write_json

_FEW = 5  # how many scenes a message names
_OF_A_STAGE = {
    "method": "--method",
    "iterations": "--iterations",
    "size": "--size",
    "preset": "--preset",
    "seed": "--seed",
    "overrides": "--set",
    "views": "--references",
    "keep": "--keep",
    "depth": "--depth",
    "image_format": "--image-format",
}
"""What makes a stage of the same name another, of a run's arguments: how it is asked for."""


def merge(folders: Sequence[Path], output: Path, partial: bool = False) -> Curated:
    """Gather the pairs of runs, whoever made their scenes, into `output` with one manifest.

    Several processes may have written into one folder; `output` may be that folder. Files of other folders are linked
    where the file system can, else copied; nothing is removed, and merging again changes nothing. With `partial` what
    is there is merged, and `Curated.left` names the scenes that are not.

    Raises InputError for a folder without pairs, scenes that are still to be made (unless `partial`), pairs in
    different formats, a scene that is for training here and for testing there, a stage of a scene that was made in two
    ways, and files of one name with different content.
    """
    failed, left = check_merge(folders, partial)
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
    return replace(finish(output, failed), left=left)


def check_merge(folders: Sequence[Path], partial: bool = False) -> tuple[dict[str, Failure], list[str]]:
    """The scenes that failed, and the names of those that are still to be made, of all runs in the folders.

    Raises InputError for folders that cannot be merged (see `merge`), as far as that can be told before files are
    compared. Nothing is written.
    """
    failed, left = _found(folders)
    if left and not partial:
        raise InputError(
            f"{_named(left)} {'is' if len(left) == 1 else 'are'} still to be made; run the same line again, or merge "
            "what is there with --partial."
        )
    records = [(home, record) for folder in folders for home, record in scene_records(folder).items()]
    if len({record.format for _, record in records}) > 1:
        raise InputError("One of the folders holds tars and another images; merge those of one --format.")
    seen: dict[str, SceneRecord] = {}
    for home, record in records:
        if seen.setdefault(home.name, record) != record:
            raise InputError(
                f"{home / SCENE_FILE} and another of that scene disagree about the scene's photos or whether it is for "
                "testing; curate it the same way in both."
            )
    _check_stages(folders)
    return failed, left


def _check_stages(folders: Sequence[Path]) -> None:
    """Raises InputError where two of the folders made a stage of a scene, or its photos, in two ways."""
    stages: dict[Path, Path] = {}  # the folder that has it first, by where the record lies in it
    photos: dict[Path, Path] = {}
    for folder in folders:
        for home in scene_records(folder):
            for record in sorted(home.glob(f"*/{STAGE_FILE}")):
                place = record.relative_to(folder)
                other = stages.setdefault(place, folder)
                if other != folder and not _same(record, other / place):
                    raise InputError(
                        f"{other} and {folder} made {place.parent} in two ways{_told_apart(other, folder, place)}, and "
                        f"one folder has room for one; train on both as they are: difix finetune {other} {folder}."
                    )
            for photo in sorted(_whole(home / "photos")):
                place = photo.relative_to(folder)
                other = photos.setdefault(place, folder)
                # those of another --size are of other bytes; what is in them is compared when they are placed
                if other != folder and photo.stat().st_size != (other / place).stat().st_size:
                    raise InputError(
                        f"The photos of {home.name} differ in {other} and {folder}{_told_apart(other, folder)}, and "
                        "one folder has room for one of each; train on both as they are: difix finetune "
                        f"{other} {folder}."
                    )


def _told_apart(one: Path, other: Path, place: Path | None = None) -> str:
    """What was asked for differently in two runs, and in making the stage whose record lies at `place`, in words."""
    made = []
    for folder in (one, other):
        record = run_record(folder) or {"arguments": {}}
        asked = {key: value for key, value in record["arguments"].items() if key in _OF_A_STAGE}
        if (preset := record.get("preset")) is not None:
            asked["preset"] = preset
        entries = [] if place is None else list(read_stage(folder / place)["pairs"].values())
        entry = entries[0] if entries else {}
        made.append(asked | {key: entry[key] for key in ("method", "iterations") if key in entry})
    both = [key for key in _OF_A_STAGE if key in made[0] and key in made[1]]
    differing = {key: ["default" if each[key] is None else short(str(each[key])) for each in made] for key in both}
    said = [f"{_OF_A_STAGE[key]} {was} and {now}" for key, (was, now) in differing.items() if was != now]
    return f" ({'; '.join(said)})" if said else ""


def _found(folders: Sequence[Path]) -> tuple[dict[str, Failure], list[str]]:
    """The scenes that failed, and the names of those that are still to be made, of all runs in the folders."""
    jobs: dict[str, dict[str, list[Job]]] = {}  # by run and scene: parts of one run may lie in several folders
    for folder in folders:
        held = run_record(folder)
        if held is None or held["command"] != "curate":
            raise InputError(f"{folder} holds no pairs of difix curate; name the folders it wrote.")
        known = jobs.setdefault(json.dumps(held["arguments"], sort_keys=True), {})
        jobs_there = list(Jobs(folder))
        if not jobs_there and held["state"] != "done":
            raise InputError(f"The run of {folder / 'run.json'} has not finished; run its line again, then merge.")
        for job in jobs_there:
            known.setdefault(job.name, []).append(job)
    failed: dict[str, Failure] = {}
    left: list[str] = []
    for known in jobs.values():
        for name, ones in known.items():
            states = [job.state for job in ones]
            if DONE in states:
                continue
            if FAILED in states:
                job = ones[states.index(FAILED)]
                failed[name] = Failure(job.message, job.fault)
            else:
                left.append(name)
    return failed, sorted(left)


def _named(names: Sequence[str]) -> str:
    few = ", ".join(names[:_FEW])
    return few if len(names) <= _FEW else f"{few} and {len(names) - _FEW} more"


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
    one, other = ({**read_stage(file), "seconds": None} for file in (path, target))
    return one == other


def _whole(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and path.name[0] != ".")


def _place(path: Path, target: Path) -> None:
    """Link or copy a file to where nothing is yet, or the same content."""
    if target.is_file():
        if not path.samefile(target) and not _same(path, target):
            raise InputError(
                f"{path} and {target} differ; merge into another --output, or train on the folders as they are: difix "
                "finetune takes several."
            )
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        name_again(path, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
