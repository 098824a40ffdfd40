"""Cameras that stand in a file of their own: poses in the scene's file's world, as a transforms.json has them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from difixcli.errors import InputError
from difixcli.runs import file_name, read_json
from difixcli.scenes.poses import apply_similarity, rigid_pose
from difixcli.scenes.scene import Camera, Scene

_LENS = {"fl_x": "fx", "fl_y": "fy", "cx": "cx", "cy": "cy", "w": "width", "h": "height"}


def read_cameras(path: Path, scene: Scene, like: Camera) -> list[tuple[str, Camera]]:
    """Names and cameras of a JSON file: `{"transform_matrix": 4×4, …}`, or `{"frames": [such, …]}` as transforms.json.

    Poses are camera-to-world with OpenGL axes in the world of the scene's own file; the cameras are in the normalised
    one. The lens is `like`'s, or what fl_x, fl_y, cx, cy, w and h say, all six together, of a frame or of the file. A
    frame is called as its `file_path`, if it has one. Raises InputError for a file that is missing, broken or empty, a
    pose that is none, and a lens that is not whole.
    """
    held = read_json(path)
    entries = held.get("frames", [held]) if isinstance(held, dict) else held
    if not isinstance(entries, list) or not entries:
        raise InputError(
            f'{path} holds no camera; write {{"transform_matrix": 4×4}} or a list of frames with one each.'
        )
    shared = {key: value for key, value in held.items() if key != "frames"} if isinstance(held, dict) else {}
    found: list[tuple[str, Camera]] = []
    for number, entry in enumerate(entries):
        where = f"camera {number} in {path}"
        if not isinstance(entry, dict) or "transform_matrix" not in entry:
            raise InputError(f"There is no transform_matrix for {where}; write its 4×4 camera-to-world matrix.")
        pose = apply_similarity(scene.source_to_world, rigid_pose(entry["transform_matrix"], where))
        lens = _lens({**shared, **entry}, where)
        name = entry.get("file_path")
        stem = file_name(Path(name).name) if isinstance(name, str) and name else f"camera-{number:04d}"
        if any(stem == other for other, _ in found):
            stem = f"{stem}-{number:04d}"
        found.append((stem, replace(like, **lens).moved(pose)))
    return found


def _lens(entry: dict[str, Any], where: str) -> dict[str, Any]:
    """What of a Camera an entry says about its lens: all or nothing."""
    given = {ours: entry[theirs] for theirs, ours in _LENS.items() if entry.get(theirs) is not None}
    if not given:
        return {}
    if len(given) < len(_LENS):
        lacking = ", ".join(theirs for theirs, ours in _LENS.items() if ours not in given)
        raise InputError(f"The lens of {where} lacks {lacking}; give all of fl_x, fl_y, cx, cy, w and h, or none.")
    if not all(isinstance(v, (int, float)) and np.isfinite(v) and v > 0 for v in given.values()):
        raise InputError(f"The lens of {where} is not of positive numbers; correct fl_x, fl_y, cx, cy, w and h.")
    return {**given, "width": round(given["width"]), "height": round(given["height"])}
