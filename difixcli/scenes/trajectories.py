"""Camera paths: stepping towards a pose, interpolating, spirals, orbits, sideways shifts, the viewer's own paths.

Poses are (4, 4) camera-to-world with OpenGL axes in the normalised world, whose +z is up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from difixcli.errors import InputError, unknown
from difixcli.runs import file_name, read_json
from difixcli.scenes.loading import working_size
from difixcli.scenes.poses import (
    apply_similarity,
    look_at,
    matrix_of,
    meeting_point,
    nearest_cameras,
    pose_distance,
    pose_distances,
    rigid_pose,
)
from difixcli.scenes.ring import around
from difixcli.scenes.run_worlds import TRANSFORMS, worlds_of_run
from difixcli.scenes.scene import Camera, Frame, Scene

LONE_RADIUS = 0.1
"""The spiral's radius, in normalised units, around a camera that stands alone."""
_COUNT = 120  # cameras on a path that does not say how many
_SMOOTH_FPS, _SHIFT_FPS = 24.0, 8.0  # photos stand farther apart than a smooth path's cameras
_VIEWER_FPS = 30.0  # the viewer's own, of a path that says nothing
_MOST = 1_000_000  # cameras of a path
_CLOSED = np.pi / 2  # radians that nobody may stand in for cameras to go all the way round
_STEP = 0.005  # share of the path's extent that is a step, not noise
_UP = np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A camera path: its cameras in order, the frames a second it is meant to be shown at, and a safe file name."""

    cameras: Sequence[Camera]
    fps: float
    name: str


def make_trajectory(scene: Scene, train: Sequence[int], spec: str) -> Trajectory:
    """The camera path that `spec` describes, around or along the training cameras, in the scene's normalised world.

    - `spiral`, `spiral:N`: around the most central training camera (`spiral`), N cameras, 120 by default.
    - `orbit`, `orbit:N`: on a level circle about the point they look at; to and fro where they stand on one side of it.
    - `around`, `around:N`: on the circle fitted to them, higher and lower at random (`ring.around`); no film's path.
    - `interpolate`, `interpolate:N`: a smooth path through them, ends included, in their own order or from neighbour
      to neighbour, whichever is shorter; of a rig, the camera with the most photos.
    - `shift:2m`, `shift:0.1`: each of them moved to the right of travel, by metres (metric scenes only) or by a share
      of the cameras' extent; negative goes left.
    - `PATH.json`: a camera path saved by nerfstudio's viewer. Its world is that of the run whose
      `dataparser_transforms.json` lies beside it or up to two folders above, and the normalised one where there is
      none (see `path_world_note`). A file with key frames alone is interpolated as the viewer does. Lens from its
      vertical field of view, shape from its render size, which is shrunk (never enlarged) to the long side of the
      scene's photos; without a render size it is that long side, in the shape that the cameras have.

    `train` holds indices into the scene's frames, at least one. Raises InputError for a spec that is none of these,
    metres in a scene without scale, and a path file that is missing, broken, empty or not of pinhole cameras.
    """
    frames = [scene.frames[i] for i in train]
    if not frames:
        raise InputError(f"The trajectory {spec} needs a training camera; there is none.")
    check_trajectory(spec)
    if spec.lower().endswith(".json"):
        return _viewer_path(Path(spec).expanduser(), scene, max(max(f.camera.width, f.camera.height) for f in frames))
    kind, _, argument = spec.strip().partition(":")
    if kind == "shift":
        cameras = shift_path(frames, shift_distance(scene, argument))
        return Trajectory(cameras, _SHIFT_FPS, file_name(f"shift-{argument}"))
    count = int(argument) if argument else _COUNT
    cameras = [frame.camera for frame in (_one_of_a_rig(frames) if kind == "interpolate" else frames)]
    return Trajectory(_PATHS[kind](cameras, count), _SMOOTH_FPS, f"{kind}-{count}")


def check_trajectory(spec: str) -> None:
    """Raises InputError for a spec that `make_trajectory` can make nothing of, whatever the scene."""
    if spec.lower().endswith(".json"):
        if not Path(spec).expanduser().is_file():
            raise InputError(
                f"{Path(spec).expanduser()} is missing; name a camera path that nerfstudio's viewer saved."
            )
        _viewer_poses(Path(spec).expanduser(), *_read_viewer_path(Path(spec).expanduser()))
        return
    kind, _, argument = spec.strip().partition(":")
    if kind == "shift":
        _amount(argument)
        return
    if kind not in _PATHS:
        raise unknown("trajectory", kind, [*_PATHS, "shift"], "A file of nerfstudio's viewer ends with .json.")
    if argument and not (argument.isdecimal() and 0 < int(argument) < _MOST):
        if argument.isdecimal():
            raise InputError(f"{spec} asks for {argument} cameras; a path has 1 to {_MOST - 1}.")
        raise InputError(f"{spec} does not say how many cameras; write {kind}:120.")


def path_world_note(spec: str) -> str | None:
    """The sentence that says which world a viewer's path is taken to be in, where no run says it; else None."""
    if not spec.lower().endswith(".json") or _run_of(path := Path(spec).expanduser()) is not None:
        return None
    return (
        f"{path} is taken to be in the scene's normalised world, as of the viewer of a run of difix: no {TRANSFORMS} "
        "lies beside it; copy that of the nerfstudio run there if the path is of another run."
    )


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

    Positions follow a monotone cubic (no overshoot), rotations slerp, lenses blend; the image size is that of most
    cameras, to which others are reshaped (see `Camera.reshaped`). Raises InputError without cameras or for n < 1.
    """
    from scipy.interpolate import PchipInterpolator
    from scipy.spatial.transform import Rotation, Slerp

    if not cameras or n < 1:
        raise InputError(f"A path needs at least one camera and one frame, not {len(cameras)} and {n}.")
    (width, height), _ = Counter((camera.width, camera.height) for camera in cameras).most_common(1)[0]
    cameras = [camera.reshaped(width, height) for camera in cameras]
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
    totals = [pose_distances(camera, cameras).sum() for camera in cameras]
    centre = cameras[int(np.argmin(totals))]
    pose = centre.camera_to_world
    gaps = [np.linalg.norm(cameras[i].position - centre.position) for i in nearest_cameras(centre, cameras, 3)[1:]]
    radius = float(np.mean(gaps)) if gaps else LONE_RADIUS
    focus = meeting_point(cameras)
    depth = float((centre.position - focus) @ pose[:3, 2])
    target = pose[:3, 3] - pose[:3, 2] * max(depth, 2 * radius, 1e-3)
    path = []
    for t in np.linspace(0, 1, n, endpoint=False):
        angle = 2 * np.pi * turns * t
        offset = radius * np.array([np.cos(angle), 0.5 * np.sin(angle), 0.5 * np.sin(angle / turns)])
        position = pose[:3, 3] + pose[:3, :3] @ offset
        path.append(centre.moved(look_at(position, target, pose[:3, 1])))
    return path


def orbit(cameras: Sequence[Camera], n: int) -> list[Camera]:
    """`n` cameras on a level circle about the point that `cameras` look at, at their mean distance and height.

    All look at that point, or away from it where the cameras do. Where a quarter of the circle or more has no camera,
    the path swings to and fro over the rest, so that it stays where photos show something. The lens is the first
    camera's. Raises InputError without cameras or n < 1.
    """
    if not cameras or n < 1:
        raise InputError(f"An orbit needs at least one camera and one frame, not {len(cameras)} and {n}.")
    positions = np.stack([camera.position for camera in cameras])
    forward = -np.stack([camera.camera_to_world[:3, 2] for camera in cameras])
    focus = meeting_point(cameras)
    inward = float(np.einsum("ni,ni->n", focus - positions, forward).mean())
    if abs(inward) < 1e-6:  # parallel axes, or a lone camera: nothing to go round but what lies ahead
        extent = float(np.linalg.norm(positions.max(0) - positions.min(0)))
        inward = 2 * extent or 1.0
        focus = positions.mean(0) + inward * forward.mean(0) / np.linalg.norm(forward.mean(0))
    offsets = (positions - focus)[:, :2]
    radius = max(float(np.linalg.norm(offsets, axis=1).mean()), LONE_RADIUS)
    angles = np.sort(np.arctan2(offsets[:, 1], offsets[:, 0]))
    gaps = np.diff(np.append(angles, angles[0] + 2 * np.pi))
    widest = int(np.argmax(gaps))
    start, covered = angles[(widest + 1) % len(angles)], 2 * np.pi - gaps[widest]
    if gaps[widest] < _CLOSED:
        way = start + np.linspace(0, 2 * np.pi, n, endpoint=False)
    else:
        swing = max(covered, 0.2)  # a lone camera's orbit moves a little too
        way = start + covered / 2 - 0.5 * swing * np.cos(np.linspace(0, 2 * np.pi, n, endpoint=False))
    height = float(positions[:, 2].mean())
    path = []
    for angle in way:
        position = np.array([focus[0] + radius * np.cos(angle), focus[1] + radius * np.sin(angle), height])
        target = focus if inward > 0 else 2 * position - focus
        path.append(cameras[0].moved(look_at(position, target, _UP)))
    return path


def _through(cameras: Sequence[Camera], n: int) -> list[Camera]:
    """`interpolate`, in the order of `path_order`."""
    return interpolate([cameras[i] for i in path_order(cameras)], n)


def path_order(cameras: Sequence[Camera]) -> list[int]:
    """The cameras' positions in the list, in their own order or from neighbour to neighbour, whichever is shorter."""
    chosen = min(list(cameras), _by_neighbours(cameras), key=_length)
    places = {id(camera): place for place, camera in enumerate(cameras)}
    return [places[id(camera)] for camera in chosen]


