"""The sample scenes at the size of a thumbnail, also as COLMAP has them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Container
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

from difixcli.samples.sample import cached_sample
from difixcli.scenes import Camera
from difixcli.scenes.nerfstudio_format import read_transforms, write_transforms
from difixcli.scenes.splits import SPLIT_FILE

HALF_ROOM = frozenset(
    {f"images/train_{i:03d}.png" for i in range(0, 24, 2)} | {f"images/test_{i:03d}.png" for i in range(0, 8, 2)}
)
"""Twelve of the sample room's photos that train, and four of those that test."""


def small_sample(name: str, folder: Path, width: int, frames: Container[str] | None = None) -> Path:
    """A sample scene `width` pixels wide, or those of its frames that are named; made in a folder that is not there.

    Its lens stands in each frame, its seed points are the sample's, and its `split.json` names the frames that are in.
    """
    sample = cached_sample(name)
    source = read_transforms(sample / "transforms.json")
    entries = []
    for frame in source.frames:
        if frames is not None and frame.name not in frames:
            continue
        target = folder / frame.name
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(frame.image_path) as photo:
            height = round(photo.height * width / photo.width)
            photo.resize((width, height), Image.Resampling.BOX).save(target)
            lens = frame.lens
            camera = Camera(frame.pose, lens.fx, lens.fy, lens.cx or 0.0, lens.cy or 0.0, photo.width, photo.height)
        entries.append((camera.resized(width, height), {"file_path": frame.name, "camera_id": frame.camera_id}))
    shutil.copy(sample / "points.ply", folder)
    names = {entry["file_path"] for _, entry in entries}
    split = json.loads((sample / SPLIT_FILE).read_text(encoding="utf-8"))
    kept = {half: [one for one in split[half] if one in names] for half in ("train", "test")}
    (folder / SPLIT_FILE).write_text(json.dumps(kept), encoding="utf-8")
    write_transforms(folder / "transforms.json", entries, metric=source.metric, ply_file_path="points.ply")
    return folder


def write_colmap(scene: Path, model: Path) -> None:
    """A scene of one camera, without distortion, as the text files of a COLMAP model, in a folder made if missing.

    Its points have no tracks.
    """
    source = read_transforms(scene / "transforms.json")
    model.mkdir(parents=True, exist_ok=True)
    lens = source.frames[0].lens
    with Image.open(source.frames[0].image_path) as photo:
        sizes = f"{photo.width} {photo.height}"
    (model / "cameras.txt").write_text(f"1 PINHOLE {sizes} {lens.fx!r} {lens.fy!r} {lens.cx!r} {lens.cy!r}\n")
    lines = []
    for number, frame in enumerate(source.frames, start=1):
        # world-to-camera, x right, y down, z ahead
        matrix = np.linalg.inv(frame.pose @ np.diag([1.0, -1, -1, 1]))
        x, y, z, w = Rotation.from_matrix(matrix[:3, :3]).as_quat().tolist()
        numbers = [w, x, y, z, *matrix[:3, 3].tolist()]
        lines += [f"{number} {' '.join(map(repr, numbers))} 1 {Path(frame.name).name}", ""]
    (model / "images.txt").write_text("\n".join(lines) + "\n")
    points = zip(source.points.tolist(), source.colors.tolist(), strict=True)
    (model / "points3D.txt").write_text(
        "".join(f"{i} {x!r} {y!r} {z!r} {r} {g} {b} 0\n" for i, ((x, y, z), (r, g, b)) in enumerate(points, start=1))
    )
