"""Images on disk and pictures for people: listing, contact sheets, error maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from difixcli.errors import InputError
from difixcli.runs import CONFIDENCE, IMAGE_SUFFIXES, open_image

_GAP = 6  # pixels between the images of a contact sheet
_LABEL = 22  # pixels of a line of labels
ORIENTATION = 0x0112
"""EXIF's tag of how an image is turned."""
ON_ITS_SIDE = 5
"""From this orientation on width and height change places."""


def image_files(folder: Path) -> list[Path]:
    """The images directly in a folder, sorted by name; InputError when it is missing or has none, naming the folders in
    it that have some.

    The confidence NAME.confidence.png that `difix fix` writes beside NAME.png belongs to it and is no image of its own.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}; name one that holds images.")
    found = _images(folder)
    beside = {f"{path.stem}{CONFIDENCE}" for path in found if path.suffix == ".png"}
    found = [path for path in found if path.name not in beside]
    if not found:
        folders = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
        inside = [path.name for path in folders if _images(path)]
        cure = f"name one of those in it that do: {', '.join(inside)}" if inside else "name another folder"
        raise InputError(f"{folder} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}); {cure}.")
    return found


def _images(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))


def image_size(path: Path, upright: bool = False) -> tuple[int, int]:
    """(width, height) from an image file's header; InputError when it is missing or broken.

    With `upright` it is that of the image turned as its EXIF orientation says, for which a PNG is read to its end.
    """
    with open_image(path) as opened:
        turned = upright and opened.getexif().get(ORIENTATION, 1) >= ON_ITS_SIDE
        return opened.size[::-1] if turned else opened.size


def fit(image: np.ndarray, width: int) -> np.ndarray:
    """The image (H, W, C) at most `width` pixels wide, area-averaged, its shape kept."""
    import cv2

    height = round(image.shape[0] * width / image.shape[1])
    if width >= image.shape[1]:
        return image
    return cv2.resize(image, (width, max(height, 1)), interpolation=cv2.INTER_AREA)


def error_map(image: np.ndarray, truth: np.ndarray, full_scale: float = 0.25) -> np.ndarray:
    """Mean absolute error over the channels as a colour picture (H, W, 3): black is none, light is `full_scale`."""
    return error_colors(np.abs(image - truth).mean(axis=-1) / full_scale)


def error_colors(errors: np.ndarray) -> np.ndarray:
    """(H, W) errors, 1 at full scale and above → (H, W, 3) the colours in which `error_map` shows them."""
    import cv2

    colors = cv2.applyColorMap((np.clip(errors, 0, 1) * 255 + 0.5).astype(np.uint8), cv2.COLORMAP_INFERNO)
    return colors[..., ::-1].astype(np.float32) / 255


def contact_sheet(rows: Sequence[Sequence[np.ndarray]], labels: Sequence[str]) -> np.ndarray:
    """Rows of images (H, W, 3) in [0, 1] under one line of labels, black on white: (h, w, 3) float32 in [0, 1].

    Each column has its first image's width, and every image is brought to the place it has.
    """
    import cv2
    from PIL import Image, ImageDraw, ImageFont

    if not rows or any(len(row) != len(labels) for row in rows):
        raise ValueError("every row needs an image for each label")
    height = rows[0][0].shape[0]
    widths = [max(round(image.shape[1] * height / image.shape[0]), 1) for image in rows[0]]
    lefts = [sum(widths[:i]) + _GAP * (i + 1) for i in range(len(widths))]
    sheet = np.ones((_LABEL + len(rows) * (height + _GAP), lefts[-1] + widths[-1] + _GAP, 3), np.float32)
    for r, row in enumerate(rows):
        top = _LABEL + r * (height + _GAP)
        for image, left, width in zip(row, lefts, widths, strict=True):
            # area-averaging is for shrinking; it would leave blocks where an image grows
            how = cv2.INTER_AREA if image.shape[0] >= height else cv2.INTER_CUBIC
            placed = cv2.resize(np.asarray(image, np.float32), (width, height), interpolation=how)
            sheet[top : top + height, left : left + width] = np.clip(placed, 0, 1)
    picture = Image.fromarray((sheet * 255 + 0.5).astype(np.uint8))
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(size=14)
    for label, left, width in zip(labels, lefts, widths, strict=True):
        pen.text((left + width / 2, _LABEL / 2), label, fill=(20, 20, 20), font=font, anchor="mm")
    return np.asarray(picture, dtype=np.float32) / 255
