"""Scenes of a few photos: how much photos see of the same, which few to take, and which few are of no use together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from difixcli.errors import InputError
from difixcli.scenes.scene import Camera, Scene
from difixcli.wording import counted

LEAST_OVERLAP = 0.25
"""Of photos that `farthest_views` takes, each shares this part of what it sees with another one."""
LEAST_SHARED_POINTS = 8
"""Photos that share fewer seed points have nothing in common: that many are wrong matches as often as not."""
LEAST_BASELINE = 1e-3
"""Cameras nearer to each other than this part of their distance to what they see stand in one place."""

_DEPTHS = np.geomspace(0.25, 8, 16)
"""Where a viewing ray is looked at when a scene has no seed points: parts of the distance between its cameras."""
_POINTS = 4000
"""Of more seed points, as many spread evenly over the list say how much photos overlap."""


def pose_spread(cameras: Sequence[Camera]) -> np.ndarray:
    """(N, N) distances ‖R_i − R_j‖_F + ‖t_i − t_j‖ of cameras, as the split `groups` has them."""
    from scipy.spatial.distance import cdist

    poses = np.stack([camera.camera_to_world for camera in cameras])
    rotations, positions = poses[:, :3, :3].reshape(-1, 9), poses[:, :3, 3]
    return cdist(rotations, rotations) + cdist(positions, positions)


def overlaps(scene: Scene, frames: Sequence[int]) -> np.ndarray:
    """(N, N) in [0, 1]: how much of what the photo of a row sees the photo of a column sees too; the diagonal is 1.

    Of the seed points that the photo saw it is the part that the other saw too, from a direction within a right angle
    of its own, where the scene knows who saw them. Where it does not, those in a photo's field of view count as seen,
    whatever is before them. Without seed points it is how much of the photo's field of view, from a quarter to eight
    times the cameras' distance, the other's covers. A photo that sees nothing has 0.
    """
    every = max(1, -(-len(scene.points) // _POINTS))
    seen = _seen(scene, frames, every)
    cameras = [scene.frames[i].camera for i in frames]
    if seen is None:
        return frustum_overlaps(cameras)
    points = scene.points[::every]
    ways = np.stack([points - camera.position.astype(np.float32) for camera in cameras])
    shared = np.empty((len(frames), len(frames)))
    for i, (one, way) in enumerate(zip(seen, ways, strict=True)):
        shared[i] = (seen & one & (np.einsum("npk,pk->np", ways, way) > 0)).sum(axis=1)
    found = shared / np.maximum(seen.sum(axis=1), 1)[:, None]
    np.fill_diagonal(found, 1)
    return found


def farthest_views(scene: Scene, frames: Sequence[int], count: int) -> list[int]:
    """The `count` mutually farthest of the photos `frames` that overlap.

    Two photos overlap when each sees at least `LEAST_OVERLAP` of what the other sees (see `overlaps`). The first two
    are the farthest pair (by `pose_spread`) of those that overlap; every next one is, of the photos that overlap with
    one already taken, the one whose distance to the nearest taken photo is the largest. Ties go to the first.

    InputError where there are fewer photos, or not so many that overlap.
    """
    if len(frames) < count:
        raise InputError(
            f"{scene.name} has {counted(len(frames), 'photo')} to train on, fewer than the {count} that were asked "
            "for; ask for fewer, or give the scene more photos."
        )
    distances = pose_spread([scene.frames[i].camera for i in frames])
    share = overlaps(scene, frames)
    together = np.minimum(share, share.T) >= LEAST_OVERLAP
    np.fill_diagonal(together, False)
    if not together.any():
        raise InputError(
            f"No two photos of {scene.name} see a quarter of the same; take photos that overlap more, or name some "
            "with --split names: or file:."
        )
    first = np.unravel_index(np.argmax(np.where(together, distances, -1)), distances.shape)
    taken = [int(place) for place in first]
    while len(taken) < count:
        reached = together[:, taken].any(axis=1)
        reached[taken] = False
        if not reached.any():
            raise InputError(
                f"Only {len(taken)} photos of {scene.name} overlap with one another, fewer than the {count} that were "
                "asked for; ask for fewer, or take photos that overlap more."
            )
        taken.append(int(np.argmax(np.where(reached, distances[:, taken].min(axis=1), -1))))
    return [frames[place] for place in taken]


def check_sparse_views(scene: Scene, frames: Sequence[int]) -> None:
    """Raises InputError for photos of which no scene can be made, by whatever prior: `frames` are what trains.

    - There is one photo, or none.
    - All cameras stand in one place, within `LEAST_BASELINE` of their distance to what they see: nothing has parallax.
    - A photo's field of view meets no other's: it looks away from what they look at.
    - A photo shares fewer than `LEAST_SHARED_POINTS` seed points with every other one, where the scene knows who saw
      them.
    """
    names = [scene.frames[i].name for i in frames]
    if len(frames) < 2:
        held = f"only {names[0]} trains" if names else "no photo trains"
        raise InputError(f"{scene.name} needs at least two photos, but {held}; give another --split, or --views 2.")
    cameras = [scene.frames[i].camera for i in frames]
    positions = np.stack([camera.position for camera in cameras])
    apart = np.linalg.norm(positions[:, None] - positions[None], axis=2)
    if apart.max() <= LEAST_BASELINE * _viewing_distance(scene, cameras):
        raise InputError(
            f"The {len(frames)} photos of {scene.name} that train ({_named(names)}) were all taken from one place, so "
            "nothing in them says how far anything is; choose photos from different places."
        )
    common = frustum_overlaps(cameras)
    np.fill_diagonal(common, 0)
    lonely = np.flatnonzero((common <= 0).all(axis=1) & (common <= 0).all(axis=0))
    if lonely.size:
        raise InputError(
            f"{names[lonely[0]]} of {scene.name} looks away from what the other photos look at "
            f"({_others(names, lonely)}); choose photos that look at the same, or check their poses."
        )
    if scene.tracks is None or not len(scene.points):
        return
    seen = _seen(scene, frames)
    assert seen is not None
    shared = seen.astype(np.int64) @ seen.T
    np.fill_diagonal(shared, 0)
    lonely = np.flatnonzero(shared.max(axis=1) < LEAST_SHARED_POINTS)
    if lonely.size:
        raise InputError(
            f"{names[lonely[0]]} of {scene.name} shares {shared[lonely[0]].max()} seed points with the other photos "
            f"that train ({_others(names, lonely)}), which is no overlap; choose photos that overlap, as --views does."
        )


def _seen(scene: Scene, frames: Sequence[int], every: int = 1) -> np.ndarray | None:
    """(N, P) bool: which seed points, or every so many-th of them, each photo saw or, where that is not known, has in
    its field of view.

    None without seed points.
    """
    points = scene.points[::every]
    if not len(points):
        return None
    if scene.tracks is None:
        return np.stack([_inside(scene.frames[i].camera, points) for i in frames])
    tracks = scene.tracks.of_points(np.arange(0, len(scene.points), every))
    rows = np.full(len(scene.frames), -1)
    rows[list(frames)] = np.arange(len(frames))
    row = rows[tracks.frames]
    seen = np.zeros((len(frames), len(points)), bool)
    seen[row[row >= 0], tracks.points[row >= 0]] = True
    return seen


def _inside(camera: Camera, points: np.ndarray) -> np.ndarray:
    """(…) bool: which points (…, 3) lie in a camera's field of view."""
    x, y, z = camera.project(points)
    return (z > 0) & (x >= 0) & (x < camera.width) & (y >= 0) & (y < camera.height)


