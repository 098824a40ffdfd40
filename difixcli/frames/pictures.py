"""Images on disk before the fixer sees them: which there are, whether they are whole, and the size to work at.

Images are (H, W, 3) RGB, uint8 or float32 in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from difixcli.errors import InputError
from difixcli.evaluation.pictures import ON_ITS_SIDE, ORIENTATION, image_files
from difixcli.images import as_floats, resized_to
from difixcli.runs import CONFIDENCE, IMAGE_SUFFIXES, open_image, read_image
from difixcli.scenes.loading import natural_order
from difixcli.wording import counted

SMALLEST = 16
"""Pixels of an image's shorter side: optical flow and the networks' lowest level need something to look at."""

_ROWS = 256  # of an image that are copied at once
_MARKED = CONFIDENCE.removesuffix(".png")


@dataclass(frozen=True, eq=False)
class Picture:
    """An image to fix: its `color` (H, W, 3) before black, as renders are, uint8 where that says it all and float32
    in [0, 1] where not, and its `opacity` (H, W) in [0, 1], or None where nothing of it is transparent.
    """

    color: np.ndarray
    opacity: np.ndarray | None = None


def read_picture(path: Path, size: int | None = None) -> Picture:
    """An image, upright, with a long side of at most `size` pixels; its transparency is a render's opacity.

    InputError when it is missing or broken.
    """
    if not has_alpha(path):
        return Picture(shrunk(read_pixels(path), size))
    pixels = read_image(path, alpha=True, upright=True)
    if bool((pixels[..., 3] == 1).all()):
        return Picture(shrunk(np.ascontiguousarray(pixels[..., :3]), size))
    pixels[..., :3] *= pixels[..., 3:]  # before it shrinks: what a transparent pixel hides must not come out beside it
    pixels = shrunk(pixels, size)
    return Picture(np.ascontiguousarray(pixels[..., :3]), np.ascontiguousarray(pixels[..., 3]))


def read_pixels(path: Path) -> np.ndarray:
    """An image (H, W, 3), upright, transparent pixels before black: uint8 where its file has no more, else float32 in
    [0, 1].

    InputError when it is missing or broken.
    """
    from PIL import ImageOps

    if not has_alpha(path):
        with open_image(path) as image:
            image.load()
            if image.mode != "F" and not image.mode.startswith("I") and "transparency" not in image.info:
                ImageOps.exif_transpose(image, in_place=True)
                shown = image if image.mode == "RGB" else image.convert("RGB")
                pixels = np.empty((shown.height, shown.width, 3), np.uint8)
                for top in range(0, shown.height, _ROWS):  # of a large image Pillow's copies need not be there whole
                    part = shown.crop((0, top, shown.width, min(top + _ROWS, shown.height)))
                    pixels[top : top + _ROWS] = np.asarray(part)
                return pixels
    return read_image(path, upright=True)


def listed_images(source: Path, output: Path, size: int | None = None) -> dict[Path, tuple[int, int]]:
    """An image, or the images of a folder (not its subfolders') in natural order, with the (width, height) at which
    they are worked on: a long side of at most `size`.

    Raises InputError naming what is missing, broken, too small, no image, of a name that another has, or would be
    written over because `output` is where the images are.
    """
    if source.is_file():
        if source.suffix.lower() not in IMAGE_SUFFIXES:
            raise InputError(f"{source} is neither an image nor a video that difix knows; convert it to PNG or MP4.")
        files = [source]
    elif source.is_dir():
        files = sorted(image_files(source), key=lambda path: (natural_order(path.stem), path.name))
    else:
        raise InputError(f"There is no image, folder or video {source}; check its name.")
    if output.expanduser().resolve() == files[0].parent.resolve():
        raise InputError(f"{output} holds the images themselves; choose another --output.")
    stems: dict[str, Path] = {}
    sizes = {}
    for path in files:
        sizes[path] = shrunk_size(checked_size(path), size)
        check_large_enough(path.name, *sizes[path])
        if path.stem in stems:
            raise InputError(f"{source} holds {stems[path.stem].name} and {path.name}; keep one image of that name.")
        stems[path.stem] = path
    for stem, path in stems.items():
        of = stem.removesuffix(_MARKED)
        if of != stem and of in stems:
            raise InputError(
                f"{source} holds {stems[of].name} and {path.name}, whose name is that of the other's confidence map; "
                "rename it."
            )
    return sizes


def checked_size(path: Path) -> tuple[int, int]:
    """(width, height), upright, from an image's header, so that a broken file is known before the work begins."""
    with open_image(path) as image:
        width, height = image.size
        # a PNG's may stand behind its pixels, which are not read here
        turned = image.format != "PNG" and image.getexif().get(ORIENTATION, 1) >= ON_ITS_SIDE
        return (height, width) if turned else (width, height)


def check_large_enough(name: str, width: int, height: int) -> None:
    """Raises InputError, naming the image, where it has fewer pixels than the fixer needs."""
    if min(width, height) < SMALLEST:
        raise InputError(
            f"The image {name} is {width}×{height} pixels; the fixer needs {SMALLEST}×{SMALLEST} at least."
        )


def alpha_notes(files: Sequence[Path]) -> list[str]:
    """What is said of images with an alpha channel, if there are any; their headers alone are read."""
    count = sum(map(has_alpha, files))
    if not count:
        return []
    return [
        f"{count} of {counted(len(files), 'image')} {'has' if count == 1 else 'have'} an alpha channel, which is taken "
        "for how far a render shows anything: what is transparent comes out before black."
    ]


def has_alpha(path: Path) -> bool:
    """Whether an image's header says that pixels may be transparent."""
    with open_image(path) as image:
        return "A" in image.getbands() or "transparency" in image.info


def shrunk(image: np.ndarray, size: int | None) -> np.ndarray:
    """The image (H, W, C) with a long side of at most `size` pixels: as it is, or smaller and float32 in [0, 1]."""
    height, width = image.shape[:2]
    if size is None or max(height, width) <= size:
        return image
    return resized_to(as_floats(image), shrunk_size((width, height), size)[::-1])


def shrunk_size(size: tuple[int, int], limit: int | None) -> tuple[int, int]:
    """(width, height) with a long side of at most `limit` pixels."""
    width, height = size
    if limit is None or max(size) <= limit:
        return size
    scale = limit / max(size)
    return max(round(width * scale), 1), max(round(height * scale), 1)
