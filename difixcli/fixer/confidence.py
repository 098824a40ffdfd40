"""How far a fix may be believed: per pixel, and as a whole.

One-step diffusion fixers fail in ways that poison what is trained on their output (coloured blocks, collapsed images,
noise). Nothing here knows the truth: everything is judged from the render, its opacity and the fix.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from difixcli.images import averaged, in_unit

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
# Limits that bundled fixes, and the true photos, of bad renders keep (recipes/bench/RESULTS.md has how well).
_FALSE_COLOUR, _COLOURED_SHARE = 0.25, 0.08  # a change of hue, and the share of the image that may have it
_STRONG_COLOUR = 0.55  # a change of hue that a hundredth of the image may not have
_TINT, _TONE = 0.075, 0.22  # changes of the mean hue and of the mean colour
_LEAST_CONTRAST, _LEAST_DETAIL = 0.5, 0.33  # of the render's
_LEAST_LIKENESS = 0.38  # correlation of neighbouring pixels in fine detail
_LEAST_CORRELATION = 0.3  # with the render
_MOVED = 0.02  # of the long side
_BAND, _REACH = 2**21, 6  # pixels that are looked at together, and those by which a smoothing of 2 reaches beyond
_FLAT = 0.02  # standard deviation below which there is nothing to compare


@torch.no_grad()
def fix_confidence(
    images: Tensor, fixed: Tensor, opacity: Tensor | None = None, second: Tensor | None = None
) -> Tensor:
    """How far each pixel of a fix may be believed, (B, 1, H, W) in [0, 1].

    The product of what the render had to show (accumulation), of how well the fix keeps the render's tone (both
    smoothed) and, with `second`, of how well two fixes of the same render agree. Where the fix is not a number it
    is 0.

    Args:
        images: (B, 3, H, W) the renders, in [0, 1] or uint8.
        fixed: (B, 3, H, W) their fixes, likewise.
        opacity: (B, 1, H, W) the renders' accumulation in [0, 1], or None for full.
        second: (B, 3, H, W) another fix of the same renders, made from the mirrored render and mirrored back (see
            `Fixer.second_opinion`), or None.

    Raises ValueError when the shapes do not belong together.
    """
    _check_shapes(images, fixed, opacity, second)
    height, width = images.shape[-2:]
    sigma = max(2.0, max(height, width) * TONE_SIGMA)
    reach = _radius(sigma)
    rows = max(_BAND // width, 4 * reach)
    bands = []
    for top in range(0, height, rows):  # band by band: a large image is not needed whole
        first, last = max(top - reach, 0), min(top + rows + reach, height)
        others = (None if x is None else x[..., first:last, :] for x in (opacity, second))
        found = _confidence(images[..., first:last, :], fixed[..., first:last, :], *others, sigma=sigma)
        bands.append(found[..., top - first : top - first + rows, :])
    return bands[0] if len(bands) == 1 else torch.cat(bands, dim=-2)


def _confidence(
    images: Tensor, fixed: Tensor, opacity: Tensor | None, second: Tensor | None, *, sigma: float
) -> Tensor:
    """`fix_confidence` of some rows."""
    images, fixed = in_unit(images).float(), in_unit(fixed.to(images.device)).float()
    whole = torch.isfinite(fixed).all(1, keepdim=True)
    fixed = fixed.nan_to_num(0, 0, 0)
    confidence = _closeness(smooth(fixed, sigma) - smooth(images, sigma), TONE_CHANGE) * whole
    if opacity is not None:
        confidence = confidence * (opacity.to(confidence) / SUBSTANCE).clamp(0, 1)
    if second is not None:
        second = second.to(confidence)
        whole = torch.isfinite(second).all(1, keepdim=True)
        # a pixel's width of smoothing: neither fix is wrong for placing its grain elsewhere
        difference = smooth(fixed, 1.0) - smooth(second.nan_to_num(0, 0, 0), 1.0)
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
    """The signs of a broken fix, (B,) each, in units of the limit that good fixes of bad renders keep.

    `broken`: not numbers. `colour`: patches of colour that the render does not have. `tint`, `tone`: the whole image
    in another colour or brightness. `flat`, `blurred`: contrast or detail gone. `noise`: neighbouring pixels have
    nothing to do with each other. `structure`: another picture. `moved`: the same picture elsewhere.
    """
    _check_shapes(images, fixed, opacity, None)
    # bytes stay bytes: of a large image float numbers need not be there whole
    images, fixed = (x.float() if x.is_floating_point() else x for x in (images, fixed.to(images.device)))
    broken = torch.zeros(len(fixed), dtype=torch.bool, device=fixed.device)
    if fixed.is_floating_point():
        broken = ~torch.isfinite(fixed).flatten(1).all(1)
        fixed = fixed.nan_to_num(0, 0, 0)
    detail, likeness = _detail(fixed)
    blurred = _LEAST_DETAIL * _detail(images)[0] / detail.clamp(min=1e-4)

    height, width = images.shape[-2:]
    scale = min(1.0, _WORKING_SIZE / max(height, width))
    size = (max(round(height * scale), 1), max(round(width * scale), 1))
    images, fixed = averaged(images, size), averaged(fixed, size)
    weight = images.new_ones((images.shape[0], 1, *size)) if opacity is None else averaged(opacity.to(images), size)
    # where the render shows nothing it has no say, unless it shows nothing anywhere
    weight = (weight / SUBSTANCE).clamp(0, 1) + 1e-3
    weight = weight / weight.mean((2, 3), keepdim=True)
    low, low_fixed = smooth(images, 2.0), smooth(fixed, 2.0)
    change = low_fixed - low
    hue = _opponent(change)
    chroma = hue.abs().amax(1)

    def mean(x: Tensor) -> Tensor:
        return (x * weight).mean((2, 3))

    gray, gray_fixed = low.mean(1, keepdim=True), low_fixed.mean(1, keepdim=True)
    gray, gray_fixed = (x - mean(x)[..., None, None] for x in (gray, gray_fixed))
    spread, spread_fixed = (mean(x.square())[:, 0].sqrt() for x in (gray, gray_fixed))
    correlation = mean(gray * gray_fixed)[:, 0] / (spread * spread_fixed).clamp(min=1e-4)
    flat_render = spread < _FLAT  # it has no structure to keep
    coloured = mean((chroma[:, None] > _FALSE_COLOUR).float())[:, 0] / _COLOURED_SHARE
    return {
        "broken": torch.where(broken, torch.inf, 0.0),
        "colour": torch.maximum(coloured, chroma.flatten(1).quantile(0.99, dim=1) / _STRONG_COLOUR),
        "tint": mean(hue).abs().amax(1) / _TINT,
        "tone": mean(change).abs().amax(1) / _TONE,
        "flat": _LEAST_CONTRAST * spread / spread_fixed.clamp(min=1e-4),
        "blurred": blurred,
        "noise": (1 - likeness) / (1 - _LEAST_LIKENESS) * (detail > _FLAT),
        "structure": (1 - correlation) / (1 - _LEAST_CORRELATION) * ~flat_render,
        "moved": _moved(gray * weight, gray_fixed * weight) / _MOVED,
    }


def _detail(images: Tensor) -> tuple[Tensor, Tensor]:
    """(B,), (B,): standard deviation of what is finer than two pixels, and how alike neighbours are in it, which is
    about 0 for noise.
    """
    height, width = images.shape[-2:]
    rows = max(1, _BAND // width)
    power, across, down = (torch.zeros(images.shape[0], device=images.device) for _ in range(3))
    above = None
    for top in range(0, height, rows):  # band by band: a large image is not needed whole
        detail = _fine(images, top, min(rows, height - top))
        power += detail.square().sum((1, 2, 3))
        across += (detail[..., 1:] * detail[..., :-1]).sum((1, 2, 3))
        down += (detail[..., 1:, :] * detail[..., :-1, :]).sum((1, 2, 3))
        if above is not None:
            down += (detail[..., :1, :] * above).sum((1, 2, 3))
        above = detail[..., -1:, :]
    power = power / (height * width)
    alike = across / max(height * (width - 1), 1) + down / max((height - 1) * width, 1)
    return power.sqrt(), alike / (2 * power).clamp(min=1e-12)


def _fine(images: Tensor, top: int, rows: int) -> Tensor:
    """(B, 1, rows, W): what is finer than two pixels in the grey of some rows of images (B, 3, H, W)."""
    height = images.shape[-2]
    first, last = max(top - _REACH, 0), min(top + rows + _REACH, height)
    if height - first <= 2 * _REACH:  # its end mirrors more than is left
        first = max(height - 2 * _REACH - 1, 0)
    gray = in_unit(images[..., first:last, :]).mean(1, keepdim=True)
    return (gray - smooth(gray, 2.0))[..., top - first : top - first + rows, :]


def _moved(a: Tensor, b: Tensor) -> Tensor:
    """(B,): how far two images (B, 1, H, W) must be moved against each other to agree, as a share of the long side;
    0 where moving makes them agree little better.
    """
    a, b = (x - smooth(x, 8.0) for x in (a, b))
    height, width = a.shape[-2:]
    norm = (a.square().sum((1, 2, 3)) * b.square().sum((1, 2, 3))).sqrt().clamp(min=1e-6)
    size = (2 * height, 2 * width)  # with zeros around, nothing wraps
    spectrum = torch.fft.rfft2(b, s=size) * torch.fft.rfft2(a, s=size).conj()
    agreement = torch.fft.irfft2(spectrum, s=size)[:, 0] / norm[:, None, None]
    best, at = agreement.flatten(1).max(1)
    down, across = at // size[1], at % size[1]
    down = torch.where(down > height, down - size[0], down)
    across = torch.where(across > width, across - size[1], across)
    distance = torch.hypot(down.float(), across.float()) / max(height, width)
    return distance * ((best > 0.5) & (best > agreement[:, 0, 0] + 0.15))


def _opponent(color: Tensor) -> Tensor:
    """(B, 3, H, W) RGB → (B, 2, H, W): red against green, and both against blue."""
    red, green, blue = color.unbind(1)
    return torch.stack([red - green, (red + green) / 2 - blue], dim=1)


def _closeness(difference: Tensor, scale: float) -> Tensor:
    """(B, 3, H, W) → (B, 1, H, W): 1 for no difference in any channel, 1/e for one of `scale`."""
    return torch.exp(-(difference.abs().amax(1, keepdim=True) / scale).square())


def _radius(sigma: float) -> int:
    """Pixels by which smoothing reaches."""
    return int(3 * sigma + 0.5)


def smooth(images: Tensor, sigma: float) -> Tensor:
    """Gaussian smoothing of (B, C, H, W), borders mirrored (repeated where the image is smaller than the kernel)."""
    radius = _radius(sigma)
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
