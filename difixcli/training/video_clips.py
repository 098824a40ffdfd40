"""Clips that `difix curate --strategy clips` made, as what a video model is shown and what it should make of it."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from difixcli.errors import InputError
from difixcli.evaluation.consistency import frame_motion
from difixcli.priors.video.film import Seen, planar
from difixcli.priors.video.span import Span
from difixcli.scenes.scene import Camera
from difixcli.shapes import fault_of
from difixcli.training.pair_lists import Entries, Joined
from difixcli.training.pairs import decode, manifest_entries, pair_of_entry, unit
from difixcli.training.sources import pair_files

POINTS = 2048  # of a clip's cloud: as many as a structure encoder looks at
_ENTRY = {
    "camera": {
        "camera_to_world": [[float]],
        "fx": float,
        "fy": float,
        "cx": float,
        "cy": float,
        "width": int,
        "height": int,
    },
    "depth": str,
    "scene": str,
    "strategy_params": {"clip": int, "place": int, "of": int},
}


@dataclass(frozen=True)
class ClipFiles:
    """A whole clip's entries of a manifest, in order, in the manifest's `folder`."""

    name: str
    folder: Path
    entries: Sequence[Mapping[str, Any]]

    def load(self) -> Clip:
        """The clip decoded; InputError or ValueError where it cannot be read."""
        entries = list(self.entries)
        pairs = [pair_of_entry(f"{self.name} {i}", entry, self.folder) for i, entry in enumerate(entries)]
        loaded = [decode(pair, "raw", 0) for pair in pairs]
        cameras = [_camera(entry["camera"]) for entry in entries]
        depth = np.stack([_depth(self.folder / entry["depth"]) for entry in entries])
        targets = np.stack([unit(one.target) for one in loaded])
        if depth.shape != targets.shape[:3] or any((c.height, c.width) != depth.shape[1:] for c in cameras):
            raise ValueError(f"the pictures, depths and cameras of {self.name} are of several sizes")
        points, colors = end_points(cameras, depth, targets)
        span = Span(
            cameras=cameras,
            photos=targets[[0, -1]],
            renders=np.stack([unit(one.render) for one in loaded]),
            opacity=np.stack([unit(one.opacity) for one in loaded]),
            depth=depth,
            points=points,
            colors=colors,
        )
        return Clip(self.name, span, targets)


@dataclass(eq=False)
class Clip:
    """What a video model is shown of a way, and the photos (T, H, W, 3) in [0, 1] that were taken along it."""

    name: str
    span: Span
    targets: np.ndarray

    @cached_property
    def seen(self) -> Seen:
        return Seen.of(self.span)

    @cached_property
    def truth(self) -> Tensor:
        """(T, 3, H, W)."""
        return planar(self.targets)

    @cached_property
    def beside(self) -> tuple[Tensor, Tensor]:
        """Both photos in every picture's view, (T, 2, 3, H, W), and where they are visible, (T, 2, 1, H, W)."""
        return self.seen.beside(range(len(self.targets)))

    @cached_property
    def places(self) -> Tensor:
        """Which places of both photos every picture shows, (T, 2, 3, H, W)."""
        return self.seen.places(range(len(self.targets)))

    @cached_property
    def motion(self) -> tuple[Tensor, Tensor]:
        """Of every photo but the first, where its pixels lay in the one before, (T − 1, H, W, 2) as grid_sample counts
        them, and where that is known, (T − 1, 1, H, W).
        """
        height, width = self.targets.shape[1:3]
        found = [frame_motion(one, two) for one, two in zip(self.targets[:-1], self.targets[1:], strict=True)]
        places = torch.from_numpy(np.stack([(motion.places + 0.5) / [width, height] * 2 - 1 for motion in found]))
        return places.float(), torch.from_numpy(np.stack([motion.visible for motion in found])).float()[:, None]

    def reversed(self) -> Clip:
        """The way back."""
        span = self.span
        return Clip(
            f"{self.name} back",
            Span(
                cameras=list(span.cameras)[::-1],
                photos=span.photos[::-1].copy(),
                renders=span.renders[::-1].copy(),
                opacity=span.opacity[::-1].copy(),
                depth=span.depth[::-1].copy(),
                points=span.points,
                colors=span.colors,
            ),
            self.targets[::-1].copy(),
        )


@dataclass
class ClipSet:
    """Clips of one or more folders. `dropped` says of every clip that is not whole why it is not used."""

    train: list[ClipFiles] = field(default_factory=list)
    test: list[ClipFiles] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    fingerprint: str = ""


