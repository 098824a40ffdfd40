"""Random crops, flips and tones that keep a pair's images, its references and its masks together."""

from __future__ import annotations

import numpy as np
import torch

from difixcli.fixer import correspondence
from difixcli.training.pairs import Loaded, unit
from difixcli.training.synthetic import Sample

_OPACITY_UNKNOWN = 0.1  # share of the samples whose opacity is full: not every caller knows it


def cropped(pair: Loaded, crop: int, rng: np.random.Generator) -> Sample:
    """The same random square of all of a pair's images, or all of them (`crop` 0); its references in random order.

    Values stay what they are, bytes as a rule. What references show outside of the square is not known.
    """
    height, width = pair.render.shape[:2]
    window = (slice(None), slice(None))
    if crop:
        top, left = int(rng.integers(height - crop + 1)), int(rng.integers(width - crop + 1))
        window = (slice(top, top + crop), slice(left, left + crop))
    order = rng.permutation(len(pair.references))
    places = None
    if pair.correspondence is not None:
        places = pair.correspondence[order]
        if crop:
            places = correspondence.cropped(torch.from_numpy(places), top, left, crop, crop).numpy()
    return Sample(
        pair.render[window],
        pair.target[window],
        pair.references[(order, *window)],
        pair.visibility[(order, *window)],
        pair.opacity[window],
        places,
    )


def in_units(sample: Sample) -> Sample:
    """The sample as float32 in [0, 1]."""
    return Sample(*(None if part is None else unit(part) for part in sample))  # type: ignore[arg-type]


def improved(sample: Sample, share: float, rng: np.random.Generator) -> Sample:
    """With probability `share` the sample with a better render: nearer to its photo, or, half of the time, the photo.

    What is right already must be left alone, and how much is wrong must be seen in the render: curation's renders alone
    do not teach that, as nearly all of them are worse than the photo everywhere.
    """
    if rng.random() >= share:
        return sample
    left = np.float32(0 if rng.random() < 0.5 else rng.uniform(0, 0.6))
    return sample._replace(render=sample.target + left * (sample.render - sample.target))


def misled(sample: Sample, share: float, rng: np.random.Generator) -> Sample:
    """With probability `share` the sample beside references that show something else, while visibility says they fit.

    Their pixels come from elsewhere in the same photos: turned around, then moved by at least a quarter of the crop
    (round its border), and half of the time with their channels permuted. Photos of something else must be found out by
    what they show.
    """
    if rng.random() >= share or not len(sample.references):
        return sample
    side = sample.references.shape[1]
    shift = tuple(rng.integers(side // 4, side - side // 4, 2))
    references = np.roll(sample.references[:, ::-1, ::-1], shift, axis=(1, 2))
    visibility = np.roll(sample.visibility[:, ::-1, ::-1], shift, axis=(1, 2))
    if rng.random() < 0.5:
        references = references[..., rng.permutation(3)]
    return sample._replace(references=np.ascontiguousarray(references), visibility=np.ascontiguousarray(visibility))


def augmented(sample: Sample, flips: bool, strong: bool, reference_tone: float, rng: np.random.Generator) -> Sample:
    """A sample of the same shape, changed at random.

    With `flips` half of them are mirrored, all of a pair's images alike. With `strong` they are also flipped
    vertically, transposed, and their channels, exposure, white balance and gamma changed alike: good for small
    networks that know nothing, bad for pretrained ones that know which way is up. With `reference_tone`, the typical
    size of an exposure change (natural logarithm), half of the samples' references are taken by a camera of another
    exposure, white balance and gamma than the photo of the same view: what tone the answer has must then be seen in
    the render.
    """
    images = [sample.render, sample.target, *sample.references]
    masks = [*sample.visibility, sample.opacity]
    places = None if sample.correspondence is None else torch.from_numpy(sample.correspondence)
    if flips and rng.random() < 0.5:
        images, masks = [a[:, ::-1] for a in images], [a[:, ::-1] for a in masks]
        places = None if places is None else correspondence.mirrored(places)
    if strong:
        if rng.random() < 0.5:
            images, masks = [a[::-1] for a in images], [a[::-1] for a in masks]
            if places is not None:
                places = correspondence.transposed(correspondence.mirrored(correspondence.transposed(places)))
        if rng.random() < 0.5:
            images, masks = [a.swapaxes(0, 1) for a in images], [a.T for a in masks]
            places = None if places is None else correspondence.transposed(places)
        if rng.random() < 0.3:
            channels = rng.permutation(3)
            images = [a[..., channels] for a in images]
        if rng.random() < 0.5:
            gain = np.float32(rng.uniform(0.6, 1.15)) * np.exp(rng.normal(0, 0.05, 3)).astype(np.float32)
            gamma = np.float32(np.exp(rng.normal(0, 0.15)))
            images = [np.minimum(a**gamma * gain, np.float32(1)) for a in images]
    references = images[2:]
    if reference_tone > 0 and references and rng.random() < 0.5:
        references = _other_tones(references, reference_tone, rng)
    kind = masks[-1].dtype
    if rng.random() < _OPACITY_UNKNOWN:
        masks[-1] = np.full_like(masks[-1], 255 if kind == np.uint8 else 1)
    size = masks[-1].shape
    return Sample(
        images[0],
        images[1],
        np.stack(references) if references else np.zeros((0, *size, 3), kind),
        np.stack(masks[:-1]) if len(masks) > 1 else np.zeros((0, *size), kind),
        masks[-1],
        None if places is None else places.numpy(),
    )


def _other_tones(references: list[np.ndarray], strength: float, rng: np.random.Generator) -> list[np.ndarray]:
    """References as cameras of other exposure, white balance and gamma show them; black, which is nothing, stays.

    Part of the change is common to all of them, as when the photos were taken in other light than the target.
    """
    common, white_common = rng.normal(0, strength), rng.normal(0, 0.3 * strength, 3)
    changed = []
    for image in references:
        exposure = 0.7 * common + 0.7 * rng.normal(0, strength)
        white = 0.7 * white_common + 0.7 * rng.normal(0, 0.3 * strength, 3)
        gamma = np.float32(np.exp(rng.normal(0, 0.5 * strength)))
        gain = np.exp(exposure + white).astype(np.float32)
        changed.append(np.minimum(image**gamma * gain, np.float32(1)))
    return changed
