"""What a point cloud tells a video model: points drawn, their encoding, tokens, and the attention that reads them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from difixcli.priors.video.structure import (
    SHARE,
    StructureAttention,
    StructureConfig,
    StructureEncoder,
    drawn,
    farthest_points,
    harmonics,
    in_unit_cube,
)


def cloud(count: int = 200, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, generator=draw) * 2 - 1, torch.rand(count, 3, generator=draw)


def test_each_point_is_the_farthest_from_those_before_it() -> None:
    points, _ = cloud(60)
    chosen = farthest_points(points, 12)
    assert len(set(chosen.tolist())) == 12
    for i in range(1, 12):
        gaps = torch.cdist(points, points[chosen[:i]]).amin(1)
        assert float(gaps[chosen[i]]) == pytest.approx(float(gaps.max()))


def test_queries_cover_the_cloud_better_than_chance() -> None:
    points, _ = cloud(400)
    farthest = torch.cdist(points, points[farthest_points(points, 50)]).amin(1).max()
    by_chance = [torch.cdist(points, points[torch.randperm(400)[:50]]).amin(1).max() for _ in range(10)]
    assert farthest < 0.8 * min(by_chance)


def test_the_harmonic_encoding_has_eight_octaves() -> None:
    values = torch.tensor([[0.25, -0.5, 0.125]])
    encoded = harmonics(values, 8)
    assert encoded.shape == (1, 48)
    for axis in range(3):
        for k in range(8):
            angle = 2**k * math.pi * float(values[0, axis])
            assert float(encoded[0, axis * 8 + k]) == pytest.approx(math.sin(angle), abs=1e-5)
            assert float(encoded[0, 24 + axis * 8 + k]) == pytest.approx(math.cos(angle), abs=1e-5)


def test_an_eighth_of_the_points_become_tokens() -> None:
    torch.manual_seed(0)
    encoder = StructureEncoder(StructureConfig(width=16, points=160))
    for count, tokens in ((1, 1), (8, 1), (9, 2), (160, 20), (1000, 20)):
        assert encoder(*cloud(count)).shape == (tokens, 16)
    assert SHARE == 8


def test_tokens_know_every_point_and_their_order_means_nothing() -> None:
    torch.manual_seed(0)
    encoder = StructureEncoder(StructureConfig(width=16)).eval()
    points, colors = cloud(64)
    tokens = encoder(points, colors)
    order = torch.randperm(64)
    assert torch.allclose(encoder(points[order], colors[order]), tokens, atol=1e-5)
    other = next(i for i in range(64) if i not in farthest_points(points, 8).tolist())
    repainted = colors.clone()
    repainted[other] = 1 - repainted[other]
    changed = encoder(points, repainted)
    assert not torch.allclose(changed, tokens, atol=1e-6), "a point that is no query is seen by the queries"


def test_of_a_large_cloud_always_the_same_points_are_drawn() -> None:
    points, colors = cloud(500)
    first, second = drawn(points, colors, 100), drawn(points, colors, 100)
    assert first[0].shape == (100, 3) and torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    whole = drawn(points, colors, 500)
    assert torch.equal(whole[0], points)


def test_a_cloud_is_the_same_in_any_world() -> None:
    points, _ = cloud(300)
    points, pose = points.double() * 3 + 1, torch.eye(4, dtype=torch.float64)
    pose[:3, 3] = torch.tensor([0.5, 0.2, 4.0])
    plain = in_unit_cube(points, pose)
    assert float(plain.abs().max()) == 1.0 and float((plain.abs().amax(-1) < 1).double().mean()) == pytest.approx(
        0.95, abs=0.01
    )
    angle = 0.7
    turn = torch.eye(4, dtype=torch.float64)
    turn[0, 0] = turn[2, 2] = math.cos(angle)
    turn[0, 2], turn[2, 0] = math.sin(angle), -math.sin(angle)
    scale, shift = 7.0, torch.tensor([100.0, -30.0, 5.0], dtype=torch.float64)
    moved = scale * points @ turn[:3, :3].T + shift
    elsewhere = turn @ pose
    elsewhere[:3, 3] = scale * turn[:3, :3] @ pose[:3, 3] + shift
    assert torch.allclose(in_unit_cube(moved, elsewhere), plain, atol=1e-5)


class Attention(nn.Module):
    """A block's cross-attention as diffusers has it, as far as the structure's needs it."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])


def test_the_second_cross_attention_is_the_papers_and_begins_at_nothing() -> None:
    torch.manual_seed(0)
    block, attention = Attention(8, 2), StructureAttention(16, 8)
    hidden, tokens = torch.randn(6, 5, 8), torch.randn(2, 7, 16)
    added = attention(block, hidden, tokens)
    assert added.shape == hidden.shape and not added.any()
    with torch.no_grad():
        attention.gate.fill_(0.3)
    added = attention(block, hidden, tokens)
    for i in range(6):  # three pictures of each of two films
        told = tokens[i // 3]
        queries = block.to_q(hidden[i])
        keys, values = attention.to_k(told), attention.to_v(told)
        heads = [
            torch.softmax(queries[:, a : a + 4] @ keys[:, a : a + 4].T / 4**0.5, -1) @ values[:, a : a + 4]
            for a in (0, 4)
        ]
        wanted = math.tanh(0.3) * torch.cat(heads, -1) @ block.to_out[0].weight.T
        assert torch.allclose(added[i], wanted, atol=1e-5)
