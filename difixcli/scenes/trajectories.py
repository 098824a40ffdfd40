"""Camera paths: stepping towards a pose, interpolating between cameras, a spiral around the photos' viewpoint.

Poses are (4, 4) camera-to-world with OpenGL axes in the normalised world.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from difixcli.errors import InputError
from difixcli.scenes.poses import look_at, matrix_of, nearest_cameras, pose_distance
from difixcli.scenes.scene import Camera

LONE_RADIUS = 0.1
"""The spiral's radius, in normalised units, around a camera that stands alone."""


def blend_poses(a: np.ndarray, b: np.ndarray, fraction: float) -> np.ndarray:
    """The pose `fraction` (0..1) of the way from `a` to `b`: straight line in position, slerp in rotation."""
    from scipy.spatial.transform import Rotation, Slerp

    pose = np.eye(4)
    pose[:3, 3] = (1 - fraction) * a[:3, 3] + fraction * b[:3, 3]
    rotations = Rotation.from_matrix(np.stack([a[:3, :3], b[:3, :3]]))
    pose[:3, :3] = Slerp([0, 1], rotations)(fraction).as_matrix()
    return pose


def step_towards(pose: Camera | np.ndarray, target: Camera | np.ndarray, step: float) -> np.ndarray:
    """Moves a pose `step` (> 0, normalised world units) towards a target; (4, 4).

    Position goes along the straight line and rotation along the shortest arc, by the same fraction. Within one step
    of the target the target itself is returned (Difix3D's progressive update).
    """
    pose, target = matrix_of(pose), matrix_of(target)
    if not step > 0:
        raise ValueError(f"step must be positive, not {step}")
    distance = float(np.linalg.norm(target[:3, 3] - pose[:3, 3]))
    if distance <= step:
        return target.copy()
    return blend_poses(pose, target, step / distance)


def interpolate(cameras: Sequence[Camera], n: int) -> list[Camera]:
    """`n` cameras along a smooth path through `cameras`, ends included, at even pose distance.

    Positions follow a monotone cubic (no overshoot), rotations slerp, lenses blend; the image size is the first
    camera's. Raises InputError without cameras or for n < 1.
    """
    from scipy.interpolate import PchipInterpolator
    from scipy.spatial.transform import Rotation, Slerp

    if not cameras or n < 1:
        raise InputError(f"A path needs at least one camera and one frame, not {len(cameras)} and {n}.")
    width, height = cameras[0].width, cameras[0].height
    cameras = [camera.resized(width, height) for camera in cameras]
    # Poses that coincide would stop the path's parameter from growing.
    keys = [cameras[0]]
    for camera in cameras[1:]:
        if pose_distance(keys[-1], camera) > 1e-9:
            keys.append(camera)
    if len(keys) == 1:
        return [keys[0]] * n
    lengths = [pose_distance(a, b) for a, b in pairwise(keys)]
    at = np.concatenate([[0], np.cumsum(lengths)])
    samples = np.linspace(0, at[-1], n)
    positions = PchipInterpolator(at, np.stack([camera.position for camera in keys]))(samples)
    rotations = Slerp(at, Rotation.from_matrix(np.stack([c.camera_to_world[:3, :3] for c in keys])))(samples)
    lens = np.array([[camera.fx, camera.fy, camera.cx, camera.cy] for camera in keys])
    path = []
    for sample, position, rotation in zip(samples, positions, rotations.as_matrix(), strict=True):
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = rotation, position
        fx, fy, cx, cy = (float(np.interp(sample, at, lens[:, i])) for i in range(4))
        path.append(replace(keys[0], camera_to_world=pose, fx=fx, fy=fy, cx=cx, cy=cy))
    return path


def spiral(cameras: Sequence[Camera], n: int, turns: int = 2) -> list[Camera]:
    """`n` cameras on a spiral around the most central of `cameras`, all looking at the point the cameras look at.

    The spiral stays as near as the photos stand to each other, so it shows what they saw: LLFF's idea, but around a
    real camera, because the mean of an orbit lies where nobody stood. Raises InputError without cameras or n < 1.
    """
    if not cameras or n < 1:
        raise InputError(f"A spiral needs at least one camera and one frame, not {len(cameras)} and {n}.")
    totals = [sum(pose_distance(a, b) for b in cameras) for a in cameras]
    centre = cameras[int(np.argmin(totals))]
    pose = centre.camera_to_world
    gaps = [np.linalg.norm(cameras[i].position - centre.position) for i in nearest_cameras(centre, cameras, 3)[1:]]
    radius = float(np.mean(gaps)) if gaps else LONE_RADIUS
    focus = _focus(cameras)
    depth = float((centre.position - focus) @ pose[:3, 2])
    target = pose[:3, 3] - pose[:3, 2] * max(depth, 2 * radius, 1e-3)
    path = []
    for t in np.linspace(0, 1, n, endpoint=False):
        angle = 2 * np.pi * turns * t
        offset = radius * np.array([np.cos(angle), 0.5 * np.sin(angle), 0.5 * np.sin(angle / turns)])
        position = pose[:3, 3] + pose[:3, :3] @ offset
        path.append(centre.moved(look_at(position, target, pose[:3, 1])))
    return path


def _focus(cameras: Sequence[Camera]) -> np.ndarray:
    """The point (3,) nearest to all optical axes (least squares); the mean position if all are parallel."""
    positions = np.stack([camera.position for camera in cameras])
    axes = np.stack([camera.camera_to_world[:3, 2] for camera in cameras])
    across = np.eye(3) - axes[:, :, None] * axes[:, None, :]
    normal = across.sum(axis=0)
    if np.linalg.cond(normal) > 1e8:
        return positions.mean(axis=0)
    return np.linalg.solve(normal, np.einsum("nij,nj->i", across, positions))
