"""One coloured point cloud from the point maps of photos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

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


def cloud_of(maps: Sequence[PointMap], photos: Sequence[np.ndarray]) -> Cloud:
    """The points that maps know with a confidence of `TRUSTED` or more, coloured as photos (H, W, 3) in [0, 1]."""
    points, colors, confidences = [], [], []
    for one, photo in zip(maps, photos, strict=True):
        kept = one.confidence >= TRUSTED
        points.append(one.points[kept])
        colors.append((photo[kept] * 255 + 0.5).astype(np.uint8))
        confidences.append(one.confidence[kept])
    return Cloud(np.concatenate(points), np.concatenate(colors), np.concatenate(confidences))


def seeded(scene: Scene, cloud: Cloud, photos: Sequence[int]) -> Scene:
    """The scene with the cloud's points beside its own seed points, all known from `photos`, its frames with these
    indices.
    """
    points = np.concatenate([np.asarray(scene.points, np.float32), cloud.points])
    colors = np.concatenate([np.asarray(scene.colors, np.uint8), cloud.colors])
    count = len(points)
    tracks = Tracks.of(np.repeat(np.arange(count), len(photos)), np.tile(np.asarray(photos), count), count)
    return replace(scene, points=points, colors=colors, tracks=tracks)
