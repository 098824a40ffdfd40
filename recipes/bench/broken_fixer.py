"""What a fixer that is broken on purpose does to a distillation, with the guard and evidence and without them.

    python recipes/bench/broken_fixer.py SCENE OUTPUT [METHOD] [SPLIT] [SHARE]

The bundled fixer gets coloured blocks painted over a third of the views it fixes. Three runs of the same settings:
plain training, distillation as it is by default, and as the release does it (every fix taken as it is, no round taken
back). Prints the figures of the test views; the pictures lie in OUTPUT/*/rounds and OUTPUT/*/renders.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from difixcli import console
from difixcli.distillation.distill import Distillation
from difixcli.distillation.schedule import make_schedule
from difixcli.distillation.settings import DROP_BELOW, Settings
from difixcli.fixer import Fixer
from difixcli.reconstruction import default_iterations
from difixcli.runs import Run
from difixcli.scenes import load_scene, make_split

EVERY = 3  # one view in so many is broken
BLOCKS = 6


class BrokenFixer(Fixer):
    """The bundled fixer with coloured blocks over every third view, each time the same ones at the same places.

    Views come in the same order in every round, so that counting them tells them apart; a run that is taken up begins
    at the first again.
    """

    def __init__(self, fixer: Fixer, views: int) -> None:
        super().__init__(fixer.network)
        self.views, self.seen = views, 0

    def __call__(self, images: Tensor, *args: Tensor | None) -> Tensor:
        fixed = super().__call__(images, *args)
        view, self.seen = self.seen % self.views, self.seen + 1
        if view % EVERY == 0:
            random = np.random.default_rng(view)
            height, width = fixed.shape[-2:]
            for _ in range(BLOCKS):
                y, x = random.integers(height * 3 // 4), random.integers(width * 3 // 4)
                color = torch.tensor(random.integers(0, 2, 3), dtype=fixed.dtype)
                fixed[..., y : y + height // 4, x : x + width // 4] = color[:, None, None]
        return fixed


def main(scene_name: str, output: str, method: str = "splatfacto", rule: str = "every:4", share: str = "0.3") -> None:
    share_of_fixes = float(share)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    scene = load_scene(scene_name, 240)
    split = make_split(scene, rule)
    fixer = Fixer.from_pretrained("bundled")
    steps = default_iterations(method, "cpu")
    rows = {}
    for name, kind, trust, guard in (
        ("plain", "none", "supported", True),
        ("unguarded", "progressive", "all", False),
        ("guarded", "progressive", "supported", True),
        ("evidence alone", "progressive", "supported", False),
        ("guard alone", "progressive", "all", True),
    ):
        share = None if kind == "none" else share_of_fixes
        schedule = make_schedule("cpu", steps, kind=kind, share=share)
        drop = DROP_BELOW if trust == "supported" else 0.0
        settings = Settings(method, "cpu", "cpu", schedule, 0, False, trust=trust, guard=guard, drop_below=drop)
        inputs = {"scene": scene_name, "split": rule}
        folder = Path(output) / name.replace(" ", "-")
        run = Run.open(folder, "distill", {**vars(settings), "schedule": asdict(schedule)}, inputs)
        if not run.done:
            broken = BrokenFixer(fixer, len(split.test))
            run.finish(Distillation(scene, split, settings).run(broken, run, console.progress, console.say))
        rows[name] = run.record["results"]["plain" if kind == "none" else "distilled"]
        console.out.print(console.figures_table(f"{scene.name}, {method}, {rule}, a broken fixer", rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
