"""Which pixels of a held-out view a training photo sees too: what a method without invention could know.

Nerfbusters measures only these, by the depth of a reference reconstruction; here it is the run's own depth.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from difixcli.runs import write_image
from difixcli.scenes.scene import Camera, Scene, Split

AGREEMENT = 0.05
"""By how much another depth may be nearer, as a share of the depth, before something stands between."""


def visible_pixels(
    depth: np.ndarray, camera: Camera, others: Iterable[tuple[np.ndarray, Camera]], agreement: float = AGREEMENT
) -> np.ndarray:
    """(H, W) bool: whether the surface at a pixel is seen by at least one of the other cameras.

    `depth` (H, W) is the z-depth at `camera` in world units, 0 where there is no surface (such a pixel is not seen);
    `others` are z-depths (h, w), of any size, with their cameras. A point is seen where it falls into the other image
    and nothing there is nearer to that camera by more than `agreement` times its own depth. OpenGL axes.
    """
    height, width = depth.shape
    camera = camera.resized(width, height)
    points = camera.unproject(np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5, depth)
    seen = np.zeros((height, width), bool)
    for other_depth, other in others:
        rows, columns = other_depth.shape
        u, v, z = other.resized(columns, rows).project(points)
        inside = (z > 1e-6) & (u >= 0) & (u < columns) & (v >= 0) & (v < rows)
        there = other_depth[np.where(inside, v, 0).astype(int), np.where(inside, u, 0).astype(int)]
        seen |= inside & (there >= (1 - agreement) * z)  # blended depths at edges float before what is behind
    return seen & (depth > 0)


def write_visibility(run: Path, scene: Scene, split: Split, output: Path, device: str) -> Path:
    """Write `output`/NAME.png for every test view of the run: white where its surface is seen in a training photo,
    by the depth of the run's own reconstruction; return `output`.

    Raises InputError when the run has no checkpoint, or one of another scene or split.
    """
    from difixcli.reconstruction import Reconstruction

    reconstruction = Reconstruction.load(run, scene, split.train, device)
    # half the size is enough for a 5 % agreement, and many photos' depths are held at once
    photos = [_half(scene.frames[i].camera) for i in split.train]
    depths = [reconstruction.render(photo).depth for photo in photos]
    for i in split.test:
        camera = scene.frames[i].camera
        seen = visible_pixels(reconstruction.render(camera).depth, camera, zip(depths, photos, strict=True))
        write_image(output / f"{scene.file_names[i]}.png", seen.astype(np.float32))
    return output


def _half(camera: Camera) -> Camera:
    return camera.resized(max(camera.width // 2, 1), max(camera.height // 2, 1))
