"""The detail of what a render shows as its photos do stays the render's.

Photos of unknown poses are registered to a render by optical flow, right to a fraction of a pixel. A fix that is drawn
from them is a little soft: better than a bad render, worse than a good one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from difixcli.fixer.confidence import TONE_SIGMA, smooth
from difixcli.images import averaged

GAINED = (1.25, 1.75)  # so many times the render's local contrast is new detail, not another drawing of the old
DENIED = (1.2, 1.5)  # so many times the photos' local contrast in the render is none of the scene's: grain, needles
NO_CONTRAST = 1 / 255  # local contrast that counts as none

# Found on renders of six validation scenes (recipes/bench/RESULTS.md has what they do).
_ALIKE = (34.0, 38.0)  # dB of agreement up to which detail is the fix's alone, and from which the render's
_LACKING = (1.05, 1.2)  # so many times the render's local contrast in a photo: the render is blurred there
_BLURRED = (1.09, 1.17)  # the same, of all that photos see: the render is blurred everywhere
_SIGMA = 2.0  # pixels of the working size, whose long side is such that this is the width of tone
_NEIGHBOURHOOD = 4 * _SIGMA  # over which an image agrees with its photos or not


@torch.no_grad()
def keep_known_detail(
    images: Tensor, fixed: Tensor, aligned: Tensor, visibility: Tensor, long_side: int, blurred: Tensor
) -> Tensor:
    """Fixes with the render's own detail where it agrees with a photo already.

    Tone and structure are the fix's everywhere. Detail is the fix's where it, or a photo that is seen there, has
    clearly more contrast than the render, where the render has clearly more than any photo, and where no photo looks
    like the render; in between by their agreement: PSNR against the nearest photo around each place, without the
    finest detail.

    Args:
        images: (B, 3, H, W) the renders, or windows of them, in [0, 1].
        fixed: (B, 3, H, W) their fixes, in [0, 1].
        aligned: (B, V, 3, H, W) the photos as they look from there, in [0, 1].
        visibility: (B, V, 1, H, W) in [0, 1], where to believe them.
        long_side: of the whole images, in pixels: tone is a share of it.
        blurred: (B, 1, 1, 1) in [0, 1], how far the whole images are blurred beside their photos (see `blur`).

    Returns:
        (B, 3, H, W) float32 in [0, 1], but no number where the fix is none.
    """
    height, width = images.shape[-2:]
    size = _working_size(height, width, long_side)
    images, fixed = images.float().nan_to_num(0, 0, 0), fixed.float()
    # what is no number spreads no further
    change = (fixed - images).nan_to_num(0, 0, 0)
    coarse = _enlarged(smooth(averaged(change, size), _SIGMA), (height, width))
    drawn, repainted = (_contrast(x, size) + NO_CONTRAST for x in (images, images + change))
    photos = _compared(images, aligned, visibility, size)
    known = photos.contrast + NO_CONTRAST
    left = _between(photos.agreement, *_ALIKE) * (1 - torch.maximum(_between(known / drawn, *_LACKING), blurred))
    taken = torch.maximum(_between(repainted / drawn, *GAINED), 1 - left)
    taken = torch.maximum(taken, _between(drawn / known, *DENIED) * photos.seen)
    kept = (images + coarse + _enlarged(taken, (height, width)) * (change - coarse)).clamp(0, 1)
    return torch.where(torch.isfinite(fixed), kept, fixed)  # a broken fix stays one, and is told as such


@torch.no_grad()
def blur(images: Tensor, aligned: Tensor, visibility: Tensor) -> Tensor:
    """(B, 1, 1, 1) in [0, 1]: how far images are blurred everywhere, beside aligned photos; arguments as
    `keep_known_detail` takes them, of whole images at any one size.
    """
    height, width = images.shape[-2:]
    size = _working_size(height, width, max(height, width))
    images = images.float().nan_to_num(0, 0, 0)
    photos = _compared(images, aligned, visibility, size)
    pair = (photos.contrast, _contrast(images, size))
    known, drawn = (((x + NO_CONTRAST) * photos.seen).sum((-2, -1), keepdim=True) for x in pair)
    return _between(known / drawn.clamp(min=NO_CONTRAST), *_BLURRED)


class _Compared(NamedTuple):
    """What photos say of an image, (B, 1, h, w) at the working size: the agreement with the nearest, in dB, minus
    infinity where none is seen around; the largest local contrast of one; and 1 where one is seen, else 0.
    """

    agreement: Tensor
    contrast: Tensor
    seen: Tensor


def _compared(images: Tensor, aligned: Tensor, visibility: Tensor, size: tuple[int, int]) -> _Compared:
    small = averaged(images, size)
    nearest, contrast = torch.full_like(small[:, :1], torch.inf), torch.zeros_like(small[:, :1])
    for photo, visible in zip(aligned.unbind(1), visibility.float().unbind(1), strict=True):
        weight = averaged(visible, size)
        difference = smooth((small - averaged(photo.float(), size)) * weight, _SIGMA / 2)
        error = (difference / smooth(weight, _SIGMA / 2).clamp(min=1e-4)).square().mean(1, keepdim=True)
        nearest = torch.minimum(nearest, torch.where(weight > 0.5, error, torch.inf))
        contrast = torch.maximum(contrast, _contrast(photo.float(), size, visible) * (weight > 0.5))
    seen = torch.isfinite(nearest).float()
    share = smooth(seen, _NEIGHBOURHOOD)
    error = smooth(nearest.nan_to_num(0, 0, 0) * seen, _NEIGHBOURHOOD) / share.clamp(min=1e-4)
    agreement = torch.where(share > 0.1, -10 * error.clamp(min=1e-8).log10(), -torch.inf)
    return _Compared(agreement, contrast, seen)


def _working_size(height: int, width: int, long_side: int) -> tuple[int, int]:
    """(h, w) of a part of an image of this long side."""
    scale = min(1.0, _SIGMA / (long_side * TONE_SIGMA))
    return max(round(height * scale), 1), max(round(width * scale), 1)


def _contrast(images: Tensor, size: tuple[int, int], weight: Tensor | None = None) -> Tensor:
    """(B, 1, h, w), at the working size: standard deviation of what is finer than tone, over a neighbourhood of its
    width; `weight` (B, 1, H, W) is each pixel's part in it.
    """
    gray = images.mean(1, keepdim=True)
    weight = torch.ones_like(gray) if weight is None else weight
    total = smooth(averaged(weight, size), _SIGMA).clamp(min=1e-4)
    tone = _enlarged(smooth(averaged(gray * weight, size), _SIGMA) / total, (gray.shape[-2], gray.shape[-1]))
    power = smooth(averaged((gray - tone).square() * weight, size), _SIGMA) / total
    return power.clamp(min=0).sqrt()


def _enlarged(values: Tensor, size: tuple[int, int]) -> Tensor:
    if values.shape[-2:] == size:
        return values
    return F.interpolate(values, size, mode="bilinear", align_corners=False)


def _between(values: Tensor, low: float, high: float) -> Tensor:
    return ((values - low) / (high - low)).clamp(0, 1)
