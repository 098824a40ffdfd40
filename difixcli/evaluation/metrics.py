"""Figures of images against their truth, and the baselines every fixer stands beside: identity and an unsharp mask.

Images are (H, W, 3) float32 RGB in [0, 1]; masks are (H, W), true where a pixel counts. What a masked figure does not
count is replaced by the truth before anything is computed, so nothing outside the mask reaches a pixel inside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from difixcli.errors import InputError, unknown
from difixcli.images import as_planes

if TYPE_CHECKING:
    from difixcli.evaluation.color_correction import Correction


@dataclass(frozen=True)
class Metric:
    """How a figure is called and read: its unit (empty for none), whether more is better, digits to show, and in words
    how it is made.

    `of` is what one figure is of: an `image`, a `pair` of frames, or the whole `set` of images. `range` is that of the
    pixels it is computed from, `resized` to what size they are brought for it, after what the protocol does.
    """

    name: str
    unit: str
    higher_is_better: bool
    digits: int
    how: str
    of: Literal["image", "pair", "set"] = "image"
    range: str = "[0, 1]"
    resized: str = ""

    @property
    def label(self) -> str:
        """The name with an arrow in the direction of better."""
        return f"{self.name} {'↑' if self.higher_is_better else '↓'}"


_SIGNED = "[0, 1], brought to [−1, 1]"
_EIGHT_BITS = "0 to 255, whole numbers"
_IMAGE_METRICS = {
    "psnr": Metric("PSNR", "dB", True, 2, "mean over images of −10·log10(MSE), RGB"),
    "ssim": Metric("SSIM", "", True, 4, "Gaussian 11×11, σ 1.5, per channel, whole windows only"),
    "st_lpips": Metric("st-LPIPS", "", False, 4, "shift-tolerant LPIPS, VGG-16 (stlpips-pytorch)", range=_SIGNED),
    "st_lpips_alex": Metric(
        "st-LPIPS (Alex)", "", False, 4, "shift-tolerant LPIPS, AlexNet (stlpips-pytorch)", range=_SIGNED
    ),
    "lpips": Metric("LPIPS", "", False, 4, "LPIPS 0.1, AlexNet", range=_SIGNED),
    "lpips_vgg": Metric("LPIPS (VGG)", "", False, 4, "LPIPS 0.1, VGG-16", range=_SIGNED),
}
CORRECTED = "cc_"
"""What the key of a figure begins with whose image was first colour-corrected to its truth."""

_FID = Metric(
    "FID",
    "",
    False,
    2,
    "Fréchet distance of Inception-v3 pool features (torchmetrics)",
    "set",
    _EIGHT_BITS,
    "to 299×299 by Inception's own bilinear resizing, whatever their shape",
)

_CROSS_VIEW = Metric(
    "cross-view",
    "",
    False,
    4,
    "st-LPIPS (VGG) between the feature maps of consecutive views, those of one carried into the other by depth and "
    "poses, in both directions, where both see one surface (depth within 5 %)",
    "pair",
    _SIGNED,
    "area-averaged to a long side of at most 256 pixels",
)

METRICS = {
    **_IMAGE_METRICS,
    **{f"{CORRECTED}{key}": replace(one, name=f"cc {one.name}") for key, one in _IMAGE_METRICS.items()},
    "fid": _FID,
    "fid_pooled": replace(
        _FID, name="FID (pooled)", how=f"{_FID.how}, the images of all scenes taken as one set, as papers have it"
    ),
    "tsed": Metric(
        "TSED",
        "",
        True,
        3,
        "share of consecutive frames with at least 10 SIFT matches (ratio 0.75, mutual) whose median symmetric "
        "epipolar distance is below 2 pixels at a long side of 256",
        "set",
        f"grey, {_EIGHT_BITS}",
    ),
    "warped": Metric(
        "warped diff.",
        "",
        False,
        4,
        "mean absolute difference, RGB, of consecutive frames after warping by the optical flow (DIS) of the "
        "true ones, where flow there and back agree",
        "pair",
    ),
    "cross_view": _CROSS_VIEW,
    "cross_view_far": replace(
        _CROSS_VIEW,
        name="cross-view (far)",
        how=_CROSS_VIEW.how.replace("consecutive views", "views four places apart"),
    ),
    "pose_auc": Metric(
        "pose AUC@5°",
        "",
        True,
        3,
        "cameras found anew from the images with their lenses known (pycolmap: SIFT, all pairs, incremental); mean "
        "over 1° to 5° of the share of all pairs whose relative rotation and direction are less wrong, views that were "
        "not placed counting as wrong",
        "set",
        f"grey, {_EIGHT_BITS}",
    ),
}
"""Every figure by its key, in the order of a table."""

_BESIDE = ("fid_pooled", "cross_view_far")
CHOICES = tuple(key for key in METRICS if not key.startswith(CORRECTED) and key not in _BESIDE)
"""What can be asked for by name; colour-corrected figures come with the figure they correct, pooled FID with FID, far
pairs with near ones."""

POSED = ("tsed", "cross_view", "pose_auc")
"""Figures that need the cameras' poses."""

