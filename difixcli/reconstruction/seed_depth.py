"""Seed points as depth along some of the rays that a radiance field trains on.

From a handful of photos a field explains each of them by colours far behind the scene: 23 dB on the photos, 14 dB
between them. The points that posed the photos say how far the surfaces are. DS-NeRF (Deng et al. 2022) uses them so;
the penalty here is a transport cost: a ray's weights w_i at distances m_i, with a point at distance d, cost
Σ w_i · min(|m_i − d| / d, 1) + (1 − Σ w_i), which is 0 for an opaque surface at d and the same at every scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from difixcli.scenes import load_mask, load_photo
from difixcli.scenes.scene import Scene
from difixcli.scenes.visibility import unhidden

DEPTH = "seed_distance"
"""Key of a batch's known distances along its rays, (R, 1), 0 where none is known."""

HIDDEN_BEHIND = 1.05
"""A seed point so many times farther than one that projects beside it is not seen."""
_SHARE = 8  # one ray in so many goes through a seed point
_COLOR_TOLERANCE = 0.25


@dataclass(frozen=True, eq=False)
class SeedRays:
    """Pixels of training photos that show a seed point.

    `pixels` (N, 3) int64: the photo's position among the training photos, row and column. `distances` (N,) float32
    along the ray, in normalised world units. `colors` (N, 3) float32, the photo's own.
    """

    pixels: np.ndarray
    distances: np.ndarray
    colors: np.ndarray

    @classmethod
    def of(cls, scene: Scene, train: Sequence[int]) -> SeedRays:
        """The visible seed points of each training photo: not behind another, not masked, of the pixel's colour."""
        return cls.joined(cls.of_photo(scene, index, position) for position, index in enumerate(train))

    @classmethod
    def of_photo(cls, scene: Scene, index: int, position: int) -> SeedRays:
        """Those of one frame's photo, which is at `position` among the training photos."""
        camera, photo = scene.frames[index].camera, load_photo(scene.frames[index])
        x, y, depth = camera.project(scene.points)
        inside = (depth > 1e-3) & (x >= 0) & (x < camera.width) & (y >= 0) & (y < camera.height)
        candidates = np.flatnonzero(inside)
        column, row = x[candidates].astype(np.int64), y[candidates].astype(np.int64)
        color = photo[row, column]
        alike = np.abs(color - scene.colors[candidates] / 255).max(axis=1) < _COLOR_TOLERANCE
        size = (camera.height, camera.width)
        keep = alike & unhidden(x[candidates], y[candidates], depth[candidates], size, HIDDEN_BEHIND)
        if (mask := load_mask(scene.frames[index])) is not None:
            keep &= mask[row, column]
        pixels = np.stack([np.full(keep.sum(), position), row[keep], column[keep]], axis=1)
        away = np.linalg.norm(scene.points[candidates[keep]] - camera.position, axis=1)
        return cls(pixels, away.astype(np.float32), color[keep])

    @classmethod
    def joined(cls, parts: Iterable[SeedRays]) -> SeedRays:
        """All of them together, in their order."""
        pixels, distances, colors = [np.zeros((0, 3), np.int64)], [np.zeros(0, np.float32)], [np.zeros((0, 3))]
        for part in parts:
            pixels.append(part.pixels)
            distances.append(part.distances)
            colors.append(part.colors)
        return cls(np.concatenate(pixels), np.concatenate(distances), np.concatenate(colors).astype(np.float32))

    def save(self, path: Path) -> None:
        np.savez_compressed(path, pixels=self.pixels, distances=self.distances, colors=self.colors)

    @classmethod
    def load(cls, path: Path) -> SeedRays:
        with np.load(path, allow_pickle=False) as held:
            return cls(held["pixels"], held["distances"], held["colors"])


def depth_map(scene: Scene, frame: int) -> np.ndarray:
    """(H, W) float32: the z-depths of the seed points that a photo shows, in normalised world units, elsewhere 0."""
    rays, camera = SeedRays.of(scene, [frame]), scene.frames[frame].camera
    _, row, column = rays.pixels.T
    right, up = camera.plane(column + 0.5, row + 0.5)
    depth = np.zeros((camera.height, camera.width), np.float32)
    depth[row, column] = rays.distances / np.sqrt(1 + right**2 + up**2)
    return depth


class SeedRayMixer:
    """Lets a part of every batch of rays go through seed points, whose distance the batch then holds."""

    def __init__(self, rays: SeedRays, generator: Callable[[Tensor], Any]) -> None:
        self._generator = generator
        self._pixels = torch.from_numpy(rays.pixels)
        self._distances = torch.from_numpy(rays.distances)
        self._colors = torch.from_numpy(rays.colors)

    def mix(self, batch: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The rays of the changed batch, and the batch: its last eighth replaced, `DEPTH` added."""
        indices, image = batch["indices"].clone(), batch["image"].clone()
        distances = torch.zeros(len(indices), 1)
        if (known := len(self._pixels)) and (count := len(indices) // _SHARE):
            chosen = torch.randint(known, (count,))
            indices[-count:] = self._pixels[chosen].to(indices)
            image[-count:, :3] = self._colors[chosen].to(image)
            distances[-count:, 0] = self._distances[chosen]
        return self._generator(indices), {**batch, "indices": indices, "image": image, DEPTH: distances}


def seed_depth_loss(outputs: dict[str, Any], batch: dict[str, Any], factor: float) -> dict[str, Tensor]:
    """The transport cost of every sampling level of a nerfacto-like model, times `factor`; nothing where a batch knows
    no distances.
    """
    if DEPTH not in batch or "weights_list" not in outputs:
        return {}
    known = batch[DEPTH][:, 0] > 0
    distances = batch[DEPTH][known].to(outputs["weights_list"][0].device)
    costs = [
        _transport(weights[known.to(weights.device)][..., 0], samples, known, distances)
        for weights, samples in zip(outputs["weights_list"], outputs["ray_samples_list"], strict=True)
    ]
    return {"seed_depth_loss": factor * torch.stack(costs).sum()}


def _transport(weights: Tensor, samples: Any, known: Tensor, distances: Tensor) -> Tensor:
    """weights (K, S), distances (K, 1) → mean cost ()."""
    middles = (samples.frustums.starts + samples.frustums.ends)[known.to(weights.device)][..., 0] / 2
    apart = ((middles - distances).abs() / distances).clamp_max(1)
    return ((weights * apart).sum(dim=-1) + 1 - weights.sum(dim=-1)).mean()