def read_clips(sources: Sequence[Path]) -> ClipSet:
    """The clips of folders that `difix curate --strategy clips` made; nothing is decoded.

    Raises InputError for a folder that has no manifest, and where there is no clip in any.
    """
    clips, found = ClipSet(), hashlib.sha256()
    for source in sources:
        file = pair_files(source)[0]
        if file.suffix == ".tar":
            raise InputError(f"{source} holds tars, but clips are read from folders; curate them with --format folder.")
        halves = {"train": _Half(), "test": _Half()}
        for half, key, entry in manifest_entries(file):
            halves[half].add(key, entry)
        for part in chain(['{"test": '], halves["test"].text(), [', "train": '], halves["train"].text(), ["}"]):
            found.update(part.encode())
        clips.train.extend(_grouped(halves["train"], file, clips.dropped))
        clips.test.extend(_grouped(halves["test"], file, clips.dropped))
    clips.fingerprint = found.hexdigest()[:16]
    if not clips.train:
        first = next(iter(clips.dropped.items()), None)
        why = f" ({first[0].rpartition(': ')[2]} {first[1]})" if first else ""
        raise InputError(
            f"There are no clips to train on in {sources[0]}{why}; name a folder that difix curate --strategy clips "
            "made of training scenes."
        )
    return clips


class _Half:
    """The entries of a manifest's half, in little memory; one by one in the order of their keys."""

    def __init__(self) -> None:
        self.entries: Entries[Any] = Entries(lambda entry: entry)
        self.numbers: dict[str, int] = {}

    def add(self, key: str, entry: Any) -> None:
        self.numbers[key] = len(self.entries)
        self.entries.append(entry)

    def __iter__(self) -> Iterator[tuple[str, int, Any]]:
        """Key, number and entry."""
        for key in sorted(self.numbers):
            yield key, self.numbers[key], self.entries[self.numbers[key]]

    def text(self) -> Iterator[str]:
        """What JSON has of all of them, its keys sorted, part by part."""
        yield "{"
        for i, (key, _, entry) in enumerate(self):
            yield f"{', ' if i else ''}{json.dumps(key)}: {json.dumps(entry, sort_keys=True)}"
        yield "}"


def _grouped(half: _Half, file: Path, dropped: dict[str, str]) -> Iterator[ClipFiles]:
    groups: dict[tuple[str, str, int], list[tuple[int, int, int]]] = defaultdict(list)
    for key, at, entry in half:
        if fault_of(entry, _ENTRY) is None:
            told = entry["strategy_params"]
            stage = str(Path(entry["depth"]).parent.parent)
            groups[stage, entry["scene"], told["clip"]].append((told["place"], told["of"], at))
        else:
            dropped[f"{file}: {key}"] = "is no picture of a clip"
    for (stage, _, number), held in groups.items():
        ordered = sorted(held, key=lambda one: one[0])
        places = [place for place, _, _ in ordered]
        name = f"{stage} clip {number}"
        if places == list(range(ordered[0][1])) and len(places) > 2:
            yield ClipFiles(name, file.parent, Joined([half.entries], np.array([at for _, _, at in ordered])))
        else:
            dropped[f"{file}: {name}"] = "lacks some of its pictures"


def end_points(cameras: Sequence[Camera], depth: np.ndarray, photos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cloud (N, 3) float64 that the first and the last picture's depths (T, H, W) make, with its colours (N, 3):
    evenly spread pixels of both that have a depth, `POINTS` at most.
    """
    points, colors = [], []
    for i in (0, -1):
        y, x = np.nonzero(depth[i] > 0)
        chosen = np.linspace(0, max(len(x) - 1, 0), min(len(x), POINTS // 2)).round().astype(int)
        y, x = y[chosen], x[chosen]
        points.append(cameras[i].unproject(x + 0.5, y + 0.5, depth[i][y, x].astype(np.float64)).reshape(-1, 3))
        colors.append(photos[i][y, x].astype(np.float32))
    return np.concatenate(points), np.concatenate(colors)


def _camera(values: Mapping[str, Any]) -> Camera:
    pose = np.asarray(values["camera_to_world"], np.float64)
    if pose.shape != (4, 4):
        raise ValueError(f"a camera's pose has shape {pose.shape}, not (4, 4)")
    fx, fy, cx, cy = (float(values[name]) for name in ("fx", "fy", "cx", "cy"))
    return Camera(pose, fx, fy, cx, cy, values["width"], values["height"])


def _depth(file: Path) -> np.ndarray:
    try:
        with np.load(file, allow_pickle=False) as held:
            depth = np.asarray(held["depth"], np.float32)
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise ValueError(f"{file} is no depth of a picture ({type(error).__name__})") from error
    if depth.ndim != 2 or not np.isfinite(depth).all():
        raise ValueError(f"{file} holds depths that are not numbers")
    return depth
