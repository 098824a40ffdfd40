"""What a fix is allowed to change, and how far each of its pixels is trusted in training."""

from __future__ import annotations

import numpy as np

from difixcli.reconstruction import Render
from difixcli.reference_views import References

_SIGMA = 2.0  # pixels; what is finer than this is texture, what is coarser is tone and structure
_GAINED = 0.25  # so much more local contrast than the render's is new detail, not another drawing of the old
_DISAGREEMENT = 0.1  # mean colour difference at which a reference no longer supports a fix
_UNSUPPORTED = 0.1  # change of tone that a fix may make where no reference shows anything


def target(render: Render, fixed: np.ndarray) -> np.ndarray:
    """(H, W, 3) float32 in [0, 1]: what training shall see, the fixed image (H, W, 3) without its softness.

    Tone and structure are the fix's. Detail is the fix's where it has more of it, the render's elsewhere: a fixer of
    any size smooths a little what was already right, and training on that would blur the model round after round.
    """
    gained = np.clip((_detail(fixed) / _detail(render.color) - 1) / _GAINED, 0, 1)[..., None]
    low = _smooth(fixed)
    detail = gained * (fixed - low) + (1 - gained) * (render.color - _smooth(render.color))
    return np.clip(low + detail, 0, 1).astype(np.float32)


def confidence(render: Render, fixed: np.ndarray, references: References) -> np.ndarray:
    """(H, W) float32 in [0, 1]: how far the fixed image (H, W, 3) may be trusted as a training target.

    The render must have had substance there (accumulation). Where references are visible, the one that agrees best
    with the fix at low frequencies decides: what all of them contradict is invented. Where none is visible the fix may
    only change the tone a little. Without references there is nothing to contradict it.
    """
    weight = np.clip(render.accumulation, 0, 1)
    if len(references.frames):
        low = _smooth(fixed)
        seen, support = np.zeros_like(weight), np.zeros_like(weight)
        for aligned, visible in zip(references.aligned, references.visibility, strict=True):
            difference = np.abs(_smooth(aligned.astype(np.float32)) - low).mean(axis=-1)
            seen = np.maximum(seen, visible)
            support = np.maximum(support, visible * np.exp(-((difference / _DISAGREEMENT) ** 2)))
        change = np.abs(low - _smooth(render.color)).mean(axis=-1)
        unseen = (1 - seen) * np.exp(-((change / _UNSUPPORTED) ** 2))
        weight = weight * _smooth(support + unseen)
    return np.clip(weight, 0, 1).astype(np.float32)


def _detail(image: np.ndarray) -> np.ndarray:
    """(H, W): local contrast of what is finer than the smoothing."""
    gray = image.mean(axis=-1).astype(np.float32)
    return np.sqrt(np.maximum(_smooth((gray - _smooth(gray)) ** 2), 1e-6))


def _smooth(image: np.ndarray) -> np.ndarray:
    import cv2

    return cv2.GaussianBlur(image.astype(np.float32), (0, 0), _SIGMA)
