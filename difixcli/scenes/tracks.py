"""Which frames saw each seed point."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Tracks:
    """Point i was seen by `frames[offsets[i] : offsets[i + 1]]`: each frame once, in rising order.

    `offsets` (N + 1,) int64 for N points; `frames` (T,) int32 are indices of frames.
    """

    offsets: np.ndarray
    frames: np.ndarray

    @classmethod
    def of(cls, points: np.ndarray, frames: np.ndarray, count: int) -> Tracks:
        """From pairs of a point and a frame that saw it, (T,) integers each, in any order, for `count` points."""
        width = int(frames.max(initial=0)) + 1
        pairs = np.unique(points.astype(np.int64) * width + frames)
        offsets = np.concatenate([[0], np.cumsum(np.bincount(pairs // width, minlength=count))]).astype(np.int64)
        return cls(offsets, (pairs % width).astype(np.int32))

    @property
    def points(self) -> np.ndarray:
        """(T,) int64: the point that each entry of `frames` belongs to."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def counts(self, frames: Iterable[int]) -> np.ndarray:
        """(N,) int64: how many of the given frames saw each point."""
        seen = np.isin(self.frames, np.fromiter(frames, dtype=np.int64))
        return np.bincount(self.points[seen], minlength=len(self.offsets) - 1)

    def renamed(self, old: Sequence[str], new: Sequence[str]) -> Tracks:
        """The same with indices into the names `new` instead of `old`; frames that are not in `new` saw nothing."""
        places = {name: place for place, name in enumerate(new)}
        numbers = np.array([places.get(name, -1) for name in old], dtype=np.int64)
        frames = numbers[self.frames]
        return Tracks.of(self.points[frames >= 0], frames[frames >= 0], len(self.offsets) - 1)

    def of_points(self, chosen: np.ndarray) -> Tracks:
        """Those of the points with the indices `chosen` (M,), in that order."""
        lengths = np.diff(self.offsets)[chosen]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        places = np.repeat(self.offsets[:-1][chosen] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Tracks(offsets, self.frames[places])
