"""Dense geometry of two posed photos: a sweep of planes along the epipolar lines, made smooth along scan lines.

For each of many depths the other photo is brought onto the plane of that depth (Collins, CVPR 1996) and compared with
the photo: normalised correlation in small windows, and colour. Semi-global matching (Hirschmüller, PAMI 2008) then
chooses a depth for each pixel: matching costs plus a price for steps between neighbours, summed along eight directions.
Depths are even in 1/z, which is even along epipolar lines where cameras stand side by side.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from difixcli.compiled import FAST, compiled
from difixcli.scenes.poses import OPENCV_TO_OPENGL
from difixcli.scenes.scene import Camera

_STEP = 0.75
"""Pixels that a point moves in the other photo from one plane to the next, at most of them."""
_PLANES = (16, 224)  # at least and at most
_WIDEST = 0.6  # of the photo's long side: what moves farther between the photos is not looked for
_NEAREST, _FARTHEST = 0.2, 1000.0  # depths that are looked at, in distances between the two cameras
_WINDOW = 5  # pixels a side that are correlated
_NOISE = 2e-4  # variance of a window's grey values that counts as none
_COLOR = 0.15  # difference of colours from which on it counts no more
_ONE_STEP, _JUMP = 0.06, 0.6  # prices of a neighbour one plane away, and of one farther away in flat parts
_BESIDE = 2  # planes on either side of the one chosen that are no other depth
_EDGE = 0.08  # difference of neighbours' grey values that halves the price of a jump


@dataclass(frozen=True, eq=False)
class Sweep:
    """What a sweep says of a photo, given another: for each pixel the z-depth `depth` (H, W), `alike` (H, W) in
    [0, 1], how like the photos are there, `distinct` (H, W), by how much any other depth costs more (of a cost in
    [0, 1]), and `parallax` (H, W), the pixels by which it would move in the other photo if its depth changed by its
    own self. float32.
    """

    depth: np.ndarray
    alike: np.ndarray
    distinct: np.ndarray
    parallax: np.ndarray


def sweep(photo: np.ndarray, camera: Camera, other: np.ndarray, beside: Camera) -> Sweep | None:
    """The depths of a photo (H, W, 3) in [0, 1] of `camera`, given `other` of `beside`.

    None where the two share no part of what lies before them, or stand in one place.
    """
    inverse = _inverse_depths(camera, beside)
    if inverse is None:
        return None
    grey, there = (np.ascontiguousarray(image.mean(axis=2), np.float32) for image in (photo, other))
    mean, spread = _moments(grey)
    cost = np.empty((len(inverse), camera.height, camera.width), np.float32)
    for number, one in enumerate(inverse):
        cost[number] = _compared(photo, grey, mean, spread, other, there, _homography(camera, beside, one))
    place, distinct = _chosen(np.ascontiguousarray(np.moveaxis(cost, 0, -1)), grey)
    depth = 1 / np.interp(place, np.arange(len(inverse)), inverse)
    at = np.take_along_axis(cost, np.rint(place).astype(np.int64)[None], axis=0)[0]
    return Sweep(depth.astype(np.float32), 1 - at, distinct, moved(camera, beside, depth))


def moved(camera: Camera, beside: Camera, depth: np.ndarray) -> np.ndarray:
    """(H, W) float32: by how many pixels in `beside` a pixel's point moves for a change of its depth by its own self,
    to first order.
    """
    x, y = np.meshgrid(np.arange(camera.width) + 0.5, np.arange(camera.height) + 0.5)
    near = beside.project(camera.unproject(x, y, depth * 0.995))
    far = beside.project(camera.unproject(x, y, depth * 1.005))
    with np.errstate(invalid="ignore"):
        found = np.hypot(near[0] - far[0], near[1] - far[1]) / 0.01
    return np.where((near[2] > 0) & (far[2] > 0), found, 0).astype(np.float32)


def _inverse_depths(camera: Camera, beside: Camera) -> np.ndarray | None:
    """(D,) from the nearest plane's to the farthest's: those that a part of both photos can see."""
    apart = float(np.linalg.norm(camera.position - beside.position))
    if apart < 1e-9:
        return None
    x, y = np.meshgrid((np.arange(12) + 0.5) / 12 * camera.width, (np.arange(12) + 0.5) / 12 * camera.height)
    depths = apart * np.geomspace(_NEAREST, _FARTHEST, 96)
    points = camera.unproject(x.ravel(), y.ravel(), depths[:, None])
    u, v, z = beside.project(points)
    inside = (z > 0) & (u >= 0) & (u < beside.width) & (v >= 0) & (v < beside.height)
    u_far, v_far, _ = beside.project(camera.unproject(x.ravel(), y.ravel(), np.array(depths[-1])))
    wide = np.hypot(u - u_far, v - v_far) > _WIDEST * max(beside.width, beside.height) * 2
    inside &= ~wide
    seen = np.flatnonzero(inside.any(axis=1))
    if not len(seen):
        return None
    near, far = 1 / depths[max(seen[0] - 1, 0)], 1 / depths[seen[-1]]
    # how far the points that are seen move from the nearest plane to the farthest
    ways = []
    for column in range(inside.shape[1]):
        rows = np.flatnonzero(inside[:, column])
        if len(rows) > 1:
            ways.append(
                np.hypot(np.diff(u[rows, column]), np.diff(v[rows, column])).sum()
                / max(1 / depths[rows[0]] - 1 / depths[rows[-1]], 1e-12)
            )
    if not ways:
        return None
    pixels = float(np.percentile(ways, 75)) * (near - far)
    return np.linspace(near, far, int(np.clip(round(pixels / _STEP), *_PLANES)))


def _homography(camera: Camera, beside: Camera, inverse: float) -> np.ndarray:
    """(3, 3) from pixels of `camera` to those of `beside`, by the plane z = 1/inverse before `camera`; whole numbers
    are pixels' centres.
    """
    to_world = camera.camera_to_world @ OPENCV_TO_OPENGL
    relative = np.linalg.inv(beside.camera_to_world @ OPENCV_TO_OPENGL) @ to_world
    made = beside.intrinsics @ relative[:3, :3] @ np.linalg.inv(camera.intrinsics)
    made[:, 2] += beside.intrinsics @ relative[:3, 3] * inverse
    shift = np.eye(3)
    shift[:2, 2] = 0.5
    return np.linalg.inv(shift) @ made @ shift


def _moments(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance (H, W) in windows."""
    mean = cv2.blur(grey, (_WINDOW, _WINDOW))
    return mean, np.maximum(cv2.blur(grey * grey, (_WINDOW, _WINDOW)) - mean * mean, 0)


