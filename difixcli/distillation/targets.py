"""The views that shall become good: held-out photos' poses, or a camera path where nobody took a photo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from difixcli.errors import InputError
from difixcli.scenes.scene import Camera, Scene, Split
from difixcli.scenes.trajectories import check_trajectory, make_trajectory

TEST = "test"
PHOTOS = "photos"


@dataclass(frozen=True, eq=False)
class Target:
    """A view to be improved: a file name without suffix, its camera, and the frame whose photo shows the truth."""

    name: str
    camera: Camera
    frame: int | None


def check_targets(specs: Sequence[str]) -> None:
    """Raises InputError for specs that are wrong whatever the scene."""
    for spec in specs:
        if spec != TEST:
            check_trajectory(spec)


def make_targets(scene: Scene, split: Split, specs: Sequence[str]) -> list[Target]:
    """The targets of `test` (the split's test poses), of `photos` (its training photos' own) and of camera paths (see
    `make_trajectory`).

    Names are unique. Raises InputError for `test` where no photo is held out, and for a path that cannot be made.
    """
    targets = []
    paths = list(dict.fromkeys(spec for spec in specs if spec not in (TEST, PHOTOS)))
    for spec in dict.fromkeys(specs):
        if spec == TEST:
            if not split.test:
                raise InputError(
                    f"The split {split.rule!r} holds out no photo to aim at; choose another --split, or name a camera "
                    "path with --targets spiral, orbit or shift:0.1."
                )
            targets += [Target(scene.file_names[i], scene.frames[i].camera, i) for i in split.test]
            continue
        if spec == PHOTOS:
            targets += [Target(scene.file_names[i], scene.frames[i].camera, i) for i in split.train]
            continue
        path = make_trajectory(scene, split.train, spec)
        name = path.name if len(paths) == 1 else f"{paths.index(spec) + 1}-{path.name}"
        while any(one.casefold().startswith(f"{name}-".casefold()) for one in scene.file_names):
            name = f"{name}-path"
        targets += [Target(f"{name}-{i:04d}", camera, None) for i, camera in enumerate(path.cameras)]
    return targets
