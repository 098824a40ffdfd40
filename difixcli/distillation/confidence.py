"""What a fix is allowed to change: a per-pixel weight for its place in training."""

from __future__ import annotations

import numpy as np

from difixcli.reconstruction import Render
from difixcli.reference_views import References

_FLOOR = 0.1  # even an unseen pixel may pull a little: it is where nothing else does


def confidence(render: Render, fixed: np.ndarray, references: References) -> np.ndarray:
    """(H, W) float32 in [0, 1]: how far the fixed image (H, W, 3) may be trusted as a training target.

    High where the render had substance (accumulation), where a reference is visible in the view and agrees with the
    fix at low frequencies. Without references only accumulation speaks.
    """
    import cv2

    def smooth(image: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(image, (0, 0), 2.0)

    weight = np.clip(render.accumulation, 0, 1)
    if len(references.frames):
        low = smooth(fixed)
        support = np.zeros_like(weight)
        for aligned, visible in zip(references.aligned, references.visibility, strict=True):
            difference = np.abs(smooth(aligned.astype(np.float32)) - low).mean(axis=-1)
            support = np.maximum(support, visible * np.exp(-((difference / 0.1) ** 2)))
        weight = weight * smooth(support.astype(np.float32))
    return (_FLOOR + (1 - _FLOOR) * np.clip(weight, 0, 1)).astype(np.float32)
