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

from difixcli.priors.view_diffusion.views import inverse

_COLOUR = 3
_VIEW_GEOMETRY = 3 + 3 + 3 + 1 + 1
_RAY_GEOMETRY = 3 + 3 + 3
_DEPTH_WAVES = 5
_MASKED = -1e4  # a logit that softmax makes zero, also in half precision
# Numbers of tokens that inference keeps for a band of rows, and that it works on at a time, to stay in a CPU's cache.
_HELD, _AT_ONCE = 1 << 26, 1 << 18
_HELD_ON_GPU, _AT_ONCE_ON_GPU = 1 << 30, 1 << 28


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
    """A transformer layer (…, N, W) over the last but one dimension, of two heads, normalised first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.feed = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """`valid` (…, N): who may be looked at; None for all."""
        queries, keys, values = (part.unflatten(-1, (2, -1)) for part in self.to_qkv(self.norm(x)).chunk(3, dim=-1))
        x = x + self.out(_along(queries, keys, values) if valid is None else _across(queries, keys, values, valid))
        return x + self.feed(x)


def _along(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention over N of (…, N, heads, c) → (…, N, heads · c); for long rows.

    Written out, since there are more rows than a GPU's fused kernels take.
    """
    queries, keys, values = (part.transpose(-2, -3) for part in (queries, keys, values))
    scores = (queries * queries.shape[-1] ** -0.5) @ keys.mT
    return (scores.softmax(dim=-1).to(values) @ values).transpose(-2, -3).flatten(-2)


def _across(queries: Tensor, keys: Tensor, values: Tensor, valid: Tensor) -> Tensor:
    """The same of a million rows of a few, where sums written out are faster than matrix products."""
    # from here on who is looked at is the third last dimension, as in the arguments
    scores = (queries[..., :, None, :, :] * keys[..., None, :, :, :]).sum(-1) * queries.shape[-1] ** -0.5
    scores = scores.masked_fill(~valid[..., None, :, None], _MASKED).softmax(dim=-2)
    scores = scores * valid[..., None, :, None]  # where there is nothing to look at, nothing is seen
    return (scores[..., None] * values[..., None, :, :, :]).sum(-3).flatten(-2)


