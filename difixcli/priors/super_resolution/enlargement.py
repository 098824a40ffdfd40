"""What super-resolution is asked for, and the scene at its two sizes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from difixcli.errors import InputError
from difixcli.images import Operator
from difixcli.runs import check_enlarged
from difixcli.scenes.scene import Frame, Scene

Update = Literal["posterior", "paper"]
UPDATES: tuple[Update, ...] = get_args(Update)

_SMALLEST = 16  # pixels of a small photo's side


@dataclass(frozen=True)
class Enlargement:
    """What super-resolution is asked for.

    The scene is trained at `upscale` times its photos' size, after these were made `reduce` times smaller by `operator`
    (see `images.reduced`). `resolver` names the super-resolver, `update` how a diffusing one goes on from a render:
    `posterior` (3DSR's release) or `paper`.
    """

    upscale: int
    reduce: int
    operator: Operator
    resolver: str
    update: Update


SHAPE = {"upscale": int, "reduce": int, "operator": str, "resolver": str, "update": str}
"""The shape of an `Enlargement` in a run's record."""


def small_and_large(scene: Scene, enlargement: Enlargement) -> tuple[Scene, Scene]:
    """The scene whose photos are `reduce` times smaller, and the one that is `upscale` times larger than that.

    Sides that do not divide lose their rest: photos are resampled by less than a pixel of the small one.
    Raises InputError where the large photos would be larger than what was reduced (there is no truth of that size) or
    than any image may be, and where nothing is left of the small ones.
    """
    up, down = enlargement.upscale, enlargement.reduce
    if 1 < down < up:
        raise InputError(
            f"--reduce {down} leaves no photo that is {up} times larger to measure against; use --reduce {up} or more, "
            "or leave it out."
        )
    small, large = [], []
    for frame in scene.frames:
        width, height = frame.camera.width // down, frame.camera.height // down
        if min(width, height) < _SMALLEST:
            raise InputError(
                f"{frame.name} would have {width}×{height} pixels after --reduce {down}; at least {_SMALLEST} a side "
                "are needed. Use a smaller --reduce or a larger --size."
            )
        check_enlarged(frame.name, width, height, up)
        small.append(_resized(frame, width, height, enlargement))
        large.append(_resized(frame, width * up, height * up, enlargement))
    return replace(scene, frames=small), replace(scene, frames=large)


def _resized(frame: Frame, width: int, height: int, enlargement: Enlargement) -> Frame:
    return replace(frame, camera=frame.camera.resized(width, height), operator=enlargement.operator)
