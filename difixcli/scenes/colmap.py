"""COLMAP models, where COLMAP and other tools leave them, as scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from difixcli.errors import InputError
from difixcli.runs import IMAGE_SUFFIXES
from difixcli.scenes.colmap_files import (
    ModelCamera,
    ModelImage,
    count_points,
    holds_images,
    holds_model,
    read_cameras,
    read_images,
    read_model_points,
)
from difixcli.scenes.image_paths import PHOTO_FOLDERS, find_images, folder_on_disk, plain_path, renamed_images
from difixcli.scenes.lenses import Lens, colmap_lens
from difixcli.scenes.nerfstudio_format import frame_name
from difixcli.scenes.poses import OPENCV_TO_OPENGL, rigid_pose
from difixcli.scenes.source import Source, SourceFrame
from difixcli.scenes.tracks import Tracks
from difixcli.scenes.unposed import photo_folder
from difixcli.wording import counted

MODEL_FOLDERS = (
    "sparse/0",
    "sparse",
    "colmap/sparse/0",
    "dense/0/sparse",
    "dense/sparse",
    "distorted/sparse/0",
    "the folder itself",
)
"""Where models are looked for, as messages say it; where there are photos, any other folder beside them comes last."""

# Where models lie, which may also be in numbered folders there, and what holds their images, relative to the scene.
_PLACES = (
    ("sparse", "."),
    ("colmap/sparse", "."),
    ("dense/*/sparse", ".."),  # the automatic reconstructor's undistorted models
    ("dense/sparse", ".."),  # the image undistorter's
    ("distorted/sparse", "."),  # Inria's converter: what it undistorts, from photos in `input`
    (".", "."),
)
IMAGE_FOLDERS = (*PHOTO_FOLDERS, ".")
_DISTORTED_IMAGES = ("input", "images_raw")  # beside an undistorted copy called `images`

_UNDISTORTED = {"PINHOLE", "SIMPLE_PINHOLE"}
_SAME_POINT = 1e-4  # of the points' extent
_SAME_CLOUD = 0.99  # of the points


@dataclass(frozen=True)
class _Place:
    """A folder that holds a model, the folder its images and masks lie in, and the names of image folders there."""

    model: Path
    base: Path
    image_folders: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Model:
    """What is read of every model to choose among them. `photos` are the images' paths, whether they exist or not."""

    place: _Place
    cameras: dict[int, ModelCamera]
    images: Sequence[ModelImage]
    folder: Path
    photos: Sequence[Path]

    @property
    def undistorted(self) -> bool:
        return all(self.cameras[image.camera_id].model.name in _UNDISTORTED for image in self.images)


def find_model(root: Path) -> Path | None:
    """The folder of the first COLMAP model in a scene's folder, or None. Which is read, `read_colmap` chooses."""
    places = _places(root)
    return places[0].model if places else None


