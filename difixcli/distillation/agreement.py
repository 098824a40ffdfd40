"""How far the pictures of a film show one and the same place.

ReconX weighs each pixel of a made picture by DUSt3R's confidence over all pairs of pictures, which is low where they
disagree. Here the depths are known, those of the splats that the pictures are made from, so that what each of the other
pictures shows at a pixel's point can be looked at:

    a_i(p) = Σ_j v_ij(p) · exp(−(|F_i(p) − F_j(π_j(X_i(p)))| / τ)²) / Σ_j v_ij(p)

X_i(p) is the point at depth D_i(p), π_j its place in picture j, v_ij is 1 where picture j's own depth says that nothing
is before it, and the difference is that of the worst channel after smoothing. What no other picture sees has
`UNSEEN`. `a` stands where DUSt3R has the logarithm of its confidence.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from difixcli.evidence import smooth, tone_sigma
from difixcli.scenes.scene import Camera

UNSEEN = 0.2
_TAU = 0.15  # difference of colours at which agreement is 1/e
_BEFORE = 0.05  # of the depth: so much nearer, something is before a point
_OTHERS = 8  # pictures that each is compared with, at most


def agreements(
    pictures: Sequence[np.ndarray], depths: Sequence[np.ndarray], cameras: Sequence[Camera]
) -> list[np.ndarray]:
    """(H, W) float32 in [0, 1] for each of the pictures (H, W, 3) in [0, 1], given the z-depths (H, W) along their
    cameras, 0 where there is nothing.
    """
    soft = [smooth(picture, 0.5 * tone_sigma(picture)) for picture in pictures]
    found = []
    for i, camera in enumerate(cameras):
        summed, seen = np.zeros(depths[i].shape, np.float32), np.zeros(depths[i].shape, np.float32)
        for j in _compared(i, len(pictures)):
            shown, visible = brought(soft[j], depths[j], cameras[j], depths[i], camera)
            apart = np.abs(shown - soft[i]).max(axis=-1)
            summed += visible * np.exp(-((apart / _TAU) ** 2))
            seen += visible
        found.append(np.where(seen > 0, summed / np.maximum(seen, 1), UNSEEN).astype(np.float32))
    return found


def reprojected_difference(
    pictures: Sequence[np.ndarray], depths: Sequence[np.ndarray], cameras: Sequence[Camera]
) -> list[float]:
    """For each picture but the first, how much it differs from the one before it, brought there through their depths,
    where both show the same: a mean over pixels and channels in [0, 1], 0 where nothing is shown by both.

    Other than `evaluation.consistency.warped_difference`, which follows optical flow and knows no cameras.
    """
    found = []
    for i in range(1, len(pictures)):
        shown, visible = brought(pictures[i - 1], depths[i - 1], cameras[i - 1], depths[i], cameras[i])
        apart = np.abs(shown - pictures[i]).mean(axis=-1)
        found.append(float((visible * apart).sum() / max(float(visible.sum()), 1.0)))
    return found


def brought(
    picture: np.ndarray, depth: np.ndarray, beside: Camera, wanted: np.ndarray, camera: Camera
) -> tuple[np.ndarray, np.ndarray]:
    """A picture (H, W, 3) of `beside` as `camera` sees it, through the depth `wanted` (H, W) of the latter, and where
    that is so (H, W), 0 or 1: `depth` is the picture's own.
    """
    x, y = np.meshgrid(np.arange(camera.width) + 0.5, np.arange(camera.height) + 0.5)
    u, v, z = beside.project(camera.unproject(x, y, wanted.astype(np.float64)))
    with np.errstate(invalid="ignore"):
        inside = (wanted > 0) & (z > 0) & (u >= 0) & (v >= 0) & (u < beside.width) & (v < beside.height)
    across, down = (np.where(inside, place - 0.5, 0).astype(np.float32) for place in (u, v))
    shown = cv2.remap(picture, across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    column, row = (np.where(inside, place, 0).astype(int) for place in (u, v))
    there = depth[row, column]
    return shown, (inside & (there > 0) & (there > (1 - _BEFORE) * z)).astype(np.float32)


def _compared(i: int, count: int) -> list[int]:
    """Which other pictures are looked at: all of a few, else some from the first to the last, evenly."""
    places = range(count) if count <= _OTHERS + 1 else np.rint(np.linspace(0, count - 1, _OTHERS)).astype(int)
    return [int(place) for place in places if place != i]
