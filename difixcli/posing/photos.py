"""Photos as structure from motion wants them: upright, grouped by lens, with their masks and EXIF focal lengths."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from difixcli.errors import InputError
from difixcli.runs import atomic, open_image
from difixcli.scenes.image_paths import MASK_FOLDERS, mask_names, read_heif, same_shape, undecoded

FULL_FRAME = 43.2666
"""Millimetres of the diagonal of 36×24 mm film, which EXIF's 35 mm equivalent refers to."""

_ORIENTATION, _MAKE, _MODEL = 0x0112, 0x010F, 0x0110
_EXIF, _FOCAL, _FOCAL_35 = 0x8769, 0x920A, 0xA405
_AS_THEY_ARE = {"JPEG": "RGB", "MPO": "RGB", "PNG": "RGB"}  # phones write JPEGs with a second picture as MPO


@dataclass(frozen=True)
class Photo:
    """A photo to pose: the name it is posed under, its file, its mask's file, and what its EXIF says.

    `size` is (width, height) upright; `turned` says that the stored pixels are not; `copied` that pycolmap cannot be
    given the file itself. `focal` is in pixels, None where EXIF says nothing. Photos of one `lens` share a camera.
    """

    name: str
    path: Path
    mask: Path | None
    size: tuple[int, int]
    turned: bool
    copied: bool
    focal: float | None
    lens: tuple[object, ...]


def read_photo(path: Path) -> Photo:
    """What the header of a photo says; InputError when it cannot be read."""
    read_heif()
    try:
        with open_image(path) as image:
            exif = image.getexif()
            details = exif.get_ifd(_EXIF)
            orientation = exif.get(_ORIENTATION, 1)
            plain = _AS_THEY_ARE.get(image.format or "") == image.mode and "transparency" not in image.info
            width, height = image.size
    except InputError as error:
        raise undecoded(path) or error from None
    turned = orientation not in (0, 1)
    if orientation in (5, 6, 7, 8):
        width, height = height, width
    equivalent = _number(details.get(_FOCAL_35))
    focal = equivalent / FULL_FRAME * float(np.hypot(width, height)) if equivalent > 0 else None
    lens = (width, height, exif.get(_MAKE), exif.get(_MODEL), equivalent, _number(details.get(_FOCAL)))
    copied = turned or not plain
    suffix = path.suffix.lower() in (".jpg", ".jpeg", ".png")
    name = path.name if suffix and (plain or path.suffix.lower() == ".png") else f"{path.name}.png"
    return Photo(name, path, _mask_of(path), (width, height), turned, copied, focal, lens)


def prepare(photos: Sequence[Photo], folder: Path, masks: Path, done: Callable[[int], None]) -> None:
    """Put every photo upright, 8-bit RGB, into `folder`, and every mask (white counts) as `masks/NAME.png`.

    What is there already is kept. Photos that need no change are linked to. A photo's transparency is a mask too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, photo in enumerate(photos, start=1):
        target, mask_target = folder / photo.name, masks / f"{photo.name}.png"
        if not target.exists():
            mask = _read_mask(photo)
            if mask is not None:
                with atomic(mask_target) as temporary:
                    Image.fromarray(mask).save(temporary, format="PNG")
            if photo.copied:
                _write_upright(photo, target)
            else:
                _link(photo.path, target)
        done(number)


def lens_groups(photos: Sequence[Photo]) -> list[list[Photo]]:
    """Photos of one camera each, in order: of the same size, and the same model and focal length by EXIF."""
    groups: dict[tuple[object, ...], list[Photo]] = {}
    for photo in photos:
        groups.setdefault(photo.lens, []).append(photo)
    return list(groups.values())


def _number(value: object) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, ZeroDivisionError):
        return 0.0
    return number if np.isfinite(number) else 0.0


def _mask_of(path: Path) -> Path | None:
    """The mask of a photo, called as `mask_names` says: in `masks/` or `mask/` in the photo's folder or beside that, or
    beside the photo."""
    parents = (path.parent, path.absolute().parent.parent)
    candidates = [
        parent / folder / name for parent in parents for folder in MASK_FOLDERS for name in mask_names(path.name)
    ]
    candidates += [path.parent / name for name in mask_names(path.name, beside=True)]
    return next((candidate for candidate in candidates if candidate != path and candidate.is_file()), None)


def _read_mask(photo: Photo) -> np.ndarray | None:
    """(H, W) uint8, 255 where the upright photo counts, or None where all of it does."""
    width, height = photo.size
    mask = np.full((height, width), 255, np.uint8)
    with open_image(photo.path) as image:
        turn = image.getexif().get(_ORIENTATION, 1)
        if "A" in image.getbands() or "transparency" in image.info:
            alpha = ImageOps.exif_transpose(image).convert("RGBA").getchannel("A")
            mask[np.asarray(alpha) < 128] = 0
    if photo.mask is not None:
        with open_image(photo.mask) as file:
            stored = file.convert("L")
        # a mask lies as its photo's stored pixels do, unless its size says that it is upright
        upright = stored if not photo.turned or _is_upright(stored.size, photo, turn) else _turned(stored, turn)
        if not same_shape(photo.size, upright.size):
            raise InputError(
                f"The mask {photo.mask} is {stored.width}×{stored.height} pixels, but its photo {photo.path.name} is "
                f"{width}×{height}, which is another shape; make them the same size."
            )
        if upright.size != photo.size:
            upright = upright.resize(photo.size, Image.Resampling.NEAREST)
        mask[np.asarray(upright) < 128] = 0
    return None if mask.all() else mask


def _is_upright(size: tuple[int, int], photo: Photo, turn: int) -> bool:
    return turn in (5, 6, 7, 8) and photo.size[0] != photo.size[1] and same_shape(photo.size, size)


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    exif = image.getexif()
    exif[_ORIENTATION] = orientation
    return ImageOps.exif_transpose(image)


def _write_upright(photo: Photo, target: Path) -> None:
    with open_image(photo.path) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode == "F" or image.mode.startswith("I"):  # more than 8 bits
            image = Image.fromarray((np.asarray(image, np.float32) / 65535 * 255 + 0.5).clip(0, 255).astype(np.uint8))
        image = image.convert("RGB")
    with atomic(target) as temporary:
        how = {"format": "PNG"} if target.suffix.lower() == ".png" else {"format": "JPEG", "subsampling": 0}
        image.save(temporary, quality=97, **how)


def _link(source: Path, target: Path) -> None:
    try:
        target.symlink_to(source.resolve())
    except OSError:  # a system or a disk without links
        with atomic(target) as temporary:
            shutil.copyfile(source, temporary)
