"""The images that a sample scene consists of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from difixcli.samples.raycast import Solid
from difixcli.scenes.scene import Camera

LONG_SIDE = 320
UP = np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True, eq=False)
class View:
    """One image to write: `name` without suffix, its camera (metres), camera id, and whether it trains."""

    name: str
    camera: Camera
    camera_id: str
    train: bool

    def resized(self, long_side: int) -> View:
        """The same view whose longer side has that many pixels."""
        camera = self.camera
        scale = long_side / max(camera.width, camera.height)
        size = (max(1, round(side * scale)) for side in (camera.width, camera.height))
        return replace(self, camera=camera.resized(*size))


def pinhole(pose: np.ndarray, width: int, height: int, field_of_view: float) -> Camera:
    """A camera with a horizontal field of view in degrees and its principal point in the middle."""
    focal = width / 2 / np.tan(np.deg2rad(field_of_view) / 2)
    return Camera(pose, focal, focal, width / 2, height / 2, width, height)


def sees_freely(solids: Sequence[Solid], camera: Camera, margin: float) -> bool:
    """Whether a camera stands at least `margin` metres off every solid, within rooms, and has a view.

    It has none if a quarter of the rays through a grid of its image end within a metre, and within half of the
    distance that the median of them reaches.
    """
    for solid in solids:
        local = np.abs(solid.to_local((camera.position - solid.centre)[:, None])[:, 0])
        if (local > solid.half - margin).any() if solid.inside else (local < solid.half + margin).all():
            return False
    x, y = np.meshgrid((np.arange(8) + 0.5) * camera.width / 8, (np.arange(6) + 0.5) * camera.height / 6)
    right, up = camera.plane(x.ravel(), y.ravel())
    rays = camera.camera_to_world[:3, :3] @ np.stack([right, up, -np.ones_like(right)])
    rays = (rays / np.linalg.norm(rays, axis=0)).astype(np.float32)
    origin = camera.position.astype(np.float32)[:, None]
    distance = np.min([solid.hit(origin, rays) for solid in solids], axis=0)
    return bool(np.quantile(distance, 0.25) > min(1.0, 0.5 * float(np.median(distance))))


def lens(rng: np.random.Generator, field_of_view: tuple[float, float]) -> tuple[int, int, float]:
    """Width and height in pixels, the longer 320, and horizontal field of view in degrees, of a random lens.

    `field_of_view` is the range of that across the long side.
    """
    across, along = LONG_SIDE, round(LONG_SIDE / float(rng.choice([1.0, 4 / 3, 4 / 3, 3 / 2, 16 / 9])))
    angle = rng.uniform(*field_of_view)
    if rng.random() < 0.2:  # held upright
        half = np.tan(np.deg2rad(angle) / 2) * along / across
        return along, across, float(2 * np.rad2deg(np.arctan(half)))
    return across, along, float(angle)