def _by_neighbours(cameras: Sequence[Camera]) -> list[Camera]:
    """The cameras from one of the two farthest apart on, each followed by the nearest that is left."""
    first = max(cameras, key=lambda camera: pose_distances(camera, cameras).max())
    left = [camera for camera in cameras if camera is not first]
    order = [first]
    while left:
        order.append(left.pop(nearest_cameras(order[-1], left)[0]))
    return order


def _length(cameras: Sequence[Camera]) -> float:
    return sum(pose_distance(a, b) for a, b in pairwise(cameras))


def _one_of_a_rig(frames: Sequence[Frame]) -> list[Frame]:
    """The frames of the camera with the most of them; the first of several."""
    chosen = Counter(frame.camera_id for frame in frames).most_common(1)[0][0]
    return [frame for frame in frames if frame.camera_id == chosen]


_PATHS: Mapping[str, Callable[[Sequence[Camera], int], list[Camera]]] = {
    "spiral": spiral,
    "orbit": orbit,
    "interpolate": _through,
    "around": around,
}


def shift_distance(scene: Scene, shift: str) -> float:
    """A shift in normalised units: `2m` in metres (metric scenes only), `0.1` as a share of the cameras' extent.

    Raises InputError for what is neither, zero, or metres in a scene that has no scale.
    """
    amount, metres = _amount(shift)
    if metres:
        if not scene.metric:
            raise InputError(
                f"Scene {scene.name} has no metric scale, so a shift of {shift} has no meaning; "
                "give a share of the path's extent (0.1), or put "
                '"metric": true into its transforms.json if its units are metres.'
            )
        return amount * scene.unit_scale
    positions = np.stack([frame.camera.position for frame in scene.frames])
    extent = float(np.linalg.norm(positions.max(0) - positions.min(0)))
    return amount * (extent or 1.0)


