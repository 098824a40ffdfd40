"""The nouns of a posed photo set: cameras, frames and scenes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from difixcli.images import Operator
from difixcli.runs import file_name
from difixcli.scenes.lenses import Lens
from difixcli.scenes.tracks import Tracks

WORLDS = ("scene", "normalised")
"""The worlds that something may be written in: the one of the poses in the scene's file, and `Scene`'s."""


_SAME_SHAPE = 0.02  # relative difference of two ratios of the sides: rounding a size to whole pixels makes as much


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole camera.

    `camera_to_world` is (4, 4) float64 with OpenGL axes (x right, y up, z back), as nerfstudio has them, in the
    scene's normalised world. `fx, fy, cx, cy` are in pixels of a `width` × `height` image whose first pixel's
    centre lies at (0.5, 0.5), with x to the right and y down.
    """

    camera_to_world: np.ndarray
    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int

    @property
    def lens(self) -> Lens:
        """The lens of an image that this camera draws: no distortion, the image's size."""
        return Lens(self.fx, self.fy, self.cx, self.cy, self.width, self.height)

    @property
    def position(self) -> np.ndarray:
        """(3,) camera centre in world units."""
        return self.camera_to_world[:3, 3]

    @property
    def intrinsics(self) -> np.ndarray:
        """(3, 3) float64 pinhole matrix K in pixels."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1]], dtype=np.float64)

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where points (…, 3) of the camera's world are in the image: x and y (…) in pixels, and z-depth (…).

        x runs right and y down from the image's upper left corner, so that pixel (row, column) covers
        [column, column + 1) × [row, row + 1). Depth is the distance along the viewing axis in world units; only where
        it is positive are x and y where the point is seen. Behind the camera they are mirrored, beside it (depth 0)
        they are not finite. Nothing is clipped to the image. float64.
        """
        local = (points - self.position) @ self.camera_to_world[:3, :3]
        depth = -local[..., 2]
        with np.errstate(divide="ignore", invalid="ignore"):
            x = local[..., 0] / depth * self.fx + self.cx
            y = -local[..., 1] / depth * self.fy + self.cy
        return x, y, depth

    def unproject(self, x: np.ndarray, y: np.ndarray, depth: np.ndarray) -> np.ndarray:
        """The points (…, 3) of the camera's world at pixel positions x and y and z-depth, which broadcast to (…).

        What `project` gives, back again; see there for what the numbers mean. float64.
        """
        right, up = self.plane(x, y)
        local = np.stack(np.broadcast_arrays(right * depth, up * depth, -depth), axis=-1)
        return local @ self.camera_to_world[:3, :3].T + self.position

    def plane(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the rays through pixel positions x and y cross the plane at z-depth 1: how far right of the viewing
        axis and how far up, in the camera's own axes. A ray has (right² + up² + 1)^½ of length for each unit of depth.

        Both have their argument's shape and floating type.
        """
        return (x - self.cx) / self.fx, -(y - self.cy) / self.fy

    def moved(self, camera_to_world: np.ndarray) -> Camera:
        """The same lens at another pose (4, 4)."""
        return replace(self, camera_to_world=np.asarray(camera_to_world, dtype=np.float64))

    def resized(self, width: int, height: int) -> Camera:
        """The same view on a `width` × `height` grid."""
        sx, sy = width / self.width, height / self.height
        return replace(
            self, fx=self.fx * sx, fy=self.fy * sy, cx=self.cx * sx, cy=self.cy * sy, width=width, height=height
        )

    def reshaped(self, width: int, height: int) -> Camera:
        """`resized` to a grid of the same shape; on one of another shape the view is cut and widened in place of being
        squeezed, at the scale that keeps its area.
        """
        sx, sy = width / self.width, height / self.height
        if abs(sx / sy - 1) < _SAME_SHAPE:
            return self.resized(width, height)
        scale = (sx * sy) ** 0.5
        cx, cy = (self.cx - self.width / 2) * scale + width / 2, (self.cy - self.height / 2) * scale + height / 2
        return replace(self, fx=self.fx * scale, fy=self.fy * scale, cx=cx, cy=cy, width=width, height=height)


@dataclass(frozen=True, eq=False)
class Frame:
    """One posed photo.

    `name` is unique in its scene (the image's path relative to the scene's folder, POSIX style).
    `camera` is the pinhole camera of the undistorted photo at the scene's working size; `lens` is what the file on
    disk was taken with, at that file's own size: where `turned`, as its EXIF orientation turns it, else as its pixels
    are stored. `operator` is how the photo is made smaller (see `images.reduced`). `depths` are the nearest and the
    farthest z-depth of what it shows, in units of the camera's world, where the scene's file says so.
    """

    name: str
    image_path: Path
    camera: Camera
    camera_id: str
    lens: Lens
    mask_path: Path | None = None
    turned: bool = False
    operator: Operator = "area"
    depths: tuple[float, float] | None = None


@dataclass(frozen=True, eq=False)
class Scene:
    """A posed photo set in one normalised world.

    `frames` are sorted by name. `points` (N, 3) float32 and `colors` (N, 3) uint8 are the seed points (N may be 0),
    in the same world. `source_to_world` (4, 4) maps the file's own world into the normalised one (a similarity:
    rotation, translation and uniform scale), computed once from ALL frames. `applied` (4, 4) is the rigid transform
    that the file says its own world has gone through (from COLMAP's, as a rule). `metric` says whether the file's
    units are metres; `unit_scale` is normalised units per source unit. `own_split` is the split that the scene's file
    itself makes, if it makes one. `tracks` says which frames saw each seed point; None where that is not known.
    """

    name: str
    root: Path
    frames: Sequence[Frame]
    points: np.ndarray
    colors: np.ndarray
    source_to_world: np.ndarray
    metric: bool = False
    warnings: Sequence[str] = field(default_factory=tuple)
    applied: np.ndarray = field(default_factory=lambda: np.eye(4))
    own_split: Split | None = None
    tracks: Tracks | None = None

    def known_to(self, train: Sequence[int]) -> Scene:
        """The scene with only the seed points that at least two of the frames `train` saw (the one, if it is one).

        A point that the others saw, too, says where a surface is that they show: training has it from none but its own
        photos. Without tracks all points stay.
        """
        if self.tracks is None:
            return self
        kept = np.flatnonzero(self.tracks.counts(train) >= min(2, len(set(train))))
        return replace(self, points=self.points[kept], colors=self.colors[kept], tracks=self.tracks.of_points(kept))

    @property
    def unit_scale(self) -> float:
        """Normalised units per unit of the scene's file."""
        return float(np.cbrt(np.linalg.det(self.source_to_world[:3, :3])))

    @cached_property
    def file_names(self) -> tuple[str, ...]:
        """A file name without suffix for each frame, unique in the scene also where case does not count.

        It is the frame's own name made safe, with the frame's number where several would be one (`a.jpg`, `a.png`), and
        where one is another's and more behind a dot (`a`, `a.target`), as files that belong to that other are called.
        """
        names = [file_name(frame.name) for frame in self.frames]
        count = Counter(name.casefold() for name in names)
        unique = []
        for number, name in enumerate(names):
            chosen = name
            parts = name.casefold().split(".")
            of_another = any(".".join(parts[:end]) in count for end in range(1, len(parts)))
            if count[name.casefold()] > 1 or of_another:
                chosen = f"{name}-{number:05d}"
                while chosen.casefold() in count:
                    chosen += "-"
            unique.append(chosen)
        return tuple(unique)


@dataclass(frozen=True)
class Split:
    """Which frames train (reference) and which are targets (test): indices into `Scene.frames`, each sorted."""

    train: Sequence[int]
    test: Sequence[int]
    rule: str
