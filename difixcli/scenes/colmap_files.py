"""The files of a COLMAP model, text or binary: cameras, images and points3D.

COLMAP's own text reader cuts names at a space, skips every second image where the lines of 2D points are missing, and
refuses a model without points; models that other tools write have all of these. `rigs` and `frames` (COLMAP 3.12 and
later) are not needed: `images` has every image's own pose.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from difixcli.errors import InputError
from difixcli.runs import is_the_systems, unreadable
from difixcli.scenes.lenses import parameter_count
from difixcli.scenes.ply import count_vertices, read_points


@dataclass(frozen=True)
class CameraModel:
    """A kind of camera by COLMAP's name, and how many parameters it has."""

    name: str
    parameters: int


# In the order of the numbers that binary files have for them.
_NUMBERED = (
    "SIMPLE_PINHOLE",
    "PINHOLE",
    "SIMPLE_RADIAL",
    "RADIAL",
    "OPENCV",
    "OPENCV_FISHEYE",
    "FULL_OPENCV",
    "FOV",
    "SIMPLE_RADIAL_FISHEYE",
    "RADIAL_FISHEYE",
    "THIN_PRISM_FISHEYE",
    "RAD_TAN_THIN_PRISM_FISHEYE",
    "SIMPLE_DIVISION",
    "DIVISION",
    "SIMPLE_FISHEYE",
    "FISHEYE",
    "EUCM",
)
_PANORAMA = CameraModel("EQUIRECTANGULAR", 2)  # no lens of ours, but it has to be read to be named

CAMERA_MODELS = dict(enumerate([*(CameraModel(name, parameter_count(name)) for name in _NUMBERED), _PANORAMA]))
"""By the number that binary files have for them."""

_BY_NAME = {model.name: model for model in CAMERA_MODELS.values()}


@dataclass(frozen=True)
class ModelCamera:
    """A camera as the model has it: parameters in COLMAP's order, sizes in pixels."""

    model: CameraModel
    width: int
    height: int
    params: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class ModelImage:
    """A posed image: `world_to_camera` (4, 4) with OpenCV axes, and its name as the file has it."""

    id: int
    camera_id: int
    name: str
    world_to_camera: np.ndarray


@dataclass(frozen=True, eq=False)
class ModelPoints:
    """The points, sorted by their ids: positions (N, 3) float64 and colours (N, 3) uint8.

    Point `seen[i]` (T,) was seen by the image with the id `image_ids[i]` (T,).
    """

    points: np.ndarray
    colors: np.ndarray
    seen: np.ndarray
    image_ids: np.ndarray


def holds_model(folder: Path) -> bool:
    """Whether a folder has the cameras of a COLMAP model; a database is none."""
    return any((folder / f"cameras{suffix}").is_file() for suffix in (".bin", ".txt"))


def holds_images(folder: Path) -> bool:
    """Whether a folder has the images of a COLMAP model."""
    return any((folder / f"images{suffix}").is_file() for suffix in (".bin", ".txt"))


def read_cameras(folder: Path) -> dict[int, ModelCamera]:
    """The cameras by id. Raises InputError for a file that is missing or broken, with the line in a text file."""
    suffix = _suffix(folder)
    path = folder / f"cameras{suffix}"
    return _binary_cameras(path) if suffix == ".bin" else _text_cameras(path)


def read_images(folder: Path) -> list[ModelImage]:
    """The posed images. Raises InputError as `read_cameras` does."""
    suffix = _suffix(folder)
    path = folder / f"images{suffix}"
    return _binary_images(path) if suffix == ".bin" else _text_images(path)


def read_model_points(folder: Path, warnings: list[str] | None = None) -> ModelPoints:
    """The points; none where the model has no file of them. Raises InputError as `read_cameras` does.

    Where there is only a `points3D.ply`, as some tools leave it, its points are taken, which nobody is known to have
    seen. `warnings` is given a line that says so, and those of `ply.read_points`.
    """
    path = _points_file(folder)
    if path is not None and path.suffix == ".ply":
        notes: list[str] = [] if warnings is None else warnings
        points, colors = read_points(path, notes)
        notes.append("the model's points are in points3D.ply alone, which does not say which photos saw them")
        return ModelPoints(points, colors, np.zeros(0, np.int64), np.zeros(0, np.int64))
    if path is None:
        rows: list[_Point] = []
    else:
        rows = _binary_points(path) if path.suffix == ".bin" else _text_points(path)
    rows.sort(key=lambda row: row[0])
    tracks = [np.asarray(row[3], dtype=np.int64) for row in rows]
    return ModelPoints(
        points=np.array([row[1] for row in rows], dtype=np.float64).reshape(-1, 3),
        colors=np.array([row[2] for row in rows], dtype=np.uint8).reshape(-1, 3),
        seen=np.repeat(np.arange(len(rows)), [len(track) for track in tracks]),
        image_ids=np.concatenate([np.zeros(0, np.int64), *tracks]),
    )


