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


def read_photos(paths: Sequence[Path]) -> list[Photo]:
    """What the headers of photos say, and which masks they have; InputError when one cannot be read."""
    listed: dict[Path, dict[str, Path]] = {}
    return [_read_photo(path, listed) for path in paths]


def _read_photo(path: Path, listed: dict[Path, dict[str, Path]]) -> Photo:
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
    return Photo(name, path, _mask_of(path, listed), (width, height), turned, copied, focal, lens)


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


def _mask_of(path: Path, listed: dict[Path, dict[str, Path]]) -> Path | None:
    """The mask of a photo, called as `mask_names` says, whatever the case: in `masks/` or `mask/` in the photo's folder
    or beside that, or beside the photo. `listed` holds the folders that have been looked into."""

    def there(folder: Path, name: str) -> Path | None:
        if folder not in listed:
            try:
                listed[folder] = {one.name.casefold(): one for one in sorted(folder.iterdir())}
            except OSError:  # no folder, or one that may not be read
                listed[folder] = {}
        return listed[folder].get(name.casefold())

    folders = [there(parent, name) for parent in (path.parent, path.absolute().parent.parent) for name in MASK_FOLDERS]
    masks = [there(folder, name) for folder in folders if folder is not None for name in mask_names(path.name)]
    masks += [there(path.parent, name) for name in mask_names(path.name, beside=True)]
    return next((mask for mask in masks if mask is not None and mask != path and mask.is_file()), None)


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