_NETWORKS: dict[str, tuple[Literal["st_lpips", "lpips"], Literal["vgg", "alex"]]] = {
    "st_lpips": ("st_lpips", "vgg"),
    "st_lpips_alex": ("st_lpips", "alex"),
    "lpips": ("lpips", "alex"),
    "lpips_vgg": ("lpips", "vgg"),
}

SSIM_WINDOW = 11  # pixels; Gaussian of σ = 1.5
_AT_ONCE = 2**19  # pixels that SSIM is measured of together
_SHARPENINGS = tuple((sigma, amount) for sigma in (0.8, 1.5) for amount in (0.5, 1.0))


def psnr(image: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Peak signal-to-noise ratio in dB for a peak of 1; infinite for identical images."""
    image, truth = _checked(image, truth, mask)
    squares = (image.astype(np.float64) - truth) ** 2
    error = float((squares if mask is None else squares[mask.astype(bool)]).mean())
    return math.inf if error == 0 else -10 * math.log10(error)


def ssim(image: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Structural similarity in [-1, 1] (Wang et al., IEEE TIP 2004): Gaussian 11×11 window of σ = 1.5, per channel.

    The mean is over whole windows, so a border of 5 pixels does not count, as in the paper and in scikit-image.
    NaN where a mask lies in that border alone. Raises InputError for images smaller than the window.
    """
    import torch

    from difixcli.torchvision_cure import cure

    cure()
    from torchmetrics.functional.image import structural_similarity_index_measure

    image, truth = _checked(image, truth, mask)
    if min(image.shape[:2]) < SSIM_WINDOW:
        raise InputError(
            f"An image of {image.shape[1]}×{image.shape[0]} pixels is too small to measure; SSIM needs at least "
            f"{SSIM_WINDOW}×{SSIM_WINDOW}."
        )
    border = SSIM_WINDOW // 2
    rows = max(_AT_ONCE // image.shape[1], SSIM_WINDOW)
    total, count = 0.0, 0
    # in bands that share a border: the library holds fifteen images of what it is given
    for top in range(border, len(image) - border, rows):
        band = slice(top - border, top + rows + border)
        with torch.no_grad():
            # The library's own mean counts mirrored borders or not, depending on its version: take its map instead.
            _, similarity = structural_similarity_index_measure(
                as_planes(image[band]), as_planes(truth[band]), data_range=1.0, return_full_image=True
            )
        inner = similarity[0].permute(1, 2, 0).numpy()[border:-border, border:-border]
        if mask is not None:
            inner = inner[mask[band].astype(bool)[border:-border, border:-border]]
        total, count = total + float(inner.sum(dtype=np.float64)), count + inner.size
    return total / count if count else math.nan


_BY_PIXEL = {"psnr": psnr, "ssim": ssim}


def default_metrics() -> tuple[str, ...]:
    """The figures of an image unless others are asked for: `psnr`, `ssim`, `st_lpips` (VGG) and, where its weights
    are cached, `lpips` (AlexNet).
    """
    from difixcli.evaluation.perceptual import lpips_available

    return ("psnr", "ssim", "st_lpips", *(("lpips",) if lpips_available("alex") else ()))


def parse_metrics(text: str) -> tuple[str, ...]:
    """`psnr,lpips-vgg` → keys of METRICS, each once, in the order of a table; InputError for a name that is none."""
    names = [name.strip().lower().replace("-", "_") for name in text.split(",") if name.strip()]
    if not names:
        raise InputError(f"--metrics names no figure; choose among {', '.join(CHOICES)}.")
    for name in names:
        if name not in CHOICES:
            raise unknown("metric", name.replace("_", "-"), [key.replace("_", "-") for key in CHOICES])
    return tuple(key for key in CHOICES if key in names)


def image_metrics(
    image: np.ndarray,
    truth: np.ndarray,
    mask: np.ndarray | None = None,
    device: str = "cpu",
    metrics: Sequence[str] | None = None,
    correction: Correction | None = None,
) -> dict[str, float]:
    """The asked figures of one image that are of an image (`default_metrics` unless named), by key.

    With `correction` each is there twice: as it is, and as `cc_…` of the image colour-corrected to its truth.
    A masked perceptual distance is over the whole image, the truth standing outside the mask.
    Raises InputError where a network's weights are absent.
    """
    return metrics_against(truth, [image], mask, device, metrics, correction)[0]


def metrics_against(
    truth: np.ndarray,
    images: Iterable[np.ndarray],
    mask: np.ndarray | None = None,
    device: str = "cpu",
    metrics: Sequence[str] | None = None,
    correction: Correction | None = None,
) -> list[dict[str, float]]:
    """`image_metrics` of several images of one view; the truth goes through the perceptual networks once."""
    from difixcli.evaluation.color_correction import color_correct
    from difixcli.evaluation.perceptual import shared_network

    keys = [key for key in (default_metrics() if metrics is None else metrics) if key in _IMAGE_METRICS]
    networks = {key: shared_network(*_NETWORKS[key], device) for key in keys if key in _NETWORKS}
    found = []
    shown: list[tuple[dict[str, float], str, np.ndarray]] = []  # rows, beginnings of keys, images for the networks
    for image in images:
        row: dict[str, float] = {}
        versions = {"": image}
        if correction is not None:
            versions[CORRECTED] = color_correct(image, truth, mask, correction)
        for prefix, version in versions.items():
            counted = _checked(version, truth, mask)[0]
            # a network's figure has its place in the order here, and is found below
            row |= {f"{prefix}{key}": _BY_PIXEL[key](version, truth, mask) if key in _BY_PIXEL else 0 for key in keys}
            if networks:
                shown.append((row, prefix, counted))
        found.append(row)
    for key, network in networks.items():
        distances = network.distances(truth, [counted for _, _, counted in shown])
        for (row, prefix, _), distance in zip(shown, distances, strict=True):
            row[f"{prefix}{key}"] = distance
    return found


def evaluate_images(
    images: Iterable[np.ndarray],
    truths: Iterable[np.ndarray],
    masks: Iterable[np.ndarray | None] | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Figures of images against their truths, taken one pair at a time.

    Returns `per_image`, a list of dicts as `image_metrics` makes them, and their `mean` and `std` (population) over
    the images. Raises InputError when there are none, ValueError when the numbers of images differ.
    """
    if masks is None:
        per_image = [image_metrics(a, b, None, device) for a, b in zip(images, truths, strict=True)]
    else:
        triples = zip(images, truths, masks, strict=True)
        per_image = [image_metrics(a, b, mask, device) for a, b, mask in triples]
    mean, std = summary(per_image)
    return {"per_image": per_image, "mean": mean, "std": std}


def summary(per_image: Sequence[Mapping[str, float]]) -> tuple[dict[str, float], dict[str, float]]:
    """Mean and population standard deviation of each figure over the images; InputError when there are none.

    Images that are identical to their truth have an infinite PSNR, and count only where all are.
    """
    if not per_image:
        raise InputError("There is no image to measure; check the folders' names.")
    columns = {key: np.array([figures[key] for figures in per_image]) for key in per_image[0]}
    # identical images have infinite PSNR; where all are, so is the mean, and the spread is no number
    counted = {key: values[~np.isinf(values)] for key, values in columns.items()}
    mean = {key: float((counted[key] if len(counted[key]) else values).mean()) for key, values in columns.items()}
    std = {key: float(counted[key].std()) if np.isfinite(values).any() else math.nan for key, values in columns.items()}
    return mean, std


def how_made(
    metrics: Iterable[str], masked: bool = False, correction: Correction | None = None, resize: str = "none"
) -> dict[str, str]:
    """How each figure is made, in words, so that a number can be compared: from pixels of which range, resized how.

    `masked` says that some pixels did not count, `resize` how images are brought to the measured size.
    """
    made = {}
    for key in metrics:
        one = METRICS[key]
        resized = [*([] if resize == "none" else [resize]), *([one.resized] if one.resized else [])]
        made[key] = f"{one.how}; pixels in {one.range}; resized: {', then '.join(resized) or 'no'}"
        if key == "psnr" and masked:
            made[key] += "; masked pixels do not count"
        elif masked and one.of != "pair" and key != "tsed":
            made[key] += "; masked pixels are the truth's"
        if correction is not None and key in _IMAGE_METRICS:
            made[f"{CORRECTED}{key}"] = f"{made[key]}; after a {correction} colour fit of each image to its truth"
    return {key: made[key] for key in METRICS if key in made}


def unsharp_mask(image: np.ndarray, sigma: float, amount: float) -> np.ndarray:
    """The image sharpened by `amount` times its difference from a Gaussian blur of `sigma` pixels, in [0, 1]."""
    import cv2

    blurred = cv2.GaussianBlur(image, (0, 0), sigma)
    return np.clip(image + amount * (image - blurred), 0, 1).astype(np.float32)


@dataclass(frozen=True)
class Sharpening:
    """An unsharp mask and the mean figures of the images it was applied to."""

    sigma: float
    amount: float
    figures: Mapping[str, float]

    def __call__(self, image: np.ndarray) -> np.ndarray:
        return unsharp_mask(image, self.sigma, self.amount)


def best_unsharp(
    views: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray | None]],
    judge: str = "st_lpips",
    device: str = "cpu",
    metrics: Sequence[str] | None = None,
) -> Sharpening:
    """The best of four unsharp masks for (image, truth, mask) by the mean of one figure; views are taken one by one.

    `metrics` are what is measured (`default_metrics` unless named); `judge` is among them.

    It is chosen on the very images it is measured on, so it is the most that sharpening can give: a fixer that does
    not beat it has learned no more.
    """
    tried: dict[tuple[float, float], list[dict[str, float]]] = {setting: [] for setting in _SHARPENINGS}
    for image, truth, mask in views:
        sharpened = (unsharp_mask(image, sigma, amount) for sigma, amount in _SHARPENINGS)
        measured = metrics_against(truth, sharpened, mask, device, metrics)
        for setting, figures in zip(_SHARPENINGS, measured, strict=True):
            tried[setting].append(figures)
    means = [Sharpening(sigma, amount, summary(figures)[0]) for (sigma, amount), figures in tried.items()]
    sign = 1 if METRICS[judge].higher_is_better else -1
    return max(means, key=lambda one: sign * one.figures[judge])


def _checked(image: np.ndarray, truth: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The pair as float32, the truth standing wherever the mask does not count."""
    if image.shape != truth.shape or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"images must both be (H, W, 3), not {image.shape} and {truth.shape}")
    image, truth = np.asarray(image, np.float32), np.asarray(truth, np.float32)
    if mask is None:
        return image, truth
    if mask.shape != image.shape[:2]:
        raise ValueError(f"the mask must be (H, W) like the image, not {mask.shape}")
    if not mask.any():
        raise InputError("A mask leaves no pixel to measure; check that white means what counts.")
    return np.where(mask.astype(bool)[..., None], image, truth), truth
