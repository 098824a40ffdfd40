"""nerfstudio's transforms.json: reading any of its perspective forms, writing the pinhole one."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from difixcli.errors import InputError
from difixcli.runs import write_json
from difixcli.scenes.ply import read_points
from difixcli.scenes.poses import rigid_pose
from difixcli.scenes.scene import Camera
from difixcli.scenes.source import Lens, Source, SourceFrame

PERSPECTIVE_MODELS = {"PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "FULL_OPENCV"}
DISTORTION_KEYS = ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")


def read_transforms(path: Path) -> Source:
    """Reads a transforms.json as nerfstudio writes it: shared or per-frame intrinsics, masks, seed points.

    Poses and points are returned in the world they had before the file's `applied_transform`, so that the same
    photos read from COLMAP come out the same. Raises InputError with the frame and key at fault.
    """
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}); export the scene again.") from None
    if not isinstance(meta, dict) or not isinstance(meta.get("frames"), list) or not meta["frames"]:
        raise InputError(f"{path} has no frames; export the scene again or name another folder.")
    applied = _applied_transform(meta, path)
    undo = np.linalg.inv(applied)
    frames = []
    for number, entry in enumerate(meta["frames"]):
        if not isinstance(entry, dict) or not isinstance(entry.get("file_path"), str):
            raise InputError(f"Frame {number} of {path} has no file_path; add it or remove the frame.")
        image_path = path.parent / entry["file_path"]
        name = frame_name(image_path, path.parent)
        where = f"{name} in {path}"
        pose = rigid_pose(entry.get("transform_matrix"), where)
        camera_id = entry.get("camera_id")
        frames.append(
            SourceFrame(
                name=name,
                image_path=image_path,
                pose=undo @ pose,
                lens=_lens({**meta, **entry}, where),
                camera_id=None if camera_id is None else str(camera_id),
                mask_path=path.parent / entry["mask_path"] if entry.get("mask_path") else None,
            )
        )
    points, colors = np.zeros((0, 3)), np.zeros((0, 3), np.uint8)
    warnings: list[str] = []
    if meta.get("ply_file_path"):
        ply_path = path.parent / meta["ply_file_path"]
        if ply_path.is_file():
            points, colors = read_points(ply_path, warnings)
            points = points @ undo[:3, :3].T + undo[:3, 3]
        else:
            warnings.append(f"the seed points {ply_path} that {path.name} names are missing")
    return Source(
        path=path,
        frames=frames,
        points=points,
        colors=colors,
        applied=applied,
        metric=bool(meta.get("metric", False)),
        warnings=warnings,
    )


def write_transforms(path: Path, frames: Sequence[tuple[Camera, Mapping[str, Any]]], **meta: Any) -> None:
    """Write a pinhole `transforms.json`, whole or not at all.

    `frames` are the cameras and what else their entries say (`file_path` at least); `meta` is what the file says of
    all of them.
    """
    entries = [
        {
            **entry,
            "transform_matrix": camera.camera_to_world.tolist(),
            "fl_x": camera.fx,
            "fl_y": camera.fy,
            "cx": camera.cx,
            "cy": camera.cy,
            "w": camera.width,
            "h": camera.height,
        }
        for camera, entry in frames
    ]
    write_json(path, {"camera_model": "PINHOLE", **meta, "frames": entries})


def frame_name(image_path: Path, root: Path) -> str:
    """The name of a frame: its image's path relative to the scene's folder, POSIX style, without `./`."""
    return Path(os.path.relpath(image_path, root)).as_posix()


def _applied_transform(meta: Mapping[str, Any], path: Path) -> np.ndarray:
    if "applied_transform" not in meta:
        return np.eye(4)
    return rigid_pose(meta["applied_transform"], f"applied_transform in {path}")


def _lens(entry: Mapping[str, Any], where: str) -> Lens:
    """The lens of one frame from its own keys over the file's shared ones."""
    model = str(entry.get("camera_model", "OPENCV"))
    if model not in PERSPECTIVE_MODELS or entry.get("is_fisheye"):
        kind = "OPENCV_FISHEYE" if entry.get("is_fisheye") else model
        raise InputError(
            f"The camera model {kind} of {where} is not supported; undistort the photos to a perspective camera first "
            "(for example with `colmap image_undistorter`)."
        )
    width, height = _number(entry, "w", where), _number(entry, "h", where)
    fx = _number(entry, "fl_x", where)
    angle_x, angle_y = _number(entry, "camera_angle_x", where), _number(entry, "camera_angle_y", where)
    if fx is None and angle_x is not None and width is not None:
        fx = 0.5 * width / math.tan(0.5 * angle_x)
    fy = _number(entry, "fl_y", where)
    if fy is None and angle_y is not None and height is not None:
        fy = 0.5 * height / math.tan(0.5 * angle_y)
    fy = fx if fy is None else fy
    if fx is None or fy is None or fx <= 0 or fy <= 0:
        raise InputError(f"{where} has no positive focal length; give fl_x and fl_y (pixels), shared or per frame.")
    distortion = [_number(entry, key, where) or 0.0 for key in DISTORTION_KEYS]
    if model != "FULL_OPENCV" and any(distortion[5:]):
        # Outside FULL_OPENCV, nerfstudio's k4 is a fourth radial power, which OpenCV's model cannot express.
        raise InputError(f"{where} has distortion terms beyond k3; undistort the photos first or use FULL_OPENCV.")
    return Lens(
        fx=fx,
        fy=fy,
        cx=_number(entry, "cx", where),
        cy=_number(entry, "cy", where),
        width=None if width is None else int(width),
        height=None if height is None else int(height),
        distortion=tuple(distortion),
    )


def _number(entry: Mapping[str, Any], key: str, where: str) -> float | None:
    value = entry.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"{key} of {where} is {value!r}, not a number; export the scene again.")
    return float(value)
