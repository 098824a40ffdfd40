"""Textured planes seen by pinhole cameras, in tensors: scenes whose depth is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from difixcli.runs import write_image
from difixcli.scenes.nerfstudio_format import write_transforms
from difixcli.scenes.ply import write_points
from difixcli.scenes.scene import Camera


def intrinsics(side: int, focal: float = 1.0) -> Tensor:
    """(3, 3) of a square picture whose focal length is `focal` sides."""
    return torch.tensor([[focal * side, 0, side / 2], [0, focal * side, side / 2], [0, 0, 1]])


def pose(x: float, y: float = 0.0, z: float = 0.0) -> Tensor:
    """(4, 4) of a camera that looks along −z."""
    moved = torch.eye(4)
    moved[:3, 3] = torch.tensor([x, y, z])
    return moved


def picture(texture: Tensor, depth: float, camera: Tensor, k: Tensor, height: int, width: int) -> Tensor:
    """(3, height, width) what a camera sees of the plane z = −depth, painted with a texture (3, T, T) that repeats
    every 2 · depth.
    """
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    rays = torch.stack([(x - k[0, 2]) / k[0, 0], -(y - k[1, 2]) / k[1, 1], -torch.ones_like(x)], dim=-1)
    rays = rays @ camera[:3, :3].T
    reach = (-depth - camera[2, 3]) / rays[..., 2]
    place = (camera[:2, 3] + rays[..., :2] * reach[..., None]) / depth
    grid = (place + 1).remainder(2) - 1
    wide = F.pad(texture[None], (2, 2, 2, 2), mode="circular")
    shrunk = texture.shape[-1] / wide.shape[-1]
    return F.grid_sample(wide, grid[None] * shrunk, align_corners=False)[0]


def texture(seed: int, side: int = 48) -> Tensor:
    """(3, side, side) in [0, 1]: blurred noise that repeats."""
    noise = torch.rand(3, side, side, generator=torch.Generator().manual_seed(seed))
    blurred = F.avg_pool2d(F.pad(noise[None], (1, 1, 1, 1), mode="circular"), 3, 1)[0]
    return ((blurred - 0.5) * 2.2 + 0.5).clamp(0, 1)


def write_plane(folder: Path, seed: int, count: int = 9, side: int = 48, depth: float = 3.0) -> Path:
    """A scene folder of a plane: photos of `side` pixels along a line and seed points on the plane."""
    (folder / "images").mkdir(parents=True)
    k = intrinsics(side)
    frames = []
    for i in range(count):
        at = pose(0.15 * (i - count // 2), 0.05 * (i % 3))
        seen = picture(texture(seed), depth, at, k, side, side)
        write_image(folder / "images" / f"{i}.png", seen.permute(1, 2, 0).numpy())
        camera = Camera(at.double().numpy(), float(k[0, 0]), float(k[1, 1]), side / 2, side / 2, side, side)
        frames.append((camera, {"file_path": f"images/{i}.png"}))
    rng = np.random.default_rng(seed)
    points = np.concatenate([rng.uniform(-1.5, 1.5, (400, 2)), np.full((400, 1), -depth)], axis=1)
    write_points(folder / "points3D.ply", points.astype(np.float32), np.full((400, 3), 128, dtype=np.uint8))
    write_transforms(folder / "transforms.json", frames, ply_file_path="points3D.ply")
    return folder
