"""Large images in overlapping tiles, so that what a network needs of memory is bounded."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Span(NamedTuple):
    """A part of a side: from `start` up to and without `stop`."""

    start: int
    stop: int


class Tile(NamedTuple):
    """A rectangle of an image, in pixels or latents."""

    rows: Span
    columns: Span

    def of(self, images: Tensor, factor: int = 1) -> Tensor:
        """(…, H · factor, W · factor) cut to the tile."""
        rows, columns = (slice(span.start * factor, span.stop * factor) for span in self)
        return images[..., rows, columns]


Weigh = Callable[[Span, int], Tensor]
"""Weights (n,) over a span of a side that is so long: tiles are blended by the product of those of both sides."""


def cut(height: int, width: int, side: int, overlap: int, multiple: int) -> list[Tile]:
    """Tiles of at most side × side that cover an image and share `overlap` at least with their neighbours.

    They begin at multiples of `multiple`, which side and overlap are too, so that networks that work in windows or on
    coarser grids see the same ones with and without tiles.
    """
    return [Tile(rows, columns) for rows in _spans(height, side, overlap, multiple)
            for columns in _spans(width, side, overlap, multiple)]  # fmt: skip


def blended(
    tiles: list[Tile],
    made: Callable[[Tile], Tensor],
    height: int,
    width: int,
    weigh: Weigh,
    factor: int = 1,
    *,
    told: Callable[[int, int], None],
) -> Tensor:
    """What is `made` of each tile, (B, C, h · factor, w · factor), put together: (B, C, height · factor, …).

    A single tile is given back as it was made; after each of several `told` is called with how many of how many are
    done.
    """
    if len(tiles) == 1:
        return made(tiles[0])
    total = weight = None
    for done, tile in enumerate(tiles, start=1):
        image = made(tile)
        weights = _weights(tile, height, width, weigh, factor).to(image)
        if total is None or weight is None:
            total = image.new_zeros(*image.shape[:2], height * factor, width * factor)
            weight = image.new_zeros(height * factor, width * factor)
        tile.of(total, factor).add_(image * weights)
        tile.of(weight, factor).add_(weights)
        told(done, len(tiles))
    assert total is not None and weight is not None
    return total.div_(weight)


def gaussian(span: Span, length: int) -> Tensor:
    """Weights of the paper's tiles, which StableSR brought up: a bell over the tile, of variance 0.01 tiles²."""
    size = span.stop - span.start
    at = (torch.arange(size, dtype=torch.float64) - (size - 1) / 2) / size
    return torch.exp(-(at**2) / (2 * 0.01))


def trapezoid(overlap: int, margin: int) -> Weigh:
    """Weights that are zero in a margin along edges that are not the image's, where a network lacked surroundings, and
    rise from there to one over the rest of the overlap.
    """

    def weigh(span: Span, length: int) -> Tensor:
        at = torch.arange(span.start, span.stop, dtype=torch.float64) + 0.5
        weights = torch.ones_like(at)
        for inner, distance in ((span.start > 0, at - span.start), (span.stop < length, span.stop - at)):
            if inner:
                weights = weights * ((distance - margin) / (overlap - 2 * margin)).clamp(0, 1)
        return weights

    return weigh


def _spans(length: int, side: int, overlap: int, multiple: int) -> list[Span]:
    if length <= side:
        return [Span(0, length)]
    last = -(-(length - side) // multiple) * multiple
    starts = range(0, last, side - overlap)
    return [*(Span(start, start + side) for start in starts), Span(last, length)]


def _weights(tile: Tile, height: int, width: int, weigh: Weigh, factor: int) -> Tensor:
    """(h · factor, w · factor); the weights of the enlarged tile's own pixels."""
    sides = []
    for span, length in zip(tile, (height, width), strict=True):
        sides.append(weigh(Span(span.start * factor, span.stop * factor), length * factor))
    return sides[0][:, None] * sides[1]
