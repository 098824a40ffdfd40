"""Endless training pairs from generic photos: what sparse reconstructions do to an image, imitated in two dimensions.

A crop of a photo is the clean view. Its "render" goes through the faults that few-view Gaussian splats and NeRFs
show: regions rebuilt from too few, structure-aligned Gaussians, needles, floaters, ghost doubles, local blur,
misplaced content, holes with low opacity and drifting exposure. Its "aligned references" are the clean view as a
reprojected photo would show it: torn by the render's noisy depth, off by a few pixels of smooth flow, with other
exposure, a spotty visibility, and regions that claim to be visible but show something else. So a network can learn to
take texture from references where they agree with the render in structure, and to leave them where they do not,
before it sees a real pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from difixcli.compiled import compiled
from difixcli.errors import InputError
from difixcli.runs import open_image, read_image

_LONGEST = 1024  # pixels of a photo held in memory


class Sample(NamedTuple):
    """One training pair at crop size; float32, colours and masks in [0, 1].

    `references` (V, H, W, 3) are aligned to the render, with their `visibility` (V, H, W).
    """

    render: np.ndarray  # (H, W, 3)
    target: np.ndarray  # (H, W, 3)
    references: np.ndarray  # (V, H, W, 3)
    visibility: np.ndarray  # (V, H, W)
    opacity: np.ndarray  # (H, W)
    correspondence: np.ndarray | None = None  # (V, 3, H, W), of raw references with their geometry


class PhotoPairs:
    """A folder of photos from which pairs are drawn; they are read when they are needed.

    Photos are used, and kept as far as `cache_mib` goes, as 8-bit images of at most 1024 pixels. Every `holdout`-th
    photo (sorted by path), or of fewer the last, is kept for validation and never drawn for training; an only one is
    trained on. Files whose header cannot be read are listed in `dropped`, others that cannot when they are drawn.
    Raises InputError when there is no usable photo.
    """

    def __init__(self, folder: Path, holdout: int = 40, cache_mib: float = 512) -> None:
        suffixes = {".jpg", ".jpeg", ".png", ".webp"}
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in suffixes)
        self.train: list[Path] = []
        self.test: list[Path] = []
        self.dropped: dict[str, str] = {}
        self._kept: dict[Path, np.ndarray] = {}
        self._free = cache_mib * 2**20
        for i, path in enumerate(files):
            if reason := unusable(path):
                self.dropped[str(path)] = reason
            elif i % holdout == holdout - 1:
                self.test.append(path)
            else:
                self.train.append(path)
        if not self.train:
            raise InputError(f"No readable photo lies under {folder}; name a folder of JPEG or PNG photos.")
        while not self.test and len(self.train) > 1:
            last = self.train.pop()
            try:  # it would be the only one to validate on
                self.photo(last)
                self.test.append(last)
            except InputError as error:
                self.dropped[str(last)] = str(error)

    def draw(self, size: int, views: int, rng: np.random.Generator) -> Sample:
        """A random training pair of `size` × `size` pixels with `views` references."""
        first, second = rng.integers(len(self.train), size=2)
        return synthesise(self._readable(self.train, first), self._readable(self.train, second), size, views, rng)

    def validation(self, count: int, size: int, views: int) -> list[Sample]:
        """The same pairs at every call, made from the photos that are never trained on, or from the only one."""
        rng = np.random.default_rng(20_240)
        files = self.test or self.train
        return [
            synthesise(self._readable(files, i), self._readable(files, i + 1), size, views, rng) for i in range(count)
        ]

    def photo(self, path: Path) -> np.ndarray:
        """(H, W, 3) uint8; InputError when it cannot be read."""
        if path in self._kept:
            return self._kept[path]
        photo = to_bytes(shrunk(read_image(path, upright=True)))
        if photo.nbytes <= self._free:
            self._kept[path] = photo
            self._free -= photo.nbytes
        return photo

    def _readable(self, files: Sequence[Path], index: int) -> np.ndarray:
        """The photo at `index`, counted around, or the next one that can be read."""
        for shift in range(len(files)):
            path = files[(index + shift) % len(files)]
            try:
                return self.photo(path)
            except InputError as error:
                self.dropped[str(path)] = str(error)
        raise InputError(f"No photo can be read any more (the last: {path}); restore the folder of photos.")


def unusable(path: Path) -> str:
    """Why a photo cannot be used, as far as its header says; empty when it can."""
    try:
        with open_image(path) as opened:
            return "smaller than 32 pixels" if min(opened.size) < 32 else ""
    except InputError as error:
        return str(error)


def synthesise(photo: np.ndarray, other: np.ndarray, size: int, views: int, rng: np.random.Generator) -> Sample:
    """A degraded square crop of a photo with aligned references.

    `photo` and `other` (h, w, 3) uint8; `other` lends the wrong content of occluded regions. All randomness comes
    from `rng`.
    """
    clean = _crop(photo, size, rng)
    foreign = _crop(other, size, rng)
    severity = rng.beta(1.2, 2.0)
    spoiled = regions(size, rng, share=rng.uniform(0.1, 0.9))
    render, opacity, misplaced = _degrade(clean, foreign, severity, spoiled, rng)
    references = np.empty((views, size, size, 3), np.float32)
    visibility = np.empty((views, size, size), np.float32)
    # Photos are reprojected through the render's own depth, so they are wrong together where that is wrong: most
    # where the render is bad, and with the grain of single splats.
    roughness = np.maximum(regions(size, rng, share=rng.uniform(0.1, 0.9)), rng.uniform(0.05, 0.6)) + misplaced
    depth_error = roughness * _grain(size, rng)
    looseness = min(abs(rng.normal(0, 1.6)), 4.0)
    for v in range(views):
        references[v], visibility[v] = _reference(clean, foreign, depth_error, roughness, looseness, rng)
    return Sample(render, clean, references, visibility, opacity)


def _degrade(
    clean: np.ndarray, foreign: np.ndarray, severity: float, spoiled: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The render of a clean view, its opacity, and where its geometry is wrong; severity in [0, 1]."""
    size = clean.shape[0]
    image = clean
    wrong: np.ndarray = np.zeros((size, size), np.float32)
    if rng.random() < 0.6:  # content in the wrong place: geometry slightly off
        shift = smooth_flow(size, rng, amplitude=severity * rng.uniform(0.5, 4), cells=int(rng.integers(3, 9)))
        image = warped(image, spoiled[..., None] * shift)
    if rng.random() < 0.7:
        sigma = 0.4 + severity * rng.uniform(0, 2.5)
        image = mixed(image, cv2.GaussianBlur(image, (0, 0), sigma), np.maximum(spoiled, rng.uniform(0, 0.5)))
    elif rng.random() < 0.3:
        factor = rng.uniform(1.5, 2 + 3 * severity)
        small = cv2.resize(image, (max(int(size / factor), 8),) * 2, interpolation=cv2.INTER_AREA)
        image = mixed(image, cv2.resize(small, (size, size), interpolation=cv2.INTER_LINEAR), spoiled)
    if rng.random() < 0.4:  # ghost: two views disagree about the depth
        offset = rng.uniform(2, 12) * _direction(rng)
        ghost = warped(image, np.broadcast_to(offset.astype(np.float32), (size, size, 2)))
        where = regions(size, rng, share=rng.uniform(0.1, 0.5)) * rng.uniform(0.2, 0.6) * severity
        image = mixed(image, ghost, where)
        wrong = np.maximum(wrong, where)
    opacity: np.ndarray = np.ones((size, size), np.float32)
    if rng.random() < 0.85:  # the region as a too small number of Gaussians shows it
        image, cover = rebuilt_from_splats(image, severity, spoiled, rng)
        wrong = np.maximum(wrong, 0.3 * cover)
    image, struck = needles_and_floaters(image, foreign, severity, rng)
    wrong = np.maximum(wrong, struck)
    if rng.random() < 0.3:
        hole: np.ndarray = regions(size, rng, share=rng.uniform(0.02, 0.25)) * rng.uniform(0.3, 1.0)
        ragged: np.ndarray = np.clip(hole + hole * rng.normal(0, 0.3, (size, size)).astype(np.float32), 0, 1)
        hole = cv2.GaussianBlur(ragged, (0, 0), rng.uniform(0.5, 2))
        background = np.zeros(3) if rng.random() < 0.6 else rng.uniform(0, 1, 3)
        image = mixed(image, np.broadcast_to(background.astype(np.float32), image.shape), hole)
        opacity = opacity * (1 - hole)
        wrong = np.maximum(wrong, hole)
    image = exposed(image, rng, strength=0.01 + 0.05 * severity, local=0.06 * severity)
    if rng.random() < 0.3:
        image = image + rng.normal(0, rng.uniform(0, 0.02), image.shape).astype(np.float32)
    opacity = np.clip(opacity - abs(rng.normal(0, 0.01)), 0, 1)
    return np.clip(image, 0, 1), opacity.astype(np.float32), wrong


