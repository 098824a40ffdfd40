"""References fetched where geometry says they are: GeoQuery (SIGGRAPH 2026, arXiv 2605.12399).

In every transformer block of the U-Net a small attention reads the references' tokens in a window around the place
that a token of the render shows (see `correspondence`), and a learned weight mixes what it found with what the block's
own self-attention, over all views, has found. Where no place is known the block is the plain network's.

The windows' tokens are copied a row at a time: all 25 copies of a full-size latent would be many times the rest.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

WINDOW = 5  # tokens a side that are looked at around a place
_REACH = WINDOW // 2
_FIRST_WEIGHT = -2.5  # the mixing weight when training starts, before the sigmoid: eight hundredths


class Places(NamedTuple):
    """Where in each reference the tokens of one of the U-Net's levels are.

    `x` and `y` (B, V, N) float32: column and row in tokens, N = `height` · `width`, row by row. `valid` (B, V, N) is 1
    where that is known, else 0.
    """

    x: Tensor
    y: Tensor
    valid: Tensor
    height: int
    width: int


def places_by_count(correspondence: Tensor, size: tuple[int, int], levels: int) -> dict[int, Places]:
    """The places of the tokens of the U-Net's levels, by the number of tokens a level has.

    Args:
        correspondence: (B, V, 3, H, W) as `correspondence.correspond` returns it.
        size: height and width of the latents.
        levels: how many levels there are, each half as large as the one before it, rounded up.
    """
    views = correspondence.shape[1]
    flat = correspondence.flatten(0, 1).float()
    finest = F.interpolate(flat[:, :2], size, mode="bilinear", align_corners=False)
    finest = _scaled(finest, flat.shape[-2:], size)
    seen = F.interpolate(flat[:, 2:], size, mode="nearest")
    found: dict[int, Places] = {}
    height, width = size
    for _ in range(levels):
        place, valid = finest, seen
        if (height, width) != size:
            place = F.interpolate(finest, (height, width), mode="bilinear", align_corners=True)
            place = _scaled(place, size, (height, width))
            valid = F.interpolate(seen, (height, width), mode="nearest")
        x, y = (part.unflatten(0, (-1, views)).flatten(2) for part in (place[:, 0], place[:, 1]))
        valid = valid[:, 0].unflatten(0, (-1, views)).flatten(2)
        found[height * width] = Places(x, y, valid, height, width)
        height, width = -(-height // 2), -(-width // 2)
    return found


class GeometryAttention(nn.Module):
    """What a transformer block reads of its references where geometry says it is, and how much of it counts.

    For a token of the render whose place in reference v is p_v: keys and values are k(norm(f_v)) and v(norm(f_v)), with
    f_v the reference's tokens, at the `WINDOW`² places around p_v, a learned offset added to the keys; the query is
    q(norm(f_v(p_v))). Of several references the windows share one softmax, and the query is the mean over those that
    show the token, so that one that disagrees with the others counts less.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.offsets = nn.Parameter(0.02 * torch.randn(heads, WINDOW**2, width // heads))
        self.weight = nn.Sequential(
            nn.Linear(2 * width, width // 2),
            nn.SiLU(),
            nn.Linear(width // 2, width // 4),
            nn.SiLU(),
            nn.Linear(width // 4, 1),
        )

    @torch.no_grad()
    def begin_as(self, block: Any) -> None:
        """Values to start training with: the projections and the norm of the block's own self-attention, and a weight
        that is small everywhere.
        """
        own = block.attn1
        for mine, theirs in ((self.q, own.to_q), (self.k, own.to_k), (self.v, own.to_v), (self.out, own.to_out[0])):
            mine.weight.copy_(theirs.weight)
            nn.init.zeros_(mine.bias)
            if theirs.bias is not None:
                mine.bias.copy_(theirs.bias)
        self.norm.load_state_dict(block.norm1.state_dict())
        last: Any = self.weight[-1]
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, _FIRST_WEIGHT)

    def forward(self, own: Tensor, references: Tensor, places: Places) -> Tensor:
        """What self-attention found for the render, `own` (B, N, C), mixed with what the references show there.

        `references` (B, V, N, C) are the block's input of theirs, before its norm.
        """
        if torch.is_grad_enabled():  # else the windows' copies would be kept for the gradient
            read = checkpoint(self._read, references, places, use_reentrant=False)
        else:
            read = self._read(references, places)
        known = places.valid.amax(1)[..., None].to(own.dtype)
        weight = torch.sigmoid(self.weight(torch.cat([read, own], dim=-1))) * known
        return own + weight * (read - own)

    def _read(self, references: Tensor, places: Places) -> Tensor:
        """(B, N, C): what the references show, 0 where none of them shows the token, or only beyond its outermost
        tokens' centres.
        """
        left, top = places.x.floor(), places.y.floor()
        across, down = places.x - left, places.y - top  # (B, V, N): how far between the whole tokens
        normed = self.norm(references)
        keys, values = self.k(normed), self.v(normed)
        inside = (places.x >= 0) & (places.x <= places.width - 1) & (places.y >= 0) & (places.y <= places.height - 1)
        shown = inside & (places.valid > 0)
        # 1. the query
        above, below = (_tokens(references, places, left, top + i, 2) for i in range(2))
        there = _between(above, below, down[..., None, None])
        there = _between(there[..., 0, :], there[..., 1, :], across[..., None])
        counts = shown[..., None].to(references.dtype)
        query = (self.q(self.norm(there)) * counts).sum(1) / counts.sum(1).clamp(min=1)
        split = query.unflatten(-1, (self.heads, -1))
        # 2. its products with the whole tokens around, 0 outside, between which those with the window's places lie
        rows = range(-_REACH, _REACH + 2)
        products = []
        for i in rows:
            row = _tokens(keys, places, left - _REACH, top + i, WINDOW + 1).unflatten(-1, (self.heads, -1))
            products.append((split[:, None, :, None] * row).sum(-1, dtype=torch.float32).transpose(-1, -2))
        exists = _square(left - _REACH, top - _REACH, WINDOW + 1, places)
        scores = torch.stack(products, dim=-2) * exists  # (B, V, N, heads, row, column)
        down, across = down[..., None, None, None], across[..., None, None, None]
        scores = _between(scores[..., :-1, :], scores[..., 1:, :], down)
        scores = _between(scores[..., :-1], scores[..., 1:], across)
        shift = torch.einsum("bnhc,hwc->bnhw", split, self.offsets).float()
        scores = (scores + shift.unflatten(-1, (WINDOW, WINDOW))[:, None]) * split.shape[-1] ** -0.5
        # 3. one softmax over the windows of all references, without places a token or more outside
        near = _square(places.x - _REACH, places.y - _REACH, WINDOW, places) & shown[..., None, None, None]
        scores = scores.masked_fill(~near, torch.finfo(scores.dtype).min)
        shares = scores.movedim(1, -3).flatten(-3).softmax(-1)
        shares = shares.unflatten(-1, (-1, WINDOW, WINDOW)).movedim(-3, 1)
        # 4. the values, by what their tokens have of the window's places
        shares = F.pad(shares * (1 - across), (0, 1)) + F.pad(shares * across, (1, 0))
        shares = F.pad(shares * (1 - down), (0, 0, 0, 1)) + F.pad(shares * down, (0, 0, 1, 0))
        shares = shares * exists
        read = torch.zeros_like(split)
        for i, share in zip(rows, shares.to(values.dtype).unbind(-2), strict=True):
            row = _tokens(values, places, left - _REACH, top + i, WINDOW + 1).unflatten(-1, (self.heads, -1))
            read = read + (row * share.transpose(-1, -2)[..., None]).sum((1, 3))
        return self.out(read.flatten(-2)) * counts.amax(1)


def use_geometry(unet: nn.Module) -> None:
    """Give every transformer block of a U-Net of diffusers a `geometry`, in place; without places it changes nothing.

    The blocks then tell their attention's processor (`network.MultiViewAttention`) what came into them.
    """
    from diffusers.models.attention import BasicTransformerBlock

    for block in list(unet.modules()):
        if isinstance(block, BasicTransformerBlock):
            block.geometry = GeometryAttention(block.dim, block.attn1.heads)
            block.__class__ = _geometry_block()


def begin_geometry(unet: nn.Module) -> None:
    """Values to start training the geometry of a U-Net's blocks with, from those of the blocks themselves."""
    for block in unet.modules():
        if isinstance(getattr(block, "geometry", None), GeometryAttention):
            block.geometry.begin_as(block)  # type: ignore[union-attr,operator]


@cache
def _geometry_block() -> type:
    from diffusers.models.attention import BasicTransformerBlock

    class GeometryBlock(BasicTransformerBlock):
        """diffusers' block, with geometry."""

        def forward(
            self,
            hidden_states: Tensor,
            attention_mask: Tensor | None = None,
            encoder_hidden_states: Tensor | None = None,
            encoder_attention_mask: Tensor | None = None,
            timestep: Tensor | None = None,
            cross_attention_kwargs: dict[str, Any] | None = None,
            class_labels: Tensor | None = None,
            added_cond_kwargs: dict[str, Tensor] | None = None,
        ) -> Tensor:
            told = {**(cross_attention_kwargs or {}), "geometry": self.geometry, "states": hidden_states}
            others: Any = (encoder_attention_mask, timestep, told, class_labels, added_cond_kwargs)
            return super().forward(hidden_states, attention_mask, encoder_hidden_states, *others)

    return GeometryBlock


def _scaled(places: Tensor, from_size: tuple[int, ...], to_size: tuple[int, ...]) -> Tensor:
    """(N, 2, h, w) x and y in pixels of another size, heights and widths given."""
    factors = places.new_tensor([to_size[1] / from_size[1], to_size[0] / from_size[0]])
    return places * factors[:, None, None]


def _between(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    return a + (b - a) * share.to(a.dtype)


def _tokens(values: Tensor, places: Places, column: Tensor, row: Tensor, count: int) -> Tensor:
    """(B, V, N, count, C): of values (B, V, N, C) those in `row` (B, V, N) from `column` (B, V, N) on; the nearest ones
    for what is outside.
    """
    columns = column[..., None] + torch.arange(count, device=column.device)
    index = row.clamp(0, places.height - 1)[..., None] * places.width + columns.clamp(0, places.width - 1)
    batch, views, tokens = values.shape[:3]
    first = torch.arange(batch * views, device=column.device).view(batch, views, 1, 1) * tokens
    return values.flatten(0, 2)[(index.long() + first).flatten()].view(*index.shape, -1)


def _square(x: Tensor, y: Tensor, side: int, places: Places) -> Tensor:
    """(B, V, N, 1, side, side): which of the places from `x` and `y` (B, V, N) on, in steps of a token, are in the
    reference or less than a token behind its last ones.
    """
    steps = torch.arange(side, device=x.device)
    x, y = x[..., None] + steps, y[..., None] + steps
    across, down = (x >= 0) & (x < places.width), (y >= 0) & (y < places.height)
    return (down[..., None] & across[..., None, :])[..., None, :, :]
