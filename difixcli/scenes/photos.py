"""From a frame to its pixels: the photo and its mask, undistorted, at the working size."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from difixcli import runs
from difixcli.errors import InputError
from difixcli.scenes.scene import Frame

# a photo that is its own mask is decoded once for both; whoever decodes lets go of it afterwards
read_image = lru_cache(maxsize=2)(runs.read_image)
let_go = read_image.cache_clear


def decode_photo(frame: Frame) -> np.ndarray:
    """The photo of a frame at its working size, undistorted: (H, W, 3) float32 RGB in [0, 1].

    Raises InputError if the file cannot be decoded.
    """
    # not upright, and transparency is the mask's business: poses and colours belong to the stored pixels
    pixels = read_image(frame.image_path, alpha=True)
    if pixels.shape[:2] != (frame.source_camera.height, frame.source_camera.width):
        raise InputError(f"{frame.image_path} changed its size while it was being used; load the scene again.")
    return _to_working_size(pixels[..., :3], frame)


def decode_mask(frame: Frame) -> np.ndarray | None:
    """Which pixels of a frame count: (H, W) bool at working size, True where the photo is to be used; None for all.

    Joins the mask file (white counts, as in nerfstudio), the photo's transparency, and the pixels that undistortion
    could not fill. Raises InputError if a file cannot be decoded or a mask is of another size than its photo.
    """
    shape = (frame.source_camera.height, frame.source_camera.width)
    keep = np.ones(shape, dtype=np.float32)
    if frame.mask_path is not None:
        mask = read_image(frame.mask_path, alpha=True)[..., :3].mean(axis=2)
        if mask.shape != shape:
            raise InputError(
                f"The mask {frame.mask_path} is {mask.shape[1]}×{mask.shape[0]} pixels but its photo {shape[1]}×"
                f"{shape[0]}; make them the same size."
            )
        keep *= mask > 0.5
    if has_alpha(frame.image_path):
        keep *= read_image(frame.image_path, alpha=True)[..., 3] > 0.5
    # A pixel counts only if everything it was interpolated from does: a little less than one for rounding.
    counted = _to_working_size(keep, frame) > 0.999
    return None if counted.all() else counted


def _to_working_size(pixels: np.ndarray, frame: Frame) -> np.ndarray:
    """Undistorts (to the same K) and shrinks pixels (H, W) or (H, W, C) of the source file."""
    import cv2

    source, target = frame.source_camera, frame.camera
    if frame.distortion.any():
        maps = _undistortion_maps(
            (source.fx, source.fy, source.cx, source.cy),
            tuple(float(value) for value in frame.distortion),
            source.width,
            source.height,
        )
        pixels = cv2.remap(pixels, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    if (target.width, target.height) != (source.width, source.height):
        pixels = cv2.resize(pixels, (target.width, target.height), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(np.clip(pixels, 0, 1), dtype=np.float32)


@lru_cache(maxsize=8)
def _undistortion_maps(
    lens: tuple[float, float, float, float], distortion: tuple[float, ...], width: int, height: int
) -> tuple[np.ndarray, np.ndarray]:
    import cv2

    fx, fy, cx, cy = lens
    # OpenCV's first pixel centre is (0, 0), ours (0.5, 0.5).
    matrix = np.array([[fx, 0, cx - 0.5], [0, fy, cy - 0.5], [0, 0, 1]])
    maps = cv2.initUndistortRectifyMap(matrix, np.array(distortion), np.eye(3), matrix, (width, height), cv2.CV_32FC1)
    return maps[0], maps[1]


def has_alpha(path: Path) -> bool:
    """Whether the photo's file knows transparency; nothing is decoded. InputError if it cannot be opened."""
    try:
        with Image.open(path) as image:
            return "A" in image.getbands() or "transparency" in image.info
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise InputError(f"The image {path} cannot be read; replace it or remove its frame.") from None
