"""From a frame to its pixels: the photo and its mask, undistorted, at the working size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from difixcli.errors import InputError
from difixcli.runs import read_image
from difixcli.scenes.lenses import sampling_maps
from difixcli.scenes.scene import Frame


def load_photo(frame: Frame) -> np.ndarray:
    """The photo of a frame at its working size, undistorted: (H, W, 3) float32 RGB in [0, 1].

    Raises InputError if the file cannot be decoded.
    """
    # not upright, and transparency is the mask's business: poses and colours belong to the stored pixels
    pixels = read_image(frame.image_path, alpha=True)
    if pixels.shape[1::-1] != frame.lens.size:
        raise InputError(f"{frame.image_path} changed its size while it was being used; load the scene again.")
    return _to_working_size(pixels[..., :3], frame)


def load_mask(frame: Frame) -> np.ndarray | None:
    """Which pixels of a frame count: (H, W) bool at working size, True where the photo is to be used; None for all.

    Joins the mask file (white counts, as in nerfstudio), the photo's transparency, and the pixels that undistortion
    could not fill. Raises InputError if a file cannot be decoded or a mask is of another size than its photo.
    """
    width, height = frame.lens.size
    shape = (height, width)
    keep = np.ones(shape, dtype=np.float32)
    if frame.mask_path is not None:
        mask = read_image(frame.mask_path, alpha=True)[..., :3].mean(axis=2)
        if mask.shape != shape:
            raise InputError(
                f"The mask {frame.mask_path} is {mask.shape[1]}×{mask.shape[0]} pixels but its photo {shape[1]}×"
                f"{shape[0]}; make them the same size."
            )
        keep *= mask > 0.5
    if _has_alpha(frame.image_path):
        keep *= read_image(frame.image_path, alpha=True)[..., 3] > 0.5
    # A pixel counts only if everything it was interpolated from does: a little less than one for rounding.
    counted = _to_working_size(keep, frame) > 0.999
    return None if counted.all() else counted


def _to_working_size(pixels: np.ndarray, frame: Frame) -> np.ndarray:
    """Undistorts (to the lens's pinhole) and shrinks pixels (H, W) or (H, W, C) of the source file."""
    import cv2

    target = frame.camera
    if not frame.lens.is_pinhole:
        maps = sampling_maps(frame.lens)
        pixels = cv2.remap(pixels, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    if (target.width, target.height) != frame.lens.size:
        pixels = cv2.resize(pixels, (target.width, target.height), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(np.clip(pixels, 0, 1), dtype=np.float32)


def _has_alpha(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return "A" in image.getbands() or "transparency" in image.info
    except (OSError, SyntaxError, ValueError):
        raise InputError(f"The image {path} cannot be read; replace it or remove its frame.") from None
