"""The tables of the bundled fixer's model card, from pairs it was never trained on.

    python recipes/bundled_fixer/card.py outputs/bundled_fixer/pairs-held-out-nerf [--fixer bundled]

For every scene: PSNR, SSIM and st-LPIPS (VGG) of the renders as they are, sharpened, and fixed beside the right photos
(aligned; raw, registered by optical flow alone), beside photos of another scene, and without any; and the range of
what single views gain beside aligned photos.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from difixcli.evaluation.metrics import metrics_against, unsharp_mask
from difixcli.fixer import Fixer
from difixcli.fixer.alignment import register_references

FIGURES = ("psnr", "ssim", "st_lpips")


@dataclass(frozen=True, eq=False)
class Pair:
    """A held-out pair: render, truth (1, 3, H, W), opacity (1, 1, H, W), photos raw and aligned (1, V, 3, H, W) and
    the aligned ones' visibility (1, V, 1, H, W).
    """

    scene: str
    render: Tensor
    truth: Tensor
    opacity: Tensor
    photos: Tensor
    aligned: Tensor
    visibility: Tensor


def pixels(path: Path, size: tuple[int, int] | None = None) -> Tensor:
    """(C, H, W) in [0, 1]; `size` is (height, width)."""
    image = Image.open(path)
    if size and image.size != size[::-1]:
        image = image.resize(size[::-1], Image.Resampling.BOX)
    array = np.asarray(image, np.float32) / 255
    return torch.from_numpy(array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1)))


def held_out(folder: Path) -> Iterator[Pair]:
    """The test pairs of a folder that `difix curate` made."""
    for entry in json.loads((folder / "data.json").read_text())["test"].values():
        render = pixels(folder / entry["image"])[None, :3]
        size = (render.shape[-2], render.shape[-1])
        aligned = torch.stack([pixels(folder / name) for name in entry["aligned_refs"]])[None]
        yield Pair(
            entry["scene"],
            render,
            pixels(folder / entry["target_image"], size)[None, :3],
            pixels(folder / entry["opacity"])[None, :1],
            torch.stack([pixels(folder / name, size)[:3] for name in entry["ref_images"]])[None],
            aligned[:, :, :3],
            aligned[:, :, 3:],
        )


def ways(fixer: Fixer, pairs: list[Pair]) -> dict[str, Callable[[Pair], Tensor]]:
    """What may be done with a render, by name; all give (1, 3, H, W)."""
    scenes = list(dict.fromkeys(pair.scene for pair in pairs))

    def photos_of_another_scene(pair: Pair) -> Tensor:
        other = scenes[(scenes.index(pair.scene) + 1) % len(scenes)]
        mine = [p for p in pairs if p.scene == pair.scene].index(pair)
        theirs = [p for p in pairs if p.scene == other]
        return theirs[mine % len(theirs)].photos

    def sharpened(pair: Pair) -> Tensor:
        return tensor(unsharp_mask(array(pair.render), 1.0, 0.5))

    found: dict[str, Callable[[Pair], Tensor]] = {
        "identity": lambda pair: pair.render,
        "unsharp mask (σ 1, 0.5)": sharpened,
        "fixed, aligned references": lambda pair: fixer(pair.render, pair.aligned, pair.opacity, pair.visibility),
        "fixed, raw references": lambda pair: beside_raw(fixer, pair, pair.photos),
    }
    if len(scenes) > 1:
        found["fixed, photos of another scene"] = lambda pair: beside_raw(fixer, pair, photos_of_another_scene(pair))
    found["fixed, no reference"] = lambda pair: fixer(pair.render, None, pair.opacity)
    return found


def beside_raw(fixer: Fixer, pair: Pair, photos: Tensor) -> Tensor:
    """Fixed beside photos of unknown poses, as `difix fix` does it."""
    flat = torch.nn.functional.interpolate(photos[0], pair.render.shape[-2:], mode="area")[None]
    aligned, visibility = register_references(pair.render, flat)
    return fixer(pair.render, aligned, pair.opacity, visibility)


def array(image: Tensor) -> np.ndarray:
    return image[0].permute(1, 2, 0).float().numpy()


def tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32))[None]


def card(folder: Path, fixer: Fixer) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """{scene: {way: the figures of every view}}."""
    pairs = list(held_out(folder))
    named = ways(fixer, pairs)
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for pair in pairs:
        images = [array(way(pair)) for way in named.values()]
        for name, figures in zip(named, metrics_against(array(pair.truth), images), strict=True):
            found.setdefault(pair.scene, {}).setdefault(name, []).append(dict(figures))
    return found


def print_card(found: Mapping[str, Mapping[str, list[dict[str, Any]]]]) -> None:
    scenes = list(found)
    print("| PSNR / SSIM / st-LPIPS | " + " | ".join(f"{s} ({len(found[s]['identity'])} views)" for s in scenes) + " |")
    print("|---|" + "---|" * len(scenes))
    for name in found[scenes[0]]:
        means = [[float(np.mean([view[f] for view in found[s][name]])) for f in FIGURES] for s in scenes]
        print(f"| {name} | " + " | ".join(f"{p:.2f} / {s:.4f} / {l:.4f}" for p, s, l in means) + " |")
    for scene in scenes:
        fixed, plain = found[scene]["fixed, aligned references"], found[scene]["identity"]
        gains = np.array([a["psnr"] - b["psnr"] for a, b in zip(fixed, plain, strict=True)])
        worse = int((gains < -0.5).sum())
        print(f"{scene}: single views {gains.min():+.2f} to {gains.max():+.2f} dB; {worse} lose more than 0.5 dB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("pairs", type=Path, nargs="+", help="folders with held-out pairs")
    parser.add_argument("--fixer", default="bundled")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    fixer = Fixer.from_pretrained(arguments.fixer)
    for folder in arguments.pairs:
        print(f"\n{folder.name}\n")
        print_card(card(folder, fixer))


if __name__ == "__main__":
    main()
