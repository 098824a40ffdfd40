"""What a fix is allowed to change, and how far each of its pixels is trusted in training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from difixcli.errors import InputError, unknown

if TYPE_CHECKING:
    from difixcli.reconstruction import Render
    from difixcli.reference_views import References

TRUSTS = ("supported", "all")
DROP_BELOW = 0.7
"""The support (see `mean_support`) below which a fix is not trained on, unless another is asked for."""

_SIGMA = 2.0  # pixels; what is finer than this is texture, what is coarser is tone and structure
_GAINED = 0.25  # so much more local contrast than the render's is new detail, not another drawing of the old
_DISAGREEMENT = 0.25  # colour difference (of the worst channel) at which a reference no longer supports a fix
_UNSUPPORTED = 0.25  # change of tone (of the worst channel) that a fix may make where no reference shows anything
_SUBSTANCE = 0.3  # accumulation from which on a render has something to show


def check_trust(trust: str) -> None:
    """Raises InputError for an unknown kind of trust."""
    if trust not in TRUSTS:
        raise unknown("kind of trust", trust, TRUSTS)


def support_wanted(trust: str, drop_below: float | None) -> float:
    """The least support of a fix that is trained on; 0 with the trust `all`, which takes every fix as it is.

    Raises InputError for an unknown kind of trust, and for a bound that it does not heed.
    """
    check_trust(trust)
    if trust == "supported":
        return DROP_BELOW if drop_below is None else drop_below
    if drop_below is not None:
        raise InputError(f"--drop-below says nothing with --trust {trust}, which takes every fix; leave one out.")
    return 0.0


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

    Where references are visible, the one that agrees best with the fix at low frequencies decides: what all of them
    contradict is invented. Where none is visible the fix may only change the tone a little, against the render's colour
    without the background that shines through. Without references nothing contradicts it. Where the render shows
    next to nothing (accumulation) there is no trust at all.
    """
    accumulation = np.clip(render.accumulation, 0, 1)
    weight = _substance(render)
    if len(references.aligned):
        low = _smooth(fixed)
        seen, support = np.zeros_like(weight), np.zeros_like(weight)
        for aligned, visible in zip(references.aligned, references.visibility, strict=True):
            seen = np.maximum(seen, visible)
            support = np.maximum(support, visible * _closeness(_smooth(aligned) - low, _DISAGREEMENT))
        opaque = _smooth(render.color) / np.maximum(_smooth(accumulation), _SUBSTANCE)[..., None]
        unseen = (1 - seen) * _closeness(low - np.clip(opaque, 0, 1), _UNSUPPORTED)
        weight = weight * _smooth(support + unseen)
    return np.clip(weight, 0, 1).astype(np.float32)


def mean_support(render: Render, weight: np.ndarray) -> float:
    """In [0, 1]: the mean confidence (H, W) of a fix over what the render shows at all; 0 for an empty render.

    A fix of a view that is half empty is no worse for it; one that repaints what its references show is.
    """
    shown = float(_substance(render).mean())
    return min(float(weight.mean()) / shown, 1.0) if shown > 1e-3 else 0.0


def _substance(render: Render) -> np.ndarray:
    """(H, W) in [0, 1]: how far the render has something to show."""
    return np.clip(np.clip(render.accumulation, 0, 1) / _SUBSTANCE, 0, 1)


def _closeness(difference: np.ndarray, scale: float) -> np.ndarray:
    """(H, W, 3) → (H, W) in [0, 1]: 1 for no difference in any channel, 1/e for one of `scale`."""
    return np.exp(-((np.abs(difference).max(axis=-1) / scale) ** 2))


def _detail(image: np.ndarray) -> np.ndarray:
    """(H, W): local contrast of what is finer than the smoothing."""
    gray = image.mean(axis=-1).astype(np.float32)
    return np.sqrt(np.maximum(_smooth((gray - _smooth(gray)) ** 2), 1e-6))


def _smooth(image: np.ndarray) -> np.ndarray:
    import cv2

    return cv2.GaussianBlur(image.astype(np.float32), (0, 0), _SIGMA)
