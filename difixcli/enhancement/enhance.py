"""Images on disk through the fixer, with clean photos beside them whose poses nobody knows."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from difixcli.enhancement.video import is_video, read_video, write_video
from difixcli.errors import InputError
from difixcli.evaluation.pictures import image_files
from difixcli.runs import IMAGE_SUFFIXES, make_folder, read_image, write_image
from difixcli.scenes.loading import natural_order

if TYPE_CHECKING:
    from difixcli.fixer import Fixer

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
_Frame = tuple[str, Callable[[], np.ndarray]]
VIDEO_NAME = "video.mp4"
_SMALLEST = 16  # pixels: optical flow and the networks' lowest level need something to look at
_STRETCH = 1.03  # of a reference's shape that nobody minds
_ORIENTATION = 0x0112  # EXIF's tag; from 5 on the image lies on its side
_FPS = 24.0  # of a folder of frames, which does not say


def enhance_images(
    source: Path,
    output: Path,
    fixer: Fixer,
    references: Sequence[Path] = (),
    size: int | None = None,
    video: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Fix an image, the images of a folder or the frames of a video into `output`/NAME.png, one frame at a time.

    Frames that `output` already holds are kept, so the folder must be new or this very run's (`Run.open` sees to
    that); each is written whole or not at all. Frames of a video are named frame_00001 onwards.

    Args:
        source: image file, folder (its own images, not its subfolders') or video file.
        output: folder, made if missing.
        fixer: `Fixer`; one for aligned references gets them registered to each frame by optical flow.
        references: clean photos, all given beside every frame in this order. A photo of another size than the frame
            is brought to the frame's size (area-averaged where it shrinks), so it should have the frame's shape.
            Photos and frames are turned upright as their EXIF orientation says.
        size: long side to work at; larger frames are shrunk to it, smaller ones stay as they are.
        video: also write `output`/video.mp4 when the source is a video, or a folder whose names count and whose
            images have one size. A folder's video has 24 frames a second.
        progress: makes a progress bar from a label and a total.

    Returns {"frames": how many, "kept": how many of them an earlier call had made, "video": its path or None,
    "seconds_per_frame": of those made now, or None, "output": the folder}.
    Raises InputError naming the file that is missing, broken or too small.
    """
    output = output.expanduser()
    for path in references:
        if path.is_dir():
            raise InputError(f"The reference {path} is a folder; name its photos one by one.")
    photos = _References(references)
    frames, total, fps = _open(source, output)
    make_folder(output)
    written: list[Path] = []
    sizes = set()
    made, seconds = 0, 0.0
    with progress("fix", total) if progress else nullcontext(lambda done: None) as update:
        for name, read in frames:
            path = output / f"{name}.png"
            if not path.exists():
                begun = time.monotonic()
                image = _shrunk(read(), size)
                if min(image.shape[:2]) < _SMALLEST:
                    raise InputError(
                        f"The image {name} of {source} is {image.shape[1]}×{image.shape[0]} pixels; the fixer needs "
                        f"{_SMALLEST}×{_SMALLEST} at least."
                    )
                write_image(path, fix_image(fixer, image, photos.at(image.shape[:2])))
                seconds += time.monotonic() - begun
                made += 1
            written.append(path)
            sizes.add(_checked_size(path))
            update(len(written))
    if not written:
        raise InputError(f"{source} holds no frame; check that it is the right file.")
    film = None
    if video and len(written) > 1 and len(sizes) == 1 and (is_video(source) or _counts([p.stem for p in written])):
        film = output / VIDEO_NAME
        if made or not film.exists():
            write_video(written, film, fps)
    return {
        "frames": len(written),
        "kept": len(written) - made,
        "video": str(film) if film else None,
        "seconds_per_frame": round(seconds / made, 4) if made else None,
        "output": str(output),
    }


def check_images(source: Path, output: Path, references: Sequence[Path] = ()) -> list[str]:
    """Look at what `enhance_images` is going to read, at the images' headers only.

    Returns warnings, a sentence each: a reference of another shape than the first frame will be stretched to it.
    Raises InputError for what `enhance_images` would refuse.
    """
    _References(references)
    _open(source, output)
    first = source if source.is_file() else image_files(source)[0]
    if is_video(first) or not references:
        return []
    width, height = _checked_size(first)
    stretched = []
    for path in references:
        other = _checked_size(path)
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
    """The photos at the size of the frame at hand; only one size is kept."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._originals = list(paths)
        self._size: tuple[int, int] | None = None
        self._photos: list[np.ndarray] = []
        for path in paths:
            _checked_size(path)

    def at(self, size: tuple[int, int]) -> list[np.ndarray]:
        """Each photo at (height, width)."""
        if size != self._size:
            self._photos = [_resized(read_image(path, upright=True), size) for path in self._originals]
            self._size = size
        return self._photos


def _open(source: Path, output: Path) -> tuple[Iterator[_Frame], int, float]:
    """The frames as (name, function that reads it), about how many there are, and the frames a second."""
    if is_video(source):
        opened = read_video(source)
        return _numbered(opened.frames), opened.length, opened.fps
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
    for path in files:
        _checked_size(path)
        if path.stem in by_stem:
            raise InputError(f"{source} holds {by_stem[path.stem].name} and {path.name}; keep one image of that name.")
        by_stem[path.stem] = path
    return ((stem, partial(read_image, path, upright=True)) for stem, path in by_stem.items()), len(by_stem), _FPS


def _numbered(frames: Iterator[np.ndarray]) -> Iterator[_Frame]:
    for number, frame in enumerate(frames, start=1):
        yield f"frame_{number:05d}", partial(np.asarray, frame)


def _checked_size(path: Path) -> tuple[int, int]:
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
    except (OSError, SyntaxError) as error:
        raise InputError(f"{path} cannot be read as an image; restore it or remove it.") from error


def _shrunk(image: np.ndarray, size: int | None) -> np.ndarray:
    """The image with a long side of at most `size` pixels."""
    height, width = image.shape[:2]
    if size is None or max(height, width) <= size:
        return image
    scale = size / max(height, width)
    return _resized(image, (max(round(height * scale), 1), max(round(width * scale), 1)))


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The image at (height, width); area-averaged where it shrinks, bicubic where it grows."""
    import cv2

    if image.shape[:2] == size:
        return image
    how = cv2.INTER_AREA if size[0] * size[1] < image.shape[0] * image.shape[1] else cv2.INTER_CUBIC
    return np.clip(cv2.resize(image, (size[1], size[0]), interpolation=how), 0, 1)


def _counts(names: Sequence[str]) -> bool:
    """Whether the names are one name with a number that changes: the frames of a sequence."""
    return len({re.sub(r"\d+", "#", name) for name in names}) == 1 and all(re.search(r"\d", name) for name in names)
