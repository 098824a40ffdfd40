"""What the loss terms of pseudo-views cost on a CPU, each by itself and in whole training steps.

    NUMBA_NUM_THREADS=1 python recipes/bench/loss_terms.py [--repeats 20]

The sample room at 240×180, CPU preset. By itself a term is measured forward and backward on two random images; a step's
time is CPU time, a mean over so many steps. Splats draw pseudo-views only (share 0.98), fields 0.4 of their rays.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from difixcli.reconstruction import PseudoView, Reconstruction
from difixcli.reconstruction.objective import find_term, square
from difixcli.runs import write_image
from difixcli.scenes import load_photo, load_scene

TERMS = ("l2", "low_resolution:4", "perceptual:0.25", "perceptual", "perceptual:1")
SHARES = {"splatfacto": 0.98, "nerfacto": 0.4}


def alone(name: str, height: int, width: int, repeats: int) -> float:
    """Median milliseconds of CPU time."""
    term = find_term(name)
    row, column, side = square([term], height, width, (0.5, 0.5))
    size = (slice(row, row + side), slice(column, column + side)) if term.share < 1 else (slice(None), slice(None))
    target, trust = torch.rand(height, width, 3), torch.rand(height, width, 1)
    times = []
    for _ in range(repeats + 2):  # the first ones load the network
        render = torch.rand(height, width, 3, requires_grad=True)
        start = time.process_time()
        term.measure(render[size], target[size], trust[size]).backward()
        times.append(time.process_time() - start)
    return 1e3 * statistics.median(times[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=20)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    scene = load_scene("sample:room", size=240)
    camera = scene.frames[0].camera
    print("\n".join(f"| {name} | {alone(name, camera.height, camera.width, repeats):.1f} |" for name in TERMS))
    with tempfile.TemporaryDirectory() as folder:
        view = PseudoView(camera, Path(folder) / "view.png", None, nearest=1)
        write_image(view.image, load_photo(scene.frames[0]))
        views = {"photos alone": None, "method": view, "fresh": replace(view, fresh=lambda render: (render, None))}
        views |= {name: replace(view, terms={name: 1.0}) for name in TERMS}
        rows = {name: [name] for name in views}
        for method, share in SHARES.items():
            model = Reconstruction.create(
                scene,
                range(1, len(scene.frames)),
                method=method,
                folder=Path(folder) / method,
                preset="cpu",
                device="cpu",
                iterations=1_000,
            )
            for name, asked in views.items():
                model.set_pseudo_views([] if asked is None else [asked], 0.0 if asked is None else share)
                model.train(3)
                start = time.process_time()
                model.train(repeats)
                rows[name].append(f"{1e3 * (time.process_time() - start) / repeats:.0f}")
    print("\n".join("| " + " | ".join(row) + " |" for row in rows.values()))


if __name__ == "__main__":
    main()
