"""The batches of a training: which samples a step has is a function of the step and the seed alone.

A step has `batch` samples in each of `accumulate` rounds in each of `ranks` processes. They are numbered through, so
that one process with twice the batch, two processes, and two rounds see the same samples, and a run that was stopped
sees what it would have seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from difixcli.errors import InputError
from difixcli.training.augmentation import augmented, cropped, improved, in_units, misled
from difixcli.training.pairs import Loaded, PairStore
from difixcli.training.synthetic import PhotoPairs, Sample

MOST_UNREADABLE = 50
"""So many unreadable pairs in a row are no accident: training stops."""

# what random numbers are drawn for
_ORDER, _SAMPLE, _REFERENCES, _SYNTHETIC = 1, 2, 3, 4
_FILLING, _LATENTS = 6, 7  # 5 orders streamed tars


class Batch(NamedTuple):
    """Tensors of one round, float32 in [0, 1] or, until `unit`, bytes. `references` and `visibility` are None when
    this step goes without.
    """

    images: Tensor  # (B, 3, H, W)
    targets: Tensor  # (B, 3, H, W)
    references: Tensor | None  # (B, V, 3, H, W)
    visibility: Tensor | None  # (B, V, 1, H, W)
    opacity: Tensor  # (B, 1, H, W)
    correspondence: Tensor | None = None  # (B, V, 3, H, W) in pixels, of raw references with their geometry

    def unit(self, device: torch.device | str = "cpu") -> Batch:
        """The same on a device, as float32 in [0, 1]; bytes become numbers there, a quarter as much is carried."""
        moved = (None if t is None else t.to(device, non_blocking=True) for t in self)
        return Batch(*(t.float().mul_(1 / 255) if t is not None and t.dtype == torch.uint8 else t for t in moved))  # type: ignore[arg-type]


class Draw(NamedTuple):
    """A round's batch and what happened while it was drawn.

    `skipped`: why pairs that belonged here could not be read, by id; others stand in for them. `places`: how far each
    stream was read, for streamed pairs only. `error`: why there is no batch (errors of a worker process lose their
    message on the way, so they are carried).
    """

    batch: Batch | None
    skipped: dict[str, str]
    places: dict[int, tuple[int, int]]
    error: str


@dataclass(frozen=True)
class Plan:
    """What a step is made of. `crop` pixels a side, or, where it is 0, whole frames stretched to `frame` (height,
    width); `views` references at most; `drop_references` is the share of the steps without any, `fewer_references` of
    the others that of those with a random number; `photo_share` the share of samples made from photos."""

    steps: int
    batch: int
    crop: int
    views: int
    accumulate: int = 1
    rank: int = 0
    ranks: int = 1
    photo_share: float = 0.0
    frame: tuple[int, int] | None = None
    drop_references: float = 0.1
    fewer_references: float = 0.4
    flips: bool = True
    strong: bool = True
    reference_tone: float = 0.0
    improved_share: float = 0.0
    misled_share: float = 0.0
    seed: int = 0

    @property
    def samples(self) -> int:
        """Samples a step, of all processes."""
        return self.batch * self.accumulate * self.ranks

    @property
    def _in_bytes(self) -> bool:
        """Whether nothing is done to samples that bytes do not stand."""
        return not (self.strong or self.reference_tone or self.improved_share or self.photo_share)

    def positions(self, index: int) -> range:
        """The numbers of this process's samples in round `index` (rounds are counted through all steps)."""
        first = (index * self.ranks + self.rank) * self.batch
        return range(first, first + self.batch)

    def rng(self, purpose: int, number: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, purpose, number))

    def synthetic(self, position: int) -> bool:
        """Whether a sample is made from a photo."""
        if self.photo_share in (0, 1):
            return self.photo_share == 1
        return bool(self.rng(_SYNTHETIC, position).random() < self.photo_share)

    def wanted_views(self, step: int, most: int) -> int:
        """How many of `most` references a step has, so that one set of weights serves with many, few and none."""
        rng = self.rng(_REFERENCES, step)
        if rng.random() < self.drop_references:
            return 0
        fewer = rng.random() < self.fewer_references
        return int(rng.integers(1, most + 1)) if fewer and most > 1 else most

    def noise(self, index: int, shape: Sequence[int]) -> Tensor:
        """(batch, *shape) standard normal for round `index`: what takes the place of what renders do not show."""
        return self._normal(_FILLING, index, shape)

    def latent_noise(self, index: int, shape: Sequence[int]) -> Tensor:
        """(batch, *shape) standard normal for round `index`, to draw latents from the encoder's Gaussian with."""
        return self._normal(_LATENTS, index, shape)

    def _normal(self, purpose: int, index: int, shape: Sequence[int]) -> Tensor:
        generators = (self.rng(purpose, position) for position in self.positions(index))
        return torch.from_numpy(np.stack([rng.standard_normal(shape, dtype=np.float32) for rng in generators]))

    def sample(self, pair: Loaded | None, photos: PhotoPairs | None, position: int) -> Sample:
        """The sample of a position: cut from its pair, or made from photos where it has none."""
        rng = self.rng(_SAMPLE, position)
        if pair is None:
            assert photos is not None
            sample = photos.draw(self.crop, self.views, rng)
        elif self._in_bytes:
            sample = cropped(pair, self.crop, rng)
        else:
            sample = in_units(cropped(pair, self.crop, rng))
        sample = misled(improved(sample, self.improved_share, rng), self.misled_share, rng)
        return augmented(sample, self.flips, self.strong, self.reference_tone, rng)


