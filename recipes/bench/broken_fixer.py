"""What a fixer that is broken on purpose does to a distillation, protected and unprotected.

    python recipes/bench/broken_fixer.py SCENE OUTPUT [FAULT ...]

Each FAULT (all of `FAULTS` by default) is done to the bundled fixer's output, with splats, every fourth photo
training. `protected` is distillation as it is by default, `unprotected` takes every fix as it is and no round back, as
the release does; `sound` is the fixer as it is, `plain` trains as long on photos alone. All go on from one training on
photos alone, the same for all. Prints the figures of the test views; pictures lie in OUTPUT/*/rounds and
OUTPUT/*/renders.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from difixcli import console
from difixcli.distillation.confidence import DROP_BELOW
from difixcli.distillation.distill import Distillation, Settings
from difixcli.distillation.schedule import make_schedule
from difixcli.fixer import Fixer
from difixcli.reconstruction import Reconstruction, default_iterations
from difixcli.runs import Run
from difixcli.scenes import load_scene, make_split

METHOD, RULE, SIZE, SEED = "splatfacto", "every:4", 240, 0


def _blocks(fixed: Tensor, seed: int, count: int = 6, part: int = 4) -> Tensor:
    """Blocks of the image's height and width over `part`, in the corners of the colour cube."""
    random = np.random.default_rng(seed)
    height, width = fixed.shape[-2:]
    fixed = fixed.clone()
    for _ in range(count):
        y, x = (int(random.integers(size - size // part + 1)) for size in (height, width))
        color = torch.tensor(random.integers(0, 2, 3), dtype=fixed.dtype)
        fixed[..., y : y + height // part, x : x + width // part] = color[:, None, None]
    return fixed


def _one_color(fixed: Tensor) -> Tensor:
    return torch.zeros_like(fixed) + torch.tensor([0.9, 0.1, 0.9])[:, None, None]


def _tint(fixed: Tensor, by: float) -> Tensor:
    return (fixed + by * torch.tensor([1.0, -1.0, 1.0])[:, None, None]).clamp(0, 1)


def _sharpened(fixed: Tensor) -> Tensor:
    blurred = F.avg_pool2d(F.pad(fixed, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
    return (fixed + 2.0 * (fixed - blurred)).clamp(0, 1)


FAULTS: dict[str, Callable[[Tensor, int, int, int], Tensor]] = {
    # blocks over a third of the views: the same ones at the same places in every round; elsewhere in each round; over
    # the neighbouring views of one side; over most of the picture
    "blocks": lambda fixed, view, of, turn: _blocks(fixed, view) if view % 3 == 0 else fixed,
    "moving": lambda fixed, view, of, turn: _blocks(fixed, view + of * turn) if view % 3 == 0 else fixed,
    "side": lambda fixed, view, of, turn: _blocks(fixed, view + of * turn) if 3 * view < of else fixed,
    "large": lambda fixed, view, of, turn: _blocks(fixed, view, 16, 3) if view % 3 == 0 else fixed,
    # a third of the views, and the neighbouring ones of one side, collapse to one colour
    "collapse": lambda fixed, view, of, turn: _one_color(fixed) if view % 3 == 0 else fixed,
    "lost": lambda fixed, view, of, turn: _one_color(fixed) if 3 * view < of else fixed,
    # faults that nobody sees at once, in every view: magenta by a twentieth, two pixels to the right, too sharp
    "tint": lambda fixed, view, of, turn: _tint(fixed, 0.05),
    "shift": lambda fixed, view, of, turn: F.pad(fixed, (2, 0, 0, 0), mode="replicate")[..., :-2],
    "sharp": lambda fixed, view, of, turn: _sharpened(fixed),
}


class BrokenFixer(Fixer):
    """The bundled fixer with a fault. Views come in the same order in every round, so that counting tells which it is;
    a run that is taken up begins at the first again.
    """

    def __init__(self, fixer: Fixer, fault: str, views: int) -> None:
        super().__init__(fixer.network)
        self.fault, self.views, self.seen = FAULTS[fault], views, 0

    def __call__(self, images: Tensor, *args: Tensor | None) -> Tensor:
        turn, view = divmod(self.seen, self.views)
        self.seen += 1
        return self.fault(super().__call__(images, *args), view, self.views, turn)


def main(scene_name: str, output: str, *faults: str) -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    scene = load_scene(scene_name, SIZE)
    split = make_split(scene, RULE)
    sound = Fixer.from_pretrained("bundled")
    steps = default_iterations(METHOD, "cpu")
    rows: dict[str, dict[str, float]] = {}

    def train(name: str, fixer: Fixer, kind: str, protected: bool) -> None:
        schedule = make_schedule("cpu", True, steps, kind=kind)
        plan = {"trust": "supported", "drop_below": DROP_BELOW} if protected else {"trust": "all", "guard": "off"}
        settings = Settings(METHOD, "cpu", "cpu", schedule, SEED, False, **plan)  # type: ignore[arg-type]
        folder = Path(output) / name.replace(", ", "-")
        inputs = {"scene": scene_name, "split": RULE}
        run = Run.open(folder, "distill", {**vars(settings), "schedule": asdict(schedule)}, inputs)
        if not run.resumed:
            shutil.copytree(alone, folder, dirs_exist_ok=True)
        if not run.done:
            run.finish(Distillation(scene, split, settings).run(fixer, run, console.progress, console.say))
        rows[name] = run.record["results"]["plain" if kind == "none" else "distilled"]
        console.out.print(console.figures_table(f"{scene.name}, {METHOD}, {RULE}", rows))

    alone = Path(output) / "photos-alone"
    if not any((alone / "nerfstudio_models").glob("*.ckpt")):
        first = make_schedule("cpu", True, steps).start
        made = Reconstruction.create(
            scene, split.train, method=METHOD, folder=alone, preset="cpu", device="cpu", iterations=steps, seed=SEED
        )
        with console.progress("photos alone", first) as update:
            made.train(first, update)
        made.save()
    train("plain", sound, "none", True)
    train("sound, protected", sound, "progressive", True)
    train("sound, unprotected", sound, "progressive", False)
    for fault in faults or FAULTS:
        for protected in (True, False):
            broken = BrokenFixer(sound, fault, len(split.test))
            train(f"{fault}, {'' if protected else 'un'}protected", broken, "progressive", protected)


if __name__ == "__main__":
    main(*sys.argv[1:])
