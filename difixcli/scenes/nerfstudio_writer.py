"""Writing a scene, as we work with it, for nerfstudio's own tools."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from difixcli.errors import InputError
from difixcli.scenes.loading import load_mask, load_photo
from difixcli.scenes.ply import write_points
from difixcli.scenes.scene import Scene


def write_nerfstudio(scene: Scene, folder: str | Path) -> Path:
    """Writes a scene in its normalised world and at its working size; returns the path of the transforms.json.

    The folder (made if missing) gets undistorted PNG photos, masks where there are any, the seed points, and a PINHOLE
    `transforms.json` with each frame's own intrinsics; that comes last and by renaming. nerfstudio's dataparser with
    `orientation_method=none, center_method=none, auto_scale_poses=False` keeps our world exactly; its defaults, which
    normalise as we do, agree with it too. Raises InputError if the folder cannot be written or a photo not read.
    """
    folder = Path(folder)
    try:
        frames = [_write_frame(scene, i, name, folder) for i, name in enumerate(_file_names(scene))]
        meta: dict[str, object] = {"camera_model": "PINHOLE", "metric": False, "frames": frames}
        if len(scene.points):
            write_points(folder / "points.ply", scene.points, scene.colors)
            meta["ply_file_path"] = "points.ply"
        path = folder / "transforms.json"
        unfinished = folder / ".transforms.json.part"
        unfinished.write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        raise InputError(f"The scene cannot be written to {folder} ({error.strerror or error}).") from None
    return path


def _write_frame(scene: Scene, index: int, name: str, folder: Path) -> dict[str, object]:
    frame = scene.frames[index]
    camera = frame.camera
    entry: dict[str, object] = {
        "file_path": f"images/{name}",
        "transform_matrix": camera.camera_to_world.tolist(),
        "camera_id": frame.camera_id,
        "fl_x": camera.fx,
        "fl_y": camera.fy,
        "cx": camera.cx,
        "cy": camera.cy,
        "w": camera.width,
        "h": camera.height,
    }
    _save(np.rint(load_photo(frame) * 255).astype(np.uint8), folder / "images" / name)
    mask = load_mask(frame)
    if mask is not None:
        entry["mask_path"] = f"masks/{name}"
        _save(mask.astype(np.uint8) * 255, folder / "masks" / name)
    return entry


def _file_names(scene: Scene) -> list[str]:
    """A PNG name for each frame, below images/: the frame's own path without what leads out of the folder."""
    names: list[str] = []
    for frame in scene.frames:
        parts = [part for part in PurePosixPath(frame.name).parts if part not in ("..", "/")]
        own = PurePosixPath(*(parts[1:] if len(parts) > 1 and parts[0] == "images" else parts))
        name = own.with_suffix(".png").as_posix()
        # a.jpg and a.png may stand side by side.
        names.append(f"{own.as_posix()}.png" if name in names else name)
    if len(set(names)) < len(names):
        names = [f"{i:05d}.png" for i in range(len(names))]
    return names


def _save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, compress_level=4)
