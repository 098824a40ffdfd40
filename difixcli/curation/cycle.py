"""Strategy `cycle`: shift the path sideways, reconstruct from the renders there, and render back on the path."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from difixcli.curation.build import Build
from difixcli.curation.pairs import Pair, render_pairs
from difixcli.errors import InputError
from difixcli.runs import file_name, write_image
from difixcli.scenes.scene import Camera, Frame, Scene

SHIFTED = "shifted"
"""The folder, in a stage's, of the renders on the shifted path."""
_STEP = 0.005  # share of the path's extent that is a step, not noise
_UP = np.array([0.0, 0.0, 1.0])  # scenes are normalised to stand upright


def cycle(scene: Scene, build: Build, shift: str, views: int, folder: Path) -> Iterator[Pair]:
    """Pairs at every frame of the scene, from a reconstruction of a reconstruction.

    `shift` is a distance to the right of travel: `2m` in metres (metric scenes only) or `0.1` as a share of the
    path's extent; negative goes left. The shifted renders are kept under `folder`; the first reconstruction serves
    all shifts of a scene. (Difix3D+, "cycle reconstruction": T_o → T_s → T_o, 1 to 6 m.)

    Raises InputError when metres are asked of a scene that has no scale.
    """
    everything = list(range(len(scene.frames)))
    shifted = shift_path(scene, shift_distance(scene, shift))
    frames = [
        rendered_frame(frame, camera, folder / f"{name}.png")
        for frame, camera, name in zip(scene.frames, shifted, scene.file_names, strict=True)
    ]
    missing = [frame for frame in frames if not frame.image_path.exists()]
    if missing:
        first = build(scene, everything, "cycle-photos")
        for frame in missing:
            write_image(frame.image_path, first.render(frame.camera).color)
    second = build(replace(scene, frames=frames), everything, file_name(f"cycle-{shift}-renders"))
    yield from render_pairs(scene, everything, second, everything, views, {"shift": shift})


def rendered_frame(frame: Frame, camera: Camera, path: Path) -> Frame:
    """A frame whose image is a render made at `camera`."""
    return Frame(frame.name, path, camera, frame.camera_id, camera, np.zeros(6))


def shift_distance(scene: Scene, shift: str) -> float:
    """The shift in normalised units; see `cycle` for its forms."""
    text = shift.strip().lower()
    metres = text.endswith("m")
    try:
        amount = float(text.removesuffix("m"))
    except ValueError as error:
        raise InputError(f"--shift {shift} is not a distance; write 2m for metres or 0.1 for a share.") from error
    if not np.isfinite(amount) or amount == 0:
        raise InputError(f"--shift {shift} moves nothing; write 2m for metres or 0.1 for a share of the extent.")
    if metres:
        if not scene.metric:
            raise InputError(
                f"Scene {scene.name} has no metric scale, so --shift {shift} has no meaning; "
                "give a share of the path's extent (0.1), or put "
                '"metric": true into its transforms.json if its units are metres.'
            )
        return amount * scene.unit_scale
    positions = np.stack([frame.camera.position for frame in scene.frames])
    extent = float(np.linalg.norm(positions.max(0) - positions.min(0)))
    return amount * (extent or 1.0)


def shift_path(scene: Scene, distance: float) -> list[Camera]:
    """The scene's cameras, in the order of its frames, moved sideways; each camera of a rig travels by itself."""
    moved: dict[int, Camera] = {}
    for camera_id in {frame.camera_id for frame in scene.frames}:
        own = [i for i, frame in enumerate(scene.frames) if frame.camera_id == camera_id]
        moved.update(zip(own, shift_sideways([scene.frames[i].camera for i in own], distance), strict=True))
    return [moved[i] for i in range(len(scene.frames))]


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
