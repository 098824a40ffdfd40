"""Camera poses: validation, distances, nearest cameras and the scene's one normalisation.

Every pose is (4, 4) camera-to-world with OpenGL axes (x right, y up, z back).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from difixcli.errors import InputError
from difixcli.scenes.scene import Camera

RIGID_TOLERANCE = 5e-3
"""How far R·Rᵀ may be from the identity, per entry, before a pose counts as wrong rather than rounded."""

_LEAST_SCALE = 1e-6
"""A rotation scaled below this is no rotation any more."""

OPENCV_TO_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
"""Right-multiplies a camera-to-world matrix to change its camera axes; its own inverse."""


def matrix_of(pose: Camera | np.ndarray) -> np.ndarray:
    """The (4, 4) camera-to-world matrix of a camera or of a bare pose."""
    return pose.camera_to_world if isinstance(pose, Camera) else np.asarray(pose, dtype=np.float64)


def rigid_pose(matrix: object, where: str) -> np.ndarray:
    """Checks a (3, 4) or (4, 4) camera-to-world matrix and returns it as (4, 4) float64 with an exact rotation.

    `where` names the frame and file in the message. Raises InputError for a wrong shape, a value that is not
    finite, or a matrix whose upper left 3×3 is no rotation.
    """
    try:
        pose = np.array(matrix, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"The pose of {where} is not a 4×4 matrix of numbers; export the poses again.") from None
    if pose.shape == (3, 4):
        pose = np.vstack([pose, [0, 0, 0, 1]])
    if pose.shape != (4, 4):
        raise InputError(f"The pose of {where} has shape {pose.shape}, not 4×4; export the poses again.")
    if not np.isfinite(pose).all():
        raise InputError(f"The pose of {where} has values that are not finite; remove that frame or pose it again.")
    rotation = pose[:3, :3]
    if (
        np.abs(rotation @ rotation.T - np.eye(3)).max() > RIGID_TOLERANCE
        or np.linalg.det(rotation) < 0
        or np.abs(pose[3] - [0, 0, 0, 1]).max() > RIGID_TOLERANCE
    ):
        raise InputError(
            f"The pose of {where} is not rigid (its upper left 3×3 is no rotation); export camera-to-world matrices "
            "without scale or mirroring."
        )
    # Text files round; the nearest rotation (orthogonal Procrustes) keeps later products of poses rigid.
    u, _, vt = np.linalg.svd(rotation)
    pose[:3, :3] = u @ vt
    pose[3] = [0, 0, 0, 1]
    return pose


def unscaled_pose(matrix: object, where: str) -> tuple[np.ndarray, float]:
    """`rigid_pose` of a matrix whose rotation may carry a uniform scale, which is removed, and that scale.

    The position is kept. The scale is 1 where it is only rounding. A mirrored matrix is refused as there.
    """
    try:
        pose = np.array(matrix, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        return rigid_pose(matrix, where), 1.0
    scale = float(np.sqrt((pose[:3, :3] ** 2).sum() / 3)) if pose.shape in ((3, 4), (4, 4)) else 1.0
    if not np.isfinite(scale) or scale < _LEAST_SCALE or abs(scale**2 - 1) <= RIGID_TOLERANCE:
        return rigid_pose(matrix, where), 1.0
    pose[:3, :3] /= scale
    return rigid_pose(pose, where), scale


def pose_distances(
    pose: Camera | np.ndarray, poses: Sequence[Camera | np.ndarray], rotation_weight: float = 1.0
) -> np.ndarray:
    """(N,) distances ‖t_a − t_b‖ + rotation_weight · angle(R_a, R_b) of one pose to N others (Difix3D's release).

    Translation is in the poses' own units (normalised world units for a Scene's cameras), the angle in radians.
    """
    if not len(poses):
        return np.zeros(0)
    one, others = matrix_of(pose), np.stack([matrix_of(other) for other in poses])
    translations = np.linalg.norm(others[:, :3, 3] - one[:3, 3], axis=1)
    relative = one[:3, :3].T @ others[:, :3, :3]
    sines = [relative[:, i, j] - relative[:, j, i] for i, j in ((2, 1), (0, 2), (1, 0))]
    # atan2 stays accurate near 0 and π, where arccos of the trace does not
    angles = np.arctan2(np.linalg.norm(sines, axis=0), np.trace(relative, axis1=1, axis2=2) - 1)
    return translations + rotation_weight * angles


def pose_distance(a: Camera | np.ndarray, b: Camera | np.ndarray, rotation_weight: float = 1.0) -> float:
    """`pose_distances` of two cameras or (4, 4) poses."""
    return float(pose_distances(a, [b], rotation_weight)[0])


def nearest_cameras(
    camera: Camera | np.ndarray,
    cameras: Sequence[Camera | np.ndarray],
    k: int = 1,
    rotation_weight: float = 1.0,
) -> list[int]:
    """Indices of the (at most) `k` cameras nearest to `camera` by pose distance, nearest first; ties by index."""
    return np.argsort(pose_distances(camera, cameras, rotation_weight), kind="stable")[:k].tolist()


def rotation_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The smallest (3, 3) rotation that takes unit vector `a` to unit vector `b` (Rodrigues' formula)."""
    axis = np.cross(a, b)
    cosine = float(a @ b)
    if cosine < -1 + 1e-9:
        # Opposite vectors: half a turn about any axis across them.
        axis = np.cross(a, np.eye(3)[np.argmin(np.abs(a))])
        axis /= np.linalg.norm(axis)
        return 2 * np.outer(axis, axis) - np.eye(3)
    skew = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.eye(3) + skew + skew @ skew / (1 + cosine)


