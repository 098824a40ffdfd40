"""How references aligned with the render enter the picture: by gates in feature space and by weights on pixels.

Only networks with `references: aligned` have these parts. Views are counted from the render: view 0 is the render,
views 1..V are the references; visibility of view 0 is the render's opacity.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Frequency bands blended apart: detail, structure, and tone. Photos differ in exposure far more than in texture, so
# texture may come from a photo while the tone stays the render's.
BAND_FACTORS = (2, 8)
BANDS = len(BAND_FACTORS) + 1
# How readily an untrained network takes each band from a visible reference rather than from the render (log odds).
BAND_PRIORS = (1.0, 0.0, -2.0)
# Of a reference less visible than this, the missing part is filled in with the render.
FILL_BELOW = 0.3


class ReferenceGate(nn.Module):
    """Blends the views' encoder features at one skip level: softmax over views, masked by visibility."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.from_render = nn.Conv2d(channels, hidden, 1)
        self.from_view = nn.Conv2d(2 * channels + 1, hidden, 1)
        self.score = nn.Conv2d(hidden, 1, 3, padding=1)
        self.merge = nn.Conv2d(3 * channels, channels, 1)

    def forward(self, features: Tensor, visibility: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, 1+V, C, h, w), visibility (B, 1+V, 1, h, w) → blended (B, C, h, w), scores (B, 1+V, 1, h, w).

        The scores are the views' log odds before visibility has its say.
        """
        batch, views = features.shape[:2]
        render = features[:, :1]
        difference = (features - render).abs()
        own = self.from_view(torch.cat([features, difference, visibility], dim=2).flatten(0, 1))
        hidden = own.unflatten(0, (batch, views)) + self.from_render(render[:, 0])[:, None]
        score = self.score(F.silu(hidden).flatten(0, 1)).unflatten(0, (batch, views))
        weights = torch.softmax(score + log_mask(visibility), dim=1)
        blended = features[:, 0] * weights[:, 0]
        for view in range(1, views):
            blended = torch.addcmul(blended, features[:, view], weights[:, view])
        # the decoder should also know where render and references disagree
        told = self.merge(torch.cat([render[:, 0], blended, (blended - render[:, 0]).abs()], dim=1))
        return blended + told, score


class BlendHead(nn.Module):
    """Weights at full resolution over render and aligned references, one set per frequency band.

    out = Σ_bands Σ_v w(band, v)·band(x_v). One small convolutional head is shared by all views, so any number of
    them may come; it sees the view's pixels, how they differ from the render and from what the views agree on,
    visibility, the scores of all gates (large receptive field) and the decoder's feature map. It works on a grid
    coarser by `reduction`, each place holding all its pixels: a quarter faster in training than on the pixels, and it
    sees twice as far.
    """

    def __init__(self, levels: int, features: int, hidden: int, reduction: int) -> None:
        super().__init__()
        self.reduction = reduction
        self.from_view = nn.Conv2d((3 + 3 + 3 + 1) * reduction**2 + levels, hidden, 3, padding=1)
        self.from_scene = nn.Conv2d((3 + 3 + 1 + features) * reduction**2, hidden, 3, padding=1)
        self.mix = nn.Conv2d(hidden, hidden, 3, padding=1)
        # softmax over views: a bias would cancel
        self.score = nn.Conv2d(hidden, BANDS * reduction**2, 1, bias=False)
        self.prior = nn.Parameter(torch.tensor(BAND_PRIORS))
        with torch.no_grad():
            self.score.weight.mul_(0.3)  # small, not zero: Adam's first steps on a zero output blow the rest up

    def forward(self, images: Tensor, visibility: Tensor, features: Tensor, scores: list[Tensor]) -> Tensor:
        """Images (B, 1+V, 3, H, W) in [0, 1], visibility (B, 1+V, 1, H, W), decoder features on the coarser grid
        (B, F·reduction², h, w) and the gates' scores, each (B, 1+V, 1, h', w') → blended (B, 3, H, W).
        """
        batch, views = images.shape[:2]
        images = fill_invisible(images, visibility)
        # what the convolutions are told, on their grid from the start: it is taken apart once
        pixels, mask = (F.pixel_unshuffle(x, self.reduction) for x in (images, visibility))
        render, consensus = pixels[:, :1], self._consensus(pixels, mask)
        wide = [F.interpolate(s.flatten(0, 1), pixels.shape[-2:], mode="bilinear") for s in scores]
        told = [pixels, (pixels - render).abs(), (pixels - consensus).abs(), mask]
        seen = torch.cat([*(part.flatten(0, 1) for part in told), *wide], dim=1)
        scene = self.from_scene(torch.cat([render[:, 0], consensus[:, 0], mask[:, 0], features], dim=1))
        hidden = self.from_view(seen).unflatten(0, (batch, views)) + scene[:, None]
        hidden = F.silu(self.mix(F.silu(hidden).flatten(0, 1)))
        score = F.pixel_shuffle(self.score(hidden), self.reduction).unflatten(0, (batch, views))
        prior = torch.cat([torch.zeros_like(self.prior)[None], self.prior.expand(views - 1, -1)])[
            None, :, :, None, None
        ]
        weights = torch.softmax(score + prior + log_mask(visibility), dim=1)
        blended = torch.zeros_like(images[:, 0])
        for band, values in enumerate(split_bands(images)):
            for view in range(views):
                blended = blended.addcmul(weights[:, view, band : band + 1], values[:, view])
        return blended

    def _consensus(self, pixels: Tensor, visibility: Tensor) -> Tensor:
        """The references' common opinion, and the render's where there is none: (B, 1, 3·reduction², h, w) of views'
        pixels (B, 1+V, 3·reduction², h, w) and visibility (B, 1+V, reduction², h, w).
        """
        mask = visibility.clone()
        mask[:, 0] = 0.25
        mask = mask.repeat(1, 1, 3, 1, 1)  # pixel by pixel of each colour
        return (pixels * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)


def log_mask(visibility: Tensor) -> Tensor:
    """Log odds that silence what is not visible; (B, 1+V, 1, h, w). The render, view 0, always has a say."""
    mask = visibility.clamp(min=1e-4).log()
    return torch.cat([torch.zeros_like(mask[:, :1]), mask[:, 1:]], dim=1)


def fill_invisible(images: Tensor, visibility: Tensor) -> Tensor:
    """References (views 1..V) completed with the render where they show nothing, so that no mask's edge is a picture's
    edge; shapes (B, 1+V, 3, H, W) and (B, 1+V, 1, H, W).
    """
    render = images[:, :1]
    share = (visibility[:, 1:] / FILL_BELOW).clamp(max=1)
    return torch.cat([render, render + share * (images[:, 1:] - render)], dim=1)


def split_bands(images: Tensor) -> list[Tensor]:
    """Images (B, N, C, H, W) as frequency bands of the same shape, finest first; they add up to the images."""
    size = images.shape[-2:]
    bands, above = [], images
    flat = images.flatten(1, 2)  # twice as quick as three channels at a time
    for factor in BAND_FACTORS:
        small = (max(1, size[0] // factor), max(1, size[1] // factor))
        low = F.interpolate(F.interpolate(flat, small, mode="area"), size, mode="bilinear").view_as(images)
        bands.append(above - low)
        above = low
    return [*bands, above]
