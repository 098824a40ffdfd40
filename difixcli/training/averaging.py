"""The running average of a network's weights, in their place for a while."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


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
