"""The training data a run keeps beside its model, so that nerfstudio's own tools find it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from difixcli.runs import file_name, write_image, write_json
from difixcli.scenes import load_mask, load_photo
from difixcli.scenes.scene import Camera, Scene


def write_dataset(scene: Scene, train: Sequence[int], folder: Path) -> None:
    """Write the scene's photos at working size and a pinhole `transforms.json` in the normalised world.

    `train` are the frames that train; the others are nerfstudio's `val` and `test` split, so that ns-eval measures the
    views that were held out (all training views where none is). Files are numbered in the order of `scene.frames`,
    which is also the order in which nerfstudio lists them.
    """
    masks = {i: load_mask(frame) for i, frame in enumerate(scene.frames)}
    any_mask = any(mask is not None for mask in masks.values())
    names, frames = [], []
    for i, frame in enumerate(scene.frames):
        name = f"images/{i:05d}_{file_name(frame.name)}.png"
        write_image(folder / name, load_photo(frame))
        entry = {"file_path": name, **camera_entry(frame.camera)}
        if any_mask:
            mask = masks[i]
            entry["mask_path"] = f"masks/{i:05d}.png"
            full = np.ones((frame.camera.height, frame.camera.width), dtype=np.float32)
            write_image(folder / f"masks/{i:05d}.png", full if mask is None else mask.astype(np.float32))
        names.append(name)
        frames.append(entry)
    training = set(train)
    held_out = [name for i, name in enumerate(names) if i not in training] or [names[i] for i in sorted(training)]
    write_json(
        folder / "transforms.json",
        {
            "camera_model": "PINHOLE",
            "frames": frames,
            "train_filenames": [names[i] for i in sorted(training)],
            "val_filenames": held_out,
            "test_filenames": held_out,
        },
    )


def camera_entry(camera: Camera) -> dict[str, object]:
    """A camera in the keys of transforms.json."""
    return {
        "transform_matrix": camera.camera_to_world.tolist(),
        "fl_x": camera.fx,
        "fl_y": camera.fy,
        "cx": camera.cx,
        "cy": camera.cy,
        "w": camera.width,
        "h": camera.height,
    }