def _choice(scores: Tensor, valid: Tensor) -> Tensor:
    """Softmax (…, V, 1) over the valid (…, V) of V; zeros where none is."""
    chosen = scores.float().masked_fill(~valid[..., None], _MASKED).softmax(dim=-2)
    return chosen * valid[..., None]


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
        self.out = nn.Conv2d(channels, 7, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Two colours and a gate (B, 7, h, w), and the features (B, channels, h, w) that they come from."""
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

    A view that a sample lacks beside others of its batch has a mask of zeros.
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
        self.view_layers = nn.ModuleList(_Layer(width) for _ in range(config.view_layers))
        self.pool = nn.Linear(width, 1)
        self.to_ray = nn.Linear(width + 1, width)
        self.near_rays = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(config.ray_layers))
        self.ray_layers = nn.ModuleList(_Layer(width) for _ in range(config.ray_layers))
        self.occupied = nn.Linear(width, 1)
        self.choice_of_view, self.choice_of_point = nn.Linear(width, width), nn.Linear(width, width)
        self.choice = nn.Linear(width, 1)
        self.last_layer = _Layer(width)
        self.last_choice = nn.Linear(width, 1)
        self.mending = _Mending(2 * width + _COLOUR + 3, config.mending)

    @property
    def feature_channels(self) -> int:
        """Of `EpipolarRender.features`: the mending network's, the picture, where the surface is and how sure."""
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
            images: (B, V, 3, H, W) in [0, 1].
            masks: (B, V, 1, H, W), 1 where a photo counts.
            intrinsics: (B, V, 3, 3) of the photos, in pixels.
            poses: (B, V, 4, 4) of the photos.
            query_intrinsics: (B, 3, 3); the pictures are `height` × `width`.
            query_poses: (B, 4, 4).
            near, far: (B,) z-depths along the queries' axes, 0 < near < far.
        """
        # 1. features of the photos
        photos, maps = self._maps(images, masks)
        # 2. the photos' cameras in the queries' frame, in units of the nearest depth
        with torch.autocast(images.device.type, enabled=False):
            toward = inverse(query_poses)[:, None] @ poses
        steps = torch.linspace(0, 1, self.config.depths, device=images.device)
        scene = _Scene(
            photos=photos,
            maps=maps,
            rotations=toward[..., :3, :3],
            centres=toward[..., :3, 3] / near[:, None, None],
            intrinsics=intrinsics,
            query_focal=query_intrinsics[:, 0, 0],
            disparities=1 + steps * ((near / far)[:, None] - 1),
            steps=steps,
        )
        # 3. bands of rows, as many as memory allows; convolutions over neighbouring rays look beyond them
        rays = _rays(query_intrinsics, height, width)
        batch, views = images.shape[:2]
        halo, rows, at_once = len(self.near_rays), height, height * width
        if not torch.is_grad_enabled():
            row = batch * views * self.config.depths * self.config.width * width
            on_cpu = images.device.type == "cpu"
            rows = max(8, (_HELD if on_cpu else _HELD_ON_GPU) // row)
            at_once = max(1, (_AT_ONCE if on_cpu else _AT_ONCE_ON_GPU) * width // row)
        bands = []
        for top in range(0, height, rows):
            first, last = max(top - halo, 0), min(top + rows + halo, height)
            band = self._band(scene, rays[:, first:last], at_once)
            bands.append([part[..., top - first : min(top + rows, height) - first, :] for part in band])
        blend, told, weights, seen = (torch.cat(parts, dim=-2) for parts in zip(*bands, strict=True))
        # 4. where the surface is, and how sure that is
        at = steps[:, None, None]
        place = (weights * at).sum(1, keepdim=True)
        spread = (weights * (at - place).square()).sum(1, keepdim=True).clamp_min(1e-8).sqrt()
        disparity = (weights * scene.disparities[:, :, None, None]).sum(1, keepdim=True)
        sure = torch.cat([place, spread, seen], dim=1)
        # 5. the photos' colours, mended
        mended, found = self.mending(torch.cat([told, blend * 2 - 1, sure], dim=1))
        kept = seen * torch.sigmoid(mended[:, 6:])
        picture = kept * (blend + 0.25 * torch.tanh(mended[:, 3:6])) + (1 - kept) * torch.sigmoid(mended[:, :3])
        features = torch.cat([found, picture, sure], dim=1)
        return EpipolarRender(picture.float(), features.float(), weights.float(), disparity.float(), blend.float())

    def _maps(self, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Photos with masks (B·V, 4, H, W) and features (B·V, C, H/2, W/2), sides padded until they divide by 4."""
        photos = torch.cat([(images * 2 - 1) * masks, masks], dim=2).flatten(0, 1)
        photos = F.pad(photos, (0, -photos.shape[-1] % 4, 0, -photos.shape[-2] % 4))
        maps = self.normed(self.pyramid(photos).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return photos.float(), maps.float()

    def _band(self, scene: _Scene, rays: Tensor, at_once: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Blended colours (B, 3, h, w), tokens (B, 2W, h, w), weights (B, D, h, w) and how much of them any photo sees
        (B, 1, h, w), of rays (B, h, w, 3); so many rays `at_once` where they don't depend on their neighbours.
        """
        size = rays.shape[1:3]
        parts = [self._points(scene, part) for part in rays.flatten(1, 2).split(at_once, dim=1)]
        points = torch.cat([part.points for part in parts], dim=2)
        # along rays and beside them
        for beside, layer in zip(self.near_rays, self.ray_layers, strict=True):
            image = F.silu(points).flatten(0, 1).transpose(1, 2).unflatten(2, size)
            points = points + beside(image).flatten(2).transpose(1, 2).unflatten(0, points.shape[:2])
            points = layer(points.transpose(1, 2)).transpose(1, 2)
        weights = self.occupied(points).float().softmax(dim=1)
        cut = zip(parts, points.split(at_once, dim=2), weights.split(at_once, dim=2), strict=True)
        done = [self._gathered(part, points, weights) for part, points, weights in cut]
        made = [torch.cat(each, dim=1) for each in zip(*done, strict=True)]
        blend, told, seen = (each.transpose(1, 2).unflatten(2, size) for each in made)
        return blend, told, weights[..., 0].unflatten(2, size), seen

    def _points(self, scene: _Scene, rays: Tensor) -> _Points:
        """Tokens of the points of rays (B, R, 3), after the transformer across views."""
        with torch.autocast(rays.device.type, enabled=False):
            told, valid, agreement, seeing, ray = _read(scene, rays)
        # tokens (B, D, R, V, W), across views
        tokens = (
            self.from_view(torch.cat([told, seeing], dim=-1))
            + self.from_agreement(agreement)[..., None, :]
            + self.from_depth(_waves(scene.steps))[:, None, None]
            + self.from_ray(ray)[:, None]
        )
        for layer in self.view_layers:
            tokens = layer(tokens, valid)
        choice = _choice(self.pool(tokens), valid)
        points = self.to_ray(torch.cat([(choice * tokens).sum(-2), valid.any(-1, keepdim=True).to(tokens)], dim=-1))
        return _Points(tokens, (told[..., -_COLOUR:] + 1) / 2, valid, points)

    def _gathered(self, part: _Points, points: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Blended colours (B, R, 3), tokens (B, R, 2W) and how much any photo sees (B, R, 1), of rays' points
        (B, D, R, W) and weights (B, D, R, 1).
        """
        # 1. whose colour counts at each point: those that see the surface, not what hides it
        both = self.choice_of_view(part.tokens) + self.choice_of_point(points)[..., None, :]
        choice = _choice(self.choice(F.silu(both)), part.valid)
        seen = (weights * part.valid.any(-1, keepdim=True).to(weights)).sum(1)
        blend = (weights * (choice * part.colours).sum(-2)).sum(1) / seen.clamp_min(1e-4)
        # 2. across the views of a ray
        share = weights * part.valid.to(weights)  # (B, D, R, V)
        usable = share.sum(1) > 1e-3
        views = (share[..., None] * part.tokens).sum(1) / share.sum(1).clamp_min(1e-3)[..., None]
        views = self.last_layer(views, usable)
        choice = _choice(self.last_choice(views), usable)
        return blend, torch.cat([(choice * views).sum(-2), (weights * points).sum(1)], dim=-1), seen


class _Scene(NamedTuple):
    """What the rays of B queries are traced through."""

    photos: Tensor
    """(B·V, 4, H, W) colours in [-1, 1] and masks."""
    maps: Tensor
    """(B·V, C, H/2, W/2)"""
    rotations: Tensor
    """(B, V, 3, 3) from the photos' axes to the query's."""
    centres: Tensor
    """(B, V, 3) in the query's axes, in units of the nearest depth."""
    intrinsics: Tensor
    """(B, V, 3, 3)"""
    query_focal: Tensor
    """(B,)"""
    disparities: Tensor
    """(B, D) nearest depth / depth, from 1 down."""
    steps: Tensor
    """(D,) from 0 to 1."""


class _Points(NamedTuple):
    """D points of R rays."""

    tokens: Tensor
    """(B, D, R, V, W)"""
    colours: Tensor
    """(B, D, R, V, 3) in [0, 1]"""
    valid: Tensor
    """(B, D, R, V) where a photo shows the point."""
    points: Tensor
    """(B, D, R, W)"""


def _read(scene: _Scene, rays: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What the photos show at the points of rays (B, R, 3) and how they see it; float32.

    Features and colours (B, D, R, V, C); where they are valid (B, D, R, V); whether they agree (B, D, R, C); how each
    photo sees the point (B, D, R, V, G); the rays in both frames (B, R, V, 9).
    """
    batch, views = scene.rotations.shape[:2]
    # 1. the points r/s in the photos' axes, times s: Rᵀr − s·Rᵀo (B, V, D, R, 3), of which only directions count
    turned = torch.einsum("bvij,bri->bvrj", scene.rotations, rays)
    origin = -torch.einsum("bvij,bvi->bvj", scene.rotations, scene.centres)  # the query camera's
    local = turned[:, :, None] + scene.disparities[:, None, :, None, None] * origin[:, :, None, None]
    ahead = -local[..., 2]
    in_front = ahead > 1e-3
    ahead = ahead.clamp_min(1e-3)
    focal, centre = scene.intrinsics[..., None, None, :, :], scene.intrinsics[..., None, None, :, 2]
    x = local[..., 0] / ahead * focal[..., 0, 0] + centre[..., 0]
    y = -local[..., 1] / ahead * focal[..., 1, 1] + centre[..., 1]
    grid = torch.stack([x / scene.photos.shape[-1], y / scene.photos.shape[-2]], dim=-1) * 2 - 1
    grid = grid.clamp(-2, 2)
    # 2. what the photos show there (B, D, R, V, C)
    flat = grid.flatten(0, 1)
    seen = F.grid_sample(scene.photos, flat, padding_mode="border", align_corners=False)
    read = F.grid_sample(scene.maps, flat, padding_mode="border", align_corners=False)
    valid = (grid.abs() <= 1).all(-1) & in_front & (seen[:, 3].unflatten(0, (batch, views)) > 0.5)
    valid = valid.permute(0, 2, 3, 1)
    told = torch.cat([read, seen[:, :3]], dim=1).unflatten(0, (batch, views)).permute(0, 3, 4, 1, 2)
    # 3. whether they agree (B, D, R, C)
    share = valid.to(told)[..., None]
    count = share.sum(-2)
    mean = (told * share).sum(-2) / count.clamp_min(1)
    variance = ((told - mean[..., None, :]).square() * share).sum(-2) / count.clamp_min(1)
    overall = (variance.mean(-1, keepdim=True) + 1e-3).log()
    agreement = torch.cat([mean, variance, overall, (count > 1).to(told)], dim=-1)
    # 4. how they see it: the reference ray's Plücker coordinates in the query's frame, how far it is from the
    # query's ray, and how fine the photo's pixels are there
    toward = torch.einsum("bvij,bvdrj->bvdri", scene.rotations, F.normalize(local, dim=-1))
    straight = F.normalize(rays, dim=-1)[:, None, None]
    moment = torch.cross(scene.centres[:, :, None, None].expand_as(toward), toward, dim=-1)
    cosine = (toward * straight).sum(-1, keepdim=True)
    zoom = (scene.intrinsics[..., 0, 0] / scene.query_focal[:, None]).log()[:, :, None, None]
    finer = (zoom - ahead.log()).clamp(-4, 4)[..., None]
    seeing = torch.cat([toward, moment.asinh(), toward - straight, cosine, finer], dim=-1)
    # 5. the query's ray in both frames (B, R, V, 9)
    there = F.normalize(turned, dim=-1)
    moment = torch.cross(origin[:, :, None].expand_as(there), there, dim=-1).asinh()
    ray = torch.cat([straight[:, 0].expand_as(there), there, moment], dim=-1).transpose(1, 2)
    return told, valid, agreement, seeing.permute(0, 2, 3, 1, 4), ray


def _rays(intrinsics: Tensor, height: int, width: int) -> Tensor:
    """Directions (B, height, width, 3) through the pixels' centres, in the camera's axes, with z = −1."""
    y = (torch.arange(height, device=intrinsics.device) + 0.5)[:, None].expand(height, width)
    x = (torch.arange(width, device=intrinsics.device) + 0.5).expand(height, width)
    right = (x - intrinsics[:, 0, 2, None, None]) / intrinsics[:, 0, 0, None, None]
    down = (y - intrinsics[:, 1, 2, None, None]) / intrinsics[:, 1, 1, None, None]
    return torch.stack([right, -down, -torch.ones_like(right)], dim=-1)


def _waves(steps: Tensor) -> Tensor:
    """Sines and cosines (D, C) of positions in [0, 1]."""
    angles = steps[:, None] * torch.pi * 2.0 ** torch.arange(_DEPTH_WAVES, device=steps.device)
    return torch.cat([steps[:, None], steps[:, None].square(), angles.sin(), angles.cos()], dim=-1)
