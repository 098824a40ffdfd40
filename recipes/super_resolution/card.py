"""Halves a trained super-resolver's weights and prints the tables of its model card, in Markdown."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from difixcli.evaluation.metrics import evaluate_images
from difixcli.images import reduced
from difixcli.priors.super_resolution.network import SuperResolutionNetwork
from difixcli.scenes import load_scene
from difixcli.training.journal import picture
from difixcli.training.super_resolution import baselines, served
from difixcli.training.super_resolution_samples import LargePhotos, validation_batches

ROWS = ("bicubic", "unsharp", "alone", "render", "beside_render")


def main(line: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trained", type=Path, help="what difix finetune --task super-resolution wrote")
    parser.add_argument("output", type=Path, help="where the weights go, in half precision")
    parser.add_argument("--photos", type=Path, help="the folder that was trained on; every 75th of it was not")
    parser.add_argument("--scenes", nargs="*", default=[], help="scenes that were not trained on")
    parser.add_argument("--count", type=int, default=3, help="photos of a scene, evenly spaced")
    parser.add_argument("--side", type=int, default=320, help="pixels of the photos' middle that is measured")
    given = parser.parse_args(line)
    torch.set_num_threads(1)  # on two cores a second thread only spins
    SuperResolutionNetwork.from_pretrained(given.trained).half().save_pretrained(given.output)
    network = SuperResolutionNetwork.from_pretrained(given.output)
    print(f"| PSNR / SSIM / st-LPIPS (VGG) | {' | '.join(ROWS)} | reduced again |\n|---|{'---|' * (len(ROWS) + 1)}")
    if given.photos is not None:
        held = LargePhotos(given.photos, [], 128)
        print(_row(f"{len(held.test)} photos", network, held, held.test, 256), flush=True)
    for name in given.scenes:
        scene = load_scene(name)
        held = LargePhotos(None, [scene], network.factor)
        spaced = [scene.frames[i * len(scene.frames) // given.count] for i in range(given.count)]
        print(_row(scene.name, network, held, spaced, given.side), flush=True)


def _row(name: str, network: SuperResolutionNetwork, held: LargePhotos, photos: Sequence[Any], side: int) -> str:
    """Figures of each way, and the least PSNR of an answer made small again against the photo."""
    batches = validation_batches(held, photos, network.factor, side)
    answers = [served(network, batch, "cpu") for batch in batches]
    truths = [picture(batch.targets) for batch in batches]
    figures = baselines(batches, network.factor, "cpu")
    for i, way in enumerate(("alone", "beside_render")):
        figures[way] = evaluate_images([pair[i] for pair in answers], truths)["mean"]
    agreement = []
    for batch, pair in zip(batches, answers, strict=True):
        for answer in pair:
            small = picture(reduced(torch.from_numpy(answer).permute(2, 0, 1)[None], network.factor))
            agreement.append(-10 * np.log10(np.mean((small - picture(batch.photos)) ** 2)))
    cells = [f"{figures[r]['psnr']:.2f} / {figures[r]['ssim']:.3f} / {figures[r]['st_lpips']:.3f}" for r in ROWS]
    return f"| {name} | {' | '.join(cells)} | {min(agreement):.1f} dB |"


if __name__ == "__main__":
    main()
