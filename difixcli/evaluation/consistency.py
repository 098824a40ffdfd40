"""Do consecutive frames show one and the same scene: warped difference and TSED. Pure functions on frames.

Frames are (H, W, 3) float32 RGB in [0, 1], all of one size, in the order of the path; two are held at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from difixcli.errors import InputError
from difixcli.images import flows
from difixcli.scenes.poses import OPENCV_TO_OPENGL
from difixcli.scenes.scene import Camera

MIN_MATCHES = 10
"""A pair of frames with fewer SIFT matches is not consistent (Yu et al., ICCV 2023)."""

THRESHOLD = 2.0 / 256
"""How large the median symmetric epipolar distance may be, as a share of the long side."""

SMALLEST = 16
"""Pixels of a frame's shorter side; below this optical flow has no coarse level to begin at."""

_RATIO = 0.75  # Lowe's: the best match must be this much nearer than the second
_DISTANCES = 2**22  # of descriptors that are held at once


@dataclass(frozen=True)
class WarpedPair:
    """Of two consecutive frames: their mean absolute `difference` after warping (NaN where nothing counts), and the
    `share` of pixels that counted.
    """

    difference: float
    share: float


@dataclass(frozen=True, eq=False)
class Motion:
    """Where a frame's pixels lay in another: `places` (H, W, 2) float32 pixel positions (x, y) there, and `visible`
    (H, W) bool, true where the position is inside and the flow there and back returns to the same place.
    """

    places: np.ndarray
    visible: np.ndarray


@dataclass(frozen=True)
class EpipolarPair:
    """Of two consecutive frames: the number of SIFT `matches` and their median symmetric epipolar distance `error` in
    pixels (NaN without matches), and whether the pair is `consistent`.
    """

    matches: int
    error: float
    consistent: bool


def warped_difference(frames: Iterable[np.ndarray], guides: Iterable[np.ndarray] | None = None) -> list[WarpedPair]:
    """How much each frame differs from the one before it, once that is warped onto it by optical flow.

    It is the warping error of video papers (Lai et al., ECCV 2018) as a mean absolute difference: each pixel looks up
    where it was in the frame before; pixels count where the flow there and the flow back agree. The flow is that of
    the `guides`, frames of the same views whose motion is to be trusted (the truth, or a video before it was changed),
    so that all variants of a sequence are compared at the same places; without them it is the frames' own.

    Returns one WarpedPair for each pair, so one less than there are frames. Raises InputError for frames smaller than
    16 pixels or of several sizes, ValueError when guides and frames differ in number.
    """
    paired = ((frame, frame) for frame in frames) if guides is None else zip(frames, guides, strict=True)
    return [
        warped_pair(one, two, frame_motion(guide_one, guide_two))
        for (one, guide_one), (two, guide_two) in pairwise(paired)
    ]


