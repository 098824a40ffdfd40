"""Where the first Gaussians stand: the scene's seed points, thinned out or filled up along the photos' rays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from difixcli.scenes import load_mask, load_photo
from difixcli.scenes.scene import Camera, Frame, Scene

_NEIGHBOURS = 3
_UNKNOWN_DEPTHS = (0.3, 3.0)  # of a world whose cameras span [-1, 1], where no seed point says better


def seed_gaussians(scene: Scene, train: Sequence[int], count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions (count, 3) float32 in the normalised world and colours (count, 3) uint8 to start splats from.

    More seed points than `count` are thinned out at random. Fewer are filled up: random pixels of the training photos
    are placed along their rays at the depth of seed points that project near them (with their spread as jitter),
    which densifies surfaces instead of filling space. Without seed points depths are drawn log-uniformly
    from what the scene's file says of the photo, or from much. Pixels that
    a photo's mask leaves out seed nothing; a photo of which nothing is left makes them fewer.
    """
    seeding = Seeding(scene, train, count, seed)
    for index in train:
        seeding.add(index)
    return seeding.result()


class Seeding:
    """`seed_gaussians`, photo by photo: `add` is called once for each of `train`, in that order, then `result`."""

    def __init__(self, scene: Scene, train: Sequence[int], count: int, seed: int) -> None:
        self._scene, self._rng = scene, np.random.default_rng(seed)
        points, colors = np.asarray(scene.points, dtype=np.float32), np.asarray(scene.colors, dtype=np.uint8)
        self._seen = points
        lacking = max(count - len(points), 0)
        if not lacking:
            chosen = np.sort(self._rng.choice(len(points), count, replace=False))
            points, colors = points[chosen], colors[chosen]
        shares = np.bincount(np.arange(lacking) % len(train), minlength=len(train))
        self._shares = dict(zip(train, shares, strict=True)) if lacking else {}
        self._points, self._colors = [points], [colors]

    def add(self, index: int) -> None:
        """Fill up from the photo of a frame that trains, where points are lacking."""
        if index not in self._shares:
            return
        frame, rng = self._scene.frames[index], self._rng
        x, y = _pixels(frame.camera, load_mask(frame), self._shares[index], rng)
        depth = _depth_at(frame, self._seen, x, y, rng)
        photo = load_photo(frame)
        self._points.append(frame.camera.unproject(x, y, depth))
        self._colors.append((photo[y.astype(int), x.astype(int)] * 255 + 0.5).astype(np.uint8))

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """What `seed_gaussians` gives."""
        return np.concatenate(self._points).astype(np.float32), np.concatenate(self._colors)


def _pixels(
    camera: Camera, mask: np.ndarray | None, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Random places x and y, (count,) each, in the pixels that count; none where no pixel does."""
    if mask is None:
        return rng.uniform(0, camera.width, count), rng.uniform(0, camera.height, count)
    row, column = np.nonzero(mask)
    chosen = rng.integers(len(row), size=count) if len(row) else np.zeros(0, np.int64)
    return column[chosen] + rng.uniform(0, 1, len(chosen)), row[chosen] + rng.uniform(0, 1, len(chosen))


def _depth_at(frame: Frame, points: np.ndarray, x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(N,) z-depths guessed for pixels (x, y) from the points the camera sees."""
    from scipy.spatial import cKDTree

    camera = frame.camera
    *place, z = camera.project(points)
    pixels = np.stack(place, axis=1)
    margin = 0.1 * max(camera.width, camera.height)
    seen = (
        (z > 1e-3)
        & (pixels > -margin).all(axis=1)
        & (pixels[:, 0] < camera.width + margin)
        & (pixels[:, 1] < camera.height + margin)
    )
    if seen.sum() < _NEIGHBOURS:
        low, high = np.log(frame.depths or _UNKNOWN_DEPTHS)
        return np.exp(rng.uniform(low, high, len(x)))
    _, nearest = cKDTree(pixels[seen]).query(np.stack([x, y], axis=1), k=_NEIGHBOURS)
    logs = np.log(z[seen][nearest])
    # One neighbour's own depth, not their mean: across an edge the mean lies on neither surface.
    pick = rng.integers(_NEIGHBOURS, size=len(x))
    return np.exp(logs[np.arange(len(x)), pick] + 0.02 * rng.standard_normal(len(x)))
