"""Which clean photos stand beside an image: the same ones, those most like it, or those nearest to it by pose."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np

from difixcli.errors import InputError, near
from difixcli.frames.pictures import checked_size, read_pixels
from difixcli.frames.similar import SimilarPhotos
from difixcli.images import as_floats, resized_to
from difixcli.reference_views import places_by_points
from difixcli.runs import open_image
from difixcli.scenes import load_photo, nearest_cameras
from difixcli.scenes.scene import Scene

_HELD_BYTES = 2**27  # of photos that neighbouring images share; about thirty of 640×480 pixels, one of 4K
_DECODED_AT_ONCE = 16  # photos, at most
_STRETCH = 1.03  # of a reference's shape that nobody minds
_NAMED = 5  # how many photos a warning names
_LOOK = 128  # pixels that are enough of a photo to see what it shows


class ReferencePhotos:
    """Clean photos of a scene, and which of them stand beside an image.

    `names` are the photos', `most` how many of them an image may have beside it. `read` gives one of them by its index,
    (h, w, 3), uint8 or in [0, 1]; `choose` gives the indices of those for an image, by its name without suffix and its
    pixels (H, W, 3), likewise. `places` says, where geometry is known, which of their places an image shows, by its
    name, their indices and the size (height, width) that all are brought to: (V, 3, H, W) as
    `fixer.correspondence.correspond` gives it, or None.
    """

    def __init__(
        self,
        names: Sequence[str],
        read: Callable[[int], np.ndarray],
        choose: Callable[[str, np.ndarray], Sequence[int]],
        most: int,
        places: Callable[[str, Sequence[int], tuple[int, int]], np.ndarray | None] = lambda *asked: None,
    ) -> None:
        self.names, self.most, self.places = list(names), most, places
        self._read, self._choose = read, choose
        self._held: OrderedDict[tuple[int, tuple[int, int], bool], np.ndarray] = OrderedDict()
        # those that others hold, however large
        self._in_use: weakref.WeakValueDictionary[tuple, np.ndarray] = weakref.WeakValueDictionary()
        self._lock = threading.RLock()
        # several threads read several photos, and none of them twice
        self._decoding = [threading.Lock() for _ in range(_DECODED_AT_ONCE)]

    @classmethod
    def by_likeness(cls, paths: Sequence[Path], count: int | None = None) -> ReferencePhotos:
        """Of photos whose poses nobody knows the `count` most like the image, the most similar first; all of them, in
        their order, where there are no more or `count` is None. Photos are turned upright as their EXIF says.

        Raises InputError naming a photo that is missing, broken or a folder.
        """
        check_references((), paths)
        similar = cache(lambda: SimilarPhotos(_glance(path) for path in paths))

        def choose(_: str, image: np.ndarray) -> Sequence[int]:
            if count is None or count >= len(paths):
                return range(len(paths))
            return similar().nearest(image, count)

        most = len(paths) if count is None else min(count, len(paths))
        return cls([path.name for path in paths], lambda i: read_pixels(paths[i]), choose, most)

    @classmethod
    def by_pose(
        cls, scene: Scene, images: Sequence[Path], count: int, among: Sequence[int] | None = None
    ) -> ReferencePhotos:
        """The `count` photos of a scene nearest by pose to the frame that an image's name says it shows, never that
        frame's own. With `among`, of the frames with these indices alone, and by the seed points that they know.

        Raises InputError for images that are named like no frame of the scene, or like several, and where no photo is
        left to stand beside one.
        """
        if len(scene.frames) < 2:
            raise InputError(f"The scene {scene.name} has one photo, so none can stand beside it; leave out --scene.")
        if among is None:
            among = range(len(scene.frames))
        else:
            scene = scene.known_to(among)
        frames: dict[str, int] = {}
        shared: set[str] = set()  # a rig's cameras often number their photos alike
        for i, frame in enumerate(scene.frames):
            stem = Path(frame.name).stem
            shared |= {stem} & frames.keys()
            frames[stem] = i
        frames |= {name: i for i, name in enumerate(scene.file_names)}
        shared -= set(scene.file_names)
        nearest: dict[str, list[int]] = {}
        cameras = [frame.camera for frame in scene.frames]
        for path in images:
            if path.stem not in frames:
                close = near(path.stem, frames)
                hint = f" (did you mean {' or '.join(close)}?)" if close else ""
                raise InputError(
                    f"{path.name} is named like no frame of the scene {scene.name}{hint}, so its pose is not known; "
                    "name it after its frame, or give photos with --reference."
                )
            own = frames[path.stem]
            if path.stem in shared:
                raise InputError(
                    f"{path.name} is named like several frames of the scene {scene.name}; name it after the one it "
                    f"shows with its folder, as {scene.file_names[own]}."
                )
            others = [i for i in among if i != own]
            if not others:
                raise InputError(
                    f"{path.name} shows the only photo of {scene.name} that trains, so none can stand beside it; leave "
                    "the image out, or choose another --split."
                )
            order = nearest_cameras(cameras[own], [cameras[i] for i in others], min(count, len(others)))
            nearest[path.stem] = [others[i] for i in order]
        names = [frame.name for frame in scene.frames]

        def places(name: str, chosen: Sequence[int], size: tuple[int, int]) -> np.ndarray | None:
            return places_by_points(scene, frames[name], chosen, size)

        most = max(map(len, nearest.values()), default=0)
        return cls(names, lambda i: load_photo(scene.frames[i]), lambda name, _: nearest[name], most, places)

    def chosen(self, name: str, image: np.ndarray) -> list[str]:
        """The names of the photos beside an image (H, W, 3), the nearest first."""
        return [self.names[i] for i in self._choose(name, image)]

    def beside(self, name: str, image: np.ndarray, as_they_are: bool = False) -> Photos:
        """The photos beside an image (H, W, 3), at its size, float32 in [0, 1]; or as they are where they are not
        larger, uint8, for those who sample them anyway. May be called, and read, by several threads.
        """
        size = (image.shape[0], image.shape[1])
        with self._lock:
            return Photos(partial(self._photo, size=size, as_they_are=as_they_are), self._choose(name, image))

    def _photo(self, i: int, size: tuple[int, int], as_they_are: bool) -> np.ndarray:
        key = (i, size, as_they_are)
        with self._decoding[hash(key) % len(self._decoding)]:
            with self._lock:
                photo = self._in_use.get(key)
            if photo is None:
                photo = self._made(i, size, as_they_are)
            with self._lock:
                self._in_use[key] = self._held[key] = photo
                self._held.move_to_end(key)
                while self._held and sum(held.nbytes for held in self._held.values()) > _HELD_BYTES:
                    self._held.popitem(last=False)
        return photo

    def _made(self, i: int, size: tuple[int, int], as_they_are: bool) -> np.ndarray:
        photo = self._read(i)
        if not as_they_are:
            return resized_to(as_floats(photo), size)
        if photo.shape[0] * photo.shape[1] > size[0] * size[1]:
            photo = resized_to(as_floats(photo), size)
        if photo.dtype == np.uint8:
            return photo
        pixels = np.empty(photo.shape, np.uint8)
        for row, values in zip(pixels, photo, strict=True):  # of a large photo no second copy need be there
            row[:] = values * 255 + 0.5
        return pixels


class Photos:
    """Photos (H, W, 3), each read when its turn comes: of large ones there need not be two in memory.

    `indices` say which of all photos they are.
    """

    def __init__(self, read: Callable[[int], np.ndarray], indices: Sequence[int]) -> None:
        self._read, self.indices = read, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self._read(i) for i in self.indices)


def check_references(images: Sequence[Path], references: Sequence[Path]) -> list[str]:
    """Look at the headers of photos that are to stand beside images (of which a video has none).

    Returns warnings, a sentence each: of photos that are among the images themselves, and of photos that will be
    stretched because they have another shape than the first image. Raises InputError naming a photo that is missing,
    broken or a folder.
    """
    for path in references:
        if path.is_dir():
            raise InputError(f"The reference {path} is a folder; name its photos one by one.")
    sizes = {path: checked_size(path) for path in references}
    if not images or not references:
        return []
    warnings = []
    degraded = {path.resolve() for path in images}
    if own := [path.name for path in references if path.resolve() in degraded]:
        warnings.append(
            f"references that are themselves among the images to fix show them nothing new; give clean photos of the "
            f"scene: {_some(own)}."
        )
    width, height = checked_size(images[0])
    factors = {path: (w / h) / (width / height) for path, (w, h) in sizes.items()}
    stretched = [path for path, factor in factors.items() if max(factor, 1 / factor) > _STRETCH]
    if stretched:
        named = [f"{path.name} ({sizes[path][0]}×{sizes[path][1]})" for path in stretched]
        warnings.append(
            f"references of another shape than {images[0].name} ({width}×{height}) are stretched to it, which spoils "
            f"what they can give; crop them first: {_some(named)}."
        )
    return warnings


def _some(names: Sequence[str]) -> str:
    left = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {left} more" if left > 0 else "")


def _glance(path: Path) -> np.ndarray:
    """A photo, upright, at about the size that is enough to see what it shows."""
    from PIL import ImageOps

    with open_image(path) as image:
        image.draft("RGB", (_LOOK, _LOOK))  # a JPEG is decoded no finer than that
        small = ImageOps.exif_transpose(image).convert("RGB")
        small.thumbnail((_LOOK, _LOOK))
        return np.asarray(small, dtype=np.float32) / 255
