"""What goes into and comes out of a reconstruction: renders and pseudo-views."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from difixcli.scenes.scene import Camera

_NOTHING = 0.05
"""Rays with less accumulated opacity than this have no depth."""


@dataclass(frozen=True, eq=False)
class Wanted:
    """What a view shall look like at one training step.

    `image` is (H, W, 3) float32 RGB in [0, 1], `weight` (H, W) float32 in [0, 1] how far each pixel is trusted (None:
    wholly). `terms` says for this step how much each of the view's loss terms counts (None: as the view says).
    """

    image: np.ndarray
    weight: np.ndarray | None = None
    terms: Mapping[str, float] | None = None


Fresh = Callable[[Callable[[], np.ndarray]], Wanted]
"""From a function that shows the view at this moment, (H, W, 3) float32 RGB in [0, 1], to what it shall look like."""


@dataclass(frozen=True, eq=False)
class Render:
    """What a reconstruction shows at a camera.

    `color` is (H, W, 3) float32 RGB in [0, 1]. `accumulation` is (H, W) float32, the opacity of each ray in [0, 1].
    `depth` is (H, W) float32, the distance along the camera's viewing axis (z-depth) in normalised world units,
    0 where the ray met nothing.
    """

    color: np.ndarray
    accumulation: np.ndarray
    depth: np.ndarray


@dataclass(frozen=True, eq=False)
class PseudoView:
    """An image that stands in for a photo during training.

    `image` is an 8-bit RGB file of the camera's size. `weight` is an 8-bit grey one, how far each pixel is trusted, or
    None for wholly. They are read when training takes the view up, so that many views cost no memory before.
    `nearest` is the index, among the scene's frames, of the training photo whose appearance embedding, camera
    correction or bilateral grid the view borrows; a frame that does not train is replaced by the training photo that
    stands nearest to the camera.

    `terms` are the terms of the loss that count for the view, by name, and how much (see `objective`): `method` is the
    method's own loss. `fresh`, if given, proposes image and weights anew whenever the view is drawn; for that step
    they stand in place of the files. `photo` is an 8-bit RGB file of what a camera with n times fewer pixels a side has
    seen there, for terms that compare at its resolution.
    """

    camera: Camera
    image: Path
    weight: Path | None
    nearest: int
    terms: Mapping[str, float] = field(default_factory=lambda: {"method": 1.0})
    fresh: Fresh | None = None
    photo: Path | None = None


def as_render(outputs: dict[str, Any], camera: Camera, along_ray: bool, scale: float) -> Render:
    """A model's outputs (H, W, ·) at a camera as a Render.

    `along_ray` says whether its depth is the distance along each ray rather than z-depth, `scale` how many of its
    units are one of the scene's normalised ones.
    """

    def image(*names: str) -> np.ndarray:
        name = next(name for name in names if name in outputs)
        value = outputs[name].detach().float().cpu().numpy()
        return value.reshape(camera.height, camera.width, -1)

    color = np.clip(image("rgb", "rgb_fine"), 0, 1)
    accumulation = np.clip(image("accumulation", "accumulation_fine")[..., 0], 0, 1)
    depth = image("depth", "depth_fine", "expected_depth")[..., 0] / scale
    if along_ray:
        columns, rows = (np.arange(size, dtype=np.float32) + 0.5 for size in (camera.width, camera.height))
        right, up = camera.plane(columns, rows)
        depth = depth / np.sqrt(1 + right[None, :] ** 2 + up[:, None] ** 2)
    depth = np.where(accumulation > _NOTHING, np.nan_to_num(depth, posinf=0, neginf=0), 0)
    return Render(color.astype(np.float32), accumulation.astype(np.float32), depth.astype(np.float32))