def frame_motion(one: np.ndarray, two: np.ndarray) -> Motion:
    """Where each pixel of frame `two` lay in frame `one`.

    Dense inverse search (Kroeger et al., ECCV 2016); the round trip may miss by |·|² < 0.01 (|there|² + |back|²) + 0.5
    (Sundaram et al., ECCV 2010). Raises InputError for frames of two sizes or smaller than 16 pixels.
    """
    import cv2

    _check_size(one, two)
    height, width = two.shape[:2]
    if min(height, width) < SMALLEST:
        raise InputError(f"Frames of {width}×{height} pixels are too small for optical flow; use {SMALLEST} at least.")
    there, back = flows(_gray(two), _gray(one), finest=1)
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    places = np.stack([x, y], axis=-1) + there
    returned = cv2.remap(back, places[..., 0], places[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    miss = ((there + returned) ** 2).sum(axis=-1)
    allowed = 0.01 * ((there**2).sum(axis=-1) + (returned**2).sum(axis=-1)) + 0.5
    inside = (places >= 0).all(axis=-1) & (places <= [width - 1, height - 1]).all(axis=-1)
    return Motion(places, (miss < allowed) & inside)


def warp(values: np.ndarray, motion: Motion) -> np.ndarray:
    """(H, W) or (H, W, C) values of the first of a motion's frames where the second's pixels lay; bicubic, so that
    little is lost, borders continued.
    """
    import cv2

    x, y = motion.places[..., 0], motion.places[..., 1]
    return cv2.remap(np.asarray(values, np.float32), x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def warped_pair(one: np.ndarray, two: np.ndarray, motion: Motion) -> WarpedPair:
    """The difference of frame `two` and frame `one` warped onto it along a motion between them."""
    _check_size(one, two, motion.visible)
    share = float(motion.visible.mean(dtype=np.float64))
    if not share:
        return WarpedPair(math.nan, 0.0)
    apart = np.abs(np.clip(warp(one, motion), 0, 1) - two)[motion.visible]
    return WarpedPair(float(apart.mean(dtype=np.float64)), share)


def _check_size(one: np.ndarray, *others: np.ndarray) -> None:
    for other in others:
        if other.shape[:2] != one.shape[:2]:
            raise InputError(
                f"Consecutive frames have sizes {one.shape[1]}×{one.shape[0]} and {other.shape[1]}×{other.shape[0]}; "
                "consistency needs one size."
            )


def tsed(frames: Iterable[np.ndarray], cameras: Sequence[Camera]) -> list[EpipolarPair | None]:
    """TSED, thresholded symmetric epipolar distance (Yu et al., ICCV 2023), of consecutive frames with known cameras.

    A pair is consistent when at least ten SIFT matches (ratio test at 0.75, mutual) have a median symmetric epipolar
    distance below 2 pixels at a long side of 256, in proportion at other sizes. The symmetric distance of a match is
    the mean of its two points' distances from each other's epipolar line. The score of a sequence is the share of
    consistent pairs; its truth's own score is the most that can be asked for.

    Returns one EpipolarPair for each pair, or None where both cameras stand in one place and have no epipolar lines.

    `cameras` have OpenGL axes and the frames' size. Raises ValueError when frames and cameras differ in number.
    """
    import cv2

    detector: Any = cv2.SIFT.create()  # OpenCV's types want a mask, which may be None
    found = (
        (detector.detectAndCompute(_gray(frame), None), camera) for frame, camera in zip(frames, cameras, strict=True)
    )
    pairs: list[EpipolarPair | None] = []
    for ((points_one, descriptors_one), one), ((points_two, descriptors_two), two) in pairwise(found):
        matrix = fundamental_matrix(one, two)
        if matrix is None:
            pairs.append(None)
            continue
        matched = _matches(descriptors_one, descriptors_two)
        if len(matched):
            # OpenCV counts from a pixel's centre, cameras from its corner
            x_one = np.array([points_one[i].pt for i, _ in matched]) + 0.5
            x_two = np.array([points_two[j].pt for _, j in matched]) + 0.5
            error = float(np.median(symmetric_epipolar_distance(matrix, x_one, x_two)))
        else:
            error = math.nan
        limit = THRESHOLD * max(one.width, one.height)
        pairs.append(EpipolarPair(len(matched), error, len(matched) >= MIN_MATCHES and error < limit))
    return pairs


def fundamental_matrix(one: Camera, two: Camera) -> np.ndarray | None:
    """(3, 3) F with x₂ᵀ F x₁ = 0 for a point's pixels (x, y, 1) in both cameras; None where they stand in one place."""
    first = one.camera_to_world @ OPENCV_TO_OPENGL
    second = two.camera_to_world @ OPENCV_TO_OPENGL
    rotation = second[:3, :3].T @ first[:3, :3]
    x, y, z = second[:3, :3].T @ (first[:3, 3] - second[:3, 3])
    if math.hypot(x, y, z) < 1e-9:
        return None
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.linalg.inv(two.intrinsics).T @ cross @ rotation @ np.linalg.inv(one.intrinsics)


def symmetric_epipolar_distance(matrix: np.ndarray, one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """(N,) mean distance in pixels of points (N, 2) in both images from each other's epipolar line under F (3, 3)."""
    ones = np.ones((len(one), 1))
    first, second = np.hstack([one, ones]), np.hstack([two, ones])
    in_two, in_one = first @ matrix.T, second @ matrix
    residual = np.abs((second * in_two).sum(axis=1))
    lengths = [np.linalg.norm(lines[:, :2], axis=1).clip(1e-12) for lines in (in_two, in_one)]
    return 0.5 * (residual / lengths[0] + residual / lengths[1])


def _matches(one: np.ndarray | None, two: np.ndarray | None) -> list[tuple[int, int]]:
    """Indices of SIFT descriptors (N, 128) that are each other's nearest and pass the ratio test both ways.

    Descriptors are whole numbers, so that squared distances, below 2^24, are exact in float32 however they are added.
    """
    if one is None or two is None or len(one) < 2 or len(two) < 2:
        return []
    squares_one, squares_two = (one**2).sum(axis=1), (two**2).sum(axis=1)
    nearest = np.empty(len(one), int)
    passed = np.empty(len(one), bool)
    back = np.zeros(len(two), int)
    least = np.full((2, len(two)), np.inf, np.float32)  # the two least squared distances from each of `two` so far
    rows = max(_DISTANCES // len(two), 1)
    for start in range(0, len(one), rows):
        part = slice(start, start + rows)
        apart = squares_one[part, None] + squares_two - 2 * (one[part] @ two.T)
        nearest[part] = apart.argmin(axis=1)
        passed[part] = _passes(*np.partition(apart, 1, axis=1)[:, :2].T)
        closer = apart.min(axis=0) < least[0]
        back[closer] = start + apart[:, closer].argmin(axis=0)
        least = np.partition(np.concatenate([least, apart]), 1, axis=0)[:2]
    mutual = passed & _passes(*least)[nearest] & (back[nearest] == np.arange(len(one)))
    return [(int(i), int(nearest[i])) for i in np.flatnonzero(mutual)]


def _passes(best: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The ratio test of squared distances."""
    return np.sqrt(best).astype(np.float64) < _RATIO * np.sqrt(second).astype(np.float64)


def _gray(frame: np.ndarray) -> np.ndarray:
    import cv2

    return cv2.cvtColor((np.clip(frame, 0, 1) * 255 + 0.5).astype(np.uint8), cv2.COLOR_RGB2GRAY)
