"""Worlds of nerfstudio's runs: each is normalised its own way, and `dataparser_transforms.json` says how."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from difixcli.errors import InputError
from difixcli.runs import read_json
from difixcli.scenes.poses import rigid_pose
from difixcli.scenes.scene import Scene

TRANSFORMS = "dataparser_transforms.json"
"""What a run says of its world with; nerfstudio's name for the file."""

_ASSUMED_APPLIED = np.array([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0], [0, 0, 0, 1]], dtype=np.float64)
"""What nerfstudio takes for a transforms.json's `applied_transform` if it has none but lies beside a COLMAP model."""


def worlds_of_run(folder: Path, scene: Scene) -> list[np.ndarray]:
    """The (4, 4) similarities that may lead from the scene's normalised world into that of the run in `folder`.

    The first is the likeliest. There is more than one only where the scene's file leaves out what its world has gone
    through. Of a run of ours there is one: its own word stands in `reconstruction.json`. Raises InputError for a
    `dataparser_transforms.json` or `reconstruction.json` that is broken, and for a run of ours of other photos.
    """
    own = folder / "reconstruction.json"
    if own.is_file():  # its data set is in its world already, so that dataparser_transforms.json is the identity
        recipe = read_json(own, {"frames?": [str], "world?": (None, [[float]])})
        if recipe.get("frames") != [frame.name for frame in scene.frames]:
            raise InputError(f"{folder} was made from other photos than those of {scene.root}; name its own scene.")
        world = recipe.get("world")
        if world is not None and [len(row) for row in world] != [4] * 4:
            raise InputError(f"{own} has a world that is no matrix of 4 by 4 numbers; restore it.")
        return [np.eye(4) if world is None else np.array(world)]
    run = _run_from_original(folder / TRANSFORMS)
    return [run @ original for original in _originals(scene)]


def _originals(scene: Scene) -> list[np.ndarray]:
    """The (4, 4) similarities that may lead from the scene's normalised world to what nerfstudio calls the original
    data's; the first is certain unless the data's file leaves out what it went through.
    """
    to_file = np.linalg.inv(scene.source_to_world)
    original = np.linalg.inv(scene.applied) @ to_file
    if np.allclose(scene.applied, np.eye(4)) and (scene.root / "colmap" / "sparse" / "0").exists():
        return [np.linalg.inv(_ASSUMED_APPLIED) @ to_file, original]
    return [original]


def _run_from_original(path: Path) -> np.ndarray:
    """The (4, 4) similarity of a run's `dataparser_transforms.json`: from the original data's world into the run's."""
    held = read_json(path, {"scale?": object})
    scale = held.get("scale")
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale < 1e30:
        raise InputError(f"{path} has no positive scale; name the folder of a nerfstudio run.")
    run = rigid_pose(held.get("transform"), f"transform in {path}")
    run[:3] *= scale
    return run
