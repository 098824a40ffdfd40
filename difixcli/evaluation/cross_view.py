"""Do views show one and the same thing: perceptual features of one carried into another by depth and poses.

What MEt3R (Asim et al., CVPR 2025) asks, answered with what is at hand: its DUSt3R is our depth and the known poses,
its DINO the VGG features of shift-tolerant LPIPS. Its numbers are others, so the figure has its own name. Blur is
consistent, too: it says something only beside a figure of fidelity, and beside the truth's own.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from difixcli.evaluation.perceptual import shared_network
from difixcli.scenes.scene import Camera

LONG_SIDE = 256
"""Pixels of the long side at which views are compared."""
FAR = 4
"""How many places of the path lie between the views of a far pair."""
AGREEMENT = 0.05
"""By how much the depth of a point may differ from what the other view has there, as a share of it."""
LEAST = 0.05
"""Share of pixels that must be in both views for a pair to count."""


@dataclass(frozen=True)
class CrossPair:
    """Of two views: the `distance` of their features where both see one surface, the mean of both directions (NaN where
    less than 5 % is seen in both), and the `share` of pixels that is.
    """

    distance: float
    share: float


@dataclass(frozen=True, eq=False)
class View:
    """A view as it is compared: an image (H, W, 3) in [0, 1], z-depth (H, W) (0: no surface) and its camera, all of one
    size.
    """

    image: np.ndarray
    depth: np.ndarray
    camera: Camera


def compared_size(width: int, height: int) -> tuple[int, int]:
    """The (width, height) at which views of that size are compared."""
    scale = min(1.0, LONG_SIDE / max(width, height))
    return max(round(width * scale), 1), max(round(height * scale), 1)


def path_pairs(count: int, apart: int) -> list[tuple[int, int]]:
    """The pairs of a path's views that lie so many places apart."""
    return [(i, i + apart) for i in range(count - apart)]


def cross_view(views: Callable[[int], View], pairs: Sequence[tuple[int, int]], device: str = "cpu") -> list[CrossPair]:
    """The distance of each of the pairs of views, taken by their numbers; those of recent pairs are held.

    The st-LPIPS (VGG) distance of one view's feature maps and the other's, looked up where each pixel's surface point
    projects to; over the pixels whose point is inside the other view at the depth which that has there.
    """
    network = shared_network("st_lpips", "vgg", device)
    held: OrderedDict[int, tuple[View, list[Tensor]]] = OrderedDict()

    def ready(i: int) -> tuple[View, list[Tensor]]:
        if i not in held:
            view = views(i)
            pixels = torch.from_numpy(np.ascontiguousarray(view.image.transpose(2, 0, 1), dtype=np.float32))[None]
            held[i] = view, network.features(pixels.to(device))
        held.move_to_end(i)
        while len(held) > FAR + 1:
            held.popitem(last=False)
        return held[i]

    found = []
    with torch.no_grad():
        for i, j in pairs:
            directions = []
            for (one, features), (two, others) in ((ready(i), ready(j)), (ready(j), ready(i))):
                places, seen = correspondence(one, two)
                share = float(seen.mean())
                if share < LEAST:
                    directions.append((math.nan, share))
                    continue
                grid = torch.from_numpy(places.transpose(2, 0, 1))[None].to(device)
                weights = torch.from_numpy(seen.astype(np.float32))[None, None].to(device)
                carried = [_sampled(other, grid, weights) for other in others]
                directions.append((float(network.between(features, carried, weights)) / share, share))
            found.append(CrossPair(*map(float, np.mean(directions, axis=0))))
    return found


def correspondence(one: View, two: View) -> tuple[np.ndarray, np.ndarray]:
    """Where each pixel's surface point of view `one` is in view `two`: places (H, W, 2) float32, x and y from −1 to 1
    across its image, and (H, W) bool where it is seen there.
    """
    height, width = one.depth.shape
    rows, columns = two.depth.shape
    points = one.camera.unproject(np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5, one.depth)
    u, v, z = two.camera.project(points)
    inside = (one.depth > 0) & (z > 1e-6) & (u >= 0) & (u < columns) & (v >= 0) & (v < rows)
    there = two.depth[np.where(inside, v, 0).astype(int), np.where(inside, u, 0).astype(int)]
    places = np.stack([2 * u / columns - 1, 2 * v / rows - 1], axis=-1)
    return np.where(inside[..., None], places, 0).astype(np.float32), inside & (np.abs(there - z) <= AGREEMENT * z)


def _sampled(features: Tensor, places: Tensor, seen: Tensor) -> Tensor:
    """Feature maps (1, C, h, w) at the places (1, 2, H, W) that those pixels of each cell have on average which are
    `seen` (1, 1, H, W), 1 or 0; where none is, anything.
    """
    size = (features.shape[-2], features.shape[-1])
    share = F.adaptive_avg_pool2d(seen, size)
    grid = (F.adaptive_avg_pool2d(places * seen, size) / share.clamp_min(1e-6)).permute(0, 2, 3, 1)
    return F.grid_sample(features, grid, mode="bilinear", padding_mode="border", align_corners=False)
