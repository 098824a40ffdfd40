"""Images on disk through the fixer, with clean photos beside them whose poses nobody knows."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from difixcli.enhancement.sequence import (
    SIDE_BY_SIDE,
    SPLIT_SCREEN,
    VIDEO,
    Film,
    Progress,
    Shot,
    fix_frames,
    make_film,
    resized,
    shrunk,
    shrunk_size,
)
from difixcli.enhancement.similar import SimilarPhotos
from difixcli.enhancement.video import is_video, read_video
from difixcli.errors import InputError
from difixcli.evaluation.pictures import image_files
from difixcli.runs import IMAGE_SUFFIXES, read_image
from difixcli.scenes.loading import natural_order

if TYPE_CHECKING:
    from difixcli.fixer import Fixer

_Frame = tuple[str, Callable[[], np.ndarray]]
_STRETCH = 1.03  # of a reference's shape that nobody minds
_ORIENTATION = 0x0112  # EXIF's tag; from 5 on the image lies on its side
_FPS = 24.0  # of a folder of frames, which does not say
_PHOTOS_HELD = 8
_LOOK = 128  # pixels that are enough of a photo to see what it shows


def enhance_images(
    source: Path,
    output: Path,
    fixer: Fixer,
    references: Sequence[Path] = (),
    size: int | None = None,
    film: Film | None = None,
    count: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Fix an image, the images of a folder or the frames of a video into `output`/NAME.png, one frame at a time.

    Frames that `output` already holds are kept, so the folder must be new or this very run's (`Run.open` sees to
    that); each is written whole or not at all. Frames of a video are named frame_00001 onwards.

    Args:
        source: image file, folder (its own images, not its subfolders') or video file.
        output: folder, made if missing.
        fixer: `Fixer`; one for aligned references gets them registered to each frame by optical flow.
        references: clean photos. A photo of another size than the frame is brought to the frame's size (area-averaged
            where it shrinks), so it should have the frame's shape. Photos and frames are turned upright as their EXIF
            orientation says.
        size: long side to work at; larger frames are shrunk to it, smaller ones stay as they are.
        film: also make the videos it describes (see `make_film`) when the source is a video, or a folder of images of
            one size whose names count, or whose film asks for anything in particular. A folder's has 24 frames a
            second. None makes no video.
        count: of more references than that, only so many stand beside a frame, those most similar to it, the most
            similar first; otherwise, and for None, all do, in their order.
        progress: makes a progress bar from a label and a total.

    Returns {"frames": how many, "kept": how many of them an earlier call had made, "announced": how many the source
    said it has, "seconds_per_frame": of those made now, or None, "output": the folder} and what `make_film` returns.
    Raises InputError naming the file that is missing, broken or too small, and for a film of what is no sequence.
    """
    output = output.expanduser()
    photos = _References(references, count)
    opened = _open(source, output, size, film)

    def shots() -> Iterator[Shot]:
        def fix(image: np.ndarray) -> np.ndarray:
            return fix_image(fixer, image, photos.beside(image))

        for name, read in opened.frames():
            yield Shot(name, partial(_shrunk_read, read, size), fix)

    fixed = fix_frames(shots(), opened.length, output, film is not None and film.steady, progress)
    if not fixed.frames:
        raise InputError(f"{source} holds no frame; check that it is the right file.")
    made: dict[str, Any] = {VIDEO: None, SIDE_BY_SIDE: None, SPLIT_SCREEN: None, "fps": None, "steadiness": None}
    if film is not None and opened.sequence and fixed.frames > 1 and len(fixed.sizes) == 1:
        made = make_film(shots, fixed.frames, output, opened.fps, film, progress=progress)
    return {
        "frames": fixed.frames,
        "kept": fixed.kept,
        "announced": opened.length,
        "seconds_per_frame": fixed.seconds_per_frame,
        "output": str(output),
        **made,
    }


def check_images(
    source: Path,
    output: Path,
    references: Sequence[Path] = (),
    size: int | None = None,
    film: Film | None = None,
) -> list[str]:
    """Look at what `enhance_images` is going to read, at the images' headers only.

    Returns warnings, a sentence each: a reference of another shape than the first frame will be stretched to it.
    Raises InputError for what `enhance_images` would refuse.
    """
    _References(references, None)
    _open(source, output, size, film)
    first = source if source.is_file() else image_files(source)[0]
    if is_video(first) or not references:
        return []
    width, height = checked_size(first)
    stretched = []
    for path in references:
        other = checked_size(path)
        factor = (other[0] / other[1]) / (width / height)
        if max(factor, 1 / factor) > _STRETCH:
            stretched.append(f"{path.name} ({other[0]}×{other[1]})")
    if not stretched:
        return []
    return [
        f"references of another shape than {first.name} ({width}×{height}) are stretched to it, which spoils what they "
        f"can give; crop them first: {', '.join(stretched)}."
    ]


def fix_image(fixer: Fixer, image: np.ndarray, references: Sequence[np.ndarray] = ()) -> np.ndarray:
    """The clean view (H, W, 3) of an image (H, W, 3) in [0, 1], with photos of the same size whose poses are unknown.

    Fixers that want aligned references get them registered by optical flow, with what flow finds believable as their
    visibility.
    """
    import torch

    from difixcli.fixer.alignment import register_references

    def planar(pixels: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32))

    images = planar(image)[None]
    beside, visibility = None, None
    if references:
        beside = torch.stack([planar(photo) for photo in references])[None]
        if fixer.config.references == "aligned":
            beside, visibility = register_references(images, beside)
    fixed = fixer(images, beside, None, visibility)
    return fixed[0].permute(1, 2, 0).float().cpu().numpy()


