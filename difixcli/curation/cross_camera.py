"""Strategy `cross-camera`: reconstruct from one camera of a rig, render where the others took their photos."""

from __future__ import annotations

from collections.abc import Iterator

from difixcli.curation.build import Build
from difixcli.curation.pairs import Pair, render_pairs
from difixcli.errors import InputError
from difixcli.runs import file_name
from difixcli.scenes.scene import Scene, Split


def default_camera_rule(scene: Scene) -> str:
    """The split under which the rig's first camera by name trains; InputError for a scene with one camera."""
    cameras = sorted({frame.camera_id for frame in scene.frames})
    if len(cameras) < 2:
        raise InputError(
            f"Scene {scene.name} has one camera, and cross-camera needs a rig; give each camera a folder or a "
            "camera_id in transforms.json, or tell them by name with --split names:PATTERN."
        )
    return f"camera:{cameras[0]}"


def cross_camera(scene: Scene, build: Build, split: Split, views: int) -> Iterator[Pair]:
    """Pairs at the other cameras' frames (the split's test frames), from a reconstruction of one camera's.

    Cameras are what the scene's file, else the folders of its images, say (`camera:ID`), or what a pattern finds in
    the names (`names:PATTERN`). (Difix3D+, "cross reference": train on the centre camera, render the side ones.)
    """
    if not split.rule.startswith(("camera:", "names:", "file:")):
        raise InputError(
            f"--split {split.rule} does not tell a rig's cameras apart; write camera:ID, or names:PATTERN for one that "
            "is told by its images' names."
        )
    reconstruction = build(scene, split.train, file_name(f"cross-camera-{split.rule}"))
    yield from render_pairs(scene, split.test, reconstruction, split.train, views, {"split": split.rule})
