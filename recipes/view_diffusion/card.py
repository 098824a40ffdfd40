"""Halves trained view-conditioned diffusion weights and prints the tables of their model card, in Markdown."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from difixcli.evaluation.metrics import evaluate_images
from difixcli.priors.view_diffusion.model import ViewDiffusion
from difixcli.scenes import load_scene
from difixcli.training.view_diffusion import baselines, pixels
from difixcli.training.view_diffusion_samples import HeldView, held_view

ROWS = ("nearest", "warped", "eft", "vldm", "vae")


def main(line: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trained", type=Path, help="what difix finetune --task view-diffusion wrote")
    parser.add_argument("output", type=Path, help="where the weights go, in half precision")
    parser.add_argument("--scenes", nargs="*", default=[], help="scenes that were not trained on")
    parser.add_argument(
        "--views", type=int, nargs="*", default=[2, 3], help="numbers of photos that views are made from"
    )
    parser.add_argument("--count", type=int, default=4, help="views of a scene, evenly spaced")
    parser.add_argument("--size", type=int, default=96, help="long side of the pictures")
    given = parser.parse_args(line)
    torch.set_num_threads(1)  # on two cores a second thread only spins
    ViewDiffusion.from_pretrained(given.trained).half().save_pretrained(given.output)
    model = ViewDiffusion.from_pretrained(given.output)
    if given.scenes:
        print(f"| PSNR / SSIM / st-LPIPS (VGG) | {' | '.join(ROWS)} |\n|---|{'---|' * len(ROWS)}")
    for name in given.scenes:
        scene = load_scene(name, given.size)
        for views in given.views:
            queries = [round(i * (len(scene.frames) - 1) / (given.count - 1)) for i in range(given.count)]
            held = [held_view(scene, query, views) for query in queries]
            print(_row(f"{scene.name}, {views} photos", model, held), flush=True)


def _row(name: str, model: ViewDiffusion, held: Sequence[HeldView]) -> str:
    rows: dict[str, list[np.ndarray]] = {row: [] for row in ROWS}
    started = time.monotonic()
    for i, view in enumerate(held):
        condition = model.condition(view.views, view.query)
        pictures = {
            **dict(zip(("nearest", "warped"), baselines(view), strict=True)),
            "eft": condition.picture,
            "vldm": model.sample(condition, seed=i),
            "vae": model.decode(model.encode(view.truth[None]), view.query.height, view.query.width)[0].clamp(0, 1),
        }
        for row, picture in pictures.items():
            rows[row].append(pixels(picture))
    seconds = (time.monotonic() - started) / len(held)
    truths = [pixels(view.truth) for view in held]
    masks = [None if view.mask is None else view.mask.numpy() for view in held]
    figures = {row: evaluate_images(made, truths, masks)["mean"] for row, made in rows.items()}
    cells = [f"{f['psnr']:.2f} / {f['ssim']:.3f} / {f['st_lpips']:.3f}" for f in figures.values()]
    return f"| {name} ({seconds:.1f} s a view) | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
