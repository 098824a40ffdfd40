"""Coloured points in PLY files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from difixcli.errors import InputError

GREY = 128
"""The colour of points whose file has none."""


def read_points(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads the vertices of a PLY file: positions (N, 3) float64 and colours (N, 3) uint8, grey where it has none.

    Points that are not finite are left out. Raises InputError if the file cannot be read as PLY with x, y, z.
    """
    from plyfile import PlyData, PlyParseError

    try:
        vertices = PlyData.read(str(path))["vertex"]
        points = np.stack([np.asarray(vertices[axis], dtype=np.float64) for axis in "xyz"], axis=1)
    except (PlyParseError, KeyError, ValueError, OSError) as error:
        raise InputError(f"The seed points {path} cannot be read as a PLY point cloud ({error}).") from None
    names = set(vertices.data.dtype.names or ())
    if {"red", "green", "blue"} <= names:
        colors = np.stack([np.asarray(vertices[channel]) for channel in ("red", "green", "blue")], axis=1)
        if colors.dtype.kind == "f":
            colors = np.rint(np.clip(colors, 0, 1) * 255)
        colors = colors.astype(np.uint8)
    else:
        colors = np.full((len(points), 3), GREY, dtype=np.uint8)
    finite = np.isfinite(points).all(axis=1)
    return points[finite], colors[finite]


def write_points(path: Path, points: np.ndarray, colors: np.ndarray) -> None:
    """Writes points (N, 3) and colours (N, 3) uint8 as a binary little-endian PLY file."""
    from plyfile import PlyData, PlyElement

    vertices = np.empty(
        len(points), dtype=[("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1")]
    )
    for i, axis in enumerate("xyz"):
        vertices[axis] = points[:, i]
    for i, channel in enumerate(("red", "green", "blue")):
        vertices[channel] = colors[:, i]
    PlyData([PlyElement.describe(vertices, "vertex")], byte_order="<").write(str(path))
