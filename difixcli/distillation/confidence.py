"""What a fix is allowed to change: a per-pixel weight for its place in training."""

from __future__ import annotations

import numpy as np

from difixcli.reconstruction import Render
from difixcli.reference_views import References

_SIGMA = 2.0  # pixels; what is finer than this is texture, what is coarser is tone and structure
_TONE = 0.04  # mean colour change that counts as mending something
_DISAGREEMENT = 0.1  # mean colour difference at which a reference no longer supports a fix


def confidence(render: Render, fixed: np.ndarray, references: References) -> np.ndarray:
    """(H, W) float32 in [0, 1]: how far the fixed image (H, W, 3) may be trusted as a training target.

    The product of three things: the render had substance there (accumulation); a reference is visible there and
    agrees with the fix at low frequencies (without references this says nothing); and the fix mends something, in
    tone or by adding detail. Where it only smooths a render that was right, training on it would blur the model
    round after round, so there it has no say.
    """
    weight = np.clip(render.accumulation, 0, 1) * _mends(render.color, fixed)
    if len(references.frames):
        low = _smooth(fixed)
        support = np.zeros_like(weight)
        for aligned, visible in zip(references.aligned, references.visibility, strict=True):
            difference = np.abs(_smooth(aligned.astype(np.float32)) - low).mean(axis=-1)
            support = np.maximum(support, visible * np.exp(-((difference / _DISAGREEMENT) ** 2)))
        weight = weight * _smooth(support.astype(np.float32))
    return np.clip(weight, 0, 1).astype(np.float32)


def _mends(render: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """(H, W) in [0, 1]: whether the fix differs in tone, or has more detail than the render."""
    tone = np.abs(_smooth(fixed) - _smooth(render)).mean(axis=-1)
    gained = _detail(fixed) / _detail(render) - 1
    return np.maximum(1 - np.exp(-((tone / _TONE) ** 2)), np.clip(gained / 0.25, 0, 1))


def _detail(image: np.ndarray) -> np.ndarray:
    """(H, W): local contrast of what is finer than the smoothing."""
    gray = image.mean(axis=-1).astype(np.float32)
    return np.sqrt(np.maximum(_smooth((gray - _smooth(gray)) ** 2), 1e-6))


def _smooth(image: np.ndarray) -> np.ndarray:
    import cv2

    return cv2.GaussianBlur(image.astype(np.float32), (0, 0), _SIGMA)
