"""What a folder of pairs says of itself: a record a scene, a record a stage, and the manifest gathered from them.

OUTPUT/data.json                the manifest, in the schema of Difix3D's release plus our keys
OUTPUT/index.html               contact sheets and figures
OUTPUT/SCENE/scene.json         where the scene came from, and whether its pairs are for testing
OUTPUT/SCENE/photos/            its photos, shared by all stages
OUTPUT/SCENE/STAGE/pairs.json   the stage's entries; it is there when the stage is finished
OUTPUT/SCENE/STAGE/{render,opacity,aligned,depth,correspondence}/, sheet.png
OUTPUT/SCENE/models/            reconstructions, while the scene is being worked on or when they are kept
OUTPUT/{train,test}/*.tar       with the format webdataset, instead of the images and the manifest
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from difixcli.errors import InputError
from difixcli.runs import atomic, read_json, write_json
from difixcli.shapes import Each, built

MANIFEST = "data.json"
SCENE_FILE = "scene.json"
STAGE_FILE = "pairs.json"
MODELS = "models"
_STAGE = {
    "split": (None, Each([str])),
    "pairs": Each({"psnr": (None, float), "ssim": (None, float)}),
    "dropped": Each(str),
    "seconds": {"reconstruction": float, "pairs": float},
}
PSNR_BINS = np.arange(8.0, 37.0, 2.0)
"""Edges (dB) of the histogram of PSNR; what lies outside counts in the first or last bin."""


@dataclass(frozen=True)
class SceneRecord:
    """A scene's record. `fingerprint` tells its files of another time apart; `format` is `folder` or `webdataset`."""

    name: str
    fingerprint: str
    test: bool
    format: str


@dataclass(frozen=True)
class StageSummary:
    """Figures of one finished stage.

    `folder` is relative to the output; `dropped` counts by filter, `histogram` by PSNR (see `PSNR_BINS`).
    """

    scene: str
    stage: str
    folder: str
    test: bool
    pairs: int
    dropped: dict[str, int]
    psnr: float
    ssim: float
    histogram: list[int]
    seconds: dict[str, float]


def write_stage(
    home: Path,
    split: Mapping[str, Sequence[str]] | None,
    entries: dict[str, Any],
    dropped: dict[str, str],
    seconds: dict[str, float],
) -> None:
    """Mark a stage as finished: its split (names of the frames in train and test), its manifest entries, why other
    pairs were dropped, and what it took.
    """
    write_json(home / STAGE_FILE, {"split": split, "pairs": entries, "dropped": dropped, "seconds": seconds})


def stage_stands(home: Path, split: Mapping[str, Sequence[str]] | None) -> bool:
    """Whether a stage is finished, with this very split; one whose record is broken is not."""
    try:
        return bool(read_stage(home / STAGE_FILE)["split"] == split)
    except InputError:
        return False


def read_stage(file: Path) -> dict[str, Any]:
    """A finished stage's record (see `write_stage`); InputError when it is missing or broken."""
    record: dict[str, Any] = read_json(file, _STAGE)
    return record


def read_scene(file: Path) -> SceneRecord:
    """A scene's record; InputError when it is missing or broken."""
    return built(SceneRecord, read_json(file), file, f"it is no record of difix curate: remove {file.parent}")


def write_manifest(folder: Path) -> None:
    """Gather the finished stages under `folder` into its `data.json`, one stage in memory at a time.

    A scene's pairs are all in `train` or all in `test`. The bytes depend on the pairs alone: neither on the order in
    which they were made, nor on the number of attempts or shards; a manifest that has them already is not replaced.
    Raises InputError for a record that is broken.
    """
    with atomic(folder / MANIFEST, kept=True) as temporary, temporary.open("w", encoding="utf-8") as file:
        for test in (False, True):
            file.write(', "test": {' if test else '{"train": {')
            first = True
            for record, _, stage in _stages(scene_records(folder)):
                if record.test == test:
                    first = _write_entries(file, stage["pairs"], first)
            file.write("\n}")
        file.write("}\n")


def summaries(homes: Mapping[Path, SceneRecord]) -> list[StageSummary]:
    """The figures of all finished stages of these scenes; InputError for a record that is broken."""
    return [_summary(record, home, stage) for record, home, stage in _stages(homes)]


def scene_records(folder: Path) -> dict[Path, SceneRecord]:
    """The records of the scenes under `folder`, by their folders, sorted."""
    return {file.parent: read_scene(file) for file in sorted(folder.glob(f"*/{SCENE_FILE}"))}


def _stages(homes: Mapping[Path, SceneRecord]) -> Iterator[tuple[SceneRecord, Path, dict[str, Any]]]:
    for scene, record in homes.items():
        for file in sorted(scene.glob(f"*/{STAGE_FILE}")):
            yield record, file.parent, read_stage(file)


def _write_entries(file: TextIO, entries: dict[str, Any], first: bool) -> bool:
    """One line a pair; returns whether the next entry is still the object's first."""
    for key in sorted(entries):
        file.write(("\n" if first else ",\n") + f"{json.dumps(key)}: {json.dumps(entries[key], sort_keys=True)}")
        first = False
    return first


def _summary(record: SceneRecord, home: Path, stage: dict[str, Any]) -> StageSummary:
    pairs = list(stage["pairs"].values())
    # JSON has no infinity: the PSNR of a render that is its photo is null
    psnr = np.array([math.inf if entry["psnr"] is None else entry["psnr"] for entry in pairs])
    measured = psnr[np.isfinite(psnr)]
    ssim = [entry["ssim"] for entry in pairs if entry["ssim"] is not None]
    counts, _ = np.histogram(np.clip(psnr, PSNR_BINS[0], PSNR_BINS[-1]), PSNR_BINS)
    return StageSummary(
        scene=record.name,
        stage=home.name,
        folder=f"{home.parent.name}/{home.name}",
        test=record.test,
        pairs=len(pairs),
        dropped=dict(Counter(stage["dropped"].values())),
        psnr=float(measured.mean()) if len(measured) else 0.0,
        ssim=float(np.mean(ssim)) if ssim else 0.0,
        histogram=counts.tolist(),
        seconds=stage["seconds"],
    )


def sparkline(counts: Sequence[int]) -> str:
    """Counts as a line of bars, one character each; nothing for no counts at all."""
    highest = max(counts, default=0)
    return "".join(" ▁▂▃▄▅▆▇█"[-(-8 * count // highest)] for count in counts) if highest else ""
