"""Cameras drawn around photos, as SparseFusion draws those that it distils into: on a circle fitted to the photos' own,
each a little higher or lower.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from difixcli.errors import InputError
from difixcli.scenes.poses import look_at, meeting_point
from difixcli.scenes.scene import Camera

ELEVATION = 0.17
"""Radians by which a camera may stand higher or lower than the circle, SparseFusion's."""

_CLOSED = np.pi / 2  # radians that nobody may stand in for the circle to be closed
_BEYOND = 0.25  # of the arc that photos span: how far an open one goes on at either end
_ROUND = 0.2  # second singular value by the first, below which centres lie on a line and say nothing of a plane
_SEED = 0


def around(cameras: Sequence[Camera], n: int) -> list[Camera]:
    """`n` cameras on a circle about what `cameras` look at, each turned up or down by up to `ELEVATION` at random.

    The circle lies in the plane through the cameras' centres (SVD), which is "up" for all that is drawn, and is fitted
    to them algebraically; all look at the point nearest to the optical axes. Cameras that are two, or in a row, say no
    plane and no circle: then up is as near to their own as such a plane can be, and the circle is the one about that
    point at their mean distance. So it is where the fitted plane stands upright, as of cameras that face one way. Where
    a quarter of the circle or more has no camera, only the part that they span, and a quarter of it more at either
    end, is drawn on: nothing is known of what lies behind. The lens is the mean one. The same cameras give the same.
    Raises InputError without cameras or n < 1.
    """
    if not cameras or n < 1:
        raise InputError(f"A circle needs at least one camera and one frame, not {len(cameras)} and {n}.")
    positions = np.stack([camera.position for camera in cameras])
    focus = _looked_at(cameras, positions)
    up = _plane(cameras, positions)
    right = np.cross(up, np.eye(3)[np.argmin(np.abs(up))])
    right /= np.linalg.norm(right)
    ahead = np.cross(up, right)
    flat = (positions - focus) @ np.stack([right, ahead], axis=1)
    centre, radius = _circle(flat)
    height = float(((positions - focus) @ up).mean())
    offsets = flat - centre
    found = np.arctan2(offsets[:, 1], offsets[:, 0])
    rng = np.random.default_rng(_SEED)
    made = []
    for angle in _angles(found, n):
        place = centre + radius * np.array([np.cos(angle), np.sin(angle)])
        offset = place[0] * right + place[1] * ahead + height * up
        turned = _raised(offset, up, rng.uniform(-ELEVATION, ELEVATION))
        made.append(_mean_lens(cameras).moved(look_at(focus + turned, focus, up)))
    return made


def _looked_at(cameras: Sequence[Camera], positions: np.ndarray) -> np.ndarray:
    """The point nearest to the optical axes, or what lies ahead where they do not meet before the cameras."""
    forward = -np.stack([camera.camera_to_world[:3, 2] for camera in cameras])
    focus = meeting_point(cameras)
    extent = float(np.linalg.norm(positions.max(0) - positions.min(0)))
    if float(np.einsum("ni,ni->n", focus - positions, forward).mean()) > 0.1 * extent + 1e-6:
        return focus
    mean = forward.mean(axis=0)
    return positions.mean(axis=0) + (2 * extent or 1.0) * mean / max(float(np.linalg.norm(mean)), 1e-6)


def _plane(cameras: Sequence[Camera], positions: np.ndarray) -> np.ndarray:
    """The unit normal (3,) of the plane that the circle lies in, on the side of the cameras' own up."""
    own = _own_up(cameras)
    _, sizes, axes = np.linalg.svd(positions - positions.mean(axis=0), full_matrices=True)
    sizes = np.pad(sizes, (0, max(0, 3 - len(sizes))))
    if sizes[0] < 1e-9:
        return own
    if sizes[1] > _ROUND * sizes[0]:
        normal = axes[2] * np.sign(axes[2] @ own or 1.0)
    else:
        normal = own - (own @ axes[0]) * axes[0]
        normal = normal / max(float(np.linalg.norm(normal)), 1e-9)
    return normal if normal @ own > np.cos(np.pi / 4) else own


def _own_up(cameras: Sequence[Camera]) -> np.ndarray:
    """Which way is up (3,) as the cameras are held: across the right side of all images, where these differ."""
    rights, own = (np.stack([camera.camera_to_world[:3, axis] for camera in cameras]) for axis in (0, 1))
    mean = own.mean(axis=0)
    mean = mean / np.linalg.norm(mean) if np.linalg.norm(mean) > 1e-6 else np.array([0.0, 0.0, 1.0])
    _, sizes, axes = np.linalg.svd(rights, full_matrices=True)
    if len(sizes) < 2 or sizes[1] < _ROUND * sizes[0]:
        return mean
    level: np.ndarray = axes[2] * np.sign(axes[2] @ mean or 1.0)
    return level if level @ mean > np.cos(np.pi / 4) else mean


def _circle(flat: np.ndarray) -> tuple[np.ndarray, float]:
    """Centre (2,) and radius of the circle through points (N, 2) about the origin, which they look at."""
    radius = float(np.linalg.norm(flat, axis=1).mean())
    if len(flat) >= 3:
        fitted = np.linalg.lstsq(np.column_stack([2 * flat, np.ones(len(flat))]), (flat**2).sum(axis=1), rcond=None)[0]
        square = fitted[2] + fitted[:2] @ fitted[:2]
        if square > 0 and np.linalg.norm(fitted[:2]) < 0.5 * min(radius, np.sqrt(square)):
            return fitted[:2], float(np.sqrt(square))
    return np.zeros(2), radius


def _angles(found: np.ndarray, n: int) -> np.ndarray:
    """(n,) angles to draw at, of a circle on which photos stand at the angles `found`; from the first photo's on where
    it is closed.
    """
    ordered = np.sort(found)
    gaps = np.diff(np.append(ordered, ordered[0] + 2 * np.pi))
    widest = int(np.argmax(gaps))
    if gaps[widest] < _CLOSED:
        return found[0] + np.linspace(0, 2 * np.pi, n, endpoint=False)
    covered = 2 * np.pi - gaps[widest]
    beyond = max(_BEYOND * covered, ELEVATION)
    first = ordered[(widest + 1) % len(ordered)]
    return first + (np.linspace(-beyond, covered + beyond, n) if n > 1 else np.array([covered / 2]))


def _raised(offset: np.ndarray, up: np.ndarray, angle: float) -> np.ndarray:
    """An offset (3,) from what is looked at, turned by an angle towards `up`."""
    across = np.cross(offset, up)
    if np.linalg.norm(across) < 1e-9:
        return offset
    across = across / np.linalg.norm(across)
    return offset * np.cos(angle) + np.cross(across, offset) * np.sin(angle)


def _mean_lens(cameras: Sequence[Camera]) -> Camera:
    (width, height), _ = Counter((camera.width, camera.height) for camera in cameras).most_common(1)[0]
    same = [camera.reshaped(width, height) for camera in cameras]
    fx, fy, cx, cy = np.mean([[one.fx, one.fy, one.cx, one.cy] for one in same], axis=0).tolist()
    return replace(same[0], fx=fx, fy=fy, cx=cx, cy=cy)