class TrainingBatches(Dataset[Draw]):
    """Every round's batch of pairs that can be read in any order, and of photos.

    `photos` fill `plan.photo_share` of the samples, all of them where there are no pairs.
    """

    def __init__(self, pairs: PairStore, photos: PhotoPairs | None, plan: Plan) -> None:
        self.pairs, self.photos, self.plan = pairs, photos, plan
        self._epoch = -1

    def __len__(self) -> int:
        return self.plan.steps * self.plan.accumulate

    def __getitem__(self, index: int) -> Draw:
        plan = self.plan
        skipped: dict[str, str] = {}
        try:
            views = self._views(index // plan.accumulate)
            samples = [
                plan.sample(
                    None if plan.synthetic(position) else self._pair(position, views, skipped), self.photos, position
                )
                for position in plan.positions(index)
            ]
        except InputError as error:
            return Draw(None, skipped, {}, str(error))
        return Draw(stacked(samples, views), skipped, {}, "")

    def index(self, position: int) -> int:
        """The pair of a position: all pairs are gone through in a new order every epoch."""
        epoch, offset = divmod(position, len(self.pairs))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self.plan.rng(_ORDER, epoch).permutation(len(self.pairs))
        return int(self._order[offset])

    def _views(self, step: int) -> int:
        """As many references as every sample of the step, in whatever process, has."""
        plan = self.plan
        there = [
            plan.views if plan.synthetic(position) else self.pairs.references(self.index(position))
            for position in range(step * plan.samples, (step + 1) * plan.samples)
        ]
        return plan.wanted_views(step, min(there))

    def _pair(self, position: int, views: int, skipped: dict[str, str]) -> Loaded:
        """The pair of a position, or for one that cannot be read the next that can."""
        reason = ""
        for shift in range(min(len(self.pairs), MOST_UNREADABLE)):
            index = self.index(position + shift)
            if self.pairs.references(index) < views:
                continue
            try:
                loaded = self.pairs[index]
                if min(loaded.render.shape[:2]) < self.plan.crop:
                    raise ValueError(f"{self.pairs.files[index].render} is smaller than the crop")
                return loaded
            except (InputError, ValueError) as error:
                reason = skipped[self.pairs.files[index].id] = str(error)
        raise InputError(f"One pair after another cannot be read (the last: {reason}); restore the pairs.")


def whole(sample: Sample | Loaded, views: int) -> Batch:
    """A whole pair with its first `views` references as a batch of one, for validation."""
    pair = in_units(Sample(*sample))
    return stacked([pair], min(views, len(pair.references)))


def stacked(samples: Sequence[Sample], views: int) -> Batch:
    """Samples of one size with their first `views` references as a batch."""
    references = visibility = correspondence = None
    if views:
        references = torch.from_numpy(np.stack([s.references[:views] for s in samples])).permute(0, 1, 4, 2, 3)
        references = references.contiguous()
        visibility = torch.from_numpy(np.stack([s.visibility[:views] for s in samples]))[:, :, None]
        if all(s.correspondence is not None for s in samples):
            correspondence = torch.from_numpy(np.stack([s.correspondence[:views] for s in samples]))  # type: ignore[index]
    return Batch(
        torch.from_numpy(np.stack([s.render for s in samples])).permute(0, 3, 1, 2).contiguous(),
        torch.from_numpy(np.stack([s.target for s in samples])).permute(0, 3, 1, 2).contiguous(),
        references,
        visibility,
        torch.from_numpy(np.stack([s.opacity for s in samples]))[:, None],
        correspondence,
    )
