"""The sample scenes at the size of a thumbnail."""

from __future__ import annotations

import json
import shutil
from collections.abc import Container
from pathlib import Path

from PIL import Image

from difixcli.scenes import Camera
from difixcli.scenes.nerfstudio_format import read_transforms, write_transforms
from difixcli.scenes.sample import cached_sample
from difixcli.scenes.splits import SPLIT_FILE


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
