"""Measuring what lies on disk: a folder of images against another, or a run's renders against its photos."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from difixcli.errors import InputError
from difixcli.evaluation.metrics import best_unsharp, metrics_against, protocol, summary
from difixcli.evaluation.pictures import image_files
from difixcli.runs import read_image

TRUTH = "truth"
MASK = "mask"
_ORDER = ("plain", "distilled", "enhanced")  # the order of a table; other variants come after
_NAMED = 5  # how many missing images a message names


def evaluate_folders(prediction: Path, truth: Path, device: str = "cpu") -> dict[str, Any]:
    """Figures of the images in a folder against those of the same stem in another, or of one file against one.

    Returns `results` (the mean `psnr`, `ssim`, `st_lpips` and, where its weights are, `lpips`), `std`, `per_image`
    ({"images": {stem: figures}}), `images` (their number), `protocol` (how each figure is made) and `folders`.
    Raises InputError where names do not match, sizes differ or an image is broken.
    """
    evaluated = _evaluate({TRUTH: truth, "images": prediction}, device)
    return {**evaluated, "results": evaluated["results"]["images"], "std": evaluated["std"]["images"]}


def evaluate_run(folder: Path, device: str = "cpu", unsharp: bool = False) -> dict[str, Any]:
    """Figures of every variant in `folder/renders` against `folder/renders/truth`.

    Where `folder/renders/mask` holds an image of a view's name, only the pixels that are white there count.
    Returns the same keys as `evaluate_folders`, with `results`, `std` and `per_image` by variant. With `unsharp`
    there is also `baselines`: what the best of a few unsharp masks makes of the images that the fixer was given
    (`distilled`, or else `plain`), its figures and its `sigma` and `amount`.
    Raises InputError when the run has no renders yet, or not all of them.
    """
    renders = folder / "renders"
    if not (renders / TRUTH).is_dir():
        raise InputError(f"{folder} has no renders/{TRUTH}; finish the run first, or give two folders of images.")
    names = [
        p.name for p in renders.iterdir() if p.is_dir() and p.name not in (TRUTH, MASK) and not p.name.startswith(".")
    ]
    if not names:
        raise InputError(f"{renders} holds no renders beside {TRUTH}; finish the run first.")
    names.sort(key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))
    folders = {TRUTH: renders / TRUTH, **{name: renders / name for name in names}}
    evaluated = _evaluate(folders, device, renders / MASK)
    given = next((name for name in ("distilled", "plain") if name in folders), None)
    if unsharp and given is not None:
        pairs = matched_files(folders[given], folders[TRUTH])
        measured = evaluated["per_image"][given]
        views = ((*_read_pair(*pairs[stem]), _read_mask(renders / MASK, stem)) for stem in measured)
        best = best_unsharp(views, device=device)
        made = {**best.figures, "sigma": best.sigma, "amount": best.amount}
        evaluated["baselines"] = {f"{given} + unsharp": made}
    return evaluated


def matched_files(prediction: Path, truth: Path) -> dict[str, tuple[Path, Path]]:
    """Image files by stem as (prediction, truth), sorted; InputError naming those that have no partner."""
    if prediction.is_file() and truth.is_file():
        return {prediction.stem: (prediction, truth)}
    ours, theirs = _by_stem(prediction), _by_stem(truth)
    for present, absent, where in ((theirs, ours, prediction), (ours, theirs, truth)):
        missing = [stem for stem in present if stem not in absent]
        if missing:
            more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
            raise InputError(
                f"{where} lacks {', '.join(missing[:_NAMED])}{more}; both folders need images of the same names."
            )
    return {stem: (ours[stem], theirs[stem]) for stem in ours}


def _evaluate(folders: Mapping[str, Path], device: str, masks: Path | None = None) -> dict[str, Any]:
    """Figures of each folder but the truth's against it, one view in memory at a time."""
    variants = [name for name in folders if name != TRUTH]
    files = {name: matched_files(folders[name], folders[TRUTH]) for name in variants}
    stems = list(files[variants[0]])
    per_image: dict[str, dict[str, dict[str, float]]] = {name: {} for name in variants}
    masked = False
    for stem in stems:
        images = []
        mask = None if masks is None else _read_mask(masks, stem)
        if mask is not None and not mask.any():
            continue  # nothing of this view can be measured
        masked = masked or mask is not None
        for name in variants:
            image, truth = _read_pair(*files[name][stem])
            images.append(image)
        for name, figures in zip(variants, metrics_against(truth, images, mask, device), strict=True):
            per_image[name][stem] = figures
    means = {name: summary(list(per_image[name].values())) for name in variants}
    return {
        "results": {name: mean for name, (mean, _) in means.items()},
        "std": {name: std for name, (_, std) in means.items()},
        "per_image": per_image,
        "images": len(per_image[variants[0]]),
        "protocol": protocol(masked),
        "folders": {name: str(folder) for name, folder in folders.items()},
    }


def _read_pair(prediction: Path, truth: Path) -> tuple[np.ndarray, np.ndarray]:
    image, photo = read_image(prediction), read_image(truth)
    if image.shape != photo.shape:
        raise InputError(
            f"{prediction} is {image.shape[1]}×{image.shape[0]} pixels but {truth} is "
            f"{photo.shape[1]}×{photo.shape[0]}; render or resize them to one size."
        )
    return image, photo


def _read_mask(folder: Path, stem: str) -> np.ndarray | None:
    """(H, W) bool, or None where the view has no mask."""
    path = folder / f"{stem}.png"
    return read_image(path).mean(axis=-1) > 0.5 if path.is_file() else None


def _by_stem(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in image_files(folder):
        if path.stem in found:
            raise InputError(f"{folder} holds {found[path.stem].name} and {path.name}; keep one image of that name.")
        found[path.stem] = path
    return found
