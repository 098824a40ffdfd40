"""How far the depths of two photos may be believed, each given the other's."""

from __future__ import annotations

import numpy as np

from difixcli.point_maps.sweep import Sweep
from difixcli.scenes.scene import Camera

_BACK = (1.0, 0.01)
"""Pixels, and parts of the depth, by which the other photo's depth may differ for a confidence of 1/e; the wider
counts."""
_SURE = 0.25  # pixels, the error of a match between planes
_DEPTH = 0.02  # the part of the depth whose error halves the confidence
_DISTINCT = 0.2  # of how much other depths cost more, from which on it takes nothing from the confidence
_ALIKE = (0.5, 0.65)  # of how like the photos are, nothing and all of the confidence


def pair_confidence(one: Sweep, camera: Camera, other: Sweep, beside: Camera) -> np.ndarray:
    """(H, W) float32 in [0, 1]: how far the depths that `one` has for `camera` are known, given `other`'s for `beside`.

    It is a product of four: that the other photo's own depth there leads back to the pixel; that its parallax tells
    depths apart, 1 / (1 + (e / 2 %)²) for an error e of the depth that a quarter of a pixel makes; that no other depth
    brings the photos together as well; and that this one does.
    """
    x, y = np.meshgrid(np.arange(camera.width) + 0.5, np.arange(camera.height) + 0.5)
    u, v, z = beside.project(camera.unproject(x, y, one.depth.astype(np.float64)))
    with np.errstate(invalid="ignore"):
        inside = (z > 0) & (u >= 0) & (v >= 0) & (u < beside.width) & (v < beside.height)
    column, row = (np.where(inside, place, 0).astype(int) for place in (u, v))
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = np.abs(other.depth[row, column] - z) / z
    allowed = np.maximum(_BACK[0] / np.maximum(other.parallax[row, column], 1e-6), _BACK[1])
    allowed = np.minimum(allowed, 2 * _DEPTH)
    back = np.where(inside, np.exp(-((np.where(inside, apart, 0) / allowed) ** 2)), 0)
    error = _SURE / np.maximum(one.parallax, 1e-6)
    told = 1 / (1 + (error / _DEPTH) ** 2)
    distinct = np.clip(one.distinct / _DISTINCT, 0, 1)
    alike = np.clip((one.alike - _ALIKE[0]) / (_ALIKE[1] - _ALIKE[0]), 0, 1)
    return (back * told * distinct * alike).astype(np.float32)
