"""Whether a few photos can say anything about the space between them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from difixcli.errors import InputError
from difixcli.scenes.scene import Scene

_PIXELS = 8  # a side, of a photo's grid that is looked along
_DEPTHS = 64
_REACH = (0.05, 20.0)  # times the distance of two cameras: how near and far a surface both may see is looked for
_APART = 1e-4  # of the cameras' extent: below, two of them stand at one place
_ADVICE = "choose other photos with --split"


def check_few_photos(scene: Scene, train: Sequence[int], rule: str) -> None:
    """Raises InputError unless what the photos `train` show together can be seen from between them.

    That takes two photos at least, taken from different places, each of which has space before it that another photo
    has before it too, at 0.05 to 20 times the distance of the two. `rule` is the split's, for the message.
    """
    if len(train) < 2:
        raise InputError(
            f"The split {rule!r} leaves one photo to train on, which says nothing about depth; two to four are needed, "
            "as of --split groups:2 or file:split.json."
        )
    positions = np.stack([scene.frames[i].camera.position for i in train])
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=2)
    every = np.stack([frame.camera.position for frame in scene.frames])
    extent = float(np.linalg.norm(every.max(0) - every.min(0)))
    if distances.max() <= _APART * extent or distances.max() == 0:
        raise InputError(
            f"The {len(train)} photos that train were taken from one place, as {scene.frames[train[0]].name} and "
            f"{scene.frames[train[1]].name}, so they show no depth; {_ADVICE}."
        )
    for one, index in enumerate(train):
        others = [other for other in range(len(train)) if other != one and distances[one, other] > _APART * extent]
        if any(_share_space(scene, index, train[other]) for other in others):
            continue
        nearest = train[min(others, key=lambda other: distances[one, other])]
        name, beside = scene.frames[index].name, scene.frames[nearest].name
        if _look_away(scene, index, nearest):
            raise InputError(f"{name} and {beside} look away from each other and share nothing; {_ADVICE}.")
        raise InputError(f"{name} shows nothing that another photo that trains shows, as {beside}; {_ADVICE}.")


def _share_space(scene: Scene, one: int, other: int) -> bool:
    """Whether some space that one frame's photo shows lies in the other's picture."""
    camera, beside = scene.frames[one].camera, scene.frames[other].camera
    apart = float(np.linalg.norm(camera.position - beside.position))
    x, y = ((np.arange(_PIXELS) + 0.5) / _PIXELS * size for size in (camera.width, camera.height))
    depths = np.geomspace(*_REACH, _DEPTHS) * apart
    points = camera.unproject(x[None, :, None], y[:, None, None], depths[None, None, :]).reshape(-1, 3)
    column, row, depth = beside.project(points)
    inside = (depth > _REACH[0] * apart) & (column >= 0) & (column < beside.width) & (row >= 0) & (row < beside.height)
    return bool(inside.any())


def _look_away(scene: Scene, one: int, other: int) -> bool:
    """Whether each of two frames' cameras stands behind the other."""
    first, second = scene.frames[one].camera, scene.frames[other].camera
    way = second.position - first.position
    return bool(-first.camera_to_world[:3, 2] @ way < 0 < -second.camera_to_world[:3, 2] @ way)
