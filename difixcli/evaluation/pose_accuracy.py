"""Can the cameras be found again from the images: what does not show one scene leads structure from motion astray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from difixcli.scenes.scene import Camera

DEGREES = 5
"""Up to which error the share of pairs is averaged."""


def pose_errors(cameras: Sequence[Camera], found: Mapping[int, np.ndarray]) -> np.ndarray:
    """(N·(N−1)/2,) degrees by which each pair's relative pose is wrong, infinite where one of them was not found.

    `found` are camera-to-world poses (4, 4) with OpenGL axes by the camera's number, in any world. A pair's error is
    the larger of its rotation's and its direction's from one to the other, this one folded to at most 90°. Where both
    true cameras stand in one place there is no direction, and the rotation's counts alone.
    """
    errors = []
    for i, j in combinations(range(len(cameras)), 2):
        if i not in found or j not in found:
            errors.append(np.inf)
            continue
        (true_turn, true_way), (turn, way) = (
            _relative(one, two)
            for one, two in ((cameras[i].camera_to_world, cameras[j].camera_to_world), (found[i], found[j]))
        )
        wrong = _degrees((np.trace(true_turn.T @ turn) - 1) / 2)
        if np.linalg.norm(true_way) > 1e-9:
            length = np.linalg.norm(true_way) * np.linalg.norm(way)
            wrong = max(wrong, _degrees(abs(true_way @ way) / length) if length > 0 else 90.0)
        errors.append(wrong)
    return np.array(errors)


def pose_auc(errors: np.ndarray) -> float:
    """In [0, 1]: the mean over 1°, 2°, … 5° of the share of pairs that are less wrong."""
    return float(np.mean([(errors < limit).mean() for limit in range(1, DEGREES + 1)]))


def _relative(one: np.ndarray, two: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return one[:3, :3].T @ two[:3, :3], one[:3, :3].T @ (two[:3, 3] - one[:3, 3])


def _degrees(cosine: float) -> float:
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
