"""What a point map is, and who makes one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from difixcli.scenes.scene import Camera

TRUSTED = 0.5
"""The confidence from which on a point counts as known."""


@dataclass(frozen=True, eq=False)
class PointMap:
    """What one photo says of where things are.

    `points` (H, W, 3) float32 is, for each pixel of a photo of `camera`'s size, the point of the scene's normalised
    world that it shows, and `confidence` (H, W) float32 in [0, 1] how far that is known; where it is 0 the point is a
    guess, and may be the camera's own place.
    """

    camera: Camera
    points: np.ndarray
    confidence: np.ndarray

    @property
    def depth(self) -> np.ndarray:
        """(H, W) float32: how far the points lie along the viewing axis, in the scene's normalised units."""
        axis = -self.camera.camera_to_world[:3, 2]
        return ((self.points - self.camera.position) @ axis).astype(np.float32)


@runtime_checkable
class PointMapper(Protocol):
    """Makes point maps of posed photos, in one world."""

    def maps(
        self, photos: Sequence[np.ndarray], cameras: Sequence[Camera], done: Callable[[int], None] | None = None
    ) -> list[PointMap]:
        """A map for each of the photos (H, W, 3) float32 in [0, 1], which are of their cameras' sizes.

        `done` is told how many of the photos are behind it. Raises InputError for photos that have nothing in common.
        """


def map_of_depth(camera: Camera, depth: np.ndarray, confidence: np.ndarray) -> PointMap:
    """The point map of z-depths (H, W), one for each pixel's centre."""
    x, y = np.meshgrid(np.arange(camera.width) + 0.5, np.arange(camera.height) + 0.5)
    points = camera.unproject(x, y, np.asarray(depth, np.float64))
    return PointMap(camera, points.astype(np.float32), np.clip(confidence, 0, 1).astype(np.float32))
