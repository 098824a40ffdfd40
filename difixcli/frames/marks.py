"""What of a picture is known and what is invented, as a picture: red, green and blue add up to one.

Red: invented. Green: seen by a photo that stands beside it. Blue: seen by none, but not doubted either (two fixes agree
with each other, or the fix with the render, of a distilled run with that of the model before its first fix). So 1 − red
is how far a pixel may be trusted.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from difixcli.errors import InputError
from difixcli.runs import read_image

_UNITY = 3 / 255  # how far a map's colours may be from adding up to one: each has eight bits


def marks(trust: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Trust and the share that a photo sees, both (H, W) in [0, 1] → (H, W, 3) float32 in [0, 1]."""
    known = trust * seen
    return np.stack([1 - trust, known, trust - known], axis=-1).astype(np.float32)


def shares(marked: np.ndarray) -> dict[str, float]:
    """How much of a picture is `seen`, `agreed` and `invented`, by its marks (H, W, 3); the three add up to one."""
    invented, seen, agreed = (float(value) for value in marked.mean(axis=(0, 1), dtype=np.float64))
    return {"seen": seen, "agreed": agreed, "invented": invented}


def read_marks(path: Path) -> np.ndarray:
    """(H, W, 3) float32 in [0, 1]; InputError for a picture that is broken or none of marks."""
    marked = read_image(path)
    if np.abs(marked.sum(axis=-1) - 1).max() > _UNITY:
        raise InputError(
            f"{path} is no map as --confidence writes it, whose red, green and blue add up to one; rename it."
        )
    return marked
