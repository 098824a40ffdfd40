"""The surfaces that a reconstruction shows, as coloured points."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from difixcli.errors import InputError
from difixcli.reconstruction.views import Render
from difixcli.runs import atomic
from difixcli.scenes.ply import write_points
from difixcli.scenes.poses import transform_points
from difixcli.scenes.scene import Camera

_POINTS = 1_000_000
_OPAQUE = 0.5
"""Rays that meet less than this show no surface."""


def write_point_cloud(renders: Iterable[Render], cameras: Sequence[Camera], to_world: np.ndarray, path: Path) -> Path:
    """Write the points that the renders at `cameras` show, at most a million; PLY.

    `to_world` is the (4, 4) similarity from the cameras' world into the one that the points are written in.
    Every ray gives one point, at its z-depth and of its colour. Where there are more rays than points a share of each
    render's is drawn, always the same. Raises InputError where no render shows a surface.
    """
    rng = np.random.default_rng(0)
    total = sum(camera.width * camera.height for camera in cameras)
    points, colors = [np.zeros((0, 3))], [np.zeros((0, 3), np.uint8)]
    for render, camera in zip(renders, cameras, strict=True):
        row, column = np.nonzero((render.accumulation > _OPAQUE) & (render.depth > 0))
        if total > _POINTS:
            chosen = rng.random(len(row)) < _POINTS / total
            row, column = row[chosen], column[chosen]
        points.append(camera.unproject(column + 0.5, row + 0.5, render.depth[row, column]))
        colors.append((render.color[row, column] * 255 + 0.5).astype(np.uint8))
    if not any(map(len, points)):
        raise InputError("No surface to export: the model is empty where the photos look; train it for longer.")
    with atomic(path) as temporary:
        write_points(temporary, transform_points(to_world, np.concatenate(points)), np.concatenate(colors))
    return path