def _amount(shift: str) -> tuple[float, bool]:
    """The number of a shift, and whether it is one of metres."""
    text = shift.strip().lower()
    try:
        amount = float(text.removesuffix("m"))
    except ValueError as error:
        raise InputError(f"The shift {shift!r} is not a distance; write 2m for metres or 0.1 for a share.") from error
    if not np.isfinite(amount) or amount == 0:
        raise InputError(f"The shift {shift} moves nothing; write 2m for metres or 0.1 for a share of the extent.")
    return amount, text.endswith("m")


def shift_path(frames: Sequence[Frame], distance: float) -> list[Camera]:
    """The frames' cameras, in their order, moved sideways; each camera of a rig travels by itself."""
    moved: dict[int, Camera] = {}
    for camera_id in {frame.camera_id for frame in frames}:
        own = [i for i, frame in enumerate(frames) if frame.camera_id == camera_id]
        moved.update(zip(own, shift_sideways([frames[i].camera for i in own], distance), strict=True))
    return [moved[i] for i in range(len(frames))]


def shift_sideways(cameras: Sequence[Camera], distance: float) -> list[Camera]:
    """The cameras, in order of travel, moved `distance` normalised units to the right, level, heading unchanged.

    Right is perpendicular to the local direction of travel in the ground plane; where there is no travel at all (one
    frame) it is perpendicular to where the camera looks, whichever way its image is turned.
    """
    positions = np.stack([camera.position for camera in cameras])
    moved = []
    for camera, direction in zip(cameras, _travel(positions), strict=True):
        right = np.cross(direction, _UP)
        if np.linalg.norm(right) < 1e-8:
            right = np.cross(-camera.camera_to_world[:3, 2], _UP)
        if np.linalg.norm(right) < 1e-8:  # it looks straight up or down: its own right is level
            right = camera.camera_to_world[:3, 0] * (1 - _UP)
        pose = camera.camera_to_world.copy()
        pose[:3, 3] += distance * right / np.linalg.norm(right)
        moved.append(camera.moved(pose))
    return moved