def read_colmap(root: Path) -> Source:
    """Reads the COLMAP model of the scene in `root`, text or binary, with or without points.

    Of several (`MODEL_FOLDERS`; COLMAP numbers those that it could not join) it is the one with the most posed images
    among those whose photos are there; among equals one that is undistorted, then the one with the most points, then
    the first. `Source.warnings` says which.

    COLMAP's world-to-camera with OpenCV axes becomes camera-to-world with OpenGL axes; its world is kept. Images are
    found by name, never by order. `Source.tracks` says which frames saw each point. Raises InputError if there is no
    model, none can be read, or a camera's model is not supported.
    """
    warnings: list[str] = []
    models: list[_Model] = []
    errors: list[InputError] = []
    places = _places(root)
    for place in places:
        try:
            models.append(_read(place))
        except InputError as error:
            errors.append(error)
    if not models:
        raise errors[0] if errors else InputError(f"{root} holds no COLMAP model; run the mapper first.")
    chosen = min(models, key=_preference)
    if len(places) > 1:
        unread = f"; {len(errors)} cannot be read ({errors[0]})" if errors else ""
        kind = ", undistorted" if chosen.undistorted and not all(model.undistorted for model in models) else ""
        warnings.append(
            f"{len(places)} COLMAP models; took {chosen.place.model.relative_to(root).as_posix()} with "
            f"{len(chosen.images)} of {_total(root, chosen, models)} images{kind}{unread}"
        )
    model = chosen.place.model
    names, where = [image.name for image in chosen.images], f"the model in {model.relative_to(root).as_posix()}"
    if line := renamed_images(chosen.folder, names, chosen.photos, where):
        warnings.append(line)
    frames = []
    for image, image_path in zip(chosen.images, chosen.photos, strict=True):
        name = frame_name(image_path, root)
        world_to_camera = rigid_pose(image.world_to_camera, f"{name} in {model}")
        frames.append(
            SourceFrame(
                name=name,
                image_path=image_path,
                pose=np.linalg.inv(world_to_camera) @ OPENCV_TO_OPENGL,
                lens=_lens(chosen.cameras[image.camera_id], f"{name} in {model}"),
            )
        )
    numbers = {image.id: place for place, image in enumerate(chosen.images)}
    points, colors, tracks, lost = _points(model, numbers, warnings)
    if lost:
        warnings.append(
            f"{counted(lost, 'seed point')} of {model.relative_to(root).as_posix()} not finite and left out"
        )
    return Source(path=model, frames=frames, points=points, colors=colors, tracks=tracks, warnings=warnings)


def borrow_tracks(source: Source, root: Path) -> Source:
    """The source with the tracks of a COLMAP model in `root` whose points are the source's own, if there is one.

    nerfstudio's seed points do not say who saw them, but are those of the model it leaves in `colmap/sparse/0`. Points
    are the same within 1e-4 of their extent (99 of 100 of them must be; the others keep no track), in the source's
    world; images are the frames of the same name, with or without folders, at least half of them.
    """
    if source.tracks is not None or not len(source.points):
        return source
    unread = []
    for place in _places(root):
        try:
            images = {image.id: image.name for image in read_images(place.model)}
            numbers = _matching_frames(images, [frame.name for frame in source.frames])
            if 2 * len(set(numbers.values())) < len(source.frames):
                continue
            points, _, tracks, _ = _points(place.model, numbers)
        except InputError as error:
            unread.append(f"who saw the seed points is not known: {error}")
            continue
        if tracks is None:
            continue
        nearest = _same_points(source.points, points)
        if nearest is not None:
            # the last point is one that nothing saw
            ends = np.concatenate([tracks.offsets, tracks.offsets[-1:]])
            return replace(source, tracks=Tracks(ends, tracks.frames).of_points(nearest))
    return replace(source, warnings=[*source.warnings, *unread])


def _same_points(points: np.ndarray, others: np.ndarray) -> np.ndarray | None:
    """(N,) for each point the index of the same one among the others, or their number; None for another cloud."""
    from scipy.spatial import cKDTree

    extent = float(np.linalg.norm(np.subtract(*np.percentile(points, [95, 5], axis=0))))
    within = _SAME_POINT * extent
    if len(points) == len(others) and (np.linalg.norm(points - others, axis=1) <= within).all():
        return np.arange(len(points))
    distances, nearest = cKDTree(others).query(points, distance_upper_bound=within or 1e-9)
    return nearest if np.isfinite(distances).mean() >= _SAME_CLOUD else None


def _matching_frames(images: dict[int, str], names: Sequence[str]) -> dict[int, int]:
    """The index of the frame that each image (name by id) is, where one is."""
    by_file: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        by_file.setdefault(Path(name).name, []).append(index)
    found = {}
    for key, given in images.items():
        image = given.replace("\\", "/")
        alike = by_file.get(Path(image).name, [])
        same = [index for index in alike if f"/{names[index]}".endswith(f"/{image}")] or alike
        if len(same) == 1:
            found[key] = same[0]
    return found


