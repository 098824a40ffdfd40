"""Where the time of splatfacto's training step on a CPU goes, on one thread and on more.

    NUMBA_NUM_THREADS=2 python recipes/bench/training_step.py [--threads 1 2] [--gaussians 25000] [--repeats 15]

The sample room at 240×180, CPU preset, bounded at so many Gaussians and trained for `--begun` of 1,500 iterations, by
when it has them; then a repeat is one step of each photo, and the numbers of threads take turns. Other work on the
machine only ever adds to a time: of each photo's steps the quickest counts, for each part of the step by itself, and
what is shown is the mean over the photos.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import numba
from gsplat.strategy import DefaultStrategy

from difixcli.reconstruction import Reconstruction, rasteriser_kernels, ssim
from difixcli.scenes import load_scene

ITERATIONS = 1_500

spent: defaultdict[str, float] = defaultdict(float)


def timed(owner: Any, name: str, part: str) -> None:
    """Count the wall time of a function, static method or method under `part`."""
    inner: Callable[..., Any] = getattr(owner, name)

    @wraps(inner, assigned=())
    def outer(*values: Any, **named: Any) -> Any:
        start = time.perf_counter()
        try:
            return inner(*values, **named)
        finally:
            spent[part] += time.perf_counter() - start

    setattr(owner, name, staticmethod(outer) if isinstance(owner, type) and _is_static(owner, name) else outer)


def _is_static(owner: type, name: str) -> bool:
    return isinstance(vars(owner)[name], staticmethod)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--gaussians", type=int, default=25_000)
    parser.add_argument("--begun", type=int, default=525)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()

    scene = load_scene("sample:room", size=240)
    with tempfile.TemporaryDirectory() as folder:
        model = Reconstruction.create(
            scene,
            range(len(scene.frames)),
            method="splatfacto",
            folder=Path(folder) / "run",
            preset="cpu",
            device="cpu",
            iterations=ITERATIONS,
            overrides=[f"max_gaussians={arguments.gaussians}"],
        )
        model.train(arguments.begun)
        strategy = model._trainer.model.strategy  # it goes on counting, and changes the Gaussians no more
        strategy.refine_every = strategy.refine_stop_iter = 10**9
        camera = scene.frames[0].camera
        print(f"{len(scene.frames)} photos of {camera.width}×{camera.height}, {model.gaussians:,} Gaussians")

        timed(rasteriser_kernels, "project_forward", "projection")
        timed(rasteriser_kernels, "project_backward", "projection")
        timed(rasteriser_kernels, "bin_splats", "binning")
        timed(rasteriser_kernels, "composite_forward", "compositing")
        timed(rasteriser_kernels, "composite_backward", "compositing")
        timed(rasteriser_kernels, "gather_gradients", "summing gradients")
        timed(ssim._Ssim, "forward", "SSIM")
        timed(ssim._Ssim, "backward", "SSIM")
        timed(DefaultStrategy, "step_post_backward", "densification's counts")
        timed(model._trainer._optimizers, "optimizer_scaler_step_some", "Adam")
        timed(model._trainer, "_photos_next", "next photo")

        best: dict[int, dict[str, dict[int, float]]] = {n: defaultdict(dict) for n in arguments.threads}
        drawn: list[int] = []
        inner = model._trainer._photos_next

        def next_photo(step: int) -> Any:
            source, batch = inner(step)
            drawn.append(int(batch["image_idx"]))
            return source, batch

        model._trainer._photos_next = next_photo
        iterate = model._trainer._iterate

        def one_step(step: int) -> None:
            spent.clear()
            wall, cpu = time.perf_counter(), time.process_time()
            iterate(step)
            whole, cpu = time.perf_counter() - wall, time.process_time() - cpu
            spent["PyTorch, memory, the rest"] = whole - sum(spent.values())
            spent["whole step"], spent["whole step, CPU time"] = whole, cpu
            for part, seconds in spent.items():
                times = best[numba.get_num_threads()][part]
                times[drawn[-1]] = min(times.get(drawn[-1], seconds), seconds)

        model._trainer._iterate = one_step
        for _ in range(arguments.repeats):
            for threads in arguments.threads:
                numba.set_num_threads(threads)
                model.train(len(scene.frames))
    print("| ms a step | " + " | ".join(f"threads: {threads}" for threads in arguments.threads) + " |")
    print("|---|" + "---|" * len(arguments.threads))
    for parts in best.values():
        every = [times for part, times in parts.items() if not part.startswith("whole")]
        parts["sum of the parts"] = {photo: sum(times[photo] for times in every) for photo in every[0]}
    for part in best[arguments.threads[0]]:
        means = [statistics.mean(best[threads][part].values()) for threads in arguments.threads]
        print(f"| {part} | " + " | ".join(f"{1e3 * mean:.1f}" for mean in means) + " |")


if __name__ == "__main__":
    main()
