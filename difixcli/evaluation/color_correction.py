"""Colour correction before measuring: what an image would be worth if its exposure and white balance were the truth's.

A capture's exposure changes from photo to photo, and a reconstruction cannot know that of a held-out one; a `cc` figure
leaves that out. It looks at the truth, so it is never the only figure of an image.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

Correction = Literal["affine", "quadratic"]
CORRECTIONS: tuple[str, ...] = get_args(Correction)

_ROUNDS = 5  # clipping to [0, 1] changes which pixels are saturated, so the fit is repeated
_SATURATED = 0.5 / 255


def color_correct(
    image: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None, correction: Correction = "quadratic"
) -> np.ndarray:
    """The image with one polynomial of its colours fitted, by least squares, to the truth: (H, W, 3) in [0, 1].

    Each channel of the truth is fitted by the image's three (`affine`) or by these and their six products too
    (`quadratic`), plus a constant, as RawNeRF's evaluation does it (Mildenhall et al., CVPR 2022): over the pixels
    that are not saturated in either image, five times over. Only pixels where `mask` (H, W) is true are looked at;
    all are changed. A channel with too few such pixels stays as it is.
    """
    colors = np.asarray(image, np.float64).reshape(-1, 3)
    wanted = np.asarray(truth, np.float64).reshape(-1, 3)
    counts = np.ones(len(colors), bool) if mask is None else mask.astype(bool).reshape(-1)
    between = _unsaturated(wanted) & counts[:, None]
    current = colors
    for _ in range(_ROUNDS):
        terms = _terms(current, correction)
        usable = between & _unsaturated(colors) & _unsaturated(current)
        fitted = current.copy()
        for channel in range(3):
            rows = usable[:, channel]
            if rows.sum() >= terms.shape[1]:
                weights = np.linalg.lstsq(terms[rows], wanted[rows, channel], rcond=None)[0]
                fitted[:, channel] = terms @ weights
        current = np.clip(fitted, 0, 1)
    return current.reshape(image.shape).astype(np.float32)


def _terms(colors: np.ndarray, correction: Correction) -> np.ndarray:
    """(N, 4 or 10) terms of the polynomial of colours (N, 3)."""
    columns = [colors]
    if correction == "quadratic":
        columns += [colors[:, channel : channel + 1] * colors[:, channel:] for channel in range(3)]
    return np.concatenate([*columns, np.ones((len(colors), 1))], axis=1)


def _unsaturated(colors: np.ndarray) -> np.ndarray:
    return (colors >= _SATURATED) & (colors <= 1 - _SATURATED)