def _travel(positions: np.ndarray) -> np.ndarray:
    """(N, 3) positions along a path → (N, 3) local directions of travel, not normalised.

    From the nearest frame before to the nearest one after that lie a step away: while a vehicle stands, the noise of
    its poses is no direction, and what it did before and after counts.
    """
    extent = float(np.linalg.norm(positions.max(0) - positions.min(0)))
    directions = np.zeros_like(positions)
    for i, position in enumerate(positions):
        apart = np.flatnonzero(np.linalg.norm(positions - position, axis=1) >= _STEP * extent)
        before, after = apart[apart < i], apart[apart > i]
        directions[i] = positions[after[0] if len(after) else i] - positions[before[-1] if len(before) else i]
    return directions


def _viewer_path(path: Path, scene: Scene, long_side: int) -> Trajectory:
    """A camera path as nerfstudio's viewer saves it, at most `long_side` pixels large."""
    held, entries, alone = _read_viewer_path(path)
    poses, fovs, fps = _viewer_poses(path, held, entries, alone)
    if (run := _run_of(path)) is not None:
        poses = apply_similarity(np.linalg.inv(worlds_of_run(run, scene)[0]), poses)
    width, height = _render_size(held, entries, path, long_side)
    cameras = []
    for pose, fov in zip(poses, fovs, strict=True):
        focal = height / 2 / np.tan(np.deg2rad(fov) / 2)  # vertical, as three.js counts it
        lens = Camera(pose, focal, focal, width / 2, height / 2, round(width), round(height))
        cameras.append(lens.resized(*working_size(lens.width, lens.height, long_side)))
    return Trajectory(cameras, fps, file_name(path.stem))


def _read_viewer_path(path: Path) -> tuple[dict[str, Any], list[Any], bool]:
    """What a viewer's path holds, its cameras or key frames, and whether they are the latter; InputError for what is no
    path, or one that is not rendered here.
    """
    held = read_json(path)
    entries = held.get("camera_path") if isinstance(held, dict) else None
    keyframes = held.get("keyframes") if isinstance(held, dict) else None
    alone = entries is None and isinstance(keyframes, list) and bool(keyframes)
    if alone:
        entries = keyframes
    if not isinstance(entries, list):
        raise InputError(
            f"{path} is no camera path of nerfstudio's viewer (it has no camera_path and no keyframes); save one there."
        )
    if not entries:
        raise InputError(f"{path} holds no camera; add keyframes in the viewer and save it again.")
    kind = str(held.get("camera_type") or "perspective").lower()
    if kind != "perspective":
        raise InputError(f"{path} asks for {kind} cameras, which difix does not render; choose Perspective there.")
    if held.get("crop"):
        raise InputError(f"{path} asks for a crop of the scene, which difix does not render; save it without one.")
    return held, entries, alone


def _viewer_poses(
    path: Path, held: dict[str, Any], entries: list[Any], alone: bool
) -> tuple[np.ndarray, np.ndarray, float]:
    """Of what `_read_viewer_path` gives: poses (N, 4, 4), vertical fields of view (N,) in degrees, frames a second."""
    fps = _number(held, "fps", path, 0.1, 1000) if held.get("fps") is not None else None
    if alone:
        fps = fps or _VIEWER_FPS
        return *_through_keyframes(held, path, fps), fps
    wheres = [f"camera {number} in {path}" for number in range(len(entries))]
    poses = np.stack([_pose(e, "camera_to_world", where) for e, where in zip(entries, wheres, strict=True)])
    fovs = np.array([_number(e, "fov", where, 0.1, 179) for e, where in zip(entries, wheres, strict=True)])
    if fps is None and held.get("seconds") is not None:
        fps = len(entries) / _number(held, "seconds", path, 1e-3, 1e6)
    return poses, fovs, fps or _VIEWER_FPS


def _run_of(path: Path) -> Path | None:
    """The folder of the run that a viewer's path is of, by the file that tells its world; None where there is none."""
    for folder in path.absolute().parents[:3]:  # the viewer saves into camera_paths of a data set, ours is in the run
        if (folder / TRANSFORMS).is_file():
            return folder
    return None


def _render_size(held: Mapping[str, object], entries: Sequence[Any], path: Path, long_side: int) -> tuple[float, float]:
    """Width and height of a viewer's path: as it says, or of its cameras' shape and `long_side` pixels."""
    if held.get("render_width") is None and held.get("render_height") is None:
        aspect = _number(entries[0], "aspect", f"the first camera in {path}", 0.01, 100)  # width / height; one for all
        return (long_side, round(long_side / aspect)) if aspect >= 1 else (round(long_side * aspect), long_side)
    width, height = (_number(held, key, path, 16, 65536) for key in ("render_width", "render_height"))
    return width, height


