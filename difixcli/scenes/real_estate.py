"""RealEstate10K's clips as scenes: a text of cameras beside the frames that were taken from the film."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from difixcli.errors import InputError, short
from difixcli.runs import unreadable
from difixcli.scenes.image_paths import image_header
from difixcli.scenes.lenses import Lens
from difixcli.scenes.poses import OPENCV_TO_OPENGL, rigid_pose
from difixcli.scenes.source import Source, SourceFrame

_NUMBERS = 19  # a time, four of the lens, two that are 0, a 3×4 matrix
_SUFFIXES = (".png", ".jpg", ".jpeg")
_LONGEST = 1 << 20  # characters of a line that is looked at


def clip_text(root: Path) -> Path | None:
    """The text of a clip's cameras in a folder: NAME.txt of the folder's own name, or the only .txt there; None where
    none has the layout of RealEstate10K.
    """
    if not root.is_dir():
        return None
    own = root / f"{root.absolute().name}.txt"
    texts = [own] if own.is_file() else sorted(root.glob("*.txt"))
    return texts[0] if len(texts) == 1 and _is_clip(texts[0]) else None


def read_real_estate(root: Path) -> Source:
    """Reads a clip of RealEstate10K: `root` holds its text and, there or in `images/`, its frames.

    The text's first line is the film's address; every other one is a frame: its time in microseconds, fx, fy, cx, cy as
    parts of the image's width and height, two numbers that are 0, and the 3×4 matrix from the world to the camera (x
    right, y down, z ahead) by rows. A frame's image is called after its time (`52553000.jpg`). Frames without an image
    are left out. The data set has no points.

    Raises InputError for a line that is no such frame, and where no frame has an image.
    """
    path = clip_text(root)
    assert path is not None
    frames, absent = [], 0
    for number, line in enumerate(_lines(path)[1:], start=2):
        if not line.strip():
            continue
        values = _numbers(line, path, number)
        image = next(
            (file for folder in (root / "images", root) for suffix in _SUFFIXES
             if (file := folder / f"{line.split()[0]}{suffix}").is_file()),
            None,
        )  # fmt: skip
        if image is None:
            absent += 1
            continue
        header = image_header(image)
        width, height = header.width, header.height
        fx, fy, cx, cy = values[1:5] * (width, height, width, height)
        to_camera = np.vstack([values[7:].reshape(3, 4), [0, 0, 0, 1]])
        where = f"line {number} of {path}"
        pose = np.linalg.inv(rigid_pose(to_camera, where)) @ OPENCV_TO_OPENGL
        lens = Lens(float(fx), float(fy), float(cx), float(cy), width, height)
        name = image.relative_to(root).as_posix()
        frames.append(SourceFrame(name, image, rigid_pose(pose, where), lens, "0"))
    if not frames:
        raise InputError(
            f"No frame of {path} has an image; put them into {root / 'images'}, called after their times (as "
            f"{_lines(path)[1].split()[0]}.jpg)." if absent else f"{path} names no frame; restore it."
        )  # fmt: skip
    warnings = [f"{absent} of {absent + len(frames)} frames of {path.name} have no image and are left out"]
    return Source(path, frames, warnings=warnings if absent else ())


def _is_clip(path: Path) -> bool:
    """By its first two lines."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            address, line = file.readline(_LONGEST), file.readline(_LONGEST)
    except OSError:
        return False
    return "://" in address and len(line.split()) == _NUMBERS and line.split()[0].isdecimal()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise unreadable(path, error) from error


def _numbers(line: str, path: Path, number: int) -> np.ndarray:
    """(19,) of a frame's line."""
    try:
        values = np.array([float(word) for word in line.split()])
    except ValueError:
        values = np.zeros(0)
    if len(values) != _NUMBERS or not np.isfinite(values).all() or values[1:3].min() <= 0:
        raise InputError(
            f"Line {number} of {path} ({short(line.strip(), 40)}) is no frame of RealEstate10K, which has {_NUMBERS} "
            "numbers: a time, four of the lens, two zeros and a 3×4 matrix; restore it."
        )
    return values
