"""The training data a run keeps beside its model, so that nerfstudio's own tools find it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from difixcli.runs import atomic, file_name, write_image
from difixcli.scenes import load_mask, load_photo
from difixcli.scenes.nerfstudio_format import write_transforms
from difixcli.scenes.scene import Camera, Scene

UNKNOWN_DEPTH = "depths/unknown.npy"
"""A depth map that knows nothing, of any size: nerfstudio enlarges it to its photo's."""


def write_dataset(
    scene: Scene,
    train: Sequence[int],
    folder: Path,
    depths: bool = False,
    beside: Callable[[int], None] = lambda frame: None,
) -> None:
    """Write the scene's photos at working size and a pinhole `transforms.json` in the scene's world.

    `train` are the frames that train; the others are nerfstudio's `val` and `test` split, so that ns-eval measures the
    views that were held out (all training views where none is). Files are numbered in the order of `scene.frames`,
    which is also the order in which nerfstudio lists them. With `depths` every photo has a depth map of the seed
    points that it shows, z-depth in the scene's units, 0 where nothing is known.

    `beside` is called with each frame that trains, in order, while its photo is at hand: who needs all photos, too,
    does not have them decoded again where they are more than memory holds.
    """
    masked: set[int] = set()
    names: list[str] = []
    frames: list[tuple[Camera, dict[str, Any]]] = []
    training = set(train)
    for i, frame in enumerate(scene.frames):
        name = f"images/{i:05d}_{file_name(frame.name)}.png"
        write_image(folder / name, load_photo(frame))
        entry = {"file_path": name}
        if (mask := load_mask(frame)) is not None:
            masked.add(i)
            write_image(folder / f"masks/{i:05d}.png", mask.astype(np.float32))
        if depths:
            from difixcli.reconstruction.seed_depth import depth_map

            entry["depth_file_path"] = f"depths/{i:05d}.npy"
            _write_depth(folder / entry["depth_file_path"], depth_map(scene, i))
        if i in training:
            beside(i)
        names.append(name)
        frames.append((frame.camera, entry))
    for i, (camera, entry) in enumerate(frames if masked else []):  # one photo's mask asks for all photos'
        entry["mask_path"] = f"masks/{i:05d}.png"
        if i not in masked:
            write_image(folder / entry["mask_path"], np.ones((camera.height, camera.width), dtype=np.float32))
    if depths:
        _write_depth(folder / UNKNOWN_DEPTH, np.zeros((1, 1), np.float32))
    held_out = [name for i, name in enumerate(names) if i not in training] or [names[i] for i in sorted(training)]
    write_transforms(
        folder / "transforms.json",
        frames,
        train_filenames=[names[i] for i in sorted(training)],
        val_filenames=held_out,
        test_filenames=held_out,
    )


def _write_depth(path: Path, depth: np.ndarray) -> None:
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.save(file, depth)
