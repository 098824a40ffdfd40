"""What the photos say about a fix: how bold it is, which of its changes are taken, how far each pixel is trusted.

A photo that is brought into the view (aligned) confirms or denies what a render and its fix show there. Everything is
measured after smoothing by a share of the image's long side, and what a photo does not see has no part in a mean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from difixcli.fixer.confidence import SUBSTANCE, TONE_CHANGE, TONE_SIGMA
from difixcli.fixer.detail import DENIED, GAINED, NO_CONTRAST
from difixcli.frames.marks import marks
from difixcli.images import as_planes, averaged, continued

if TYPE_CHECKING:
    from difixcli.fixer import Fixer
    from difixcli.reconstruction import Render
    from difixcli.reference_views import References

_FINE = 1.0  # of TONE_SIGMA: what is finer than this is detail, which is the fix's only where there is a reason
_NEARER = 0.01  # colour difference by which a fix must be nearer to a photo to count wholly in a final render
_LIKENESS = 0.5  # of TONE_SIGMA: what is finer has no part in the likeness of an image and a photo
_DISAGREEMENT = 0.25  # colour difference (of the worst channel) at which a reference no longer supports a fix
_BOLD = (33.0, 35.0)  # dB of agreement up to which a fixer's bolder weights count alone, and from which not at all
_RELATED = (15.0, 19.0)  # dB of agreement: photos of other scenes come to 7 to 14, those of the scene to more than 20
_UNSEEN_SIDE = 1 / 80  # of the long side: what is narrower stays as it is where no photo has seen it
_UNSEEN_EDGE = 1 / 240  # of the long side, the width of the seam
_OWN = 0.5  # how far an image counts there beside the smooth continuation: not at all, figures of likeness fall
_SEEN = 5e-4  # smoothed visibility from which on a photo has a say: it reaches three widths beyond its edge


def enhanced(fixer: Fixer, render: Render, references: References, taught: bool) -> np.ndarray:
    """(H, W, 3) float32 in [0, 1]: a final render, fixed once more where that makes it more like the photos (see
    `nearer`).
    """
    return nearer(render, fix_render(fixer, render, references), references, taught)


def fix_render(fixer: Fixer, render: Render, references: References) -> np.ndarray:
    """(H, W, 3) float32 in [0, 1]: the fixer's clean view of a render with its references, raw or aligned as its
    weights want them.

    Fixers that have bolder weights use them as far as the render is unlike the aligned photos (see `boldness`).
    """
    import torch

    image = as_planes(render.color)
    opacity = torch.from_numpy(render.accumulation)[None, None]
    count = min(fixer.config.views, len(references.frames))
    if count == 0:
        fixed = fixer(image, None, opacity)
    elif fixer.config.references == "aligned":
        aligned = torch.from_numpy(references.aligned[:count]).permute(0, 3, 1, 2)[None]
        visibility = torch.from_numpy(references.visibility[:count])[None, :, None]
        bold = 0.0 if fixer.bolder is None else boldness(render.color, references)
        fixed = fixer(image, aligned, opacity, visibility, boldness=bold)
    else:
        photos = [averaged(as_planes(photo), image.shape[-2:]) for photo in references.photos[:count]]
        places = None
        if fixer.config.references == "geometry" and references.correspondence is not None:
            places = torch.from_numpy(references.correspondence(count))[None]
        fixed = fixer(image, torch.cat(photos)[None], opacity, correspondence=places)
    return fixed[0].permute(1, 2, 0).float().cpu().numpy()


def boldness(image: np.ndarray, references: References) -> float:
    """In [0, 1]: how far a render (H, W, 3) is to be mended by a fixer's bolder weights, by its agreement with the
    aligned photos; 0 where these see too little of it.

    What the bolder ones take from photos is better than a bad render and worse than a good one. Photos that have next
    to nothing in common with the render show something else, whatever their visibility says: nothing is taken boldly
    from those.
    """
    value = agreement(image, references)
    if value is None:
        return 0.0
    return float(np.interp(value, _BOLD, (1, 0)) * np.interp(value, _RELATED, (0, 1)))


def nearer(render: Render, fixed: np.ndarray, references: References, taught: bool) -> np.ndarray:
    """(H, W, 3) float32 in [0, 1]: the render with what of its fix (H, W, 3) makes it more like the photos. `taught`
    says that its model has learned from fixes.

    What of the fix is confirmed (see `confirmed`) counts as far as it brings the render nearer to the photo that is
    nearest to each; where none of the references sees the place it counts wholly.
    """
    fixed = confirmed(render, fixed, references, taught)
    if not len(references.aligned):
        return fixed
    sigma = tone_sigma(fixed)
    before, after = _distance(render.color, references, sigma), _distance(fixed, references, sigma)
    with np.errstate(invalid="ignore"):  # infinite less infinite, where nothing is seen
        gained = np.where(np.isfinite(before), np.clip((before - after) / _NEARER, 0, 1), 1.0)
    weight = smooth(gained, 0.5 * sigma)[..., None]
    return np.clip(render.color + weight * (fixed - render.color), 0, 1).astype(np.float32)


def confirmed(render: Render, fixed: np.ndarray, references: References, taught: bool) -> np.ndarray:
    """(H, W, 3) float32 in [0, 1]: the fixed image (H, W, 3) without what it does to detail for no reason, and calmed
    where no photo has seen it (see `settled`); there only its holes are filled if the render's model is `taught` by
    fixes, which were calmed before.

    Tone and structure are the fix's. Detail is the fix's where it has clearly more of it than the render, and where
    the render has clearly more than any photo that sees the place (needles, speckle); elsewhere it is the render's:
    a fixer of any size smooths a little what was already right.
    """
    sigma = tone_sigma(fixed)
    change = fixed - render.color
    coarse = smooth(change, _FINE * sigma)
    drawn, repainted = _contrast(render.color, sigma), _contrast(fixed, sigma)
    taken = _between((repainted + NO_CONTRAST) / (drawn + NO_CONTRAST), *GAINED)
    if len(references.aligned):
        known, seen = np.zeros_like(drawn), np.zeros_like(drawn)
        for photo, aligned, visible in zip(references.photos, references.aligned, references.visibility, strict=True):
            share = smooth(visible, sigma)
            found = _contrast(aligned, sigma, visible)
            found *= _lost(photo, found, share)
            known = np.maximum(known, np.where(share > 0.3, found, 0))
            seen = np.maximum(seen, share)
        denied = _between((drawn + NO_CONTRAST) / (known + NO_CONTRAST), *DENIED) * (seen > 0.3)
        taken = np.maximum(taken, denied)
    image = np.clip(render.color + coarse + taken[..., None] * (change - coarse), 0, 1).astype(np.float32)
    if references.seen_by_any is None:
        return image
    return settled(image, references.seen_by_any(), render.accumulation, 1.0 if taught else _OWN)


def settled(image: np.ndarray, seen: np.ndarray, accumulation: np.ndarray, own: float) -> np.ndarray:
    """(H, W, 3) float32: an image (H, W, 3) of a render that is, where no photo has seen it (`seen` (H, W) is False), a
    mean of itself, with the weight `own`, and of a smooth continuation of what is seen around; the latter alone where
    the render shows nothing (accumulation (H, W)).

    Photos do not keep a reconstruction from showing anything at all there.
    """
    import cv2

    long = max(image.shape[:2])
    side = max(3, round(_UNSEEN_SIDE * long) | 1)
    unseen = cv2.morphologyEx((~seen).astype(np.uint8), cv2.MORPH_OPEN, np.ones((side, side), np.uint8))
    if not unseen.any() or unseen.all():
        return image
    share = (1 - own * np.clip(accumulation, 0, 1)) * smooth(unseen, max(1.0, _UNSEEN_EDGE * long))
    return (image + share[..., None] * (continued(image, unseen == 0) - image)).astype(np.float32)


def confidence(render: Render, fixed: np.ndarray, references: References) -> np.ndarray:
    """(H, W) float32 in [0, 1]: how far the fixed image (H, W, 3) may be trusted as a training target.

    Where references are visible, the one that agrees best with the fix at low frequencies decides: what all of them
    contradict is invented. Where none is visible the fix may only change the tone a little, against the render's colour
    without the background that shines through. Without references nothing contradicts it. Where the render shows
    next to nothing (accumulation), and in what is no number, there is no trust at all. It is the fix that is judged:
    what calms it afterwards (see `settled`) is believed as far as the fix was.
    """
    weight = _substance(render)
    if len(references.aligned):
        sigma = tone_sigma(fixed)
        low = smooth(fixed, sigma)
        seen, support = np.zeros_like(weight), np.zeros_like(weight)
        for aligned, visible in zip(references.aligned, references.visibility, strict=True):
            share = smooth(visible, sigma)
            agrees = _closeness(smooth(aligned - fixed, sigma, visible), _DISAGREEMENT)
            support = np.maximum(support, np.where(share > _SEEN, agrees * np.clip(share / _SEEN - 1, 0, 1), 0))
            seen = np.maximum(seen, np.clip(share / _SEEN - 1, 0, 1))
        accumulation = np.clip(render.accumulation, 0, 1)
        opaque = smooth(render.color, sigma) / np.maximum(smooth(accumulation, sigma), SUBSTANCE)[..., None]
        unseen = (1 - seen) * _closeness(low - np.clip(opaque, 0, 1), TONE_CHANGE)
        weight = weight * np.clip(support + unseen, 0, 1)
    return np.nan_to_num(np.clip(weight, 0, 1)).astype(np.float32)


def marks_of(render: Render, fixed: np.ndarray, references: References) -> np.ndarray:
    """(H, W, 3) float32: how far each pixel of a fix (H, W, 3) is invented, seen by a photo, and otherwise agreed (see
    `frames.marks`); by `confidence` and by what aligned references see.
    """
    visible = references.visibility
    seen = visible.max(axis=0) if len(visible) else np.zeros(fixed.shape[:2], np.float32)
    return marks(confidence(render, fixed, references), seen)


def mean_support(render: Render, weight: np.ndarray) -> float:
    """In [0, 1]: the mean confidence (H, W) of a fix over what the render shows at all; 0 for an empty render.

    A fix of a view that is half empty is no worse for it; one that repaints what its references show is.
    """
    shown = float(_substance(render).mean())
    return min(float(weight.mean()) / shown, 1.0) if shown > 1e-3 else 0.0


def agreement(image: np.ndarray, references: References) -> float | None:
    """How like the aligned photos an image (H, W, 3) is where they are visible, in dB as PSNR; None where too little
    of it is seen.

    At each pixel the photo that is nearest to the image counts, after the finest detail is smoothed away: photos are
    brought in through a geometry that is not exact.
    """
    sigma = _LIKENESS * tone_sigma(image)
    errors = np.full(image.shape[:2], np.inf, np.float32)
    for aligned, visible in zip(references.aligned, references.visibility, strict=True):
        difference = smooth(image - aligned, sigma, visible)
        errors = np.minimum(errors, np.where(visible > 0.5, (difference**2).mean(axis=-1), np.inf))
    seen = np.isfinite(errors)
    if seen.mean() < 0.1:
        return None
    return float(-10 * np.log10(max(float(errors[seen].mean()), 1e-8)))


def _distance(image: np.ndarray, references: References, sigma: float) -> np.ndarray:
    """(H, W): the smoothed difference (of the worst channel) from the photo that is nearest; infinite where none is."""
    distance = np.full(image.shape[:2], np.inf, np.float32)
    for aligned, visible in zip(references.aligned, references.visibility, strict=True):
        difference = np.abs(smooth(image - aligned, sigma, visible)).max(axis=-1)
        distance = np.minimum(distance, np.where(smooth(visible, sigma) > 0.3, difference, np.inf))
    return distance


def tone_sigma(image: np.ndarray) -> float:
    """The width of the smoothing, in pixels, that leaves tone and structure of an image (H, W, ...).

    It is a share of the long side, but at least two pixels: the smallest images have no finer detail than others.
    """
    return max(2.0, max(image.shape[0], image.shape[1]) * TONE_SIGMA)


def smooth(image: np.ndarray, sigma: float, weight: np.ndarray | None = None) -> np.ndarray:
    """Gaussian mean of an image (H, W) or (H, W, C), with a weight (H, W) of each pixel's own part in it; 0 where no
    pixel near has a part.
    """
    import cv2

    if weight is None:
        return cv2.GaussianBlur(np.asarray(image, np.float32), (0, 0), sigma)
    total = cv2.GaussianBlur(np.asarray(weight, np.float32), (0, 0), sigma)
    part = weight if image.ndim == 2 else weight[..., None]
    total = total if image.ndim == 2 else total[..., None]
    weighted = cv2.GaussianBlur(np.asarray(image * part, np.float32), (0, 0), sigma)
    return np.where(total > 1e-4, weighted / np.maximum(total, 1e-4), 0).astype(np.float32)


def _contrast(image: np.ndarray, sigma: float, weight: np.ndarray | None = None) -> np.ndarray:
    """(H, W): standard deviation of what is finer than the smoothing, over a neighbourhood of its width."""
    gray = image.mean(axis=-1).astype(np.float32)
    return np.sqrt(np.maximum(smooth((gray - smooth(gray, sigma, weight)) ** 2, sigma, weight), 0))


def _lost(photo: np.ndarray, found: np.ndarray, share: np.ndarray) -> float:
    """How many times more local contrast a photo (h, w, 3) has than was found (H, W) where it is seen, at least 1:
    bringing it into another view softens it.
    """
    if not (share > 0.3).any():
        return 1.0
    own = float(_contrast(photo, tone_sigma(photo)).mean())
    return max(1.0, own / max(float(found[share > 0.3].mean()), NO_CONTRAST))


def _between(value: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.clip((value - low) / (high - low), 0, 1)


def _substance(render: Render) -> np.ndarray:
    """(H, W) in [0, 1]: how far the render has something to show."""
    return np.clip(np.clip(render.accumulation, 0, 1) / SUBSTANCE, 0, 1)


def _closeness(difference: np.ndarray, scale: float) -> np.ndarray:
    """(H, W, 3) → (H, W) in [0, 1]: 1 for no difference in any channel, 1/e for one of `scale`."""
    return np.exp(-((np.abs(difference).max(axis=-1) / scale) ** 2))