def _through_keyframes(held: Mapping[str, Any], path: Path, fps: float) -> tuple[np.ndarray, np.ndarray]:
    """Poses (N, 4, 4) and vertical fields of view (N,) in degrees along a path's key frames, as the viewer has them.

    Kochanek–Bartels splines of the saved tension through positions, rotations and fields of view, closed or with
    natural ends, passed through at a speed that a monotone cubic takes from the seconds of each transition. A key
    frame's seconds are those it takes to arrive there.
    """
    from scipy.interpolate import PchipInterpolator
    from scipy.spatial.transform import Rotation, Slerp
    from splines import KochanekBartels
    from splines.quaternion import KochanekBartels as RotationSpline
    from splines.quaternion import UnitQuaternion

    keyframes, closed = held["keyframes"], bool(held.get("is_cycle"))
    if len(keyframes) < 2:
        raise InputError(f"{path} holds one key frame, which makes no path; add another in the viewer.")
    wheres = [f"key frame {number} in {path}" for number in range(len(keyframes))]
    poses = np.stack([_pose(entry, "matrix", where) for entry, where in zip(keyframes, wheres, strict=True)])
    default_fov = held.get("default_fov")
    fovs = [
        _number({"fov": entry.get("fov", default_fov)}, "fov", where, 0.1, 179)
        for entry, where in zip(keyframes, wheres, strict=True)
    ]
    usual = _number({"default_transition_sec": 0.5, **held}, "default_transition_sec", path, 1e-3, 1e4)
    seconds = [
        _number(entry, "override_transition_sec", where, 1e-3, 1e4)
        if entry.get("override_transition_enabled") and entry.get("override_transition_sec") is not None
        else usual
        for entry, where in zip(keyframes, wheres, strict=True)
    ]
    steps = seconds[1:] + seconds[:1] if closed else seconds[1:]
    arrival = np.concatenate([[0.0], np.cumsum(steps)])
    number_of = np.arange(len(arrival), dtype=np.float64)
    if closed:  # one more at either end, so that the speed is the same where the ends meet
        knots = np.concatenate([[-steps[-1]], arrival, [arrival[-1] + steps[0]]])
        place = PchipInterpolator(knots, np.concatenate([[-1.0], number_of, [number_of[-1] + 1]]))
    else:
        place = PchipInterpolator(arrival, number_of)
    count = int(fps * arrival[-1] + 1e-9)
    if not 0 < count < _MOST:
        raise InputError(f"{path} makes {count} cameras of {arrival[-1]:g} s at {fps:g} a second; change its seconds.")
    tension = _number({"smoothness_value": 0.0, **held}, "smoothness_value", path, 0, 1)
    shape: dict[str, Any] = {"tcb": (tension, 0.0, 0.0), "endconditions": "closed" if closed else "natural"}
    turns = Rotation.from_matrix(poses[:, :3, :3])
    at = np.clip(place(arrival[-1] * np.arange(count) / count), 0, number_of[-1])
    made = np.tile(np.eye(4), (count, 1, 1))
    made[:, :3, 3] = KochanekBartels(list(poses[:, :3, 3]), **shape).evaluate(at)
    if len(arrival) == 2:  # what the spline is then, where the library has a fault
        made[:, :3, :3] = Slerp([0, 1], turns)(at).as_matrix()
    else:
        turned = RotationSpline([UnitQuaternion.from_unit_xyzw(q) for q in turns.as_quat()], **shape).evaluate(at)
        made[:, :3, :3] = Rotation.from_quat([q.xyzw for q in turned]).as_matrix()
    # between very different lenses a spline may swing beyond what a lens can be
    return made, np.clip(KochanekBartels(fovs, **shape).evaluate(at), 0.1, 179)


def _pose(entry: object, key: str, where: str) -> np.ndarray:
    if not isinstance(entry, dict) or key not in entry:
        raise InputError(f"There is no {key} for {where}; save the path again.")
    try:
        matrix = np.array(entry[key], dtype=np.float64).reshape(4, 4)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"The pose of {where} is not 16 numbers; save the path again.") from None
    return rigid_pose(matrix, where)


def _number(held: Mapping[str, object], key: str, where: object, least: float, most: float) -> float:
    value = held.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:  # NaN is not
        raise InputError(f"{key} is {value!r} for {where}, not between {least:g} and {most:g}; save the path again.")
    return float(value)
