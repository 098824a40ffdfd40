"""The running average of a network's weights: following them, and in their place for a while."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


def follow(average: Sequence[Tensor] | None, weights: Sequence[Tensor], ema: float, step: int) -> None:
    """Move the average towards the weights, of the same shapes, after the step of that number, which counts from 0.

    Its decay rises to `ema` as (1 + step) / (10 + step), since it must forget the first steps; None stays None.
    """
    if average is None:
        return
    decay = min(ema, (1 + step) / (10 + step))
    with torch.no_grad():
        torch._foreach_lerp_(list(average), [w.detach() for w in weights], 1 - decay)


@contextmanager
def averaged(weights: Sequence[Tensor], average: Sequence[Tensor] | None) -> Iterator[None]:
    """The weights are their average, of the same shapes, while the block lasts; None leaves them as they are."""
    if average is None:
        yield
        return
    current = [w.detach().clone() for w in weights]
    with torch.no_grad():
        torch._foreach_copy_([w.detach() for w in weights], list(average))
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_([w.detach() for w in weights], current)
