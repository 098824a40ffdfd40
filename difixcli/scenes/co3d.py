"""CO3D's own folders as scenes: a sequence's photos, masks and point cloud, posed by its category's annotations."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from difixcli.errors import InputError, unknown
from difixcli.runs import is_the_systems, open_image, unreadable
from difixcli.scenes.lenses import Lens
from difixcli.scenes.nerfstudio_format import frame_name
from difixcli.scenes.ply import read_points
from difixcli.scenes.poses import rigid_pose
from difixcli.scenes.source import Source, SourceFrame
from difixcli.scenes.tracks import Tracks

ANNOTATIONS = "frame_annotations.jgz"
POINTS = "pointcloud.ply"
ISOTROPIC, BY_SIDE = "ndc_isotropic", "ndc_norm_image_bounds"

_AXES = np.diag([-1.0, 1.0, -1.0])  # PyTorch3D's camera (x left, y up, z ahead) to OpenGL's; its own inverse
_IN_A_CELL = 16  # points, about: what of them hides what is told by the nearest one of each such cell of a picture
_MOST_CELLS = 256  # along a photo's longer side
_BEHIND = 0.05  # a point this part of its depth behind the nearest one in its cell is hidden by it


def annotations_of(root: Path) -> Path | None:
    """The annotations of the category that a sequence's folder lies in, or None where the parent folder has none."""
    path = root.absolute().parent / ANNOTATIONS
    return path if path.is_file() else None


def read_co3d(root: Path) -> Source:
    """Reads a sequence of CO3D, version 1 or 2: `root` is CATEGORY/SEQUENCE, and CATEGORY has frame_annotations.jgz.

    That file is a gzipped JSON list, an entry a frame: `sequence_name`, `image` and `mask` with `path` (from the
    folder that holds the categories) and `size` (height, width), and `viewpoint`. The camera there is PyTorch3D's:
    X_cam = X·R + T with row vectors, x to the left, y up, z ahead. Its lens is in normalised device coordinates, ±1 at
    the border: of the shorter side in both axes (`intrinsics_format` ndc_isotropic, version 2), or of each axis' own
    side (ndc_norm_image_bounds, version 1, which does not name it). For half sizes h (pixels) and their unit s, a point
    lies at h − s·(f·(X, Y)/Z + p) pixels.

    Masks are each pixel's probability to be the object's; from one half on it is trained on. `pointcloud.ply`, where
    there is one, gives seed points. It is made of all frames and does not say which saw what: a frame counts as having
    seen a point that lies in its picture and mask and is not behind others (see `_seen`).

    Raises InputError for annotations that cannot be read, do not have the sequence, or have a broken frame.
    """
    path = annotations_of(root)
    assert path is not None
    entries = _entries(path)
    name = root.absolute().name
    mine = [entry for entry in entries if entry["sequence_name"] == name]
    if not mine:
        known = dict.fromkeys(entry["sequence_name"] for entry in entries)
        raise unknown(f"sequence of {path.parent.name}", name, known, f"{path} names it not.")
    warnings: list[str] = []
    frames = [_frame(entry, root, path) for entry in mine]
    points, colors, tracks = np.zeros((0, 3)), np.zeros((0, 3), np.uint8), None
    if (root / POINTS).is_file():
        points, colors = read_points(root / POINTS, warnings)
        tracks = _tracks(frames, points)
    return Source(path=path, frames=frames, points=points, colors=colors, tracks=tracks, warnings=warnings)


def _entries(path: Path) -> list[dict[str, Any]]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            entries = json.load(file)
    except (OSError, EOFError, UnicodeDecodeError, json.JSONDecodeError) as error:
        if is_the_systems(error):
            raise unreadable(path, error) from error
        raise InputError(f"{path} cannot be read as gzipped JSON ({error}); download it again.") from None
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) and isinstance(entry.get("sequence_name"), str) for entry in entries
    ):
        raise InputError(f"{path} is no list of frames with sequence_name; download it again.")
    return entries


