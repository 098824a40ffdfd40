"""The five stages of the bundled fixer's training; each goes on from where it was stopped."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from difixcli.fixer import Fixer
from difixcli.training import finetune

COMMON = {"crop": 112, "window": 56, "validation_pairs": 9, "learning_rate": 3e-4}


def stages(output: Path) -> tuple[tuple[str, str | Path, list[Path], dict[str, Any]], ...]:
    """Each stage's name, what it begins from, its pairs and its options."""
    held_out = output / "pairs-held-out" / "data.json"
    pairs = [output / name / "data.json" for name in ("pairs-350", "pairs-900", "pairs-nerf")]
    wider = [output / "pairs-wider" / "data.json"]
    held_out_nerf = output / "pairs-held-out-nerf" / "data.json"
    return (
        ("synthetic", "tiny", [], {"iterations": 500, "crop": 96, "window": 48, "learning_rate": 4e-4,
                                   "perceptual_weight": 0.1}),
        ("real-a", output / "synthetic", [pairs[0], held_out],
         {"iterations": 700, "schedule": "constant", "warm_up": 50, "photo_share": 0.4, "perceptual_weight": 0.1}),
        ("real-b", output / "real-a", [*pairs[:2], held_out],
         {"iterations": 1000, "warm_up": 30, "photo_share": 0.25, "perceptual_weight": 0.12, "ema": 0.995}),
        ("real-c", output / "real-b", [*pairs, held_out, held_out_nerf],
         {"iterations": 2400, "warm_up": 30, "photo_share": 0.15, "perceptual_weight": 0.12, "ema": 0.995,
          "validate_every": 400, "validation_pairs": 17}),
        ("real-d", output / "real-c", [*pairs, *wider, held_out, held_out_nerf],
         {"iterations": 1600, "learning_rate": 2.5e-4, "warm_up": 30, "photo_share": 0.1, "perceptual_weight": 0.12,
          "ema": 0.995, "validate_every": 400, "validation_pairs": 17}),
    )  # fmt: skip


def main(photos: Path, output: Path) -> None:
    torch.set_num_threads(1)  # on two cores a second thread only spins
    for name, base, manifests, options in stages(output):
        results = finetune(manifests, base, output / name, photos=photos, **{**COMMON, **options})
        print(name, results["validation"])
    fixer = Fixer.from_pretrained(output / "real-d")
    fixer.network.half()
    fixer.save_pretrained(output / "bundled")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
