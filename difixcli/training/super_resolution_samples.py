"""What a super-resolver is trained on: photos made small, beside what a scene might show of the same views.

A crop of a photo is the truth. The low-resolution photo is the crop reduced and rounded to 8 bits. The simulated
render imitates what a scene shows that was trained on super-resolved photos of many views: partly sharper and truer
than one photo can tell, partly blurred along what the views disagree about, displaced by a fraction of a pixel,
smeared by elongated Gaussians; now and then it is perfect, or shows another place. Some are mixed with the network's
own answer to the photo alone, since that is what the scene was trained on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from difixcli.errors import InputError
from difixcli.images import Operator, agreeing, as_planes, enlarged, reduced
from difixcli.runs import IMAGE_SUFFIXES, open_image, read_image
from difixcli.scenes import Frame, Scene, load_photo
from difixcli.training.augmentation import augmented
from difixcli.training.options import SuperResolutionOptions
from difixcli.training.super_resolution_runs import SceneView, view_crop
from difixcli.training.synthetic import (
    Sample,
    exposed,
    mixed,
    needles_and_floaters,
    rebuilt_from_splats,
    regions,
    shrunk,
    shrunk_size,
    smooth_flow,
    to_bytes,
    unusable,
    warped,
)

_HELD_OUT_EVERY = 75  # photos of a folder, of which one is never trained on
# what random numbers are drawn for
_SAMPLE, _OPERATOR, _VALIDATION = 1, 2, 3
# shares of the simulated renders
_PERFECT, _ELSEWHERE, _OWN = 0.06, 0.08, 0.25
_SHOWN = 0.8  # of runs' views beside their render


class _LargeSample(NamedTuple):
    photo: Tensor  # (3, h, w)
    target: Tensor  # (3, H, W)
    render: Tensor  # (3, H, W)
    shown: float
    own: float


class SuperResolutionBatch(NamedTuple):
    """Float32 tensors in [0, 1]; of samples without a render `shown` is 0 and the render black."""

    photos: Tensor  # (B, 3, h, w)
    targets: Tensor  # (B, 3, h · factor, w · factor)
    renders: Tensor  # (B, 3, h · factor, w · factor)
    shown: Tensor  # (B,)
    own: Tensor  # (B,) how much of a render is to be replaced by the network's answer to the photo alone
    operator: Operator
    """How the photos were made small."""


class LargePhotos:
    """The photos of a folder, with a long side of at most 1,024 pixels, and of scenes, read when they are needed.

    Of the folder, or of the scenes where there is none, every 75th photo (sorted by path; at least the last) is kept
    for validation and never drawn. What cannot be used is listed in `dropped`.
    Raises InputError when nothing is left to train on.
    """

    def __init__(self, folder: Path | None, scenes: Sequence[Scene], crop: int, cache_mib: float = 512) -> None:
        self.dropped: dict[str, str] = {}
        self._kept: dict[Path, np.ndarray] = {}
        self._free = cache_mib * 2**20
        files = [] if folder is None else sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        frames = [frame for scene in scenes for frame in scene.frames]
        self.files: list[Path | Frame] = [path for path in files if not self._drops(path, crop)]
        self.frames: list[Path | Frame] = [frame for frame in frames if not self._drops(frame, crop)]
        held = self.files if folder is not None else self.frames
        picked = set(range(_HELD_OUT_EVERY - 1, len(held), _HELD_OUT_EVERY)) or {len(held) - 1}
        self.test = [photo for i, photo in enumerate(held) if i in picked]
        held[:] = [photo for i, photo in enumerate(held) if i not in picked]
        if not self.test or not (self.files or self.frames):
            raise InputError(
                f"There are not two usable photos of at least {crop} pixels a side in --photos, or in scenes where it "
                "is not given; name more of them (beside runs, too), or a smaller --crop."
            )

    def names(self) -> list[str]:
        """What is trained on, in order: equal lists are equal trainings."""
        return [_path(photo).name for photo in (*self.files, *self.frames)]

    def draw(self, photo_share: float, rng: np.random.Generator) -> np.ndarray:
        """A photo (H, W, 3), uint8 or float32; of the folder with probability `photo_share`, else of a scene."""
        of_folder = not self.frames or (bool(self.files) and rng.random() < photo_share)
        held = self.files if of_folder else self.frames
        first = int(rng.integers(len(held)))
        for shift in range(min(len(held), 50)):
            try:
                return self.read(held[(first + shift) % len(held)])
            except InputError as error:
                self.dropped[str(_path(held[(first + shift) % len(held)]))] = reason = str(error)
        raise InputError(f"One photo after another cannot be read (the last: {reason}); restore the photos.")

    def read(self, photo: Path | Frame) -> np.ndarray:
        """(H, W, 3), uint8 of a file, float32 in [0, 1] of a scene's frame; InputError when it cannot be read."""
        if isinstance(photo, Frame):
            return load_photo(photo)  # the store of photos keeps it
        if photo in self._kept:
            return self._kept[photo]
        pixels = to_bytes(shrunk(read_image(photo, upright=True)))
        if pixels.nbytes <= self._free:
            self._kept[photo] = pixels
            self._free -= pixels.nbytes
        return pixels

    def _drops(self, photo: Path | Frame, crop: int) -> bool:
        if isinstance(photo, Frame):
            width, height = photo.camera.width, photo.camera.height
            reason = ""
        elif not (reason := unusable(photo)):
            with open_image(photo) as opened:
                width, height = shrunk_size(*opened.size)
        if not reason and min(width, height) < crop:
            reason = f"{width}×{height} pixels are less than the crop of {crop}"
        if reason:
            self.dropped[str(_path(photo))] = reason
        return bool(reason)


