"""The stages of the bundled fixer's training; each goes on from where it was stopped. What is bundled are the bolder
weights of the last but one, and careful ones that lie between the last two: see `mixed`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from difixcli.errors import InputError
from difixcli.fixer import Fixer
from difixcli.training import finetune
from difixcli.training.checkpoints import OtherTraining

# the last stage alone has renders moved towards their photos, references that mislead, and the second pass's term
COMMON = {"crop": 112, "window": 56, "validation_pairs": 9, "learning_rate": 3e-4, "improved_share": 0.0,
          "misled_share": 0.0, "idempotence_weight": 0.0}  # fmt: skip
STRONG_SHARE = 0.7
"""How much of the careful weights is of the stage on well-trained renders; the rest is of the one before it."""


def stages(output: Path) -> tuple[tuple[str, str | Path, list[Path], dict[str, Any]], ...]:
    """Each stage's name, what it begins from, its pairs and its options."""
    held_out = output / "pairs-held-out" / "data.json"
    pairs = [output / name / "data.json" for name in ("pairs-350", "pairs-900", "pairs-nerf")]
    wider = [output / "pairs-wider" / "data.json"]
    held_out_nerf = output / "pairs-held-out-nerf" / "data.json"
    strong = [output / f"pairs-{name}" / "data.json" for name in ("strong-splats", "strong-nerf")]
    held_out_strong = [output / f"pairs-held-out-{name}" / "data.json" for name in ("strong", "strong-nerf")]
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
        ("strong", output / "real-d", [*strong, *held_out_strong],
         {"iterations": 1400, "window": 72, "warm_up": 50, "photo_share": 0.1, "perceptual_weight": 0.5, "ema": 0.998,
          "improved_share": 0.25, "misled_share": 0.05, "idempotence_weight": 1.0, "validate_every": 350,
          "validation_pairs": 24}),
    )  # fmt: skip


def mixed(one: Fixer, other: Fixer, share: float) -> Fixer:
    """The other fixer with weights (1 - share) · one + share · other, of two that training made of the same one.

    WiSE-FT (Wortsman et al., CVPR 2022): between weights and what fine-tuning makes of them there are some that keep
    much of what either does well; here one mends bad renders and the other leaves good ones alone.
    """
    theirs = other.network.state_dict()
    weights = {name: torch.lerp(value.float(), theirs[name].float(), share)
               for name, value in one.network.state_dict().items()}  # fmt: skip
    other.network.load_state_dict(weights)
    return other


def main(photos: Path, output: Path) -> int:
    """The exit code."""
    torch.set_num_threads(1)  # on two cores a second thread only spins
    planned = stages(output)
    for place, (name, base, manifests, options) in enumerate(planned):
        try:
            results = finetune(manifests, base, output / name, photos=photos, **{**COMMON, **options})
        except InputError as error:
            print(f"Error: {error}", file=sys.stderr)
            if isinstance(error, OtherTraining):
                begun = [str(output / later) for later, *_ in planned[place:] if (output / later).exists()]
                again = "To train again, with scenes that were missing before, say, remove"
                print(f"{again} {' and '.join(begun)}.", file=sys.stderr)
            return 2
        print(name, results["validation"])
    last, strong = (Fixer.from_pretrained(output / name) for name in ("real-d", "strong"))
    fixer = Fixer(mixed(last, strong, STRONG_SHARE).network.half(), bolder=last.network.half())
    fixer.save_pretrained(output / "bundled")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
