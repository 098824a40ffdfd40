"""Which place of a reference each pixel of a render shows, known from the reference's depth and both cameras.

Networks whose references are wanted with their geometry (see `geometry`) look there. Everything here is tensors in,
tensors out, without gradients; no reconstruction is needed, only its depth and cameras. Conventions are those of
`alignment`. Places are counted in pixels from the first one's centre, (0, 0).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from difixcli.fixer.alignment import unproject

_SHARPNESS = 10.0  # of the nearer of two points that fall on one pixel
_HIDDEN_BEHIND = 1.1  # a point so many times farther than what the render shows there is not seen


@torch.no_grad()
def correspond(
    ref_depths: Tensor,
    ref_intrinsics: Tensor,
    ref_camera_to_world: Tensor,
    intrinsics: Tensor,
    camera_to_world: Tensor,
    depth: Tensor | None = None,
) -> Tensor:
    """Which place of each reference every pixel of a render shows.

    Each reference's depth is unprojected and projected into the render; there the reference's own pixel positions are
    splatted bilinearly, nearer points outweighing farther ones: weights exp(10·n − 10) with n = 0.5/z brought to
    [0, 1] by its smallest and largest value over the image.

    Args:
        ref_depths: (B, V, 1, H, W) z-depth at the references' cameras, brought to the render's size; 0 for holes.
        ref_intrinsics: (B, V, 3, 3) of references of that size.
        ref_camera_to_world: (B, V, 4, 4).
        intrinsics: (B, 3, 3) of the render.
        camera_to_world: (B, 4, 4).
        depth: (B, 1, H, W) the render's own z-depth, 0 where it is unknown, or None. Points behind it are hidden and
            leave holes; without it only nearer points of the same reference hide others.

    Returns:
        (B, V, 3, H, W): x and y in the reference's pixels, counted from the first one's centre, and 1 where they are
        known, else all three 0.
    """
    batch, views, _, height, width = ref_depths.shape
    found = ref_depths.new_zeros((batch, views, 3, height, width))
    for b in range(batch):
        for v in range(views):
            hiding = None if depth is None else depth[b, 0]
            cameras = (ref_intrinsics[b, v], ref_camera_to_world[b, v], intrinsics[b], camera_to_world[b])
            found[b, v] = _correspond(ref_depths[b, v, 0], *cameras, hiding)
    return found


def cropped(correspondence: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    """A correspondence (…, 3, H, W) of a rectangle of the render with the same rectangle of the references.

    Places outside of the references' rectangle are not known.
    """
    cut = correspondence[..., top : top + height, left : left + width]
    known = cut[..., 2, :, :]
    # what is known outside keeps its place: tokens at the border lie between it and what is inside
    x, y = (cut[..., 0, :, :] - left) * known, (cut[..., 1, :, :] - top) * known
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return torch.stack([x, y, known * inside], dim=-3)


def padded(correspondence: Tensor, multiple: int) -> Tensor:
    """A correspondence (B, V, 3, H, W) of images that are continued below and to the right until their sides divide by
    `multiple`; of what is added no place is known.
    """
    height, width = correspondence.shape[-2:]
    beyond = (0, -width % multiple, 0, -height % multiple)
    # a token at the border lies between a place and the padding's
    wide = F.pad(correspondence.flatten(0, 1), beyond, mode="replicate").unflatten(0, correspondence.shape[:2])
    wide[..., 2, height:, :] = 0
    wide[..., 2, :, width:] = 0
    return wide


def resized(correspondence: Tensor, size: tuple[int, int]) -> Tensor:
    """A correspondence (V, 3, H, W) of the render and its references when all are stretched to another size."""
    height, width = correspondence.shape[-2:]
    x, y, known = F.interpolate(correspondence, size, mode="nearest").unbind(1)
    x, y = ((x + 0.5) * (size[1] / width) - 0.5) * known, ((y + 0.5) * (size[0] / height) - 0.5) * known
    return torch.stack([x, y, known], dim=1)


def mirrored(correspondence: Tensor) -> Tensor:
    """A correspondence (…, 3, H, W) of the render and its references when all are turned left to right."""
    flipped = correspondence.flip(-1)
    x, y, known = flipped.unbind(-3)
    return torch.stack([(correspondence.shape[-1] - 1 - x) * known, y, known], dim=-3)


def transposed(correspondence: Tensor) -> Tensor:
    """A correspondence (…, 3, H, W) of the render and its references when all are transposed."""
    x, y, known = correspondence.transpose(-1, -2).unbind(-3)
    return torch.stack([y, x, known], dim=-3)


def _correspond(
    ref_depth: Tensor, ref_intrinsics: Tensor, ref_pose: Tensor, intrinsics: Tensor, pose: Tensor, depth: Tensor | None
) -> Tensor:
    """One reference's (H, W) z-depth → (3, H, W)."""
    height, width = ref_depth.shape
    points = unproject(ref_depth, ref_intrinsics, ref_pose)
    intrinsics, pose = intrinsics.to(points), pose.to(points)
    local = (points - pose[:3, 3]) @ pose[:3, :3]
    z = -local[..., 2]
    there = (ref_depth > 0) & (z > 1e-6)
    safe = torch.where(there, z, torch.ones_like(z))
    u = intrinsics[0, 0] * local[..., 0] / safe + intrinsics[0, 2] - 0.5
    v = -intrinsics[1, 1] * local[..., 1] / safe + intrinsics[1, 2] - 0.5
    inside = there & (u > -1) & (u < width) & (v > -1) & (v < height)
    if depth is not None:
        column, row = u.round().clamp(0, width - 1).long(), v.round().clamp(0, height - 1).long()
        front = depth[torch.where(inside, row, 0), torch.where(inside, column, 0)]
        inside &= ~((front > 0) & (z > _HIDDEN_BEHIND * front))
    nearness = torch.where(there, 0.5 / safe, 0)
    low, high = nearness.min(), nearness.max()
    nearness = (nearness - low) / (high - low).clamp(min=1e-12)
    importance = torch.exp(_SHARPNESS * (nearness - 1))[inside]
    rows, columns = inside.nonzero(as_tuple=True)
    values = torch.stack([columns.to(u), rows.to(u), torch.ones_like(importance)]) * importance
    total = values.new_zeros((3, height * width))
    u, v = u[inside], v[inside]
    left, top = u.floor(), v.floor()
    for right, below in ((0, 0), (1, 0), (0, 1), (1, 1)):
        x, y = left.long() + right, top.long() + below
        share = (1 - (u - x).abs()) * (1 - (v - y).abs())
        on = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        total.index_add_(1, (y * width + x)[on], (values * share)[:, on])
    place = total[:2] / (total[2] + 1e-7)
    return torch.cat([place, (place != 0).any(0, keepdim=True).to(place)]).unflatten(1, (height, width))