def frustum_overlaps(cameras: Sequence[Camera]) -> np.ndarray:
    """(N, N): the part of sample points in a row's field of view that lie in a column's; the diagonal is 1."""
    positions = np.stack([camera.position for camera in cameras])
    apart = np.linalg.norm(positions[:, None] - positions[None], axis=2)
    others = apart[apart > 0]
    depths = _DEPTHS * (float(np.median(others)) if others.size else 1.0)
    samples = np.stack([_samples(camera, depths) for camera in cameras])
    found = np.stack([_inside(camera, samples).mean(axis=1) for camera in cameras], axis=1)
    np.fill_diagonal(found, 1)
    return found


def _samples(camera: Camera, depths: np.ndarray) -> np.ndarray:
    """Points (64·D, 3) in a camera's field of view at D depths."""
    x, y = np.meshgrid((np.arange(8) + 0.5) / 8 * camera.width, (np.arange(8) + 0.5) / 8 * camera.height)
    return camera.unproject(x.ravel()[:, None], y.ravel()[:, None], depths[None]).reshape(-1, 3)


def _viewing_distance(scene: Scene, cameras: Sequence[Camera]) -> float:
    """The median distance from the cameras to the seed points they see; 1, the scene's size, where there are none."""
    found = [
        np.linalg.norm(scene.points[inside] - camera.position, axis=1)
        for camera in cameras
        if len(scene.points) and (inside := _inside(camera, scene.points)).any()
    ]
    return float(np.median(np.concatenate(found))) if found else 1.0


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _others(names: Sequence[str], lonely: np.ndarray) -> str:
    return _named([name for i, name in enumerate(names) if i != lonely[0]])
