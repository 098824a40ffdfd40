"""How far a fix may be believed: per pixel, and as a whole.

One-step diffusion fixers fail in ways that poison what is trained on their output (coloured blocks, collapsed images,
noise). Nothing here knows the truth: everything is judged from the render, its opacity and the fix.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Accumulation from which on a render has something to show.
SUBSTANCE = 0.3
# Change of tone, of the worst channel, at which confidence falls to 1/e.
TONE_CHANGE = 0.25
# Difference of two fixes of one render, of the worst channel, at which confidence falls to 1/e.
DISAGREEMENT = 0.1
# Tone is what remains after smoothing by this share of the long side, but never less than 2 pixels.
TONE_SIGMA = 1 / 120
# Signs are looked for at this long side: what a fix must not change is coarse.
_WORKING_SIZE = 160


@torch.no_grad()
def fix_confidence(
    images: Tensor, fixed: Tensor, opacity: Tensor | None = None, second: Tensor | None = None
) -> Tensor:
    """How far each pixel of a fix may be believed, (B, 1, H, W) in [0, 1].

    The product of what the render had to show (accumulation), of how well the fix keeps the render's tone (both
    smoothed) and, with `second`, of how well two fixes of the same render agree. Where the fix is not a number it
    is 0.

    Args:
        images: (B, 3, H, W) the renders, in [0, 1].
        fixed: (B, 3, H, W) their fixes, in [0, 1].
        opacity: (B, 1, H, W) the renders' accumulation in [0, 1], or None for full.
        second: (B, 3, H, W) another fix of the same renders, made from the mirrored render and mirrored back (see
            `Fixer.second_opinion`), or None.

    Raises ValueError when the shapes do not belong together.
    """
    _check_shapes(images, fixed, opacity, second)
    images, fixed = images.float(), fixed.to(images.device).float()
    whole = torch.isfinite(fixed).all(1, keepdim=True)
    fixed = fixed.nan_to_num(0, 0, 0)
    sigma = max(2.0, max(images.shape[-2:]) * TONE_SIGMA)
    confidence = _closeness(_smooth(fixed, sigma) - _smooth(images, sigma), TONE_CHANGE) * whole
    if opacity is not None:
        confidence = confidence * (opacity.to(confidence) / SUBSTANCE).clamp(0, 1)
    if second is not None:
        second = second.to(confidence)
        whole = torch.isfinite(second).all(1, keepdim=True)
        # a pixel's width of smoothing: neither fix is wrong for placing its grain elsewhere
        difference = _smooth(fixed, 1.0) - _smooth(second.nan_to_num(0, 0, 0), 1.0)
        confidence = confidence * _closeness(difference, DISAGREEMENT) * whole
    return confidence.clamp(0, 1)


@torch.no_grad()
def bad_fixes(images: Tensor, fixed: Tensor, opacity: Tensor | None = None) -> Tensor:
    """Which fixes are broken as a whole, (B,) bool: see `bad_fix_score`."""
    return bad_fix_score(images, fixed, opacity) > 1


@torch.no_grad()
def bad_fix_score(images: Tensor, fixed: Tensor, opacity: Tensor | None = None) -> Tensor:
    """How broken fixes are as a whole, (B,): above 1 they had better not be used; infinite where not numbers.

    The largest of the signs (see `bad_fix_signs`), each in units of the limit that good fixes keep.

    Args as `fix_confidence` takes them. Raises ValueError when the shapes do not belong together.
    """
    return torch.stack(list(bad_fix_signs(images, fixed, opacity).values())).amax(0)


@torch.no_grad()
def bad_fix_signs(images: Tensor, fixed: Tensor, opacity: Tensor | None = None) -> dict[str, Tensor]:
    """The signs of a broken fix, (B,) each, in units of the limit that good fixes of bad renders keep."""
    raise NotImplementedError


def _features(images: Tensor, fixed: Tensor, opacity: Tensor | None = None) -> dict[str, Tensor]:
    _check_shapes(images, fixed, opacity, None)
    images, fixed = images.float(), fixed.to(images.device).float()
    broken = ~torch.isfinite(fixed).flatten(1).all(1)
    fixed = fixed.nan_to_num(0, 0, 0)
    fine = _fine_correlation(fixed)
    height, width = images.shape[-2:]
    scale = min(1.0, _WORKING_SIZE / max(height, width))
    size = (max(round(height * scale), 1), max(round(width * scale), 1))
    weight = torch.ones_like(images[:, :1]) if opacity is None else opacity.to(images)
    weight, images, fixed = (F.interpolate(x, size, mode="area") for x in (weight, images, fixed))
    weight = (weight / SUBSTANCE).clamp(0, 1) + 1e-3
    low, low_fixed = _smooth(images, 2.0), _smooth(fixed, 2.0)
    change = low_fixed - low
    chroma = _chroma(change)
    area = weight.sum((1, 2, 3))
    gray, gray_fixed = low.mean(1, keepdim=True), low_fixed.mean(1, keepdim=True)

    def mean(x: Tensor) -> Tensor:
        return (x * weight).sum((2, 3)) / area[:, None]

    def deviation(x: Tensor) -> Tensor:
        return mean((x - mean(x)[..., None, None]).square())[:, 0].sqrt()

    centred = gray - mean(gray)[..., None, None], gray_fixed - mean(gray_fixed)[..., None, None]
    spread, spread_fixed = deviation(gray), deviation(gray_fixed)
    correlation = mean(centred[0] * centred[1])[:, 0] / (spread * spread_fixed).clamp(min=1e-4)
    return {
        "broken": broken.float(),
        "chroma_area": mean((chroma > 0.25).float())[:, 0],
        "chroma_area15": mean((chroma > 0.15).float())[:, 0],
        "chroma_99": _quantile(chroma, 0.99),
        "chroma_mean": mean(_opponent(change)).abs().amax(1),
        "tone_mean": mean(change).abs().amax(1),
        "tone_area": mean((change.abs().amax(1, keepdim=True) > 0.35).float())[:, 0],
        "spread": spread_fixed / spread.clamp(min=1e-3),
        "spread_abs": spread_fixed,
        "correlation": correlation,
        "fine": fine,
        **_shift(centred[0] * weight, centred[1] * weight),
    }


def _quantile(x, q):
    return x.flatten(1).quantile(q, dim=1)


def _fine_correlation(fixed: Tensor) -> Tensor:
    """(B,): how alike neighbouring pixels are in what is finer than two pixels: about 0 for noise."""
    gray = fixed.mean(1, keepdim=True)
    detail = gray - _smooth(gray, 2.0)
    power = detail.square().mean((1, 2, 3))
    across = (detail[..., 1:] * detail[..., :-1]).mean((1, 2, 3)) + (detail[..., 1:, :] * detail[..., :-1, :]).mean(
        (1, 2, 3)
    )
    rho = across / (2 * power).clamp(min=1e-12)
    return torch.stack([rho, power.sqrt()], 1)


def _shift(a: Tensor, b: Tensor) -> dict[str, Tensor]:
    a = a - _smooth(a, 8.0)
    b = b - _smooth(b, 8.0)
    h, w = a.shape[-2:]
    a, b = (F.pad(x, (0, w, 0, h)) for x in (a, b))
    cross = torch.fft.irfft2(torch.fft.rfft2(b) * torch.fft.rfft2(a).conj(), s=a.shape[-2:])[:, 0]
    norm = (a.square().sum((1, 2, 3)) * b.square().sum((1, 2, 3))).sqrt().clamp(min=1e-6)
    at = cross.flatten(1).argmax(1)
    dy, dx = at // (2 * w), at % (2 * w)
    dy = torch.where(dy > h, dy - 2 * h, dy).float()
    dx = torch.where(dx > w, dx - 2 * w, dx).float()
    return {
        "shift": (dx.square() + dy.square()).sqrt() / max(h, w),
        "peak": cross.flatten(1).amax(1) / norm,
        "zero": cross[:, 0, 0] / norm,
    }


def _opponent(color: Tensor) -> Tensor:
    """(B, 3, H, W) RGB → (B, 2, H, W): red against green, and both against blue."""
    red, green, blue = color.unbind(1)
    return torch.stack([red - green, (red + green) / 2 - blue], dim=1)


def _chroma(color: Tensor) -> Tensor:
    """(B, 3, H, W) RGB → (B, 1, H, W): how colourful it is, whatever the hue."""
    return _opponent(color).abs().amax(1, keepdim=True)


def _closeness(difference: Tensor, scale: float) -> Tensor:
    """(B, 3, H, W) → (B, 1, H, W): 1 for no difference in any channel, 1/e for one of `scale`."""
    return torch.exp(-(difference.abs().amax(1, keepdim=True) / scale).square())


def _smooth(images: Tensor, sigma: float) -> Tensor:
    """Gaussian smoothing of (B, C, H, W), borders mirrored (repeated where the image is smaller than the kernel)."""
    radius = int(3 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma).square())
    kernel = kernel / kernel.sum()
    channels, height, width = images.shape[1:]
    mode = "reflect" if radius < min(height, width) else "replicate"
    images = F.pad(images, (radius, radius, radius, radius), mode=mode)
    weight = kernel.expand(channels, 1, -1)
    images = F.conv2d(images, weight[:, :, None, :], groups=channels)
    return F.conv2d(images, weight[:, :, :, None], groups=channels)


def _check_shapes(images: Tensor, fixed: Tensor, opacity: Tensor | None, second: Tensor | None) -> None:
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be (B, 3, H, W), not {tuple(images.shape)}")
    for name, value in (("fixed", fixed), ("second", second)):
        if value is not None and value.shape != images.shape:
            raise ValueError(f"{name} must be (B, 3, H, W) like the images, not {tuple(value.shape)}")
    if opacity is not None and opacity.shape != (images.shape[0], 1, *images.shape[-2:]):
        raise ValueError(f"opacity must be (B, 1, H, W) like the images, not {tuple(opacity.shape)}")
