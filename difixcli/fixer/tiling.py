"""Large images as overlapping windows whose seams are blended away."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

# Pixels that neighbouring windows share: eight latents, over which one fades into the other.
OVERLAP = 128


class Window(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def of(self, values: Tensor | None) -> Tensor | None:
        """(…, H, W) cut to the window."""
        if values is None:
            return None
        return values[..., self.top : self.top + self.height, self.left : self.left + self.width]


def windows(height: int, width: int, side: int, multiple: int) -> list[Window]:
    """Windows of one size that cover the image, `side` pixels wide and high at most, at multiples of `multiple`.

    An image of no more than side² pixels is one window. Windows end with the image where it ends.
    """
    if height * width <= side * side:
        return [Window(0, 0, height, width)]
    rows, columns = _starts(height, side, multiple), _starts(width, side, multiple)
    high, wide = _extent(height, rows, multiple), _extent(width, columns, multiple)
    return [Window(top, left, min(high, height - top), min(wide, width - left)) for top in rows for left in columns]


def fade(window: Window, height: int, width: int, like: Tensor) -> Tensor:
    """(h, w) weights of a window: 1 in its middle, falling smoothly over the overlap towards borders that are not
    the image's.
    """
    down = _ramp(window.height, window.top > 0, window.top + window.height < height, like)
    across = _ramp(window.width, window.left > 0, window.left + window.width < width, like)
    return down[:, None] * across


def _starts(length: int, side: int, multiple: int) -> list[int]:
    if length <= side:
        return [0]
    overlap = min(OVERLAP, side // 2)
    count = math.ceil((length - overlap) / (side - overlap))
    whole = _rounded_up(length, multiple)  # padding included, or windows would grow by what is cut off a start
    extent = _rounded_up((whole + (count - 1) * overlap) / count, multiple)
    steps = (whole - extent) // multiple
    return [steps * i // (count - 1) * multiple for i in range(count)]


def _extent(length: int, starts: list[int], multiple: int) -> int:
    """The last window ends with the image, padding included, and all are of its size."""
    return length if len(starts) == 1 else _rounded_up(length, multiple) - starts[-1]


def _rounded_up(value: float, multiple: int) -> int:
    return math.ceil(value / multiple) * multiple


def _ramp(length: int, first: bool, last: bool, like: Tensor) -> Tensor:
    """(length,) with a raised cosine at either end that is asked for."""
    overlap = min(OVERLAP, length // 2)
    at = torch.arange(length, device=like.device, dtype=torch.float32) + 0.5
    weights = torch.ones_like(at)
    for wanted, distance in ((first, at), (last, length - at)):
        if wanted:
            weights = weights * (0.5 - 0.5 * torch.cos(math.pi * (distance / overlap).clamp(max=1)))
    return weights.clamp(min=1e-6)