def _points(
    model: Path, numbers: dict[int, int], warnings: list[str] | None = None
) -> tuple[np.ndarray, np.ndarray, Tracks | None, int]:
    """A model's finite points, their colours, which frames (`numbers` by image id) saw them, and how many are not
    finite. None for the tracks where no point has any."""
    read = read_model_points(model, warnings)
    tracks = None
    if len(read.seen):
        ids, places = np.unique(read.image_ids, return_inverse=True)
        frames = np.array([numbers.get(int(key), -1) for key in ids])[places]
        tracks = Tracks.of(read.seen[frames >= 0], frames[frames >= 0], len(read.points))
    finite = np.isfinite(read.points).all(axis=1)
    if tracks is not None and not finite.all():
        tracks = tracks.of_points(np.flatnonzero(finite))
    return read.points[finite], read.colors[finite], tracks, int((~finite).sum())


def _places(root: Path) -> list[_Place]:
    """Every folder of a scene that holds a COLMAP model; a numbered folder comes before the one it lies in."""
    found = []
    for pattern, base in _PLACES:
        for parent in [root] if pattern == "." else sorted(root.glob(pattern)):
            numbered = [] if parent == root else [path for path in parent.glob("*") if path.name.isdecimal()]
            for model in [*sorted(numbered, key=lambda path: int(path.name)), parent]:
                if holds_model(model):
                    folders = _DISTORTED_IMAGES if pattern.startswith("distorted") else IMAGE_FOLDERS
                    found.append(_Place(model, parent.parent if base == ".." else root, folders))
    photos = photo_folder(root) is not None or any(folder_on_disk(root, [name]) for name in PHOTO_FOLDERS)
    if not found and photos:  # saved by hand, under a name of one's own
        own = [path for path in sorted(root.glob("*")) if holds_model(path) and holds_images(path)]
        found = [_Place(model, root, IMAGE_FOLDERS) for model in own]
    return found


def _read(place: _Place) -> _Model:
    cameras, images = read_cameras(place.model), read_images(place.model)
    if not images:
        raise InputError(f"The COLMAP model {place.model} has no posed images; run the mapper again.")
    for image in images:
        if image.camera_id not in cameras:
            raise InputError(
                f"The image {image.name} in {place.model} names camera {image.camera_id}, which the model does not "
                "have; export it again."
            )
    folder, photos = _photos(place, [image.name for image in images])
    return _Model(place, cameras, images, folder, photos)


def _preference(model: _Model) -> tuple[bool, int, bool, int]:
    """Sorts the model to be read first."""
    absent = not any(photo.is_file() for photo in model.photos)
    return absent, -len(model.images), not model.undistorted, -count_points(model.place.model)


def _total(root: Path, chosen: _Model, models: Sequence[_Model]) -> int:
    """How many images there were to pose: the files beside those that were, or at least all that any model poses."""
    posed = len({image.name for model in models for image in model.images})
    if chosen.folder == root:
        return posed
    return max(posed, sum(path.suffix.lower() in IMAGE_SUFFIXES for path in chosen.folder.rglob("*")))


def _photos(place: _Place, names: Sequence[str]) -> tuple[Path, list[Path]]:
    """The folder that holds most of the named images (COLMAP stores no folder), and where in it they lie; the first
    folder when none holds any.

    Names that exist nowhere as they are written were written on another machine, or for other copies of the photos:
    then they are looked for as `find_images` says.
    """
    folders = [folder_on_disk(place.base, [name]) or place.base / name for name in place.image_folders]
    counts = [sum((folder / name).is_file() for name in names) for folder in folders]
    if any(counts):
        folder = folders[int(np.argmax(counts))]
        # what is missing here stays so: a photo of the same name elsewhere may be another one
        exact = ((folder / name, folder / plain_path(name)) for name in names)
        return folder, [written if written.is_file() else plain for written, plain in exact]
    found = [find_images(folder, names, usual=()) for folder in folders]
    counts = [sum(path.is_file() for path in paths) for paths in found]
    best = int(np.argmax(counts))
    return folders[best], found[best]


def _lens(camera: Any, where: str) -> Lens:
    params = [float(value) for value in camera.params]
    return colmap_lens(camera.model.name, params, int(camera.width), int(camera.height), where)
