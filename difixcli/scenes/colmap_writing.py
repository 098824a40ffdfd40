"""A scene as a COLMAP text model: cameras, images and the points that they saw."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from difixcli.scenes.poses import OPENCV_TO_OPENGL
from difixcli.scenes.scene import Camera


def write_model(
    folder: Path, images: Sequence[tuple[str, Camera]], points: np.ndarray, colors: np.ndarray, seen: np.ndarray
) -> None:
    """Write `cameras.txt`, `images.txt` and `points3D.txt` into a folder, made if missing.

    Args:
        images: names, relative to the folder of the images, and cameras, whose world the model has. Cameras of one lens
            are one camera of the model, a PINHOLE.
        points: (N, 3) in that world; `colors` (N, 3) uint8.
        seen: (V, N) bool, which of the V images saw which point. What they saw is where the point projects to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lenses: dict[object, int] = {}
    cameras, lines = [], []
    tracks: list[list[str]] = [[] for _ in points]
    for number, ((name, camera), these) in enumerate(zip(images, seen, strict=True), start=1):
        lens = (camera.width, camera.height, camera.fx, camera.fy, camera.cx, camera.cy)
        if lens not in lenses:
            lenses[lens] = len(lenses) + 1
            cameras.append(f"{lenses[lens]} PINHOLE {' '.join(map(_text, lens))}")
        world_to_camera = np.linalg.inv(camera.camera_to_world @ OPENCV_TO_OPENGL)
        x, y, z, w = Rotation.from_matrix(world_to_camera[:3, :3]).as_quat()
        numbers = (w, x, y, z, *world_to_camera[:3, 3])
        lines.append(f"{number} {' '.join(map(_text, numbers))} {lenses[lens]} {name}")
        places = np.flatnonzero(these)
        across, down, _ = camera.project(points[places])
        at = zip(places.tolist(), across.tolist(), down.tolist(), strict=True)
        lines.append(" ".join(f"{x:.2f} {y:.2f} {place + 1}" for place, x, y in at))
        for index, place in enumerate(places.tolist()):
            tracks[place].append(f"{number} {index}")
    rows = [
        " ".join([str(number), *map(_text, point), *map(str, color), "0", *track])
        for number, (point, color, track) in enumerate(zip(points, colors.tolist(), tracks, strict=True), start=1)
    ]
    for name, written in (("cameras", cameras), ("images", lines), ("points3D", rows)):
        (folder / f"{name}.txt").write_text("".join(f"{line}\n" for line in written), encoding="utf-8")


def _text(number: float) -> str:
    """As short as it can be without another value."""
    return repr(number) if isinstance(number, int) else repr(float(number))
