"""The epipolar feature transformer (EFT): what posed photos say of a view, brought along epipolar lines.

Every pixel of the query is a ray. Points at D depths of it, evenly spaced in disparity, are projected into every photo,
where features of a small convolutional pyramid and the colour are read. One transformer looks across the views of each
point, which tells where they agree; another along the ray and, by 3×3 convolutions at each depth, at neighbouring rays.
Its softmax over depth is where the surface is. Colours are those of the photos there, weighted by view and depth
(IBRNet, Wang et al., CVPR 2021), so that they are as sharp as the photos; a small convolutional network mends what no
photo shows. Everything is seen from the query camera, in units of the nearest depth, so that the world's frame and
scale do not matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_COLOUR = 3
_VIEW_GEOMETRY = 9
_RAY_GEOMETRY = 3 + 6
_DEPTH_WAVES = 5
_MASKED = -1e4  # a logit that softmax makes zero, also in half precision
_POINTS_AT_ONCE = 1 << 17  # points times views that inference has in memory


@dataclass(frozen=True)
class EpipolarConfig:
    """The transformer's sizes."""

    features: int = 32
    """Channels of the photos' features."""
    width: int = 32
    """Of the tokens."""
    view_layers: int = 2
    ray_layers: int = 2
    depths: int = 32
    """Points of a ray."""
    mending: int = 48
    """Channels of the network over the finished picture."""


class EpipolarRender(NamedTuple):
    """What the transformer makes of B queries of h×w pixels."""

    picture: Tensor
    """(B, 3, h, w), not clamped to [0, 1]."""
    features: Tensor
    """(B, C, h, w) what it knows of each pixel; see `EpipolarTransformer.feature_channels`."""
    weights: Tensor
    """(B, D, h, w) attention over the depths, nearest first; sums to 1."""
    disparity: Tensor
    """(B, 1, h, w) expected near / z-depth."""
    blend: Tensor
    """(B, 3, h, w) the colours of the photos alone."""


class _Layer(nn.Module):
    """A transformer layer (…, N, W) over the last but one dimension, normalised first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.feed = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(approximate="tanh"), nn.Linear(2 * width, width)
        )

    def attended(self, x: Tensor, valid: Tensor | None) -> Tensor:
        queries, keys, values = self.to_qkv(self.norm(x)).chunk(3, dim=-1)
        if valid is None:  # long rows: along rays
            parts = [part.unflatten(-1, (self.heads, -1)).transpose(-2, -3) for part in (queries, keys, values)]
            mixed = F.scaled_dot_product_attention(*parts).transpose(-2, -3).flatten(-2)
        else:  # rows of a few views, and a million of them: products written out are faster than matrix products
            scores = (queries[..., :, None, :] * keys[..., None, :, :]).unflatten(-1, (self.heads, -1)).sum(-1)
            scores = scores * (queries.shape[-1] // self.heads) ** -0.5
            scores = scores.masked_fill(~valid[..., None, :, None], _MASKED).softmax(dim=-2)
            weighted = scores[..., None] * values.unflatten(-1, (self.heads, -1))[..., None, :, :, :]
            mixed = weighted.sum(-3).flatten(-2)
        return self.out(mixed)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """`valid` (…, N): who may be looked at; None for all."""
        x = x + self.attended(x, valid)
        return x + self.feed(x)


class _Residual(nn.Module):
    """x + conv(act(norm(conv(act(norm(x)))))), (B, C, h, w)."""

    def __init__(self, channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(max(1, channels // 8), channels) for _ in range(2))
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            y = conv(F.silu(norm(y)))
        return x + y


class _Pyramid(nn.Module):
    """Photos (N, 4, H, W), colour and mask, to features (N, C, H/2, W/2) of three scales; sides divide by 4."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(4, 24, 3, padding=1), nn.SiLU(), nn.Conv2d(24, 32, 3, 2, padding=1))
        self.middle = _Residual(32)
        self.down = nn.Conv2d(32, 64, 3, 2, padding=1)
        self.coarse = nn.Sequential(_Residual(64), _Residual(64, dilation=2))
        self.up = nn.Conv2d(64, 32, 1)
        self.out = nn.Sequential(_Residual(32), nn.Conv2d(32, channels, 3, padding=1))

    def forward(self, photos: Tensor) -> Tensor:
        half = self.middle(self.stem(photos))
        quarter = self.coarse(self.down(F.silu(half)))
        return self.out(half + F.interpolate(self.up(quarter), scale_factor=2, mode="bilinear"))


