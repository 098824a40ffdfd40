"""The ways between neighbouring photos: which photos, by which cameras, and what is known of what lies there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from difixcli.distillation.targets import Target
from difixcli.scenes import load_mask, load_photo
from difixcli.scenes.scene import Camera, Scene
from difixcli.scenes.trajectories import interpolate, path_order


@dataclass(frozen=True, eq=False)
class Way:
    """From the photo of frame `first` to that of frame `last`: `cameras`, both ends among them, and a name for each
    picture between these.
    """

    first: int
    last: int
    cameras: Sequence[Camera]
    names: Sequence[str]


class Ways:
    """The ways between the photos `train` of a scene, from neighbour to neighbour, each of `frames` pictures.

    All pictures have one size: the most frequent of the photos'. `points` (N, 3) float32 of the scene's world and
    `colors` (N, 3) float32 in [0, 1] are the point cloud, once there is one.
    """

    def __init__(self, scene: Scene, train: Sequence[int], frames: int) -> None:
        self._scene = scene
        sizes = Counter((scene.frames[i].camera.width, scene.frames[i].camera.height) for i in train)
        self.size = sizes.most_common(1)[0][0]
        order = [train[place] for place in path_order([scene.frames[i].camera for i in train])]
        self.ways: list[Way] = []
        for number, (first, last) in enumerate(pairwise(order), start=1):
            cameras = interpolate([self.camera(first), self.camera(last)], frames)
            names = [f"between-{number}-{place:03d}" for place in range(1, frames - 1)]
            self.ways.append(Way(first, last, cameras, names))
        self.points: np.ndarray = np.zeros((0, 3), np.float32)
        self.colors: np.ndarray = np.zeros((0, 3), np.float32)

    def camera(self, frame: int) -> Camera:
        """A photo's camera at the pictures' size."""
        return self._scene.frames[frame].camera.resized(*self.size)

    def photo(self, frame: int) -> np.ndarray:
        """A photo at the pictures' size, (H, W, 3) float32 in [0, 1]."""
        return load_photo(replace(self._scene.frames[frame], camera=self.camera(frame)))

    def mask(self, frame: int) -> np.ndarray | None:
        """(H, W) bool: which pixels of `photo` count, None for all."""
        return load_mask(replace(self._scene.frames[frame], camera=self.camera(frame)))

    def targets(self) -> list[Target]:
        """The pictures between photos, as views to be made."""
        return [
            Target(name, camera, None)
            for way in self.ways
            for name, camera in zip(way.names, way.cameras[1:-1], strict=True)
        ]
