"""The tone of what no reference shows stays the render's.

Difix-like networks learn the tone of their training renders' photos. Beside a reference that is right more often than
not; without one it is a guess, and a whole image in another brightness is worse than what was there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from difixcli.fixer.confidence import SUBSTANCE, smooth
from difixcli.images import averaged

# Tone is what remains after smoothing by this share of the long side (confidence, after finer patches, takes less).
_TONE = 1 / 30
# A pixel counts as unseen by how much is visible within about this share of the long side ...
_NEIGHBOURHOOD = 1 / 12
# ... and not at all from this share on.
_SEEN = 0.5
_WORKING_SIZE = 120  # pixels of the long side: all of this is coarse


@torch.no_grad()
def keep_unseen_tone(images: Tensor, fixed: Tensor, visibility: Tensor | None, opacity: Tensor | None = None) -> Tensor:
    """Fixes with the render's own tone where no reference is visible around.

    Args:
        images: (B, 3, H, W) the renders, in [0, 1] or uint8.
        fixed: (B, 3, H, W) their fixes, in [0, 1], which are changed.
        visibility: (B, V, 1, H, W) of the references in [0, 1]; None, or V = 0, where there were none.
        opacity: (B, 1, H, W) the renders' accumulation in [0, 1], or None for full; holes take the change of tone
            of what is around them.

    Returns:
        `fixed`, in [0, 1], as it was wherever half of the neighbourhood is visible.
    """
    height, width = images.shape[-2:]
    scale = min(1.0, _WORKING_SIZE / max(height, width))
    size = (max(round(height * scale), 1), max(round(width * scale), 1))
    # one after the other: of a large image the difference itself is not needed; what is no number spreads no further
    change = (_reduced(images, size) - _reduced(fixed, size)).nan_to_num(0, 0, 0)
    unseen = change.new_ones((change.shape[0], 1, *size))
    if visibility is not None and visibility.shape[1]:
        seen = smooth(_reduced(visibility.amax(1), size).to(change), _sigma(_NEIGHBOURHOOD, size))
        unseen = (1 - seen / _SEEN).clamp(0, 1)
    # neither what a reference shows nor a hole's background says what the tone beside it was
    weight = unseen
    if opacity is not None:
        weight = weight * (_reduced(opacity, size).to(change) / SUBSTANCE).clamp(0, 1)
    sigma = _sigma(_TONE, size)
    back = smooth(change * weight, sigma) / smooth(weight, sigma).clamp(min=1e-3) * unseen
    # channel by channel, in place: of a large image each copy counts
    for channel in range(fixed.shape[1]):
        large = F.interpolate(back[:, channel : channel + 1], (height, width), mode="bilinear", align_corners=False)
        fixed[:, channel : channel + 1].add_(large.to(fixed)).clamp_(0, 1)
    return fixed


def _sigma(share: float, size: tuple[int, int]) -> float:
    return max(2.0, max(size) * share)  # less would be detail


def _reduced(images: Tensor, size: tuple[int, int]) -> Tensor:
    return averaged(images.float() if images.is_floating_point() else images, size)