def count_points(folder: Path) -> int:
    """How many points a model has, without reading them."""
    path = _points_file(folder)
    if path is None:
        return 0
    if path.suffix == ".bin":
        with path.open("rb") as file:
            head = file.read(8)
        return int.from_bytes(head, "little") if len(head) == 8 else 0
    if path.suffix == ".ply":
        return count_vertices(path)
    return sum(1 for _ in _lines(path))


_Point = tuple[int, tuple[float, ...], tuple[int, ...], "list[int] | np.ndarray"]


def _suffix(folder: Path) -> str:
    """`.bin` or `.txt`, whichever the model's cameras and images both have; binary first, as COLMAP does."""
    for suffix in (".bin", ".txt"):
        if all((folder / f"{name}{suffix}").is_file() for name in ("cameras", "images")):
            return suffix
    suffix = ".bin" if (folder / "cameras.bin").is_file() else ".txt"
    raise InputError(f"The COLMAP model {folder} cannot be read (it has no images{suffix}); export it again.")


def _points_file(folder: Path) -> Path | None:
    suffix = _suffix(folder)
    for candidate in (suffix, *{".bin", ".txt"} - {suffix}, ".ply"):
        if (folder / f"points3D{candidate}").is_file():
            return folder / f"points3D{candidate}"
    return None


