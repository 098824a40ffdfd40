"""What scenes really show: renders of super-resolution's runs, beside the photos that were reduced for them.

A run of `difix distill --prior super-resolution --reduce N` knows three pictures of every training view: the photo as
it was, what is left of it after the reduction, and what the scene showed there before its last proposals. In the second
of two rounds that is a scene that has learned from small photos alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from difixcli.errors import InputError, short
from difixcli.priors.super_resolution.enlargement import SHAPE, Enlargement, small_and_large
from difixcli.runs import open_image, read_image, read_json
from difixcli.scenes import load_photo, load_scene
from difixcli.scenes.scene import Frame
from difixcli.training.pair_lists import Sliced

_VIEW = {"frame": str, "files": {"photo": str, "render": str}}


@dataclass(frozen=True, eq=False)
class SceneView:
    """A training view of a run: photo (h, w, 3), render and truth (h · factor, w · factor, 3), uint8."""

    photo: np.ndarray
    render: np.ndarray
    truth: np.ndarray


def run_files(folder: Path) -> list[Path]:
    """The files of a run that say what it shows, sorted."""
    last = _last_round(folder)
    return [folder / "run.json", *sorted(last.glob("*.render.png")), *sorted(last.glob("*.photo.png"))]


class SceneViews(Sliced[SceneView]):
    """The views of a run, read when they are needed, and kept as far as `cache_mib` goes.

    Args:
        files: of each the photo and the render.
        frames: the photos as they were.

    Raises InputError, also when a view is asked for, for files that cannot be read.
    """

    def __init__(self, files: Sequence[tuple[Path, Path]], frames: Sequence[Frame], cache_mib: float) -> None:
        self._files, self._frames = files, frames
        self._kept: dict[int, SceneView] = {}
        self._free = cache_mib * 2**20
        for file in chain.from_iterable(files):  # says now what is missing
            with open_image(file):
                pass

    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of each truth in pixels."""
        return [(frame.camera.height, frame.camera.width) for frame in self._frames]

    def __len__(self) -> int:
        return len(self._frames)

    def _item(self, number: int) -> SceneView:
        if number in self._kept:
            return self._kept[number]
        photo, render = (_bytes(read_image(file)) for file in self._files[number])
        view = SceneView(photo, render, _bytes(load_photo(self._frames[number])))
        size = view.photo.nbytes + view.render.nbytes + view.truth.nbytes
        if size <= self._free:
            self._kept[number] = view
            self._free -= size
        return view


def scene_views(folder: Path, factor: int, cache_mib: float = 512) -> SceneViews:
    """All training views of a run, as they were before its last round, in the order of the round's record.

    Raises InputError for a run that is not done, whose photos were not reduced as often as it is large (it has no
    truth of its size) or were reduced bicubically, that makes scenes larger by another factor, and for photos that
    are not there any more.
    """
    arguments = {"scene": str, "size": (None, int), "enlargement": SHAPE}
    record = read_json(folder / "run.json", {"state": str, "arguments": arguments})
    enlargement = Enlargement(**{key: record["arguments"]["enlargement"][key] for key in SHAPE})
    if record["state"] != "done":
        raise InputError(f"The run {folder} is not done; finish it before training on what it shows.")
    if enlargement.upscale != factor or enlargement.operator != "area" or enlargement.reduce < enlargement.upscale:
        raise InputError(
            f"The run {folder} cannot be trained on: its photos must be reduced by area and {factor} times at least, "
            f"and it {factor} times larger; distill it with --upscale {factor} --reduce {factor}."
        )
    scene = load_scene(record["arguments"]["scene"], record["arguments"]["size"])
    large = {frame.name: frame for frame in small_and_large(scene, enlargement)[1].frames}
    files, frames = [], []
    for entry in read_json(_last_round(folder) / "round.json", {"views": [_VIEW]})["views"]:
        if entry["frame"] not in large:
            raise InputError(
                f"The run {folder} shows {short(entry['frame'])}, which its scene does not have; run again."
            )
        photo, render = (folder / "rounds" / entry["files"][kind] for kind in ("photo", "render"))
        files.append((photo, render))
        frames.append(large[entry["frame"]])
    return SceneViews(files, frames, cache_mib)


def view_crop(views: Sequence[SceneView], size: int, factor: int, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
    """A random square of a random view, turned and mirrored: `photo` (s, s, 3), `render` and `truth` (size, size, 3).

    float32 in [0, 1]; s = size / factor.
    """
    view = views[int(rng.integers(len(views)))]
    side = size // factor
    top, left = (int(rng.integers(length - side + 1)) for length in view.photo.shape[:2])
    turns, mirrored = int(rng.integers(4)), bool(rng.random() < 0.5)

    def cut(pixels: np.ndarray, scale: int) -> np.ndarray:
        part = pixels[top * scale : (top + side) * scale, left * scale : (left + side) * scale]
        part = np.rot90(part[:, ::-1] if mirrored else part, turns)
        return np.ascontiguousarray(part, dtype=np.float32) / 255

    return {"photo": cut(view.photo, 1), "render": cut(view.render, factor), "truth": cut(view.truth, factor)}


def _last_round(folder: Path) -> Path:
    rounds: list[Any] = sorted(path.parent for path in (folder / "rounds").glob("[0-9][0-9]/round.json"))
    if not rounds:
        raise InputError(f"The run {folder} has no rounds whose renders could be trained on; finish it first.")
    return rounds[-1]


def _bytes(pixels: np.ndarray) -> np.ndarray:
    return (np.clip(pixels[..., :3], 0, 1) * 255 + 0.5).astype(np.uint8)
