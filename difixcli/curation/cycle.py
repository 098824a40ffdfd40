"""Strategy `cycle`: shift the path sideways, reconstruct from the renders there, and render back on the path."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from difixcli.curation.build import Build
from difixcli.curation.pairs import Pair, render_pairs
from difixcli.runs import file_name, write_image
from difixcli.scenes.scene import Camera, Frame, Scene
from difixcli.scenes.trajectories import shift_distance, shift_path

SHIFTED = "shifted"
"""The folder, in a stage's, of the renders on the shifted path."""


def cycle(scene: Scene, build: Build, shift: str, views: int, folder: Path) -> Iterator[Pair]:
    """Pairs at every frame of the scene, from a reconstruction of a reconstruction.

    `shift` is a distance to the right of travel: `2m` in metres (metric scenes only) or `0.1` as a share of the
    path's extent; negative goes left. The shifted renders are kept under `folder`; the first reconstruction serves
    all shifts of a scene. (Difix3D+, "cycle reconstruction": T_o → T_s → T_o, 1 to 6 m.)

    Raises InputError when metres are asked of a scene that has no scale.
    """
    everything = list(range(len(scene.frames)))
    shifted = shift_path(scene.frames, shift_distance(scene, shift))
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
    return Frame(frame.name, path, camera, frame.camera_id, camera.lens)