def _pose(quaternion: tuple[float, ...], translation: tuple[float, ...], where: str) -> np.ndarray:
    """(4, 4) from a quaternion (w, x, y, z) of any length and a translation."""
    length = float(np.linalg.norm(quaternion))
    if not np.isfinite([length, *translation]).all() or length < 1e-9:
        raise InputError(f"The pose of {where} is no rotation and translation; remove that image or run the mapper.")
    w, x, y, z = (value / length for value in quaternion)
    pose = np.eye(4)
    pose[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    pose[:3, 3] = translation
    return pose


# Text


def _lines(path: Path, blank: bool = False) -> Iterator[tuple[int, str]]:
    """The lines that are no comments, with their numbers from 1; with `blank` those that are empty, too."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, whole in enumerate(file, start=1):
                line = whole.strip()
                if not line.startswith("#") and (line or blank):
                    yield number, line
    except (OSError, UnicodeDecodeError) as error:
        if is_the_systems(error):
            raise unreadable(path, error) from error
        raise InputError(f"{path} cannot be read as text ({error}); export the COLMAP model again.") from None


def _wrong_line(path: Path, number: int, expected: str) -> InputError:
    return InputError(f"Line {number} of {path} is not {expected}; correct it, or export the COLMAP model again.")


def _text_cameras(path: Path) -> dict[int, ModelCamera]:
    cameras = {}
    for number, line in _lines(path):
        words = line.split()
        try:
            key, name, width, height = int(words[0]), words[1].upper(), int(words[2]), int(words[3])
            params = tuple(float(word) for word in words[4:])
        except (ValueError, IndexError):
            raise _wrong_line(path, number, "CAMERA_ID MODEL WIDTH HEIGHT PARAMS[]") from None
        model = _BY_NAME.get(name, CameraModel(name, len(params)))
        if len(params) != model.parameters:
            raise _wrong_line(path, number, f"a {name} camera of {model.parameters} parameters (it has {len(params)})")
        if key in cameras:
            raise _wrong_line(path, number, f"a camera of its own (camera {key} is listed before)")
        cameras[key] = ModelCamera(model, width, height, params)
    return cameras


def _text_images(path: Path) -> list[ModelImage]:
    images: dict[int, ModelImage] = {}
    after_image = False
    for number, line in _lines(path, blank=True):
        if after_image and (not line or _is_points2d(line)):
            after_image = False
            continue
        if not line:
            continue
        words = line.split(maxsplit=9)
        try:
            key, camera_id, name = int(words[0]), int(words[8]), words[9]
            numbers = tuple(float(word) for word in words[1:8])
        except (ValueError, IndexError):
            raise _wrong_line(path, number, "IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, nor its 2D points") from None
        if key in images:
            raise _wrong_line(path, number, f"an image of its own (image {key} is listed before)")
        pose = _pose(numbers[:4], numbers[4:], f"image {name} in line {number} of {path}")
        images[key] = ModelImage(key, camera_id, name, pose)
        after_image = True
    return list(images.values())


def _is_points2d(line: str) -> bool:
    """Whether a line is X Y POINT3D_ID, over and over; an image's own line may follow another's at once."""
    words = line.split()
    if len(words) % 3:
        return False
    try:
        return all(int(word) >= -1 for word in words[2::3]) and len([float(word) for word in words]) > 0
    except ValueError:
        return False


def _text_points(path: Path) -> list[_Point]:
    rows: list[_Point] = []
    for number, line in _lines(path):
        words = line.split()
        try:
            if len(words) < 8 or len(words) % 2:
                raise ValueError
            color = tuple(int(word) for word in words[4:7])
            if not all(0 <= value <= 255 for value in color):
                raise ValueError
            track = [int(word) for word in words[8::2]]
            rows.append((int(words[0]), tuple(float(word) for word in words[1:4]), color, track))
        except ValueError:
            raise _wrong_line(path, number, "POINT3D_ID X Y Z R G B ERROR and pairs IMAGE_ID POINT2D_IDX") from None
    return rows


# Binary, little-endian


@contextmanager
def _opened(path: Path) -> Iterator[tuple[mmap.mmap, Callable[[str, int], tuple[float, ...]]]]:
    """A file's bytes, and what unpacks a format at an offset; InputError where the file ends before what it says."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data, lambda layout, at: struct.unpack_from(f"<{layout}", data, at)
    except (struct.error, ValueError, OSError, OverflowError) as error:
        if is_the_systems(error):
            raise unreadable(path, error) from error
        reason = "it ends too early" if isinstance(error, struct.error | ValueError) else str(error)
        raise InputError(
            f"The COLMAP model {path.parent} cannot be read ({path.name}: {reason}); export it again."
        ) from None


def _binary_cameras(path: Path) -> dict[int, ModelCamera]:
    cameras = {}
    with _opened(path) as (_, unpack):
        count, at = int(unpack("Q", 0)[0]), 8
        for _ in range(count):
            key, number, width, height = (int(value) for value in unpack("IiQQ", at))
            at += 24
            model = CAMERA_MODELS.get(number)
            if model is None:
                raise InputError(f"{path} has a camera of a model with the unknown number {number}; export it as text.")
            cameras[key] = ModelCamera(model, width, height, tuple(unpack(f"{model.parameters}d", at)))
            at += 8 * model.parameters
    return cameras


def _binary_images(path: Path) -> list[ModelImage]:
    images = []
    with _opened(path) as (data, unpack):
        count, at = int(unpack("Q", 0)[0]), 8
        for _ in range(count):
            key, *numbers, camera_id = unpack("I7dI", at)
            at += 64
            end = data.find(b"\0", at)
            if end < 0:
                raise struct.error
            name = data[at:end].decode("utf-8", errors="surrogateescape")
            at = end + 1
            at += 8 + 24 * int(unpack("Q", at)[0])  # 2D points
            pose = _pose(tuple(numbers[:4]), tuple(numbers[4:]), f"image {name} in {path}")
            images.append(ModelImage(int(key), int(camera_id), name, pose))
        if at > len(data):
            raise struct.error
    return images


def _binary_points(path: Path) -> list[_Point]:
    rows: list[_Point] = []
    with _opened(path) as (data, unpack):
        count, at = int(unpack("Q", 0)[0]), 8
        for _ in range(count):
            key, x, y, z, r, g, b, _error, length = unpack("Q3d3BdQ", at)
            at += 51
            track = np.frombuffer(data[at : at + 8 * int(length)], dtype="<u4")
            if len(track) != 2 * length:
                raise struct.error
            rows.append((int(key), (x, y, z), (int(r), int(g), int(b)), track[::2]))
            at += 8 * int(length)
    return rows
