"""Which points a camera sees: those that nothing nearer around them hides."""

from __future__ import annotations

import numpy as np

CELL = 1 / 384
"""Of an image's long side: in cells of this size points are looked at, the two next ones to each side too. In larger
ones a floor or a road, which grows deeper from row to row, hides itself."""


def unhidden(
    x: np.ndarray, y: np.ndarray, depth: np.ndarray, size: tuple[int, int], behind: float, cell: float = CELL
) -> np.ndarray:
    """(N,) bool: which of the points at pixel positions x and y (N,) within an image are not hidden.

    One is that has a z-depth (N,), positive, more than `behind` times that of another around it. `size` is the image's
    height and width; what counts as around grows with it, so that the answer is the same at any size.
    """
    from scipy.ndimage import minimum_filter

    side = cell * max(size)
    row, column = (y / side).astype(np.int64), (x / side).astype(np.int64)
    nearest = np.full((int(size[0] / side) + 1, int(size[1] / side) + 1), np.inf)
    np.minimum.at(nearest, (row, column), depth)
    return depth <= behind * minimum_filter(nearest, size=5, mode="nearest")[row, column]