class _Mending(nn.Module):
    """A small U-shaped network over the finished picture (B, C, h, w) of any size."""

    def __init__(self, incoming: int, channels: int) -> None:
        super().__init__()
        self.head = nn.Conv2d(incoming, channels, 3, padding=1)
        self.fine = _Residual(channels)
        self.coarse = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, channels, 3, 2, padding=1), _Residual(channels)) for _ in range(3)
        )
        self.back = nn.ModuleList(_Residual(channels) for _ in range(3))
        self.out = nn.Conv2d(channels, 4, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A colour and a gate (B, 4, h, w), and the features (B, channels, h, w) that they come from."""
        levels = [self.fine(self.head(x))]
        for down in self.coarse:
            levels.append(down(levels[-1]))
        found = levels.pop()
        for back in self.back:
            finer = levels.pop()
            found = back(finer + F.interpolate(found, finer.shape[-2:], mode="bilinear"))
        return self.out(F.silu(found)), found


class EpipolarTransformer(nn.Module):
    """B queries, each from its own V photos, differentiable; see the module's head.

    Every view that is not there, of a sample with fewer than others, has a mask of zeros.
    """

    def __init__(self, config: EpipolarConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or EpipolarConfig()
        width, read = config.width, config.features + _COLOUR
        self.pyramid = _Pyramid(config.features)
        self.normed = nn.LayerNorm(config.features)
        self.from_view = nn.Linear(read + _VIEW_GEOMETRY, width)
        self.from_agreement = nn.Linear(2 * read + 2, width)
        self.from_depth = nn.Linear(2 * _DEPTH_WAVES + 2, width)
        self.from_ray = nn.Linear(_RAY_GEOMETRY, width)
        self.view_layers = nn.ModuleList(_Layer(width, 2) for _ in range(config.view_layers))
        self.pool = nn.Linear(width, 1)
        self.to_ray = nn.Linear(width + 1, width)
        self.near_rays = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(config.ray_layers))
        self.ray_layers = nn.ModuleList(_Layer(width, 2) for _ in range(config.ray_layers))
        self.occupied = nn.Linear(width, 1)
        self.view_choice = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, 1))
        self.last_layer = _Layer(width, 2)
        self.last_choice = nn.Linear(width, 1)
        self.mending = _Mending(2 * width + _COLOUR + 3, config.mending)

    @property
    def feature_channels(self) -> int:
        """Of `EpipolarRender.features`: the mending network's, the picture, the expected disparity and how sure."""
        return self.config.mending + _COLOUR + 3

    def forward(
        self,
        images: Tensor,
        masks: Tensor,
        intrinsics: Tensor,
        poses: Tensor,
        query_intrinsics: Tensor,
        query_poses: Tensor,
        near: Tensor,
        far: Tensor,
        height: int,
        width: int,
    ) -> EpipolarRender:
        """The queries' pictures and features.

        Args:
            images: (B, V, 3, H, W) in [0, 1]. masks: (B, V, 1, H, W), 1 where a photo counts.
            intrinsics: (B, V, 3, 3) and poses: (B, V, 4, 4) of the photos.
            query_intrinsics: (B, 3, 3) and query_poses: (B, 4, 4); the pictures are `height` × `width`.
            near, far: (B,) z-depths along the queries' axes, 0 < near < far.
        """
        batch, views = images.shape[:2]
        # 1. features of the photos
        photos, maps = self._maps(images, masks)
        # 2. the queries' frame, in units of the nearest depth
        toward = torch.linalg.inv(query_poses)[:, None] @ poses
        rotations, centres = toward[..., :3, :3], toward[..., :3, 3] / near[:, None, None]
        steps = torch.linspace(0, 1, self.config.depths, device=images.device)
        disparities = 1 + steps * ((near / far)[:, None] - 1)
        rays = _rays(query_intrinsics, height, width)
        geometry = (rotations, centres, intrinsics, disparities, steps)
        # 3. bands of rows, as many as memory allows; the convolutions over neighbouring rays need some beyond
        halo = len(self.near_rays)
        rows = height
        if not torch.is_grad_enabled():
            rows = max(8, _POINTS_AT_ONCE * 8 // (batch * views * self.config.depths * width))
        bands = []
        for top in range(0, height, rows):
            first, last = max(top - halo, 0), min(top + rows + halo, height)
            band = self._band(photos, maps, rays[:, first:last], query_intrinsics, *geometry)
            bands.append([part[..., top - first : min(top + rows, height) - first, :] for part in band])
        blend, told, weights, seen = (torch.cat(parts, dim=-2) for parts in zip(*bands, strict=True))
        # 4. mend the picture
        disparity = (weights * disparities[:, :, None, None]).sum(1, keepdim=True)
        place = (weights * steps[:, None, None]).sum(1, keepdim=True)
        spread = (weights * (steps[:, None, None] - place).square()).sum(1, keepdim=True).clamp_min(0).sqrt()
        sure = torch.cat([place, spread, seen], dim=1)
        mended, found = self.mending(torch.cat([told, blend, sure], dim=1))
        gate = torch.sigmoid(mended[:, 3:] + 2) * seen
        picture = gate * blend + (1 - gate) * torch.sigmoid(mended[:, :3]) + (mended[:, :3] * 0.1).tanh() * gate
        features = torch.cat([found, picture, sure], dim=1)
        return EpipolarRender(picture.float(), features.float(), weights.float(), disparity.float(), blend.float())

    def _maps(self, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Photos with masks (B·V, 4, H, W) and normalised features (B·V, C, H/2, W/2), sides padded to divide by 4."""
        photos = torch.cat([images * 2 - 1, masks], dim=2).flatten(0, 1)
        height, width = photos.shape[-2:]
        photos = F.pad(photos, (0, -width % 4, 0, -height % 4))
        photos = torch.cat([photos[:, :3] * photos[:, 3:], photos[:, 3:]], dim=1)
        maps = self.pyramid(photos)
        return photos, self.normed(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def _band(
        self,
        photos: Tensor,
        maps: Tensor,
        rays: Tensor,
        query_intrinsics: Tensor,
        rotations: Tensor,
        centres: Tensor,
        intrinsics: Tensor,
        disparities: Tensor,
        steps: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Blended colours (B, 3, h, w), tokens (B, 2W, h, w), weights (B, D, h, w) and whether anything sees a pixel
        (B, 1, h, w), of rays (B, h, w, 3) with z = −1."""
        batch, height, width = rays.shape[:3]
        views, depths = rotations.shape[1], disparities.shape[1]
        rays = rays.flatten(1, 2)
        # 1. points r/s in every photo's axes (B, V, D, R, 3): (Rᵀr − s·Rᵀo) / s; only the direction counts
        turned = torch.einsum("bvij,bri->bvrj", rotations, rays)
        moved = torch.einsum("bvij,bvi->bvj", rotations, centres)
        local = turned[:, :, None] - disparities[:, None, :, None, None] * moved[:, :, None, None]
        ahead = -local[..., 2]
        safe = ahead.clamp_min(1e-4)
        x = local[..., 0] / safe * intrinsics[:, :, None, None, 0, 0] + intrinsics[:, :, None, None, 0, 2]
        y = -local[..., 1] / safe * intrinsics[:, :, None, None, 1, 1] + intrinsics[:, :, None, None, 1, 2]
        grid = torch.stack([x / photos.shape[-1], y / photos.shape[-2]], dim=-1).clamp(-2, 3) * 2 - 1
        # 2. what the photos show there
        flat = grid.flatten(0, 1)
        seen = F.grid_sample(photos.float(), flat, padding_mode="border", align_corners=False)
        read = F.grid_sample(maps.float(), flat, padding_mode="border", align_corners=False)
        inside = (grid.abs() <= 1).all(-1) & (ahead > 1e-3)
        valid = inside & (seen[:, 3].unflatten(0, (batch, views)) > 0.5)
        valid = valid.permute(0, 2, 3, 1)  # (B, D, R, V)
        told = torch.cat([read, seen[:, :3]], dim=1)
        told = told.unflatten(0, (batch, views)).permute(0, 3, 4, 1, 2)  # (B, D, R, V, C)
        share = valid.to(told)[..., None]
        count = share.sum(-2)
        mean = (told * share).sum(-2) / count.clamp_min(1)
        variance = ((told - mean[..., None, :]).square() * share).sum(-2) / count.clamp_min(1)
        # 3. tokens (B, D, R, V, W)
        length = local.norm(dim=-1).clamp_min(1e-6)
        toward = torch.einsum("bvij,bvdrj->bvdri", rotations, local) / length[..., None]
        straight = rays / rays.norm(dim=-1, keepdim=True)
        apart = toward - straight[:, None, None]
        cosine = (toward * straight[:, None, None]).sum(-1, keepdim=True)
        finer = ahead.clamp_min(1e-3).log() - (
            intrinsics[:, :, 0, 0] / query_intrinsics[:, None, 0, 0]
        ).log()[..., None, None]
        place = torch.stack([grid[..., 0], grid[..., 1]], dim=-1).clamp(-1, 1)
        view = torch.cat(
            [toward, apart, cosine, finer[..., None].clamp(-4, 4), inside[..., None].to(toward)], dim=-1
        ).permute(0, 2, 3, 1, 4)
        del place
        agreement = torch.cat([mean, variance, (variance.mean(-1, keepdim=True) + 1e-3).log(), count / views], dim=-1)
        ray = torch.cat(
            [
                straight[:, :, None].expand(-1, -1, views, -1),
                torch.cat([centres, torch.cross(centres, rotations[..., 2], dim=-1)], dim=-1)[:, None].expand(
                    -1, rays.shape[1], -1, -1
                ),
            ],
            dim=-1,
        )
        tokens = (
            self.from_view(torch.cat([told, view], dim=-1))
            + self.from_agreement(agreement)[..., None, :]
            + self.from_depth(_waves(steps))[:, None, None]
            + self.from_ray(ray.clamp(-8, 8))[:, None]
        )
        # 4. across the views of each point
        for layer in self.view_layers:
            tokens = layer(tokens, valid)
        choice = self.pool(tokens).masked_fill(~valid[..., None], _MASKED).softmax(dim=-2)
        points = self.to_ray(torch.cat([(choice * tokens).sum(-2), (count > 0).to(tokens)], dim=-1))
        # 5. along rays and beside them
        for near, layer in zip(self.near_rays, self.ray_layers, strict=True):
            image = points.flatten(0, 1).transpose(1, 2).unflatten(2, (height, width))
            beside = near(F.silu(image)).flatten(2).transpose(1, 2).unflatten(0, (batch, depths))
            points = layer((points + beside).transpose(1, 2)).transpose(1, 2)
        weights = self.occupied(points).float().softmax(dim=1)  # (B, D, R, 1)
        # 6. which view's colour counts at each point
        width_ = points.shape[-1]
        both = torch.cat([tokens, points[..., None, :].expand(-1, -1, -1, views, width_)], dim=-1)
        chosen = self.view_choice(both).float().masked_fill(~valid[..., None], _MASKED).softmax(dim=-2)
        there = valid.any(-1, keepdim=True).to(weights)
        colours = (chosen * (told[..., -_COLOUR:] + 1) / 2).sum(-2) * there
        covered = (weights * there).sum(1)
        blend = (weights * colours).sum(1) / covered.clamp_min(1e-3)
        # 7. across the views of a ray
        of_view = (weights[..., None] * tokens).sum(1)
        usable = ((weights * valid.to(weights)).sum(1) > 1e-3) | ~valid.any(1)
        of_view = self.last_layer(of_view, usable)
        final = self.last_choice(of_view).masked_fill(~usable[..., None], _MASKED).softmax(dim=-2)
        token = torch.cat([(final * of_view).sum(-2), (weights * points).sum(1)], dim=-1)

        def image_of(x: Tensor) -> Tensor:
            return x.transpose(1, 2).unflatten(2, (height, width))

        return image_of(blend), image_of(token), weights[..., 0].unflatten(2, (height, width)), image_of(covered)


def _rays(intrinsics: Tensor, height: int, width: int) -> Tensor:
    """Directions (B, height, width, 3) through the pixels' centres, in the camera's axes, with z = −1."""
    y, x = torch.meshgrid(
        torch.arange(height, device=intrinsics.device, dtype=intrinsics.dtype) + 0.5,
        torch.arange(width, device=intrinsics.device, dtype=intrinsics.dtype) + 0.5,
        indexing="ij",
    )
    right = (x - intrinsics[:, 0, 2, None, None]) / intrinsics[:, 0, 0, None, None]
    up = -(y - intrinsics[:, 1, 2, None, None]) / intrinsics[:, 1, 1, None, None]
    return torch.stack([right, up, -torch.ones_like(right)], dim=-1)


def _waves(steps: Tensor) -> Tensor:
    """Sines and cosines (D, C) of positions in [0, 1]."""
    angles = steps[:, None] * torch.pi * 2.0 ** torch.arange(_DEPTH_WAVES, device=steps.device)
    return torch.cat([steps[:, None], steps[:, None].square(), angles.sin(), angles.cos()], dim=-1)
