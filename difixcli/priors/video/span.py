"""What a video model is shown of the way between two photos, and what it makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from difixcli.scenes.scene import Camera


@dataclass(frozen=True, eq=False)
class Span:
    """The way between two neighbouring photos.

    `cameras` are those of its T pictures in order, the first photo's and the last photo's among them at its two ends,
    all of one size (H, W). `photos` is (2, H, W, 3): the first and the last photo. What is known of the structure
    stands beside each picture as its camera sees it: `renders` (T, H, W, 3), `opacity` (T, H, W) and `depth`
    (T, H, W; along the viewing axis in the scene's own units, 0 where opacity is 0). `points` (N, 3), in the scene's
    world, and `colors` (N, 3) are the cloud itself. Colours and opacity are float32 in [0, 1].
    """

    cameras: Sequence[Camera]
    photos: np.ndarray
    renders: np.ndarray
    opacity: np.ndarray
    depth: np.ndarray
    points: np.ndarray
    colors: np.ndarray


@runtime_checkable
class VideoModel(Protocol):
    """Makes the pictures of a span together; its networks are frozen."""

    def film(self, span: Span, seed: int) -> np.ndarray:
        """(T, H, W, 3) float32 in [0, 1], one picture for each of the span's cameras; the same for the same seed."""