def _compared(
    photo: np.ndarray,
    grey: np.ndarray,
    mean: np.ndarray,
    spread: np.ndarray,
    other: np.ndarray,
    there: np.ndarray,
    homography: np.ndarray,
) -> np.ndarray:
    """(H, W) in [0, 1]: what it costs to say that pixels lie on a plane; what the other photo does not see costs as
    much as noise.
    """
    height, width = grey.shape
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    brought = cv2.warpPerspective(
        np.dstack([other, there]), homography, (width, height), flags=how, borderMode=cv2.BORDER_REPLICATE
    )
    x, y = np.arange(width, dtype=np.float64)[None], np.arange(height, dtype=np.float64)[:, None]
    w = homography[2, 0] * x + homography[2, 1] * y + homography[2, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        u = (homography[0, 0] * x + homography[0, 1] * y + homography[0, 2]) / w
        v = (homography[1, 0] * x + homography[1, 1] * y + homography[1, 2]) / w
    seen = (w > 0) & (u > -0.5) & (v > -0.5) & (u < there.shape[1] - 0.5) & (v < there.shape[0] - 0.5)
    second = brought[..., 3]
    m, s = _moments(second)
    both = cv2.blur(grey * second, (_WINDOW, _WINDOW)) - mean * m
    correlation = both / np.sqrt((spread + _NOISE) * (s + _NOISE))
    color = np.abs(brought[..., :3] - photo).mean(axis=2)
    cost = 0.35 * (1 - correlation) + 0.3 * np.minimum(color / _COLOR, 1)
    return np.where(seen, np.clip(cost, 0, 1), 0.5)


def _chosen(cost: np.ndarray, grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of costs (H, W, D) the plane (H, W) that each pixel lies on, between two as a rule, and by how much all planes
    that are not beside it cost more.
    """
    total = np.zeros_like(cost)
    ways = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1))
    for rows, columns in ways:
        _along(cost, grey, rows, columns, _ONE_STEP, _JUMP, _EDGE, total)
    return _cheapest(total, len(ways))


@compiled(fastmath=FAST)
def _cheapest(total: np.ndarray, ways: int) -> tuple[np.ndarray, np.ndarray]:
    """Of summed costs (H, W, D) what `_chosen` gives."""
    height, width, planes = total.shape
    place = np.empty((height, width), np.float64)
    distinct = np.empty((height, width), np.float32)
    for row in range(height):
        for column in range(width):
            best = 0
            for d in range(1, planes):
                if total[row, column, d] < total[row, column, best]:
                    best = d
            second = np.float32(1e9)
            for d in range(planes):
                if abs(d - best) > _BESIDE:
                    second = min(second, total[row, column, d])
            at = total[row, column, best]
            distinct[row, column] = (second - at) / ways
            shift = 0.0
            if 0 < best < planes - 1:
                before, after = total[row, column, best - 1], total[row, column, best + 1]
                bend = before + after - 2 * at
                if bend > 1e-9:
                    shift = min(max(0.5 * (before - after) / bend, -0.5), 0.5)
            place[row, column] = best + shift
    return place, distinct


@compiled(fastmath=FAST)
def _along(
    cost: np.ndarray,
    grey: np.ndarray,
    row_step: int,
    column_step: int,
    one: float,
    jump: float,
    edge: float,
    total: np.ndarray,
) -> None:
    """Add to `total` (H, W, D) the cheapest ways to each pixel and plane along one direction."""
    height, width, planes = cost.shape
    before = np.empty((width, planes), np.float32)  # the row of pixels that the ways come from, and their cheapest
    now = np.empty((width, planes), np.float32)
    least_before = np.empty(width, np.float32)
    least_now = np.empty(width, np.float32)
    rows = range(height)
    for r in rows:
        row = r if row_step >= 0 else height - 1 - r
        for c in range(width):
            column = c if column_step >= 0 else width - 1 - c
            from_row, from_column = row - row_step, column - column_step
            inside = 0 <= from_row < height and 0 <= from_column < width
            least = np.float32(1e9)
            if not inside:
                for d in range(planes):
                    value = cost[row, column, d]
                    now[column, d] = value
                    least = min(least, value)
            else:
                difference = abs(grey[row, column] - grey[from_row, from_column])
                far = max(np.float32(jump / (1 + difference / edge)), np.float32(2 * one))
                near = np.float32(one)
                source = now if row_step == 0 else before
                base = least_now[from_column] if row_step == 0 else least_before[from_column]
                for d in range(planes):
                    way = min(source[from_column, d], base + far)
                    if d > 0:
                        way = min(way, source[from_column, d - 1] + near)
                    if d < planes - 1:
                        way = min(way, source[from_column, d + 1] + near)
                    value = cost[row, column, d] + way - base
                    now[column, d] = value
                    least = min(least, value)
            least_now[column] = least
            for d in range(planes):
                total[row, column, d] += now[column, d]
        before, now = now, before
        least_before, least_now = least_now, least_before