class SuperResolutionBatches:
    """Every step's batch: a function of the photos, the options (their seed among them) and the step."""

    def __init__(
        self, photos: LargePhotos, options: SuperResolutionOptions, factor: int, views: Sequence[SceneView] = ()
    ) -> None:
        self.photos, self.options, self.factor, self.views = photos, options, factor, views

    def __getitem__(self, step: int) -> SuperResolutionBatch:
        options = self.options
        operator: Operator = "bicubic" if self._rng(_OPERATOR, step).random() < options.bicubic_share else "area"
        samples = []
        for position in range(step * options.batch, (step + 1) * options.batch):
            rng = self._rng(_SAMPLE, position)
            if self.views and operator == "area" and rng.random() < options.run_share:
                samples.append(_of_view(view_crop(self.views, options.crop, self.factor, rng), rng.random() < _SHOWN))
                continue
            truth = _augmented(_crop(self.photos.draw(options.photo_share, rng), options.crop, rng), rng)
            foreign = _crop(self.photos.draw(options.photo_share, rng), options.crop, rng)
            beside = bool(rng.random() < options.render_share)
            samples.append(_sample(truth, foreign, self.factor, operator, beside, rng))
        return _stacked(samples, operator)

    def _rng(self, purpose: int, number: int) -> np.random.Generator:
        return np.random.default_rng((self.options.seed, purpose, number))


def validation_batches(
    photos: LargePhotos, held_out: Sequence[Path | Frame], factor: int, side: int = 256
) -> list[SuperResolutionBatch]:
    """The same batches of one at every call: the photos' middle, `side` pixels at most, beside a simulated render."""
    batches = []
    for i, photo in enumerate(held_out):
        truth = _middle(_as_float(photos.read(photo)), factor, side)
        foreign = _as_float(photos.read(held_out[(i + 1) % len(held_out)]))
        foreign = cv2.resize(foreign, truth.shape[1::-1], interpolation=cv2.INTER_AREA)
        rng = np.random.default_rng((_VALIDATION, i))
        batches.append(_stacked([_sample(truth, foreign, factor, "area", True, rng, fair=True)], "area"))
    return batches


