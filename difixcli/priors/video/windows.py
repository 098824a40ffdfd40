"""Long ways in windows that share pictures, whose films fade into each other where they meet."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from difixcli.errors import InputError


def windows(count: int, length: int, shared: int) -> list[range]:
    """The windows of a way of `count` pictures: of `length` each, sharing `shared` or more with the one before.

    They have one length and stand as evenly as they can; a way that is no longer than one is one window. Raises
    InputError where windows would share all they have.
    """
    if count <= length:
        return [range(count)]
    if not 0 <= shared < length:
        raise InputError(f"Windows of {length} pictures cannot share {shared}; share fewer.")
    number = -(-(count - shared) // (length - shared))
    starts = [round(i * (count - length) / (number - 1)) for i in range(number)]
    return [range(start, start + length) for start in starts]


def joined(parts: Iterable[tuple[range, np.ndarray]], count: int) -> np.ndarray:
    """The whole way's pictures (count, H, W, 3) from its windows' (length, H, W, 3), in order.

    Where two windows share pictures the second comes in by equal steps; pictures that are the same in both stay what
    they are, bit for bit.
    """
    whole: np.ndarray | None = None
    done = 0
    for window, pictures in parts:
        if whole is None:
            whole = np.empty((count, *pictures.shape[1:]), np.float32)
        both = done - window.start
        for i, frame in enumerate(window):
            if frame < done:
                share = np.float32((i + 1) / (both + 1))
                whole[frame] += share * (pictures[i] - whole[frame])
            else:
                whole[frame] = pictures[i]
        done = window.stop
    assert whole is not None and done == count
    return whole
