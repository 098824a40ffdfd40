"""One world from what pairs of photos say: the global alignment of DUSt3R (Wang et al., CVPR 2024), as ReconX has it.

    min_{χ, σ} Σ_e Σ_{v ∈ e} Σ_p C_p^{v,e} ‖χ_p^v − σ_e P_e X_p^{v,e}‖

over the edges e of the graph of pairs: X^{v,e} is what pair e says of photo v, C how far that is known, P_e where the
pair stands and σ_e its scale; χ^v is the photo's map in the one world. Here the poses are known, so that each χ_p lies
on its pixel's ray and what is sought is its depth. Distances are taken between logarithms of depths, so that near and
far count alike. The sum is brought down by turns: a depth is the median of what its edges say, and a scale that of the
ratios, both weighted by C. A spanning tree of the surest edges is what it begins with, as in DUSt3R's code.

Known poses say what a pair's scale is, too, so that all σ are near 1; the median of them is made 1 where they do, and
where they do not (`scales_known`) the first edge of the tree has 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_ROUNDS = 10
_AGREE = 0.02  # the part of the depth by which an edge may differ from the fused one, for a part of 1/e in it
_LEAST = 1e-4  # the weight of what nothing is known of, so that the map is whole
_LEAST_PIXELS = 20  # with a confidence of 1; fewer say nothing of a scale


@dataclass(frozen=True, eq=False)
class Edge:
    """What a pair says of its two photos, `views` being their indices: for each of them z-depths (H, W), positive, and
    confidences (H, W) in [0, 1].
    """

    views: tuple[int, int]
    depths: tuple[np.ndarray, np.ndarray]
    confidences: tuple[np.ndarray, np.ndarray]

    @property
    def weight(self) -> float:
        return float(sum(confidence.sum() for confidence in self.confidences))


@dataclass(frozen=True, eq=False)
class Fused:
    """Depths (H, W) and confidences (H, W) in [0, 1] by photo, those of no edge left out; the edges' scales."""

    depths: dict[int, np.ndarray]
    confidences: dict[int, np.ndarray]
    scales: list[float]


def align(edges: Sequence[Edge], scales_known: bool = True) -> Fused:
    """The depths and scales that the objective is least for. The confidence of a fused depth is how likely it is that
    one of its edges is right, times the part of them (by confidence) that say the same.
    """
    says: dict[int, list[tuple[int, np.ndarray, np.ndarray]]] = {}
    for number, edge in enumerate(edges):
        for view, depth, confidence in zip(edge.views, edge.depths, edge.confidences, strict=True):
            entry = (number, np.log(np.asarray(depth, np.float64)), np.asarray(confidence, np.float64))
            says.setdefault(view, []).append(entry)
    scales = _spanned(edges, says)
    for _ in range(_ROUNDS if len(edges) > 1 else 0):
        fused = {view: _median(said, scales) for view, said in says.items()}
        scales = [_scale(number, edge, says, fused, scales[number]) for number, edge in enumerate(edges)]
        if scales_known:
            scales = list(np.array(scales) - _weighted_median(np.array(scales), np.array([e.weight for e in edges])))
        else:
            scales = list(np.array(scales) - scales[_surest(edges)])
    depths, confidences = {}, {}
    for view, said in says.items():
        middle = _median(said, scales)
        depths[view], confidences[view] = _together(middle, said, scales)
    return Fused(depths, confidences, [float(np.exp(scale)) for scale in scales])


def _surest(edges: Sequence[Edge]) -> int:
    return int(np.argmax([edge.weight for edge in edges]))


def _spanned(edges: Sequence[Edge], says: dict[int, list[tuple[int, np.ndarray, np.ndarray]]]) -> list[float]:
    """Logarithms of the scales: each edge's as the photo says that it shares with surer ones."""
    scales = [0.0] * len(edges)
    left = set(range(len(edges)))
    while left:  # once for each part of the graph that hangs together
        known: set[int] = set()
        done: list[int] = []
        while True:
            touching = [n for n in left if not done or known & set(edges[n].views)]
            if not touching:
                break
            number = max(touching, key=lambda n: (edges[n].weight, -n))
            if done:
                fused = {
                    view: _median([entry for entry in says[view] if entry[0] in done], scales)
                    for view in known & set(edges[number].views)
                }
                scales[number] = _scale(number, edges[number], says, fused, 0.0)
            done.append(number)
            known |= set(edges[number].views)
            left.remove(number)
    return scales


def _scale(
    number: int,
    edge: Edge,
    says: dict[int, list[tuple[int, np.ndarray, np.ndarray]]],
    fused: dict[int, np.ndarray],
    otherwise: float,
) -> float:
    """The logarithm of an edge's scale that brings it nearest to the fused depths of its photos."""
    ratios, weights = [], []
    for view in edge.views:
        if view in fused:
            _, depth, confidence = next(entry for entry in says[view] if entry[0] == number)
            others = sum((entry[2] for entry in says[view] if entry[0] != number), np.zeros_like(confidence))
            ratios.append((fused[view] - depth).ravel())
            weights.append((confidence * np.minimum(others, 1)).ravel())  # by itself it says nothing of its scale
    total = np.concatenate(weights) if weights else np.zeros(0)
    if total.sum() < _LEAST_PIXELS:
        return otherwise
    return _weighted_median(np.concatenate(ratios), total)


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    order = np.argsort(values)
    summed = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(summed, 0.5 * summed[-1])]) if summed[-1] > 0 else 0.0


def _median(said: Sequence[tuple[int, np.ndarray, np.ndarray]], scales: Sequence[float]) -> np.ndarray:
    """(H, W) logarithms of depths: the weighted median of what a photo's edges say of each pixel."""
    values = np.stack([depth + scales[number] for number, depth, _ in said])
    weights = np.stack([confidence + _LEAST for _, _, confidence in said])
    order = np.argsort(values, axis=0)
    values, weights = np.take_along_axis(values, order, axis=0), np.take_along_axis(weights, order, axis=0)
    summed = np.cumsum(weights, axis=0)
    place = (summed < 0.5 * summed[-1]).sum(axis=0)
    found: np.ndarray = np.take_along_axis(values, place[None], axis=0)[0]
    return found


def _together(
    middle: np.ndarray, said: Sequence[tuple[int, np.ndarray, np.ndarray]], scales: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Depths (H, W) averaged over the edges that are near the median, and their confidence (H, W)."""
    total, share, none_right = np.zeros_like(middle), np.zeros_like(middle), np.ones_like(middle)
    mean = np.zeros_like(middle)
    for number, depth, confidence in said:
        agrees = np.exp(-(((depth + scales[number] - middle) / _AGREE) ** 2))
        part = (confidence + _LEAST) * agrees
        mean += part * (depth + scales[number] - middle)
        share += part
        total += confidence + _LEAST
        none_right *= 1 - confidence * agrees
    depth = np.exp(middle + mean / np.maximum(share, 1e-12))
    return depth.astype(np.float32), ((1 - none_right) * share / total).astype(np.float32)
