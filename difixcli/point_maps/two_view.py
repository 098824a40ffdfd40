"""Point maps from photos and poses alone, on a CPU: sweeps of all pairs that overlap, brought together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from difixcli.errors import InputError
from difixcli.images import resized
from difixcli.point_maps.alignment import Edge, align
from difixcli.point_maps.maps import TRUSTED, PointMap, map_of_depth
from difixcli.point_maps.pairs import pair_confidence
from difixcli.point_maps.sweep import sweep
from difixcli.scenes.scene import Camera
from difixcli.scenes.sparse_views import frustum_overlaps, pose_spread

SIDE = 256
"""Pixels of the long side beyond which photos are looked at smaller: time and memory grow with its third power."""
_PARTNERS = 4  # photos that each is compared with
_LEAST_SHARED = 0.05  # of what two photos may see, for them to be compared
_AROUND, _NEAR, _COMPANY = 7, 0.04, 0.2
"""Of a square of so many pixels a side, this part must be known (summed by confidence) to lie within this part of a
pixel's depth."""
_LEAST_KNOWN = 0.02  # of all photos' pixels: of two noises more than half a percent agree by chance


class TwoViewGeometry:
    """The point mapper that comes with difix (see `sweep`, `pairs` and `alignment`)."""

    def maps(
        self, photos: Sequence[np.ndarray], cameras: Sequence[Camera], done: Callable[[int], None] | None = None
    ) -> list[PointMap]:
        """See `PointMapper`. Photos of a long side beyond `SIDE` are looked at in that size."""
        small = [_smaller(photo, camera) for photo, camera in zip(photos, cameras, strict=True)]
        pairs = _pairs(cameras)
        edges = []
        for number, (i, j) in enumerate(pairs, start=1):
            one, other = sweep(*small[i], *small[j]), sweep(*small[j], *small[i])
            if one is not None and other is not None:
                sure = pair_confidence(one, small[i][1], other, small[j][1])
                back = pair_confidence(other, small[j][1], one, small[i][1])
                edges.append(Edge((i, j), (one.depth, other.depth), (sure, back)))
            if done is not None:
                done(round(number / len(pairs) * len(photos)))
        fused = align(edges)
        trust = {i: one * _beside_others(fused.depths[i], one) for i, one in fused.confidences.items()}
        known = [float((one >= TRUSTED).mean()) for one in trust.values()]
        if sum(known) < _LEAST_KNOWN * len(photos):
            raise InputError(
                f"Next to nothing of what the {len(photos)} photos show could be found in two of them, so there is no "
                "point cloud; choose photos that overlap more, or name a point cloud with --points FILE."
            )
        made = []
        for i, camera in enumerate(cameras):
            if i in fused.depths:
                depth, confidence = _as_large(fused.depths[i], trust[i], camera)
                made.append(map_of_depth(camera, depth, confidence))
            else:  # it overlaps with no other
                nothing = np.zeros((camera.height, camera.width), np.float32)
                made.append(map_of_depth(camera, nothing + 1, nothing))
        return made


def _beside_others(depth: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """(H, W), 0 or 1: whether a pixel's depth is that of enough around it, by confidence; what stands alone is a wrong
    match as a rule.
    """
    half = _AROUND // 2
    total, alike = np.zeros_like(depth), np.zeros_like(depth)
    wide = cv2.copyMakeBorder(np.dstack([depth, confidence]), half, half, half, half, cv2.BORDER_REFLECT_101)
    for row in range(_AROUND):
        for column in range(_AROUND):
            near, sure = np.moveaxis(wide[row : row + depth.shape[0], column : column + depth.shape[1]], 2, 0)
            total += 1
            alike += sure * (np.abs(near / depth - 1) < _NEAR)
    return (alike >= _COMPANY * total).astype(np.float32)


def _pairs(cameras: Sequence[Camera]) -> list[tuple[int, int]]:
    """Which photos are compared: each with the nearest of those that it overlaps with."""
    common = frustum_overlaps(cameras)
    apart = pose_spread(cameras)
    found = set()
    for i in range(len(cameras)):
        fit = [j for j in range(len(cameras)) if j != i and min(common[i, j], common[j, i]) >= _LEAST_SHARED]
        for j in sorted(fit, key=lambda j: (apart[i, j], j))[:_PARTNERS]:
            found.add((min(i, j), max(i, j)))
    return sorted(found)


def _smaller(photo: np.ndarray, camera: Camera) -> tuple[np.ndarray, Camera]:
    scale = SIDE / max(camera.width, camera.height)
    if scale >= 1:
        return np.ascontiguousarray(photo, np.float32), camera
    width, height = max(1, round(camera.width * scale)), max(1, round(camera.height * scale))
    return resized(np.ascontiguousarray(photo, np.float32), width, height), camera.resized(width, height)


def _as_large(depth: np.ndarray, confidence: np.ndarray, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Depths and confidences (h, w) at a camera's size; across edges, where a mean of depths is none, unknown."""
    size = (camera.width, camera.height)
    if depth.shape == size[::-1]:
        return depth, confidence
    larger = 1 / cv2.resize(1 / depth, size, interpolation=cv2.INTER_LINEAR)
    kernel = np.ones((3, 3), np.uint8)
    step = cv2.dilate(depth, kernel) / cv2.erode(depth, kernel)
    sure = np.where(step < 1.1, confidence, 0).astype(np.float32)
    return larger, cv2.resize(sure, size, interpolation=cv2.INTER_LINEAR)
