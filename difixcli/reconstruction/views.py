"""What goes into and comes out of a reconstruction: renders and pseudo-views."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from difixcli.scenes.scene import Camera


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


@dataclass(frozen=True)
class PseudoView:
    """An image that stands in for a photo during training.

    `image` is an 8-bit RGB file of the camera's size. `weight` is an 8-bit grey one, how far each pixel is trusted, or
    None for wholly. They are read when training takes the view up, so that many views cost no memory before.
    `nearest` is the index, among the scene's frames, of the training photo whose appearance embedding, camera
    correction or bilateral grid the view borrows; a frame that does not train is replaced by the training photo that
    stands nearest to the camera.
    """

    camera: Camera
    image: Path
    weight: Path | None
    nearest: int
