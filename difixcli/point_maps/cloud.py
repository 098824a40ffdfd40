"""One coloured point cloud from the point maps of photos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from difixcli.point_maps.maps import TRUSTED, PointMap
from difixcli.scenes.scene import Scene
from difixcli.scenes.tracks import Tracks


@dataclass(frozen=True, eq=False)
class Cloud:
    """`points` (N, 3) float32 in the scene's world, `colors` (N, 3) uint8, and `confidence` (N,) in [0, 1]."""

    points: np.ndarray
    colors: np.ndarray
    confidence: np.ndarray


def cloud_of(maps: Sequence[PointMap], photos: Sequence[np.ndarray], least: float = TRUSTED) -> Cloud:
    """The points that maps know with a confidence of `least` at least, coloured as their photos (H, W, 3) in [0, 1]."""
    points, colors, confidences = [], [], []
    for one, photo in zip(maps, photos, strict=True):
        kept = one.confidence >= least
        points.append(one.points[kept])
        colors.append((photo[kept] * 255 + 0.5).astype(np.uint8))
        confidences.append(one.confidence[kept])
    return Cloud(np.concatenate(points), np.concatenate(colors), np.concatenate(confidences))


def filled(one: PointMap, photo: np.ndarray, least: float = TRUSTED) -> Cloud:
    """The points of those pixels of a map that are not known so far, at depths that the known ones around them have;
    their confidence is 0. None of a map without a known pixel.
    """
    known = one.confidence >= least
    if not known.any() or known.all():
        return Cloud(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8), np.zeros(0, np.float32))
    near = np.where(known, 1 / np.where(known, one.depth, 1), 0).astype(np.float32)
    found, weight = near.copy(), known.astype(np.float32)
    for width in 2.0 ** np.arange(1, 10):  # from the nearest on, until something is known there
        lacking = weight <= 0
        if not lacking.any():
            break
        part = cv2.GaussianBlur(known.astype(np.float32), (0, 0), width)
        mean = cv2.GaussianBlur(near, (0, 0), width) / np.maximum(part, 1e-12)
        enough = lacking & (part > 0.05)
        found[enough], weight[enough] = mean[enough], 1
    chosen = ~known & (weight > 0)
    row, column = np.nonzero(chosen)
    points = one.camera.unproject(column + 0.5, row + 0.5, 1 / found[chosen].astype(np.float64))
    colors = (photo[chosen] * 255 + 0.5).astype(np.uint8)
    return Cloud(points.astype(np.float32), colors, np.zeros(len(points), np.float32))


def joined(clouds: Sequence[Cloud]) -> Cloud:
    """One cloud of several."""
    fields = ("points", "colors", "confidence")
    return Cloud(*(np.concatenate([getattr(cloud, field) for cloud in clouds]) for field in fields))


def seeded(scene: Scene, cloud: Cloud, photos: Sequence[int]) -> Scene:
    """The scene with the cloud's points for seed points, all known from `photos`, its frames with these indices."""
    count = len(cloud.points)
    seen = np.repeat(np.arange(count), len(photos))
    tracks = Tracks.of(seen, np.tile(np.asarray(photos), count), count)
    return replace(scene, points=cloud.points, colors=cloud.colors, tracks=tracks)
