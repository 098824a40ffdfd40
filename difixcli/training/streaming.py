"""Pairs streamed from tars, in webdataset's order: for sets that are too large, or too far away, to be looked up.

Every sample of a step has a lane of its own: an endless stream through a share of the tars, in a new order every
epoch, shuffled in a small buffer. What a lane gives is a function of its number, the number of lanes and the seed, so
that it does not matter which process reads it; how far it was read is kept in checkpoints, and a run that goes on
reads up to there again without decoding.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from torch.utils.data import IterableDataset

from difixcli.errors import InputError
from difixcli.training.batches import MOST_UNREADABLE, Draw, Plan, stacked
from difixcli.training.pairs import Held, Loaded, References, decode, pair_of_members
from difixcli.training.synthetic import PhotoPairs

_BUFFER = 64  # samples shuffled together, in all lanes
_AHEAD = 2  # pairs of a lane decoded before they are needed
_TAR_ORDER = 5

Place = tuple[int, int]
"""How far a lane was read: the epoch, and how many samples of it."""


@dataclass
class Lane:
    """The endless stream of one of `lanes` samples of a step, from `place` on; `damaged` gets tars that broke off."""

    tars: Sequence[str]
    number: int
    lanes: int
    seed: int
    place: Place = (0, 0)
    damaged: dict[str, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[tuple[dict[str, Any], Place]]:
        """Samples as webdataset has them (bytes by member), each with the lane's place after it."""
        epoch, offset = self.place
        while True:
            count = 0
            for count, sample in enumerate(self._epoch(epoch), start=1):
                if count > offset:
                    yield sample, (epoch, count)
            # fewer samples than lanes leave some lanes without any, but not in every epoch
            if not count and all(self._empty(tar) for tar in self.tars):
                reasons = "; ".join(self.damaged.values()) or "they are empty"
                raise InputError(f"No pair can be read from the tars ({reasons}); make them again with difix curate.")
            epoch, offset = epoch + 1, 0

    def _epoch(self, epoch: int) -> Iterable[dict[str, Any]]:
        import webdataset as wds

        count = len(self.tars)
        order = list(range(count))
        random.Random(f"{self.seed} {_TAR_ORDER} {epoch}").shuffle(order)
        mine, share, sharing = order[self.number :: self.lanes], 0, 1
        if count < self.lanes:  # several lanes share a tar, each taking every so-manieth sample
            home = self.number % count
            mine, sharing = [order[home]], len(range(home, self.lanes, count))
            share = (self.number // count + epoch) % sharing  # a small tar's few samples are not always the same lanes'
        size = max(_BUFFER // self.lanes, 8)
        return wds.DataPipeline(
            wds.SimpleShardList([self.tars[i] for i in mine]),
            wds.tarfile_to_samples(handler=self._note),
            lambda samples: islice(samples, share, None, sharing),
            wds.shuffle(size, initial=size, rng=random.Random(f"{self.seed} {epoch} {self.number}")),
        )

    def _empty(self, tar: str) -> bool:
        """Whether not one sample of a tar can be read."""
        import webdataset as wds

        samples = wds.DataPipeline(wds.SimpleShardList([tar]), wds.tarfile_to_samples(handler=self._note))
        return next(iter(samples), None) is None

    def _note(self, error: Exception) -> bool:
        """Remember why a tar could not be read on, and go on with the next."""
        where = next((part for part in reversed(error.args) if isinstance(part, str) and ".tar" in part), "a tar")
        self.damaged[where] = str(error.args[0] if error.args else error)
        return True


class StreamedBatches(IterableDataset[Draw]):
    """Every round's batch from tars (and photos), from round `start` on.

    Pairs smaller than the crop are skipped like unreadable ones. A round has as many references as all of its samples
    in this process have.

    Args:
        places: how far lanes were read already, by their numbers.
        threads: how many decode; 0 for none of their own.
    """

    def __init__(
        self,
        tars: Sequence[str],
        photos: PhotoPairs | None,
        plan: Plan,
        kind: References,
        start: int = 0,
        places: Mapping[int, Place] | None = None,
        threads: int = 0,
    ) -> None:
        self.tars, self.photos, self.plan, self.kind = list(tars), photos, plan, kind
        self.start, self.places, self.threads = start, dict(places or {}), threads

    def __iter__(self) -> Iterator[Draw]:
        plan = self.plan
        pool = ThreadPoolExecutor(self.threads) if self.threads else None
        lanes: dict[int, _Decoded] = {}
        try:
            for index in range(self.start, plan.steps * plan.accumulate):
                skipped: dict[str, str] = {}
                samples = []
                try:
                    for position in plan.positions(index):
                        number = position % plan.samples
                        if plan.synthetic(position):
                            samples.append(plan.sample(None, self.photos, position))
                            continue
                        if number not in lanes:
                            place = self.places.get(number, (0, 0))
                            lane = Lane(self.tars, number, plan.samples, plan.seed, place)
                            lanes[number] = _Decoded(lane, self.kind, plan, pool)
                        samples.append(plan.sample(lanes[number].next(skipped), self.photos, position))
                except InputError as error:
                    yield Draw(None, skipped, {}, str(error))
                    return
                views = plan.wanted_views(index // plan.accumulate, min(len(s.references) for s in samples))
                places = self.places | {number: lane.place for number, lane in lanes.items()}
                yield Draw(stacked(samples, views), skipped, places, "")
        finally:
            if pool is not None:
                pool.shutdown(cancel_futures=True)


class _Decoded:
    """A lane's pairs, decoded a little ahead where there are threads for it."""

    def __init__(self, lane: Lane, kind: References, plan: Plan, pool: Executor | None) -> None:
        self.lane, self.kind, self.plan, self.pool = lane, kind, plan, pool
        self.place = lane.place
        self._samples = iter(lane)
        self._waiting: deque[tuple[str, Any, Place]] = deque()

    def next(self, skipped: dict[str, str]) -> Loaded:
        """The next pair that can be read; the others and damaged tars are noted in `skipped`."""
        reason = ""
        for _ in range(MOST_UNREADABLE):
            while len(self._waiting) < (_AHEAD if self.pool else 1):
                sample, place = next(self._samples)
                job = self.pool.submit(self._decode, sample) if self.pool else lambda s=sample: self._decode(s)
                self._waiting.append((sample["__key__"], job, place))
            key, job, self.place = self._waiting.popleft()
            skipped |= self.lane.damaged
            try:
                return job.result() if self.pool else job()  # type: ignore[no-any-return]
            except (InputError, ValueError) as error:
                reason = skipped[key] = str(error)
        raise InputError(
            f"One pair after another cannot be used (the last: {reason}); make the tars again, or where they are "
            "smaller than the crops ask for a smaller --crop."
        )

    def _decode(self, sample: Mapping[str, Any]) -> Loaded:
        key = sample["__key__"]
        members = {
            name.partition(".")[0]: Held(value, f"{name} of {key}")
            for name, value in sample.items()
            if isinstance(value, bytes)
        }
        loaded = decode(pair_of_members(key, members), self.kind, self.plan.views, self.plan.frame)
        if min(loaded.render.shape[:2]) < self.plan.crop:
            raise ValueError(f"{key} is smaller than the crops of {self.plan.crop} pixels")
        return loaded
