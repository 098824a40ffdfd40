"""The tables of the bundled fixer's model card, from pairs it was never trained on.

    python recipes/bundled_fixer/card.py outputs/bundled_fixer/pairs-held-out* [--fixer bundled] [--views 5]

For every scene and way of making pairs, PSNR / st-LPIPS (VGG) of the renders as they are, sharpened, and fixed beside
the right photos: aligned, and raw (registered by optical flow alone). Then what a fixer must not do, in dB of PSNR: the
least gain of a view, beside aligned and beside raw references; the fix of the photo itself as if it were a render,
beside photos registered to that render, and beside raw ones; what fixing twice adds to fixing once; what
the render gains beside another scene's photos, raw, and beside another scene's aligned ones, whose visibility says
that they fit; and without any. Last, how far confidence is right: see `print_calibration`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from difixcli.evaluation.metrics import metrics_against, psnr, unsharp_mask
from difixcli.evidence import boldness, confidence
from difixcli.fixer import Fixer
from difixcli.fixer.registered import register_photos
from difixcli.reconstruction.views import Render
from difixcli.reference_views import References

IMAGES = ("render", "unsharp mask (σ 1, 0.5)", "fixed", "fixed, raw references")
CHECKS = (
    "worst view",
    "worst view, raw",
    "photo as render",
    "photo as render, raw",
    "fixed twice",
    "other scene's photos",
    "the same, aligned",
    "no reference",
)
BINS = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
"""Limits of the bins of confidence."""


@dataclass(frozen=True, eq=False)
class Pair:
    """A held-out pair: render, truth (1, 3, H, W), opacity (1, 1, H, W), photos raw and aligned (1, V, 3, H, W) and
    the aligned ones' visibility (1, V, 1, H, W). `row` says of what and how it was made.
    """

    scene: str
    row: str
    render: Tensor
    truth: Tensor
    opacity: Tensor
    photos: Tensor
    aligned: Tensor
    visibility: Tensor


@dataclass(frozen=True, eq=False)
class Looked:
    """What a fixer does to one pair: `figures` (PSNR, st-LPIPS) of every one of `IMAGES`; `checks` in dB by name,
    without the worst views, which are the least gains of several; and of every pixel (N,) float32 how far the fix is
    trusted and the squared errors, means of the channels, of the fix and of the render.
    """

    figures: Mapping[str, tuple[float, float]]
    checks: Mapping[str, float]
    trusted: np.ndarray
    error: np.ndarray
    error_before: np.ndarray


def pixels(path: Path, size: tuple[int, int] | None = None) -> Tensor:
    """(C, H, W) in [0, 1]; `size` is (height, width)."""
    image: Image.Image = Image.open(path)
    if size and image.size != size[::-1]:
        image = image.resize(size[::-1], Image.Resampling.BOX)
    array = np.asarray(image, np.float32) / 255
    return torch.from_numpy(array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1)))


def held_out(folder: Path, most: int = 0) -> Iterator[Pair]:
    """The test pairs of a folder that `difix curate` made; of each row at most so many, evenly spaced (0: all)."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for entry in json.loads((folder / "data.json").read_text())["test"].values():
        how = f"{entry['method']} {entry['iterations']}, {' '.join(map(str, entry['strategy_params'].values()))}"
        rows.setdefault(f"{entry['scene']}, {how}", []).append(entry)
    for row, entries in rows.items():
        count = min(most or len(entries), len(entries))
        for entry in (entries[i * len(entries) // count] for i in range(count)):
            render = pixels(folder / entry["image"])[None, :3]
            size = (render.shape[-2], render.shape[-1])
            aligned = torch.stack([pixels(folder / name) for name in entry["aligned_refs"]])[None]
            yield Pair(
                entry["scene"],
                row,
                render,
                pixels(folder / entry["target_image"], size)[None, :3],
                pixels(folder / entry["opacity"])[None, :1],
                torch.stack([pixels(folder / name, size)[:3] for name in entry["ref_images"]])[None],
                aligned[:, :, :3],
                aligned[:, :, 3:],
            )


def look(fixer: Fixer, pair: Pair, other: Pair) -> Looked:
    """What the fixer does to a pair, and to it beside the references of another scene's pair."""
    size = (pair.render.shape[-2], pair.render.shape[-1])
    truth = array(pair.truth)
    beside = (pair.aligned, pair.visibility)
    fixed = beside_aligned(fixer, pair, pair.render, *beside)
    images = (
        array(pair.render),
        unsharp_mask(array(pair.render), 1.0, 0.5),
        array(fixed),
        array(beside_raw(fixer, pair, pair.render, pair.photos)),
    )
    found = metrics_against(truth, images, metrics=("psnr", "st_lpips"))
    before, after = found[0]["psnr"], found[2]["psnr"]
    misleading, claimed = brought_to(other.aligned, size), brought_to(other.visibility, size)
    checks = {
        "photo as render": psnr(array(beside_aligned(fixer, pair, pair.truth, *beside)), truth),
        "photo as render, raw": psnr(array(beside_raw(fixer, pair, pair.truth, pair.photos)), truth),
        "fixed twice": psnr(array(beside_aligned(fixer, pair, fixed, *beside)), truth) - after,
        "other scene's photos": psnr(array(beside_raw(fixer, pair, pair.render, other.photos)), truth) - before,
        "the same, aligned": psnr(array(beside_aligned(fixer, pair, pair.render, misleading, claimed)), truth) - before,
        "no reference": psnr(array(fixer(pair.render, None, pair.opacity)), truth) - before,
    }
    return Looked(
        {name: (one["psnr"], one["st_lpips"]) for name, one in zip(IMAGES, found, strict=True)},
        checks,
        trust(pair, images[2]).ravel(),
        ((images[2] - truth) ** 2).mean(-1).ravel(),
        ((images[0] - truth) ** 2).mean(-1).ravel(),
    )


def beside_aligned(fixer: Fixer, pair: Pair, image: Tensor, aligned: Tensor, visibility: Tensor) -> Tensor:
    """An image (1, 3, H, W) fixed beside aligned photos, as boldly as distillation would (`evidence.boldness`)."""
    bold = boldness(array(image), references(pair, aligned, visibility))
    return fixer(image, aligned, pair.opacity, visibility, boldness=bold)


def references(pair: Pair, aligned: Tensor, visibility: Tensor) -> References:
    """Aligned photos (1, V, 3, H, W) and their visibility (1, V, 1, H, W), as what the photos say is read from them."""
    photos = [array(photo[None]) for photo in pair.photos[0]]
    seen = visibility[0, :, 0].numpy()
    return References(range(len(seen)), photos, aligned[0].permute(0, 2, 3, 1).numpy(), seen)


def beside_raw(fixer: Fixer, pair: Pair, image: Tensor, photos: Tensor) -> Tensor:
    """An image (1, 3, H, W) fixed beside photos of unknown poses, as `difix fix` does it."""
    return fixer(image, register_photos(image, [array(photo[None]) for photo in photos[0]]), pair.opacity)


def brought_to(images: Tensor, size: Sequence[int]) -> Tensor:
    """(1, V, C, h, w) at another size."""
    return torch.nn.functional.interpolate(images[0], tuple(size), mode="area")[None]


def trust(pair: Pair, fixed: np.ndarray) -> np.ndarray:
    """(H, W) how far distillation trusts the fix (H, W, 3) of a pair; see `evidence.confidence`."""
    accumulation = pair.opacity[0, 0].numpy()
    render = Render(array(pair.render), accumulation, np.zeros_like(accumulation))  # its depth has no part in it
    return confidence(render, fixed, references(pair, pair.aligned, pair.visibility))


def array(image: Tensor) -> np.ndarray:
    return image[0].permute(1, 2, 0).float().numpy()


def print_card(rows: Mapping[str, Sequence[Looked]]) -> None:
    """Two tables, means over each row's views; the least of the views' gains are the last one's first columns."""
    print("| PSNR / st-LPIPS | views | " + " | ".join(IMAGES) + " |")
    print("|---|---|" + "---|" * len(IMAGES))
    for name, looked in rows.items():
        means = [np.mean([one.figures[image] for one in looked], axis=0) for image in IMAGES]
        print(f"| {name} | {len(looked)} | " + " | ".join(f"{p:.2f} / {l:.4f}" for p, l in means) + " |")
    print("\n| dB | " + " | ".join(CHECKS) + " |")
    print("|---|" + "---|" * len(CHECKS))
    for name, looked in rows.items():
        worst = [min(one.figures[how][0] - one.figures["render"][0] for one in looked) for how in IMAGES[2:]]
        means = [float(np.mean([one.checks[check] for one in looked])) for check in CHECKS[2:]]
        cells = [
            *(f"{value:+.2f}" for value in worst),
            *(f"{value:.1f}" for value in means[:2]),
            *(f"{value:+.2f}" for value in means[2:]),
        ]
        print(f"| {name} | " + " | ".join(cells) + " |")


def print_calibration(looked: Sequence[Looked]) -> None:
    """Of all pixels together: the share in each bin of confidence, and the root mean squared errors there."""
    trusted, error, before = (
        np.concatenate([getattr(one, name) for one in looked]) for name in ("trusted", "error", "error_before")
    )
    print("\n| confidence | share of the pixels | RMS error, fixed | RMS error, render |\n|---|---|---|---|")
    for low, high in pairwise(BINS):
        inside = (trusted >= low) & (trusted < high if high < 1 else trusted <= high)
        if inside.any():
            errors = " | ".join(f"{math.sqrt(float(e[inside].mean())):.3f}" for e in (error, before))
            print(f"| {low:g} to {high:g} | {inside.mean():.1%} | {errors} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("pairs", type=Path, nargs="+", help="folders with held-out pairs")
    parser.add_argument("--fixer", default="bundled")
    parser.add_argument("--views", type=int, default=0, help="of each row at most; 0 for all")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    fixer = Fixer.from_pretrained(arguments.fixer)
    sets: dict[str, list[Pair]] = {}
    for folder in arguments.pairs:
        for pair in held_out(folder, arguments.views):
            sets.setdefault(pair.row, []).append(pair)
    rows: dict[str, list[Looked]] = {}
    for name, pairs in sets.items():
        others = [one for every in sets.values() for one in every if one.scene != pairs[0].scene]
        if not others:
            raise SystemExit("Pairs of at least two scenes are needed: each is also fixed beside another one's photos.")
        rows[name] = [look(fixer, pair, others[i * 7 % len(others)]) for i, pair in enumerate(pairs)]
    print_card(rows)
    print_calibration([one for looked in rows.values() for one in looked])


if __name__ == "__main__":
    main()
