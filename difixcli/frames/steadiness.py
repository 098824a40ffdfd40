"""A way to make fixed frames steadier.

A fixer that looks at every frame alone decides a little differently each time: the film flickers. Dense optical flow
on the frames as they were before the fix says where each pixel was one frame earlier; what the fixed frames show along
that way should change no more than the frames before the fix did. How steady a sequence is, is measured by
`evaluation.consistency.warped_difference`. Images are (H, W, 3) float32 RGB in [0, 1].
"""

from __future__ import annotations

import cv2
import numpy as np

from difixcli.evaluation.consistency import Motion, warp

_STRENGTH = 0.4  # share of the previous frame's change where everything agrees; more of it lags behind the truth
_MOTION_ERROR = 0.03  # colour difference (of the worst channel) at which the motion is no longer believed
_CHANGE_ERROR = 0.2  # difference of the two changes (of the worst channel) that is no flicker but another content
_SIGMA = 1.5  # pixels, over which both are looked at


def steadied(
    render: np.ndarray, fixed: np.ndarray, previous_render: np.ndarray, previous: np.ndarray, motion: Motion
) -> np.ndarray:
    """The fixed frame with its change (fixed - render) averaged with the previous frame's, carried along the motion.

    Only the change is carried, never the picture: what the render shows stays as sharp as it is, and averaging over
    frames cannot smear it. `previous` is the previous frame's result, so the average goes on without a window; it
    forgets, because only part of it is taken, and less where the motion is wrong, the place was hidden, or the two
    changes are not two drawings of the same thing.

    All are (H, W, 3) in [0, 1]; `motion` is `frame_motion(previous_render, render)`. Returns (H, W, 3) in [0, 1].
    """
    change = fixed - render
    carried = warp(previous - previous_render, motion)
    weight = _STRENGTH * motion.visible.astype(np.float32)
    weight = weight * _closeness(warp(previous_render, motion) - render, _MOTION_ERROR)
    weight = (weight * _closeness(carried - change, _CHANGE_ERROR))[..., None]
    return np.clip(render + change + weight * (carried - change), 0, 1).astype(np.float32)


def _closeness(difference: np.ndarray, scale: float) -> np.ndarray:
    """(H, W, 3) → (H, W) in [0, 1]: 1 for no difference around a pixel, 1/e for one of `scale`."""
    size = cv2.GaussianBlur(np.abs(difference).max(axis=-1).astype(np.float32), (0, 0), _SIGMA)
    return np.exp(-((size / scale) ** 2))
