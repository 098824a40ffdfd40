"""Cameras and posed photos as the view-conditioned networks take them: tensors, in any world.

Poses are 4×4 camera-to-world with OpenGL axes (x right, y up, z back); pixel centres lie at .5, x right and y down.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Seed points are few where photos are few, and what lies before and behind them is in the picture all the same.
_NEARER, _FARTHER = 0.7, 1.6
_FEWEST_POINTS = 8
_FURTHEST = 40.0  # times near; a disparity beyond differs from infinity's by a fortieth


@dataclass(frozen=True, eq=False)
class Pinhole:
    """The camera of one picture: `intrinsics` (3, 3) in pixels, `pose` (4, 4), `height` and `width` in pixels."""

    intrinsics: Tensor
    pose: Tensor
    height: int
    width: int

    def to(self, device: str | torch.device) -> Pinhole:
        return replace(self, intrinsics=self.intrinsics.to(device), pose=self.pose.to(device))

    def resized(self, long_side: int) -> Pinhole:
        """The same view on a grid whose long side has so many pixels."""
        height, width = fitted(self.height, self.width, long_side)
        return replace(
            self,
            intrinsics=scaled_intrinsics(self.intrinsics, (self.height, self.width), (height, width)),
            height=height,
            width=width,
        )


@dataclass(frozen=True, eq=False)
class InputViews:
    """The posed photos that a view is made from.

    `images` (V, 3, H, W) in [0, 1], V at least 1; `intrinsics` (V, 3, 3) in pixels; `poses` (V, 4, 4); `masks`
    (V, 1, H, W), 1 where a photo counts and 0 where not, None for everywhere; `points` (N, 3) seed points of the scene
    in the poses' world, from which a query's nearest and farthest depth are taken, or None.
    """

    images: Tensor
    intrinsics: Tensor
    poses: Tensor
    masks: Tensor | None = None
    points: Tensor | None = None

    def __len__(self) -> int:
        return self.images.shape[0]

    def to(self, device: str | torch.device) -> InputViews:
        return InputViews(
            self.images.to(device),
            self.intrinsics.to(device),
            self.poses.to(device),
            None if self.masks is None else self.masks.to(device),
            None if self.points is None else self.points.to(device),
        )

    def depth_range(self, query: Pinhole) -> tuple[float, float]:
        """The nearest and farthest z-depth at which a query camera may see something, in the world's units.

        From the seed points that it sees, a little wider than they lie; where it sees fewer than eight, from the
        cameras: around the point that all of them look at, and where they look at none, from their distances.
        """
        if self.points is not None and len(self.points):
            local = _local(self.points, query.pose)
            depth = -local[:, 2]
            x = local[:, 0] / depth * query.intrinsics[0, 0] + query.intrinsics[0, 2]
            y = -local[:, 1] / depth * query.intrinsics[1, 1] + query.intrinsics[1, 2]
            inside = (depth > 0) & (x > 0) & (x < query.width) & (y > 0) & (y < query.height)
            if int(inside.sum()) >= _FEWEST_POINTS:
                low, high = np.quantile(depth[inside].double().cpu().numpy(), [0.01, 0.99]).tolist()
                near = low * _NEARER
                return near, min(high * _FARTHER, near * _FURTHEST)
        poses = torch.cat([self.poses, query.pose[None]]).double()
        centres, axes = poses[:, :3, 3], -poses[:, :3, 2]
        reach = float(torch.cdist(centres, centres).max())
        meets = -float(_local(meeting_point(centres, axes)[None], query.pose.double())[0, 2])
        if reach > 0 and reach / 4 < meets < 20 * reach:
            return meets / 3, meets * 3
        return (reach, reach * _FURTHEST) if reach > 0 else (1.0, _FURTHEST)

    def resized(self, long_side: int) -> InputViews:
        """The same views on a grid whose long side has so many pixels."""
        size = (self.images.shape[-2], self.images.shape[-1])
        target = fitted(*size, long_side)
        if target == size:
            return self
        masks = None
        if self.masks is not None:
            masks = (F.interpolate(self.masks, target, mode="area") > 0.99).to(self.masks)
        return replace(
            self,
            images=F.interpolate(self.images, target, mode="bilinear", antialias=True).clamp(0, 1),
            intrinsics=scaled_intrinsics(self.intrinsics, size, target),
            masks=masks,
        )


def fitted(height: int, width: int, long_side: int) -> tuple[int, int]:
    """Height and width of the same shape whose longer one is `long_side`."""
    scale = long_side / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def scaled_intrinsics(intrinsics: Tensor, size: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Intrinsics (…, 3, 3) of images of `size` (height, width) for the same images made `target` large."""
    scale = intrinsics.new_tensor([target[1] / size[1], target[0] / size[0], 1.0])
    return intrinsics * scale[:, None]


def meeting_point(centres: Tensor, axes: Tensor) -> Tensor:
    """The point (3,) nearest to the lines through `centres` (N, 3) along unit `axes` (N, 3), by least squares.

    Of parallel lines, the one among the best that is nearest to the world's origin.
    """
    across = torch.eye(3, dtype=axes.dtype, device=axes.device) - axes[:, :, None] * axes[:, None, :]
    return torch.linalg.pinv(across.sum(0), rtol=1e-4) @ (across @ centres[:, :, None]).sum(0)[:, 0]


def inverse(poses: Tensor) -> Tensor:
    """World-to-camera (…, 4, 4) of rigid camera-to-world poses; no device waits for it, as for a general inverse."""
    rotation = poses[..., :3, :3].mT
    moved = torch.cat([rotation, -rotation @ poses[..., :3, 3:]], dim=-1)
    return torch.cat([moved, poses[..., 3:, :]], dim=-2)


def _local(points: Tensor, pose: Tensor) -> Tensor:
    """World points (N, 3) in a camera's axes."""
    return (points - pose[:3, 3].to(points)) @ pose[:3, :3].to(points)
