"""What a scene's file says, before normalisation: the common ground of the transforms.json and COLMAP readers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from difixcli.scenes.lenses import Lens
from difixcli.scenes.tracks import Tracks


@dataclass(frozen=True, eq=False)
class SourceFrame:
    """One frame as the file has it. `pose` (4, 4) is camera-to-world with OpenGL axes in the file's original world.

    `camera_id` is the name the file gives to the camera, or None. `depths` are the nearest and the farthest z-depth of
    what it shows, in the same world's units, where the file says so.
    """

    name: str
    image_path: Path
    pose: np.ndarray
    lens: Lens
    camera_id: str | None = None
    mask_path: Path | None = None
    depths: tuple[float, float] | None = None


@dataclass(frozen=True, eq=False)
class Source:
    """A scene as read. `points` (N, 3) lie in the same world as the poses; `applied` (4, 4) is the rigid
    transform that the file says its own coordinates have gone through, already undone in poses and points.

    `tracks` says which of `frames`, by index, saw each point; None where the file does not know."""

    path: Path
    frames: Sequence[SourceFrame]
    points: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)))
    colors: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), np.uint8))
    applied: np.ndarray = field(default_factory=lambda: np.eye(4))
    metric: bool = False
    tracks: Tracks | None = None
    warnings: Sequence[str] = ()
    split: tuple[frozenset[str], frozenset[str]] | None = None
    """The names of the frames that train and of those that are targets, where the file itself says so."""
