"""What of a picture is known and what is invented, as a picture: red, green and blue add up to one.

Red: invented. Green: seen by a photo that stands beside it. Blue: seen by none, but not doubted either (two fixes agree
with each other, or the fix with the render). So 1 − red is how far a pixel may be trusted.
"""

from __future__ import annotations

import numpy as np


def marks(trust: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Trust and the share that a photo sees, both (H, W) in [0, 1] → (H, W, 3) float32 in [0, 1]."""
    known = trust * seen
    return np.stack([1 - trust, known, trust - known], axis=-1).astype(np.float32)
