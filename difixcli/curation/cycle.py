"""Strategy `cycle`: shift the path sideways, reconstruct from the renders there, and render back on the path."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from difixcli.curation.pairs import Pair
from difixcli.curation.sparse import Build
from difixcli.errors import InputError
from difixcli.reference_views import ReferenceViews
from difixcli.runs import file_name, write_image
from difixcli.scenes.scene import Camera, Frame, Scene

_UP = np.array([0.0, 0.0, 1.0])  # scenes are normalised to stand upright


def cycle(scene: Scene, shift: str, build: Build, views: int, folder: Path) -> Iterator[Pair]:
    """Pairs at every frame of the scene, from a reconstruction of a reconstruction.

    `shift` is a distance to the right of travel: `2m` in metres (metric scenes only) or `0.1` as a share of the
    path's extent; negative goes left. The shifted renders are kept under `folder`. (Difix3D+, "cycle
    reconstruction": T_o → T_s → T_o.)

    Raises InputError when metres are asked of a scene that has no scale.
    """
    everything = list(range(len(scene.frames)))
    first = build(scene, everything, "photos")
    shifted = shift_sideways([frame.camera for frame in scene.frames], shift_distance(scene, shift))
    frames = []
    for frame, camera in zip(scene.frames, shifted, strict=True):
        path = folder / f"{file_name(frame.name)}.png"
        write_image(path, first.render(camera).color)
        frames.append(rendered_frame(frame, camera, path))
    second = build(replace(scene, frames=frames), everything, "renders")
    references = ReferenceViews(scene, everything, second, views)

    def pairs() -> Iterator[Pair]:
        for i in everything:
            camera = scene.frames[i].camera
            render = second.render(camera)
            yield Pair(i, camera, render, references.beside(camera, render, exclude=[i]), {"shift": shift})

    return pairs()


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


def shift_sideways(cameras: Sequence[Camera], distance: float) -> list[Camera]:
    """The cameras, in order of travel, moved `distance` normalised units to the right, level, heading unchanged.

    Right is perpendicular to the local direction of travel in the ground plane; where there is no travel (one frame,
    or a stop) it is the camera's own level right.
    """
    positions = np.stack([camera.position for camera in cameras])
    travel = np.gradient(positions, axis=0) if len(cameras) > 1 else np.zeros_like(positions)
    moved = []
    for camera, direction in zip(cameras, travel, strict=True):
        right = np.cross(direction, _UP)
        if np.linalg.norm(right) < 1e-8:
            right = camera.camera_to_world[:3, 0] * (1 - _UP)
        pose = camera.camera_to_world.copy()
        pose[:3, 3] += distance * right / np.linalg.norm(right)
        moved.append(camera.moved(pose))
    return moved
