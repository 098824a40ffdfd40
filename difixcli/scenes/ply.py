"""Coloured points in PLY files."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np

from difixcli.errors import InputError, short
from difixcli.runs import is_the_systems, unreadable
from difixcli.wording import counted

FARTHEST = 1e12
"""A coordinate of as much or more, in whatever unit, is no place in a scene but a damaged number."""

GREY = 128
"""The colour of points whose file has none."""

_COLOR_NAMES = (
    *((f"{before}red", f"{before}green", f"{before}blue") for before in ("", "diffuse_", "scalar_")),
    ("r", "g", "b"),
)
_HEADER_LINES = 200  # more than any has
_HEADER_LINE = 1000  # bytes
_HARMONICS = ("f_dc_0", "f_dc_1", "f_dc_2")
_FIRST_HARMONIC = 0.28209479177387814  # 1 / (2 √π)


def read_points(path: Path, warnings: list[str] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Reads the vertices of a PLY file: positions (N, 3) float64 and colours (N, 3) uint8, grey where it has none.

    Colours are `red`, `diffuse_red`, `scalar_red` or `r` and so on, in capitals or not: bytes, 16-bit integers, or
    floats that end at 1 or at 255 (as the largest of them says); a file of Gaussians (`f_dc_0`…) gives their centres
    and base colours. Points whose position or colour is not finite are left out. `warnings` is given a line for each
    thing that was left out or taken for something else. Raises InputError if the file cannot be read as PLY with
    x, y, z.
    """
    from plyfile import PlyData, PlyParseError

    notes: list[str] = [] if warnings is None else warnings
    check_counts(path)
    try:
        vertices = PlyData.read(str(path))["vertex"]
        if "packed_position" in (vertices.data.dtype.names or ()):
            raise InputError(
                f"The seed points {path} are a compressed splat; export it uncompressed (as .ply in SuperSplat, or "
                "`splat-transform in.compressed.ply out.ply`)."
            )
        points = np.stack([np.asarray(vertices[axis], dtype=np.float64) for axis in "xyz"], axis=1)
    except (PlyParseError, KeyError, ValueError, OSError) as error:
        if is_the_systems(error):
            raise unreadable(path, error) from error
        why = "it has no vertices" if isinstance(error, KeyError) else error
        raise InputError(f"The seed points {path} cannot be read as a PLY point cloud ({why}).") from None
    names = {name.lower(): name for name in vertices.data.dtype.names or ()}
    finite = (np.abs(points) < FARTHEST).all(axis=1)  # NaN is not
    colors = np.full((len(points), 3), GREY, dtype=np.uint8)
    found = next((channels for channels in (*_COLOR_NAMES, _HARMONICS) if names.keys() >= set(channels)), None)
    if found is not None:
        values = np.stack([np.asarray(vertices[names[channel]]) for channel in found], axis=1)
        finite &= np.isfinite(values).all(axis=1)
        if found == _HARMONICS:
            notes.append(f"the seed points {path.name} are Gaussians; their centres and base colours are taken")
            colors[finite] = _bytes((0.5 + _FIRST_HARMONIC * values[finite]) * 255)
        else:
            colors[finite] = _bytes(values[finite] * _to_bytes(values[finite]))
    if lost := int((~finite).sum()):
        notes.append(
            f"{lost} of {counted(len(points), 'seed point')} in {path.name} not finite, or beyond any scene: left out"
        )
    return points[finite], colors[finite]


def check_counts(path: Path) -> None:
    """Raises InputError for a PLY file whose header claims more than its bytes can hold: room for it is made first."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            for line in islice(file, _HEADER_LINES):
                words = line[:_HEADER_LINE].split()
                if words[:1] == [b"element"] and len(words) == 3 and words[2].isdigit() and int(words[2][:20]) > size:
                    count, what = (short(word.decode("latin-1"), 40) for word in (words[2], words[1]))
                    raise InputError(
                        f"{path} claims to hold {count} of the kind {what!a}, which its {size} bytes cannot; export it "
                        "again."
                    )
                if words == [b"end_header"]:
                    return
    except OSError as error:
        raise unreadable(path, error) from error


def count_vertices(path: Path) -> int:
    """How many vertices a PLY file says it has, by its header alone; 0 where that does not say it."""
    with path.open("rb") as file:
        for _ in range(_HEADER_LINES):
            words = file.readline(_HEADER_LINE).split()
            if words[:2] == [b"element", b"vertex"] and len(words) == 3 and words[2].isdigit():
                return int(words[2])
            if words == [b"end_header"]:
                break
    return 0


def _to_bytes(values: np.ndarray) -> float:
    """What takes colours of any type to 0..255."""
    most = values.max(initial=0)
    if values.dtype.kind == "f" and most <= 1:
        return 255.0
    # 16 bits by their type; but writers that give every integer 16 bits put bytes into them
    return 1 / 257 if values.dtype.kind != "f" and most > 255 else 1.0


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(values, 0, 255)).astype(np.uint8)


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