def _frame(entry: Mapping[str, Any], root: Path, path: Path) -> SourceFrame:
    image_path = _beside(entry.get("image"), root)
    if image_path is None:
        raise InputError(f"A frame of {root.name} in {path} names no image; download it again.")
    name = frame_name(image_path, root.absolute())
    where = f"{name} of {root.name} in {path}"
    try:
        height, width = (int(side) for side in entry["image"]["size"])
        view = entry["viewpoint"]
        rotation, shift, focal, centre = (
            np.array(view[key], dtype=np.float64).reshape(shape)
            for key, shape in (("R", (3, 3)), ("T", 3), ("focal_length", 2), ("principal_point", 2))
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{where} has no whole viewpoint and size ({error.__class__.__name__}: {error}); download it again."
        ) from None
    if width < 1 or height < 1 or not np.isfinite(focal).all() or not np.isfinite(centre).all() or focal.min() <= 0:
        raise InputError(f"{where} has no positive size and focal length; remove that frame, or download it again.")
    half = np.array([width, height]) / 2
    unit = _unit(view.get("intrinsics_format") or BY_SIDE, half, where)
    (fx, fy), (cx, cy) = focal * unit, half - centre * unit
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation @ _AXES, -rotation @ shift
    return SourceFrame(
        name=name,
        image_path=image_path,
        pose=rigid_pose(pose, where),
        lens=Lens(float(fx), float(fy), float(cx), float(cy), width, height),
        mask_path=_beside(entry.get("mask"), root),
    )


def _unit(kind: object, half: np.ndarray, where: str) -> np.ndarray:
    """(2,) pixels of one unit of normalised device coordinates across and down."""
    if kind == ISOTROPIC:
        return np.full(2, half.min())
    if kind == BY_SIDE:
        return half
    raise InputError(f"{where} has the intrinsics_format {kind!r}, which is neither {ISOTROPIC} nor {BY_SIDE}.")


def _beside(entry: object, root: Path) -> Path | None:
    """A file of the sequence that is named from the folder of the categories on; they may have been moved since."""
    named = entry.get("path") if isinstance(entry, dict) else None
    if not isinstance(named, str) or not named:
        return None
    parts = PurePosixPath(named).parts
    inner = parts[parts.index(root.absolute().name) + 1 :] if root.absolute().name in parts else parts[-2:]
    return root.joinpath(*inner)


def _tracks(frames: Sequence[SourceFrame], points: np.ndarray) -> Tracks:
    found = [_seen(frame, points) for frame in frames]
    which, what = np.nonzero(np.stack(found))
    return Tracks.of(what, which, len(points))


def _seen(frame: SourceFrame, points: np.ndarray) -> np.ndarray:
    """(N,) bool: the points in a frame's picture and mask that are not hidden behind others, by a coarse depth map."""
    lens = frame.lens
    width, height = lens.size
    cx, cy = lens.centre
    local = (points - frame.pose[:3, 3]) @ frame.pose[:3, :3]
    depth = -local[:, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        x, y = local[:, 0] / depth * lens.fx + cx, -local[:, 1] / depth * lens.fy + cy
    places = np.flatnonzero((depth > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height))
    if frame.mask_path is not None and frame.mask_path.is_file():
        mask = _mask(frame.mask_path)
        row, column = (y[places] * mask.shape[0] / height).astype(int), (x[places] * mask.shape[1] / width).astype(int)
        places = places[mask[row, column]]
    if not places.size:
        return np.zeros(len(points), dtype=bool)
    x, y, near = x[places], y[places], depth[places]
    side = max(max(width, height) / _MOST_CELLS, float(np.sqrt(np.ptp(x) * np.ptp(y) * _IN_A_CELL / places.size)))
    row, column = (y / side).astype(int), (x / side).astype(int)
    cell = row * (column.max() + 1) + column
    nearest = np.full(cell.max() + 1, np.inf)
    np.minimum.at(nearest, cell, near)
    seen = np.zeros(len(points), dtype=bool)
    seen[places[near <= nearest[cell] * (1 + _BEHIND)]] = True
    return seen


def _mask(path: Path) -> np.ndarray:
    """(H, W) bool of a mask's file."""
    with open_image(path) as picture:
        return np.asarray(picture.convert("L")) >= 128