class _References:
    """The photos that stand beside a frame, at its size; a few of them are held."""

    def __init__(self, paths: Sequence[Path], count: int | None) -> None:
        for path in paths:
            if path.is_dir():
                raise InputError(f"The reference {path} is a folder; name its photos one by one.")
            checked_size(path)
        self._paths = list(paths)
        self._count = len(paths) if count is None else min(count, len(paths))
        self._held: OrderedDict[tuple[Path, tuple[int, int]], np.ndarray] = OrderedDict()

    def beside(self, image: np.ndarray) -> list[np.ndarray]:
        """The photos for an image (H, W, 3), each (H, W, 3)."""
        chosen: Sequence[int] = range(len(self._paths))
        if self._count < len(self._paths):
            chosen = self._similar.nearest(image, self._count)
        size = (image.shape[0], image.shape[1])
        return [self._photo(self._paths[i], size) for i in chosen]

    @cached_property
    def _similar(self) -> SimilarPhotos:
        return SimilarPhotos(_glance(path) for path in self._paths)

    def _photo(self, path: Path, size: tuple[int, int]) -> np.ndarray:
        key = (path, size)
        if key not in self._held:
            self._held[key] = resized(read_image(path, upright=True), size)
        self._held.move_to_end(key)
        while len(self._held) > max(_PHOTOS_HELD, self._count):
            self._held.popitem(last=False)
        return self._held[key]


def _glance(path: Path) -> np.ndarray:
    """A photo, upright, at about the size that is enough to see what it shows."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            image.draft("RGB", (_LOOK, _LOOK))  # a JPEG is decoded no finer than that
            small = ImageOps.exif_transpose(image).convert("RGB")
            small.thumbnail((_LOOK, _LOOK))
            return np.asarray(small, dtype=np.float32) / 255
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path} cannot be read as an image ({error}); restore it or remove it.") from error


@dataclass(frozen=True)
class _Opened:
    """A source: its frames as (name, function that reads it), which can be taken again, about how many there are, the
    frames a second, and whether they follow each other.
    """

    frames: Callable[[], Iterator[_Frame]]
    length: int
    fps: float
    sequence: bool


def _open(source: Path, output: Path, size: int | None, film: Film | None) -> _Opened:
    """Look at a source; InputError for what is none, or none that the film can be made of."""
    asked = film is not None and film.asked
    if is_video(source):
        opened = read_video(source)
        opened.frames.close()
        return _Opened(partial(_video_frames, source), opened.length, opened.fps, True)
    if source.is_file():
        if source.suffix.lower() not in IMAGE_SUFFIXES:
            raise InputError(f"{source} is neither an image nor a video that difix knows; convert it to PNG or MP4.")
        files = [source]
    elif source.is_dir():
        files = sorted(image_files(source), key=lambda path: (natural_order(path.stem), path.name))
    else:
        raise InputError(f"There is no image, folder or video {source}; check its name.")
    if output.resolve() == files[0].parent.resolve():
        raise InputError(f"{output} holds the images themselves; choose another --output.")
    by_stem: dict[str, Path] = {}
    sizes: dict[tuple[int, int], Path] = {}
    for path in files:
        sizes.setdefault(shrunk_size(checked_size(path), size), path)
        if path.stem in by_stem:
            raise InputError(f"{source} holds {by_stem[path.stem].name} and {path.name}; keep one image of that name.")
        by_stem[path.stem] = path
    if asked and len(files) == 1:
        raise InputError(f"{files[0]} is one image, of which there is no film; leave out the options for videos.")
    if asked and len(sizes) > 1:
        (a, first), (b, other) = list(sizes.items())[:2]
        raise InputError(
            f"{first.name} is {a[0]}×{a[1]} and {other.name} {b[0]}×{b[1]} pixels; a film needs images of one size."
        )

    def frames() -> Iterator[_Frame]:
        return ((stem, partial(read_image, path, upright=True)) for stem, path in by_stem.items())

    return _Opened(frames, len(by_stem), _FPS, asked or _counts(list(by_stem)))


def _video_frames(source: Path) -> Iterator[_Frame]:
    for number, frame in enumerate(read_video(source).frames, start=1):
        yield f"frame_{number:05d}", partial(np.asarray, frame)


def _shrunk_read(read: Callable[[], np.ndarray], size: int | None) -> np.ndarray:
    return shrunk(read(), size)


def checked_size(path: Path) -> tuple[int, int]:
    """(width, height), upright, from an image's header, so that a broken file is known before the work begins."""
    from PIL import Image

    if not path.exists():
        raise InputError(f"There is no image {path}; check its name.")
    try:
        with Image.open(path) as image:
            width, height = image.size
            # a PNG's may stand behind its pixels, which are not read here
            turned = image.format != "PNG" and image.getexif().get(_ORIENTATION, 1) >= 5
            return (height, width) if turned else (width, height)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read as an image; restore it or remove it.") from error


def _counts(names: Sequence[str]) -> bool:
    """Whether the names are one name with a number that changes: the frames of a sequence."""
    return len({re.sub(r"\d+", "#", name) for name in names}) == 1 and all(re.search(r"\d", name) for name in names)
