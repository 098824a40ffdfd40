"""The colours of one image and the detail of another: the colour fix of StableSR and 3DSR."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

LEVELS = 5


def low_band(images: Tensor, levels: int = LEVELS) -> Tensor:
    """What is left of images (B, C, H, W) after `levels` of the à-trous wavelet transform.

    Each level blurs by the binomial 3×3 kernel [1 2 1]ᵀ·[1 2 1] / 16, its taps 1, 2, 4, … pixels apart; pixels beyond
    the border are the border's.
    """
    taps = torch.tensor([0.25, 0.5, 0.25], dtype=images.dtype, device=images.device)
    channels = images.shape[1]
    across = taps.view(1, 1, 1, 3).expand(channels, 1, 1, 3)
    down = taps.view(1, 1, 3, 1).expand(channels, 1, 3, 1)
    for level in range(levels):
        step = 2**level
        for kernel, sides, dilation in ((across, (step, step, 0, 0), (1, step)), (down, (0, 0, step, step), (step, 1))):
            padded = functional.pad(images, sides, mode="replicate")
            images = functional.conv2d(padded, kernel, dilation=dilation, groups=channels)
    return images


def with_colors_of(images: Tensor, others: Tensor, levels: int = LEVELS) -> Tensor:
    """Images (B, C, H, W) with their own high bands and the low band of others of the same size. Not clamped."""
    return images + low_band(others - images, levels)
