"""How steady a sequence of frames is, and a way to make fixed frames steadier.

A fixer that looks at every frame alone decides a little differently each time: the film flickers. Dense optical flow
on the frames as they were before the fix says where each pixel was one frame earlier; what the fixed frames show along
that way should change no more than the frames before the fix did. Images are (H, W, 3) float32 RGB in [0, 1].
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

from difixcli.errors import InputError

_STRENGTH = 0.75  # share of the previous frame's change where everything agrees: about four frames count
_MOTION_ERROR = 0.06  # colour difference (of the worst channel) at which the motion is no longer believed
_CHANGE_ERROR = 0.2  # difference of the two changes (of the worst channel) that is no flicker but another content
_SIGMA = 1.5  # pixels, over which both are looked at
_SMALLEST = 16  # pixels; less than two of the flow's patches have nothing to match


@dataclass(frozen=True, eq=False)
class Motion:
    """Where a frame's pixels were one frame earlier.

    `flow` (H, W, 2) float32 in pixels (x right, y down): the frame's pixel p was at p + flow[p]. `visible` (H, W)
    bool: it was in the picture and not hidden, which holds where going there and back again ends near p.
    """

    flow: np.ndarray
    visible: np.ndarray


def motion(frame: np.ndarray, previous: np.ndarray) -> Motion:
    """The motion from `previous` to `frame`, both (H, W, 3), by dense optical flow (DIS, Kroeger et al. 2016).

    Occlusion is the forward-backward test of Sundaram et al. (2010). Raises InputError when the sizes differ.
    """
    if frame.shape != previous.shape:
        raise InputError(
            f"Frames of {previous.shape[1]}×{previous.shape[0]} and {frame.shape[1]}×{frame.shape[0]} pixels are no "
            "sequence; bring them to one size."
        )
    here, there = _gray(frame), _gray(previous)
    if min(here.shape) < _SMALLEST:
        return Motion(np.zeros((*here.shape, 2), np.float32), np.ones(here.shape, bool))
    matcher = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    back = matcher.calc(here, there, None)  # type: ignore[call-overload]
    forth = matcher.calc(there, here, None)  # type: ignore[call-overload]
    returned = _moved(forth, back)
    apart = ((back + returned) ** 2).sum(-1)
    visible = apart < 0.01 * ((back**2).sum(-1) + (returned**2).sum(-1)) + 0.5
    height, width = here.shape
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    x, y = x + back[..., 0], y + back[..., 1]
    return Motion(back, visible & (x >= 0) & (y >= 0) & (x <= width - 1) & (y <= height - 1))


def warped(previous: np.ndarray, motion: Motion) -> np.ndarray:
    """What (H, W) or (H, W, C) values of the previous frame look like in this one; bicubic, borders continued."""
    return _moved(previous, motion.flow)


def difference(frame: np.ndarray, previous: np.ndarray, motion: Motion) -> float:
    """Mean absolute difference in [0, 1] of a frame and the previous one warped onto it, where that one shows it.

    NaN where nothing is visible in both.
    """
    seen = np.abs(frame - np.clip(warped(previous, motion), 0, 1))[motion.visible]
    return float(seen.mean()) if seen.size else float("nan")


def warped_difference(frames: Iterable[np.ndarray], guides: Iterable[np.ndarray] | None = None) -> float:
    """Mean over consecutive frames of `difference`: 0 for a film in which things move and nothing flickers.

    Args:
        frames: (H, W, 3) each, at least two, of one size; an iterator is taken once, two of its frames held at a time.
        guides: as many images of the same size whose motion counts (the renders before a fix, or the truth), so that
            several films of one path are measured alike; the frames' own by default.

    Raises InputError for fewer than two frames, or sizes or numbers that differ. (The warping error of Lai et al.
    2018, "Learning blind video temporal consistency", as an absolute difference.)
    """
    pairs = ((frame, frame) for frame in frames) if guides is None else zip(frames, guides, strict=True)
    figures = []
    try:
        for (before, guide_before), (after, guide_after) in pairwise(pairs):
            if before.shape != guide_before.shape:
                raise InputError("Frames and the images that guide them differ in size; bring them to one.")
            figures.append(difference(after, before, motion(guide_after, guide_before)))
    except ValueError as error:
        raise InputError(f"Frames and the images that guide them differ in number ({error}).") from None
    if not figures:
        raise InputError("Steadiness needs two frames at least.")
    return float(np.nanmean(figures))


def steadied(
    render: np.ndarray, fixed: np.ndarray, previous_render: np.ndarray, previous: np.ndarray, motion: Motion
) -> np.ndarray:
    """The fixed frame with its change (fixed - render) averaged with the previous frame's, carried along the motion.

    Only the change is carried, never the picture: what the render shows stays as sharp as it is, and averaging over
    frames cannot smear it. `previous` is the previous frame's result, so the average goes on without a window; it
    forgets, because only part of it is taken, and less where the motion is wrong, the place was hidden, or the two
    changes are not two drawings of the same thing.

    All are (H, W, 3) in [0, 1]; `motion` is from `previous_render` to `render`. Returns (H, W, 3) in [0, 1].
    """
    change = fixed - render
    carried = warped(previous - previous_render, motion)
    weight = _STRENGTH * motion.visible.astype(np.float32)
    weight = weight * _closeness(warped(previous_render, motion) - render, _MOTION_ERROR)
    weight = (weight * _closeness(carried - change, _CHANGE_ERROR))[..., None]
    return np.clip(render + change + weight * (carried - change), 0, 1).astype(np.float32)


def _closeness(difference: np.ndarray, scale: float) -> np.ndarray:
    """(H, W, 3) → (H, W) in [0, 1]: 1 for no difference around a pixel, 1/e for one of `scale`."""
    size = cv2.GaussianBlur(np.abs(difference).max(axis=-1).astype(np.float32), (0, 0), _SIGMA)
    return np.exp(-((size / scale) ** 2))


def _gray(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) in [0, 1] → (H, W) uint8, what OpenCV's flow wants."""
    gray = np.clip(image, 0, 1) @ np.array([0.299, 0.587, 0.114], np.float32)
    return (gray * 255 + 0.5).astype(np.uint8)


def _moved(values: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Values read at every pixel displaced by the flow (H, W, 2)."""
    height, width = flow.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return cv2.remap(
        np.ascontiguousarray(values, dtype=np.float32),
        x + flow[..., 0],
        y + flow[..., 1],
        cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REPLICATE,
    )
