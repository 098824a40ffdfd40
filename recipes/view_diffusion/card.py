"""Halves trained view-conditioned diffusion weights and writes their model card beside them, in Markdown."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from difixcli.evaluation.metrics import evaluate_images
from difixcli.priors.view_diffusion.model import ViewDiffusion
from difixcli.runs import atomic, read_json
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
    rows = [f"| PSNR / SSIM / st-LPIPS (VGG) | {' | '.join(ROWS)} |", f"|---|{'---|' * len(ROWS)}"]
    for name in given.scenes:
        scene = load_scene(name, given.size)
        for views in given.views:
            queries = [round(i * (len(scene.frames) - 1) / (given.count - 1)) for i in range(given.count)]
            held = [held_view(scene, query, views) for query in queries]
            rows.append(_row(f"{scene.name}, {views} photos", model, held))
            print(rows[-1], flush=True)
    card = _about(model, given.output, read_json(given.trained / "training.json"), given.size)
    with atomic(given.output / "README.md") as temporary:
        temporary.write_text("\n".join([card, *(rows if given.scenes else []), ""]), encoding="utf-8")


def _about(model: ViewDiffusion, folder: Path, training: Mapping[str, Any], size: int) -> str:
    """The card but for its table."""
    options, results = training["options"], training["results"]
    millions = {name: f"{count / 1e6:.2f} M" for name, count in results["parameters"].items()}
    total = sum(weight.numel() for weight in model.parameters()) / 1e6
    megabytes = (folder / "model.safetensors").stat().st_size / 1e6
    steps, seconds, counts = results["steps"], results["seconds"], results["photos"]
    told = "; ".join(f"{name} {steps[name]:,} steps in {seconds[name]:,.0f} s" for name in steps)
    scenes = ", ".join(results["scenes"])
    own = ", ".join(f"{name} {f['psnr']:.2f} / {f['st_lpips']:.3f}" for name, f in results["validation"].items())
    return f"""# View-conditioned diffusion ({total:.1f} M parameters, {megabytes:.1f} MB)

SparseFusion's networks (arXiv 2212.00792), small: an epipolar feature transformer (EFT, {millions["epipolar"]}), an
autoencoder (factor {model.config.factor}, {model.vae.config.latent_channels} channels, {millions["vae"]}) and a U-Net
({millions["unet"]}) over its latents, which takes EFT's features and picture; for {model.size}-pixel pictures.

- **Licence**: {model.licence}.
- **Data**: {counts["views"]:,} views of {counts["scenes"]} scenes at {options["canvas"]} pixels ({scenes}), the
  autoencoder also {counts["folder"]:,} other photos.
- **Training**: {told}; AdamW, average of the weights ({options["ema"]}), {options["dtype"]}. EFT on windows of
  {options["window"]} pixels from one to five photos: pixels + {options["perceptual_weight"]} {options["perceptual"]} +
  {options["depth_weight"]} seed points' depth. U-Net on windows of {options["diffusion_window"]} pixels:
  {model.config.schedule.prediction_type} at all noise levels, {options["drop_condition"]:.0%} of samples without a
  condition. On {counts["held"]} held-out views of the training scenes, PSNR / st-LPIPS: {own or "not measured"}.
- **Held-out figures** at {size} pixels, of scenes that it was never trained on, from photos that share much and little
  with the view: nearest photo as it is, nearest photo warped by seed points' depth, EFT, one sample of the U-Net (DDIM,
  25 steps), and the autoencoder's picture of the truth; seconds a view are of one CPU thread for all of a row.
"""


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
