"""From a frame to its pixels: the photo and its mask, undistorted, at the working size."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from difixcli.errors import InputError
from difixcli.runs import read_image
from difixcli.scenes.image_paths import image_header, read_heif, same_shape
from difixcli.scenes.scene import Frame


def load_photo(frame: Frame) -> np.ndarray:
    """The photo of a frame at its working size, undistorted: (H, W, 3) float32 RGB in [0, 1].

    Raises InputError if the file cannot be decoded.
    """
    read_heif()
    # transparency is the mask's business; poses belong to the stored pixels unless the frame is declared upright
    pixels = read_image(frame.image_path, alpha=True, upright=frame.turned)
    if pixels.shape[:2] != (frame.source_camera.height, frame.source_camera.width):
        raise InputError(f"{frame.image_path} changed its size while it was being used; load the scene again.")
    return _to_working_size(pixels[..., :3], frame)


def load_mask(frame: Frame) -> np.ndarray | None:
    """Which pixels of a frame count: (H, W) bool at working size, True where the photo is to be used; None for all.

    Joins the mask file (white counts, as in nerfstudio), the photo's transparency, and the pixels that undistortion
    could not fill. A mask of another size is resized to its photo's (each pixel its nearest). Raises InputError if a
    file cannot be decoded or a mask is of another shape than its photo.
    """
    read_heif()
    width, height = frame.source_camera.width, frame.source_camera.height
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