def look_at(position: np.ndarray, target: np.ndarray, up: np.ndarray) -> np.ndarray:
    """(4, 4) pose of a camera at `position` (3,) that looks at `target` (3,) with `up` (3,) upwards in the image."""
    back = np.asarray(position, dtype=np.float64) - target
    back /= np.linalg.norm(back)
    right = np.cross(up, back)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(back, right), back], axis=1)
    pose[:3, 3] = position
    return pose


def meeting_point(cameras: Sequence[Camera]) -> np.ndarray:
    """The point (3,) nearest to all optical axes (least squares); the mean position if all are parallel."""
    positions = np.stack([camera.position for camera in cameras])
    axes = np.stack([camera.camera_to_world[:3, 2] for camera in cameras])
    across = np.eye(3) - axes[:, :, None] * axes[:, None, :]
    normal = across.sum(axis=0)
    if np.linalg.cond(normal) > 1e8:
        return positions.mean(axis=0)
    return np.linalg.solve(normal, np.einsum("nij,nj->i", across, positions))


def normalisation(poses: np.ndarray) -> np.ndarray:
    """The (4, 4) similarity that normalises a world, from all its poses (N, 4, 4).

    It centres the mean camera position, turns the mean up axis of the cameras to +z (nerfstudio's "up" orientation)
    and scales the largest absolute position component to 1. A scene whose cameras all stand in one place keeps its
    scale.
    """
    centre = poses[:, :3, 3].mean(axis=0)
    up = poses[:, :3, 1].mean(axis=0)
    length = np.linalg.norm(up)
    # Cameras whose up axes cancel out (a full roll) say nothing about the world's up: keep the file's.
    rotation = rotation_between(up / length, np.array([0.0, 0.0, 1.0])) if length > 1e-6 else np.eye(3)
    extent = np.abs((poses[:, :3, 3] - centre) @ rotation.T).max()
    scale = 1 / extent if extent > 1e-9 else 1.0
    transform = np.eye(4)
    transform[:3, :3] = scale * rotation
    transform[:3, 3] = -scale * rotation @ centre
    return transform


def apply_similarity(transform: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """Moves poses (..., 4, 4) by a similarity (4, 4): positions are scaled, rotations stay rotations."""
    scale = np.cbrt(np.linalg.det(transform[:3, :3]))
    moved = transform @ poses
    moved[..., :3, :3] /= scale
    return moved


def transform_points(transform: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Moves points (N, 3) by a (4, 4) affine matrix; float32 (N, 3)."""
    return (points.astype(np.float64) @ transform[:3, :3].T + transform[:3, 3]).astype(np.float32)
