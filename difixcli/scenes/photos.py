"""From a frame to its pixels: the photo and its mask, undistorted, at the working size."""

from __future__ import annotations

import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from difixcli import runs
from difixcli.errors import InputError
from difixcli.images import resized
from difixcli.scenes.image_paths import image_header, read_heif, same_shape
from difixcli.scenes.lenses import sampling_maps
from difixcli.scenes.scene import Frame


class _Decoded(threading.local):
    """What a thread has just decoded, each its own: others that decode meanwhile do not push it out."""

    def __init__(self) -> None:
        self.read = lru_cache(maxsize=2)(runs.read_image)


_decoded = _Decoded()


def read_image(path: Path, alpha: bool, upright: bool) -> np.ndarray:
    """`runs.read_image`, where a photo that is its own mask is decoded once for both; see `let_go`."""
    return _decoded.read(path, alpha=alpha, upright=upright)


def let_go() -> None:
    """Forget what this thread has decoded; whoever decodes does so afterwards."""
    _decoded.read.cache_clear()


def decode_photo(frame: Frame) -> np.ndarray:
    """The photo of a frame at its working size, undistorted: (H, W, 3) float32 RGB in [0, 1].

    Raises InputError if the file cannot be decoded.
    """
    read_heif()
    # transparency is the mask's business; poses belong to the stored pixels unless the frame is declared upright
    pixels = read_image(frame.image_path, alpha=True, upright=frame.turned)
    if pixels.shape[1::-1] != frame.lens.size:
        raise InputError(f"{frame.image_path} changed its size while it was being used; load the scene again.")
    return np.clip(_to_working_size(pixels[..., :3], frame), 0, 1)


def decode_mask(frame: Frame) -> np.ndarray | None:
    """Which pixels of a frame count: (H, W) bool at working size, True where the photo is to be used; None for all.

    Joins the mask file (white counts, as in nerfstudio), the photo's transparency, and the pixels that undistortion
    could not fill. A mask of another size is resized to its photo's (each pixel its nearest). Raises InputError if a
    file cannot be decoded or a mask is of another shape than its photo.
    """
    read_heif()
    width, height = frame.lens.size
    shape = (height, width)
    keep = np.ones(shape, dtype=np.float32)
    if frame.mask_path is not None:
        mask = read_image(frame.mask_path, alpha=True, upright=frame.turned)[..., :3].mean(axis=2)
        if mask.shape != shape:
            if not same_shape((width, height), mask.shape[::-1]):
                raise InputError(
                    f"The mask {frame.mask_path} is {mask.shape[1]}×{mask.shape[0]} pixels but its photo {width}×"
                    f"{height}; make them the same shape."
                )
            import cv2

            mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        keep *= mask > 0.5
    if image_header(frame.image_path).transparent:
        keep *= read_image(frame.image_path, alpha=True, upright=frame.turned)[..., 3] > 0.5
    # A pixel counts only if everything it was interpolated from does: one, but for rounding. Bicubic weights may be
    # negative, so that leaving something out can make it more.
    counted = np.abs(_to_working_size(keep, frame) - 1) < 1e-3
    return None if counted.all() else counted


def _to_working_size(pixels: np.ndarray, frame: Frame) -> np.ndarray:
    """Undistorts (to the lens's pinhole) and shrinks pixels (H, W) or (H, W, C) of the source file; not clipped."""
    import cv2

    target = frame.camera
    if not frame.lens.is_pinhole:
        maps = sampling_maps(frame.lens)
        remap: Any = cv2.remap  # its types have no tuple of arrays
        pixels = remap(pixels, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    if (target.width, target.height) != frame.lens.size:
        pixels = resized(pixels, target.width, target.height, frame.operator)
    return np.ascontiguousarray(pixels, dtype=np.float32)
