"""Taking over a model that was trained elsewhere: its parameters, and the world it was trained in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from difixcli.errors import InputError
from difixcli.scenes.poses import apply_similarity, transform_points
from difixcli.scenes.scene import Scene

_PER_PHOTO = ("camera_optimizer.", "bil_grids.")
_APPEARANCE = "embedding_appearance."
_NOT_LEARNED = ("device_indicator_param", "lpips.", "psnr.", "ssim.")


@dataclass(frozen=True, eq=False)
class Origin:
    """A trained model that a reconstruction begins from.

    `settings` are fields of the method's configuration that describe it, `world` is the (4, 4) similarity from the
    scene's normalised world into its own, `box` half the side of the cube its field ends at (None: it does not).
    `state` is its state dict; how what was learned photo by photo is taken over, `Reconstruction.adopt` says.
    """

    settings: dict[str, Any]
    world: np.ndarray
    box: float | None
    state: dict[str, Tensor]


def moved(scene: Scene, world: np.ndarray) -> Scene:
    """The scene after a (4, 4) similarity of its world."""
    scale = float(np.cbrt(np.linalg.det(world[:3, :3])))
    frames = [
        replace(
            frame,
            camera=frame.camera.moved(apply_similarity(world, frame.camera.camera_to_world)),
            depths=frame.depths and (frame.depths[0] * scale, frame.depths[1] * scale),
        )
        for frame in scene.frames
    ]
    return replace(scene, frames=frames, points=transform_points(world, scene.points))


def fitted(state: dict[str, Tensor], wanted: dict[str, Tensor], photos: int) -> dict[str, Tensor]:
    """The entries of `state` that a model with the entries `wanted` takes; InputError where they are others."""
    taken = {}
    for key, own in wanted.items():
        found = state.get(key)
        if found is None and key.startswith((*_PER_PHOTO, *_NOT_LEARNED)):
            taken[key] = own
            continue
        by_photo = key.startswith(_PER_PHOTO) or _APPEARANCE in key
        if found is not None and (found.shape != own.shape or by_photo):
            alike = own.ndim > 0 and found.shape[1:] == own.shape[1:]
            if alike and len(own) == photos and not key.startswith("gauss_params."):
                found = found.float().mean(dim=0, keepdim=True).to(found.dtype).expand(own.shape).clone()
            elif found.shape != own.shape and (not alike or not key.startswith("gauss_params.")):
                found = None
        if found is None:
            raise InputError(
                f"The checkpoint does not fit its method ({key} is missing or of another size): it was trained with "
                "other networks (such as tiny-cuda-nn's, which only a GPU has) or with another version."
            )
        taken[key] = found
    for key in state.keys() - wanted.keys():
        if not key.startswith((*_PER_PHOTO, *_NOT_LEARNED)):
            raise InputError(f"The checkpoint has {key}, which its method has no place for; train anew.")
    return taken
