"""What a point cloud tells a network that makes pictures of it: tokens, and the attention that reads them.

ReconX (Liu et al., arXiv 2408.16767, section 3.2): with PosEmb the sines and cosines of 2^k·π·(x, y, z), and X̃ an
eighth of the cloud X chosen by farthest point sampling,

    F(X) = FFN(CrossAttn(PosEmb(X̃), PosEmb(X))),
    F_out = softmax(Q·K_Iᵀ/√d)·V_I + λ·softmax(Q·K_Fᵀ/√d)·V_F,    λ = tanh(a), a = 0 at first,

where K_I, V_I are those of the network's own cross-attention, whose queries Q serve both, and K_F, V_F are made of the
tokens F(X). At first nothing is changed, so that published weights are what they were.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difixcli.fixer.network import attend

SHARE = 8
"""One point of so many becomes a query, and then a token."""


@dataclass(frozen=True)
class StructureConfig:
    """The shape of the point cloud's encoder."""

    octaves: int = 8
    """Of the positions' harmonic encoding."""
    width: int = 64
    """Of the tokens."""
    points: int = 2048
    """Points of a cloud that are looked at, at most; of larger ones so many are drawn."""


class StructureEncoder(nn.Module):
    """A point cloud to tokens: one cross-attention with a single head, then a feed-forward part with GEGLU, both with
    layer norm before them and a residual around them (3DShape2VecSet, Zhang et al., 2023).
    """

    def __init__(self, config: StructureConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.embed = nn.Sequential(nn.Linear(6 * config.octaves + 6, width), nn.GELU(), nn.Linear(width, width))
        self.norm_query, self.norm_cloud, self.norm_feed = (nn.LayerNorm(width) for _ in range(3))
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.to_out = nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 8 * width), nn.Linear(4 * width, width)
        self.norm_out = nn.LayerNorm(width)

    def forward(self, points: Tensor, colors: Tensor) -> Tensor:
        """Tokens (⌈N/8⌉, width) of points (N, 3) in [-1, 1] (see `in_unit_cube`) with colours (N, 3) in [0, 1].

        N is at least 1; of more than `config.points` as many are drawn, always the same.
        """
        points, colors = drawn(points, colors, self.config.points)
        chosen = farthest_points(points, -(-len(points) // SHARE))
        told = torch.cat([points, harmonics(points, self.config.octaves), colors * 2 - 1], dim=-1)
        cloud = self.embed(told.to(self.to_out.weight.dtype))[None]
        queries = cloud[:, chosen]
        keys = self.norm_cloud(cloud)
        mixed = attend(1, self.to_q(self.norm_query(queries)), self.to_k(keys), self.to_v(keys))
        tokens = queries + self.to_out(mixed)
        value, gate = self.widen(self.norm_feed(tokens)).chunk(2, dim=-1)
        return self.norm_out(tokens + self.narrow(value * F.gelu(gate)))[0]


class StructureAttention(nn.Module):
    """The second cross-attention of a spatial block, to structure tokens: K_F, V_F and the gate."""

    def __init__(self, tokens: int, inner: int) -> None:
        super().__init__()
        self.to_k, self.to_v = (nn.Linear(tokens, inner, bias=False) for _ in range(2))
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, attention: Any, hidden: Tensor, tokens: Tensor) -> Tensor:
        """What is added to the output of a block's own cross-attention, a diffusers' `Attention`.

        `hidden` (S·K, N, C) is that one's input, S samples of K pictures each; `tokens` (S, M, width).
        """
        samples = len(tokens)
        queries = attention.to_q(hidden).unflatten(0, (samples, -1))
        mixed = attend(attention.heads, queries.flatten(1, 2), self.to_k(tokens), self.to_v(tokens))
        mixed = mixed.unflatten(1, queries.shape[1:3]).flatten(0, 1)
        # the output's projection is the block's own, too; its bias has been added once
        return torch.tanh(self.gate) * F.linear(mixed, attention.to_out[0].weight)


def harmonics(values: Tensor, octaves: int) -> Tensor:
    """Sines and cosines (…, 2·octaves·C) of 2^k·π times values (…, C), k = 0 … octaves − 1."""
    factors = math.pi * 2.0 ** torch.arange(octaves, device=values.device, dtype=values.dtype)
    angles = (values[..., None] * factors).flatten(-2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def drawn(points: Tensor, colors: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The cloud (N, 3) and its colours (N, 3), or `most` points of it where there are more, always the same."""
    if len(points) <= most:
        return points, colors
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(0))[:most].to(points.device)
    return points[order], colors[order]


def farthest_points(points: Tensor, count: int) -> Tensor:
    """Indices (count,) of points (N, 3), each the one farthest from all chosen before it (Eldar et al., 1997).

    The first is the one farthest from the mean. `count` is at most N.
    """
    distances = (points - points.mean(0)).square().sum(-1)
    chosen = [distances.argmax()]
    distances = (points - points[chosen[0]]).square().sum(-1)
    while len(chosen) < count:
        chosen.append(distances.argmax())
        distances = torch.minimum(distances, (points - points[chosen[-1]]).square().sum(-1))
    return torch.stack(chosen)


def in_unit_cube(points: Tensor, camera_to_world: Tensor) -> Tensor:
    """Points (N, 3) of a world in [-1, 1]: in the axes of a camera (4, 4), about their median, 95 % of them within.

    What comes out is the same wherever the world's origin is, however it is turned and scaled.
    """
    local = (points.double() - camera_to_world[:3, 3].double()) @ camera_to_world[:3, :3].double()
    local = local - local.median(0).values
    farthest = local.abs().amax(-1)
    radius = farthest.kthvalue(math.ceil(0.95 * len(farthest))).values.clamp_min(1e-12)
    return (local / radius).clamp(-1, 1).float()