def _reference(
    clean: np.ndarray,
    foreign: np.ndarray,
    depth_error: np.ndarray,
    roughness: np.ndarray,
    looseness: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """A photo reprojected into the clean view: (H, W, 3) colours and (H, W) visibility.

    `depth_error` (H, W) has deviations about `roughness`; it displaces along the photo's epipolar direction by
    `looseness` pixels per unit, more for a farther photo.
    """
    size = clean.shape[0]
    baseline = looseness * rng.uniform(0.3, 1.5)
    along = (baseline * _direction(rng)).astype(np.float32)
    residue = depth_error[..., None] * along
    # what registration leaves or adds: sub-pixel nearly everywhere, a few pixels here and there
    residue = residue + smooth_flow(size, rng, amplitude=abs(rng.normal(0, 0.4)), cells=int(rng.integers(2, 12)))
    if rng.random() < 0.5:
        slip = regions(size, rng, share=rng.uniform(0.03, 0.3))[..., None]
        residue = residue + slip * smooth_flow(size, rng, amplitude=rng.uniform(1, 8), cells=4)
    image = warped(clean, residue.astype(np.float32))
    sharpness = rng.uniform(0, 0.9)
    if sharpness > 0.3:  # reprojection interpolates, and a far photo has fewer pixels for the same surface
        image = cv2.GaussianBlur(image, (0, 0), sharpness)
    if rng.random() < 0.5:  # claims to be visible, but another surface is seen
        lie = regions(size, rng, share=rng.uniform(0.02, 0.15))
        if rng.random() < 0.5:
            content = foreign
        else:
            content = warped(
                clean, np.broadcast_to((rng.uniform(6, 40) * _direction(rng)).astype(np.float32), residue.shape)
            )
        image = mixed(image, content, lie)
    image = np.clip(exposed(image, rng, strength=abs(rng.normal(0, 0.05)), local=abs(rng.normal(0, 0.03))), 0, 1)
    seen: np.ndarray = np.ones((size, size), np.float32)
    if rng.random() < 0.6:
        seen = seen * (1 - regions(size, rng, share=rng.uniform(0.02, 0.6)))
    if rng.random() < 0.35:  # the photo ends inside the view
        seen = seen * _half_plane(size, rng)
    # believed where the two rendered depths agree: the photo's own is as wrong as the render's, in other places
    disagreement = depth_error - roughness * _grain(size, rng)
    seen = seen * np.exp(-0.5 * (disagreement / rng.uniform(0.4, 4)) ** 2)
    if rng.random() < 0.3:
        seen = cv2.blur(seen.astype(np.float32), (3, 3))
    seen = np.where(seen < 0.02, 0, seen)
    seen = seen.astype(np.float32)
    return image * (seen > 0)[..., None], seen  # alignment leaves black where the photo shows nothing


def rebuilt_from_splats(
    image: np.ndarray, severity: float, where: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw structure-aligned Gaussians coloured from the image over it; returns the image and how much is covered."""
    size = image.shape[0]
    spacing = rng.uniform(2, 3 + 6 * severity)  # pixels between neighbouring Gaussians
    count = int((size / spacing) ** 2 * rng.uniform(1, 2.5))
    xy = rng.uniform(0, size, (count, 2)).astype(np.float32)
    column, row = np.minimum(xy.astype(np.intp), size - 1).T  # float32 may round up to the border
    gray = image.mean(axis=2)
    soft = cv2.GaussianBlur(gray, (0, 0), 1.5)
    along = np.arctan2(cv2.Sobel(soft, cv2.CV_32F, 0, 1), cv2.Sobel(soft, cv2.CV_32F, 1, 0)) + np.pi / 2
    angle = along[row, column] + rng.normal(0, 0.3, count)
    elongation = np.exp(np.abs(rng.normal(0, rng.uniform(0.2, 0.8), count)))
    sigma = spacing * rng.uniform(0.35, 0.8) * np.exp(rng.normal(0, 0.35, count))
    blurred = cv2.GaussianBlur(image, (0, 0), max(0.3 * spacing, 0.5))
    color = blurred[row, column] + rng.normal(0, 0.01 + 0.05 * severity, (count, 3))
    alpha = np.clip(where[row, column] * rng.uniform(0.3, 1.0, count), 0, 0.99)
    splats = np.stack([xy[:, 0], xy[:, 1], sigma * elongation, sigma / np.sqrt(elongation), angle, alpha], axis=1)
    return _drawn(image, splats, color)


def needles_and_floaters(
    image: np.ndarray, foreign: np.ndarray, severity: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Long thin Gaussians and semi-transparent blobs; returns the image and where they lie."""
    size = image.shape[0]
    area = (size / 128) ** 2
    splats: list[np.ndarray] = []
    if rng.random() < 0.5:
        count = int(rng.integers(1, 2 + int(60 * severity)) * area)
        common = rng.uniform(0, np.pi)  # needles of one bad view point the same way
        angle = np.where(rng.random(count) < 0.6, common + rng.normal(0, 0.15, count), rng.uniform(0, np.pi, count))
        length = rng.uniform(3, 18, count)
        splats.append(
            np.stack(
                [
                    *rng.uniform(0, size, (2, count)),
                    length,
                    rng.uniform(0.35, 1.3, count),
                    angle,
                    rng.uniform(0.15, 0.95, count) * (0.3 + 0.7 * severity),
                ],
                axis=1,
            )
        )
    if rng.random() < 0.4:
        count = int(rng.integers(1, 2 + int(10 * severity)) * area)
        sigma = rng.uniform(3, 18, count)
        stretch = np.exp(rng.normal(0, 0.4, count))
        splats.append(
            np.stack(
                [
                    *rng.uniform(0, size, (2, count)),
                    sigma * stretch,
                    sigma / stretch,
                    rng.uniform(0, np.pi, count),
                    rng.uniform(0.1, 0.8, count) * (0.3 + 0.7 * severity),
                ],
                axis=1,
            )
        )
    if not splats:
        return image, np.zeros((size, size), np.float32)
    every = np.concatenate(splats)
    count = len(every)
    source = image if rng.random() < 0.7 else foreign
    row, column = rng.integers(0, size, (2, count))
    near = np.clip(every[:, :2] + rng.normal(0, 12, (count, 2)), 0, size - 1).astype(np.intp)
    color = np.where((rng.random(count) < 0.6)[:, None], image[near[:, 1], near[:, 0]], source[row, column])
    color = np.clip(color * rng.uniform(0.6, 1.3, (count, 1)) + rng.normal(0, 0.05, (count, 3)), 0, 1)
    return _drawn(image, every, color)


def _drawn(image: np.ndarray, splats: np.ndarray, color: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    canvas = np.ascontiguousarray(image, dtype=np.float32).copy()
    cover = np.zeros(image.shape[:2], np.float32)
    _composite(canvas, cover, splats.astype(np.float32), np.ascontiguousarray(color, dtype=np.float32))
    return canvas, cover


@compiled(fastmath=True)
def _composite(canvas: np.ndarray, cover: np.ndarray, splats: np.ndarray, color: np.ndarray) -> None:
    """Alpha-blend 2D Gaussians in order, in place.

    `splats` (N, 6): x, y, σ along, σ across (pixels), angle of the long axis (radians), opacity.
    """
    height, width = cover.shape
    for n in range(splats.shape[0]):
        x, y, along, across, angle, alpha = splats[n]
        if alpha < 0.01:
            continue
        c, s = np.cos(angle), np.sin(angle)
        reach_x = 3 * np.sqrt((along * c) ** 2 + (across * s) ** 2) + 1
        reach_y = 3 * np.sqrt((along * s) ** 2 + (across * c) ** 2) + 1
        u, v = np.float32(0.5) / (along * along), np.float32(0.5) / (across * across)
        for i in range(max(int(y - reach_y), 0), min(int(y + reach_y) + 1, height)):
            for j in range(max(int(x - reach_x), 0), min(int(x + reach_x) + 1, width)):
                dx, dy = j + np.float32(0.5) - x, i + np.float32(0.5) - y
                p, q = c * dx + s * dy, c * dy - s * dx
                power = u * p * p + v * q * q
                if power > 4.5:
                    continue
                a = alpha * np.exp(-power)
                cover[i, j] += (1 - cover[i, j]) * a
                for k in range(3):
                    canvas[i, j, k] += (color[n, k] - canvas[i, j, k]) * a


def _crop(photo: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random square of the photo at a random scale, as (size, size, 3) float32; mirrored half of the time."""
    short = min(photo.shape[:2])
    side = int(rng.integers(min(int(0.85 * size), short), short + 1)) if short > 0.85 * size else short
    top, left = rng.integers(photo.shape[0] - side + 1), rng.integers(photo.shape[1] - side + 1)
    crop = photo[top : top + side, left : left + side]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    method = cv2.INTER_AREA if side >= size else cv2.INTER_CUBIC
    return cv2.resize(np.ascontiguousarray(crop), (size, size), interpolation=method).astype(np.float32) / 255


def regions(size: int, rng: np.random.Generator, share: float) -> np.ndarray:
    """A random mask of blobs (size, size) in [0, 1] with edges of random softness, covering about `share`."""
    cells = int(rng.integers(3, 10))
    noise = cv2.resize(rng.normal(size=(cells, cells)).astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
    level = np.quantile(noise[::4, ::4], 1 - share)
    return np.clip((noise - level) * rng.uniform(1.5, 12) + 0.5, 0, 1).astype(np.float32)


def smooth_flow(size: int, rng: np.random.Generator, amplitude: float, cells: int) -> np.ndarray:
    """A smooth displacement field (size, size, 2) in pixels whose typical length is `amplitude`."""
    grid = rng.normal(size=(cells, cells, 2)).astype(np.float32) + rng.normal(size=2).astype(np.float32) * 0.5
    return cv2.resize(grid * np.float32(0.7 * amplitude), (size, size), interpolation=cv2.INTER_CUBIC)


def _grain(size: int, rng: np.random.Generator) -> np.ndarray:
    """Noise (size, size) of about unit deviation, as the depth of rendered splats has it: spots of a few pixels."""
    fine, coarse = (max(int(size / rng.uniform(low, high)), 2) for low, high in ((2.5, 8), (8, 32)))
    share = rng.uniform(0.3, 0.9)
    parts = [
        cv2.resize(rng.normal(size=(n, n)).astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
        for n in (fine, coarse)
    ]
    return np.float32(1.3 * share) * parts[0] + np.float32(1.3 * (1 - share)) * parts[1]


def warped(image: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """image[y + flow_y, x + flow_x], bilinear, mirrored at the borders."""
    size = image.shape[0]
    y, x = np.mgrid[:size, :size].astype(np.float32)
    return cv2.remap(image, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


def exposed(image: np.ndarray, rng: np.random.Generator, strength: float, local: float) -> np.ndarray:
    """Another exposure and white balance, drifting over the image by `local`."""
    gain = np.exp(rng.normal(0, strength) + rng.normal(0, 0.4 * strength, 3))
    bias = rng.normal(0, 0.3 * strength, 3)
    grid = rng.normal(size=(3, 3, 3)).astype(np.float32) * np.float32(local)
    drift = cv2.resize(grid, image.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    return (image * (gain.astype(np.float32) * (1 + drift)) + bias.astype(np.float32)).astype(np.float32)


def _half_plane(size: int, rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[:size, :size].astype(np.float32) / size - 0.5
    direction = _direction(rng)
    return (x * direction[0] + y * direction[1] > rng.uniform(-0.5, 0.1)).astype(np.float32)


def _direction(rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    return np.array([np.cos(angle), np.sin(angle)])


def mixed(a: np.ndarray, b: np.ndarray, weight: np.ndarray | float) -> np.ndarray:
    w = np.asarray(weight, np.float32)
    return a + (b - a) * (w[..., None] if w.ndim == 2 else w)


def shrunk(photo: np.ndarray) -> np.ndarray:
    """The photo with a long side of at most 1024 pixels, which is more than any crop shows."""
    width, height = shrunk_size(photo.shape[1], photo.shape[0])
    return photo if height == len(photo) else cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA)


def shrunk_size(width: int, height: int) -> tuple[int, int]:
    """What `shrunk` makes of an image's (width, height)."""
    scale = min(1.0, _LONGEST / max(width, height))
    return max(round(width * scale), 1), max(round(height * scale), 1)


def to_bytes(image: np.ndarray) -> np.ndarray:
    return (image * 255 + 0.5).astype(np.uint8)