def view_batches(views: Iterable[SceneView], factor: int, side: int = 512) -> list[SuperResolutionBatch]:
    """The middle of each view of a run, `side` pixels at most, beside what the scene shows there; batches of one."""
    batches = []
    for view in views:
        lengths = [min(length, side // factor) for length in view.photo.shape[:2]]
        starts = [(whole - part) // 2 for whole, part in zip(view.photo.shape[:2], lengths, strict=True)]
        crop = {
            "photo": _as_float(_part(view.photo, starts, lengths, 1)),
            "truth": _as_float(_part(view.truth, starts, lengths, factor)),
            "render": _as_float(_part(view.render, starts, lengths, factor)),
        }
        batches.append(_stacked([_of_view(crop, True)], "area"))
    return batches


def _part(pixels: np.ndarray, starts: Sequence[int], lengths: Sequence[int], scale: int) -> np.ndarray:
    """The pixels that show the same as so many of an image `scale` times smaller from these rows and columns on."""
    rows, columns = (slice(a * scale, (a + n) * scale) for a, n in zip(starts, lengths, strict=True))
    return np.ascontiguousarray(pixels[rows, columns])


def simulated_render(
    truth: np.ndarray, large: np.ndarray, foreign: np.ndarray, rng: np.random.Generator, fair: bool = False
) -> np.ndarray:
    """What a scene may show where the truth is (S, S, 3); all images float32 in [0, 1] of one size.

    Args:
        large: the low-resolution photo enlarged, which is what the scene shows where views taught it nothing.
        foreign: another place.
        fair: neither perfect nor another place.
    """
    lot = rng.random()
    if not fair and lot < _PERFECT:
        return truth
    if not fair and lot < _PERFECT + _ELSEWHERE:
        return foreign
    size = truth.shape[0]
    sharper, softer = sorted(rng.uniform(0.3, 2.0, 2))
    image = mixed(
        _smeared(truth, sharper, rng), _smeared(truth, softer, rng), regions(size, rng, rng.uniform(0.1, 0.9))
    )
    image = warped(image, smooth_flow(size, rng, amplitude=rng.uniform(0, 0.8), cells=int(rng.integers(3, 9))))
    if rng.random() < 0.3:  # two views that do not agree
        other = warped(image, smooth_flow(size, rng, amplitude=rng.uniform(0.5, 2), cells=int(rng.integers(2, 6))))
        image = mixed(image, other, 0.5 * regions(size, rng, rng.uniform(0.1, 0.6)))
    unknown = np.maximum(regions(size, rng, rng.uniform(0.05, 0.6)) * rng.uniform(0, 0.9), rng.uniform(-0.5, 0.7))
    image = mixed(image, large, unknown)
    if rng.random() < 0.25:  # a super-resolver's false sharpness
        image = image + rng.uniform(0.2, 0.8) * (image - cv2.GaussianBlur(image, (0, 0), rng.uniform(0.7, 2)))
    if rng.random() < 0.5:
        where = regions(size, rng, rng.uniform(0.05, 0.5)) * rng.uniform(0.3, 1)
        image, _ = rebuilt_from_splats(image, rng.uniform(0, 0.3), where, rng)
    if rng.random() < 0.3:
        image, _ = needles_and_floaters(image, foreign, rng.uniform(0, 0.4), rng)
    image = exposed(image, rng, strength=abs(rng.normal(0, 0.01)), local=abs(rng.normal(0, 0.01)))
    image = image + rng.normal(0, rng.uniform(0, 0.01), image.shape).astype(np.float32)
    return np.clip(image, 0, 1).astype(np.float32)


def _sample(
    truth: np.ndarray,
    foreign: np.ndarray,
    factor: int,
    operator: Operator,
    beside: bool,
    rng: np.random.Generator,
    fair: bool = False,
) -> _LargeSample:
    target = as_planes(truth)
    photo = reduced(target, factor, operator)
    if rng.random() < 0.3 and not fair:  # a camera's noise
        photo = photo + as_planes(rng.normal(0, rng.uniform(0, 0.006), (*photo.shape[-2:], 3)))
    photo = (photo.clamp(0, 1) * 255).round() / 255
    if not beside:
        return _LargeSample(photo[0], target[0], torch.zeros_like(target[0]), 0.0, 0.0)
    large = enlarged(photo, factor).clamp(0, 1)
    side = max(truth.shape[:2])  # the simulation knows squares alone
    sharp, soft, other = (_squared(image, side) for image in (truth, large[0].permute(1, 2, 0).numpy(), foreign))
    render = as_planes(simulated_render(sharp, soft, other, rng, fair)[: truth.shape[0], : truth.shape[1]])
    if rng.random() < 0.6:  # the scene was trained to agree with the photo
        render = agreeing(render, photo, factor, operator, rounds=1)
    own = rng.uniform(0.3, 1) if not fair and rng.random() < _OWN else 0.0
    return _LargeSample(photo[0], target[0], render[0], 1.0, own)


def _of_view(crop: Mapping[str, np.ndarray], shown: bool) -> _LargeSample:
    photo, truth, render = (as_planes(crop[name])[0] for name in ("photo", "truth", "render"))
    return _LargeSample(photo, truth, render if shown else torch.zeros_like(render), float(shown), 0.0)


def _smeared(image: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Blurred by a Gaussian of deviation `sigma` pixels one way and less the other."""
    across, angle = sigma * rng.uniform(0.3, 1), rng.uniform(0, np.pi)
    y, x = np.mgrid[-6:7, -6:7].astype(np.float32)
    along, beside = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    kernel = np.exp(-0.5 * ((along / sigma) ** 2 + (beside / across) ** 2)).astype(np.float32)
    return cv2.filter2D(image, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT_101)


def _crop(photo: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random square (size, size, 3) float32 of the photo, three in ten made smaller first, by up to 1.8."""
    short, side = min(photo.shape[:2]), size
    if rng.random() < 0.3:
        side = int(rng.integers(size, min(int(1.8 * size), short) + 1))
    top, left = rng.integers(photo.shape[0] - side + 1), rng.integers(photo.shape[1] - side + 1)
    crop = _as_float(photo[top : top + side, left : left + side])
    return crop if side == size else cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA)


def _augmented(crop: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirrored, transposed, in other colours and tones."""
    none, size = np.zeros((0, *crop.shape[:2]), np.float32), crop.shape[:2]
    sample = Sample(crop, crop, np.zeros((0, *crop.shape), np.float32), none, np.ones(size, np.float32))
    return np.ascontiguousarray(augmented(sample, True, True, 0.0, rng).target)


def _middle(photo: np.ndarray, factor: int, side: int) -> np.ndarray:
    """The middle of a photo, whose sides are multiples of the factor and at most `side`."""
    height, width = (min(length, side) // factor * factor for length in photo.shape[:2])
    top, left = (photo.shape[0] - height) // 2, (photo.shape[1] - width) // 2
    return np.ascontiguousarray(photo[top : top + height, left : left + width])


def _squared(image: np.ndarray, side: int) -> np.ndarray:
    """Continued by reflection to (side, side, 3)."""
    rows, columns = side - image.shape[0], side - image.shape[1]
    return cv2.copyMakeBorder(np.ascontiguousarray(image), 0, rows, 0, columns, cv2.BORDER_REFLECT_101)


def _stacked(samples: Sequence[_LargeSample], operator: Operator) -> SuperResolutionBatch:
    return SuperResolutionBatch(
        torch.stack([sample.photo for sample in samples]),
        torch.stack([sample.target for sample in samples]),
        torch.stack([sample.render for sample in samples]),
        torch.tensor([sample.shown for sample in samples]),
        torch.tensor([sample.own for sample in samples]),
        operator,
    )


def _as_float(image: np.ndarray) -> np.ndarray:
    return image.astype(np.float32) / 255 if image.dtype == np.uint8 else np.asarray(image, np.float32)


def _path(photo: Path | Frame) -> Path:
    return photo.image_path if isinstance(photo, Frame) else photo
