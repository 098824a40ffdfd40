"""LLFF's scenes: one array of poses and depths beside photos that it counts by the order of their names."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from difixcli.errors import InputError
from difixcli.scenes.image_paths import PHOTO_FOLDERS, folder_on_disk
from difixcli.scenes.lenses import Lens
from difixcli.scenes.poses import rigid_pose
from difixcli.scenes.source import Source, SourceFrame
from difixcli.scenes.unposed import photos_in
from difixcli.wording import counted

POSES_BOUNDS = "poses_bounds.npy"

_COPIES = ("images_2", "images_4", "images_8")
_NUMBERS = 17  # a 3×5 matrix and two depths
_RESTORE = "restore it, or remove it and run difix pose on the photos"


def poses_bounds(root: Path) -> Path | None:
    """LLFF's file in a folder, or None."""
    path = root / POSES_BOUNDS
    return path if path.is_file() else None


def read_llff(root: Path) -> Source:
    """Reads a scene of LLFF (also of NeRF's and Plenoptic Video's copies) without its COLMAP model.

    `poses_bounds.npy` is (N, 17): of each photo, a 3×5 matrix by rows, whose columns are the camera's axes in the world
    (down, right, backwards), its centre, and height, width and focal length in pixels; then how near and far the things
    are that it shows, as z-depths. Photos are counted by the order of their names (in bytes, so that `10.jpg` comes
    before `9.jpg`), in the first folder that has N of them: `images` or another of `PHOTO_FOLDERS`, the scene's own, or
    one of smaller copies. The principal point is the middle. There are no seed points.

    Raises InputError for an array of another layout, numbers that make no camera, and where no folder has N photos.
    """
    path = root / POSES_BOUNDS
    table = _table(path)
    photos, note = _photos(root, len(table))
    frames = []
    for i, (photo, row) in enumerate(zip(photos, table, strict=True)):
        where = f"row {i} of {path}"
        matrix, (near, far) = row[:15].reshape(3, 5), row[15:]
        down, right, back, centre, (height, width, focal) = matrix.T
        if not (min(height, width, focal) > 0 and 0 < near < far):
            raise InputError(
                f"The {where} has height {height:g}, width {width:g}, focal length {focal:g} and depths from {near:g} "
                f"to {far:g}, which make no camera; {_RESTORE}."
            )
        pose = np.vstack([np.stack([right, -down, back, centre], axis=1), [0, 0, 0, 1]])
        lens = Lens(float(focal), float(focal), None, None, round(width), round(height))
        name = photo.relative_to(root).as_posix()
        frames.append(SourceFrame(name, photo, rigid_pose(pose, where), lens, "0", depths=(float(near), float(far))))
    return Source(path, frames, warnings=[] if note is None else [note])


def _table(path: Path) -> np.ndarray:
    """(N, 17) float64."""
    try:
        # mapped, so that a header which claims more than the file has takes no memory; pickles are not read
        table = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(f"{path} cannot be read as an array of numbers ({error}); {_RESTORE}.") from error
    if table.ndim != 2 or table.shape[1] != _NUMBERS or not len(table):
        shape = "×".join(map(str, table.shape)) or "one number"
        raise InputError(f"{path} is {shape}, but LLFF's has {_NUMBERS} numbers for each photo; {_RESTORE}.")
    if table.dtype.kind not in "fiu" or not np.isfinite(table).all():
        raise InputError(f"{path} holds what is no finite number; {_RESTORE}.")
    return np.array(table, dtype=np.float64)


def _photos(root: Path, count: int) -> tuple[list[Path], str | None]:
    """The `count` photos in the order of their names, and what there is to say of where they were found."""
    found = {}
    for name in (*PHOTO_FOLDERS, ".", *_COPIES):
        folder = folder_on_disk(root, [name])
        photos = [] if folder is None else sorted(photos_in(folder), key=lambda photo: photo.name.encode())
        if len(photos) == count:
            note = f"photos are taken from {name}, which alone has one for each of {POSES_BOUNDS}'s poses"
            return photos, note if name in _COPIES else None
        if photos:
            found[name] = len(photos)
    there = ", ".join(f"{'the folder itself' if name == '.' else f'{name}/'} has {n}" for name, n in found.items())
    raise InputError(
        f"{root / POSES_BOUNDS} has {counted(count, 'pose')}, one for each photo in the order of their names, but "
        f"{there or 'there is no photo'}; restore the photos, or remove {POSES_BOUNDS} and run difix pose on them."
    )
