"""What beside the fixer's pace a GPU is asked about: splats, training steps, large frames, a whole run.

    python recipes/bench/gpu.py splats                  # gsplat's kernels against the CPU rasteriser
    python recipes/bench/gpu.py steps [--scene SCENE]   # a training step of splatfacto and nerfacto, preset gpu
    python recipes/bench/gpu.py frames                  # 1080p and 4K at SD-Turbo's width, bfloat16: ms and memory
    python recipes/bench/gpu.py run [--scene SCENE]     # a small `difix distill --compare`, by the clock

`recipes/bench/gpu.sh` runs all of them. Times are wall time after the device was waited for, medians after a warm-up.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SIZES = ((10_000, 240, 135), (50_000, 480, 270), (500_000, 960, 540))
_GRADIENTS = ("means", "quats", "scales", "opacities", "colours")


def milliseconds(function: Callable[[], Any], calls: int = 20) -> float:
    """Median wall milliseconds of a call on the GPU."""
    times = []
    for call in range(calls + 3):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        function()
        torch.cuda.synchronize()
        if call >= 3:
            times.append(1e3 * (time.perf_counter() - begun))
    return statistics.median(times)


def _image(
    rasterization: Callable[..., Any], gaussians: list[Tensor], viewmats: Tensor, lens: Tensor, width: int, height: int
) -> Tensor:
    named: dict[str, Any] = {"sh_degree": 3, "packed": False, "absgrad": True, "render_mode": "RGB"}
    image: Tensor = rasterization(*gaussians, viewmats, lens, width, height, **named)[0]
    return image


def _backward(forward: Callable[[], Tensor], weights: Tensor) -> None:
    forward().backward(weights)


def splats() -> None:
    """How far gsplat's pixels and gradients lie from the CPU rasteriser's, and how long it takes."""
    from gsplat import rasterization as gsplat_rasterization
    from rasteriser import scene

    from difixcli.reconstruction.rasteriser import rasterization

    print("| Gaussians | size | gsplat forward, ms | and backward | pixels, largest | gradients, relative |")
    print("|---|---|---|---|---|---|", flush=True)
    for count, width, height in SIZES:
        gaussians, viewmats, lens = scene(count, width, height)
        on_gpu = [tensor.detach().cuda().requires_grad_() for tensor in gaussians]
        weights = torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(1))
        on_device = weights.cuda()
        forward = partial(_image, gsplat_rasterization, on_gpu, viewmats.cuda(), lens.cuda(), width, height)
        with torch.no_grad():
            once = milliseconds(forward)
        twice = milliseconds(partial(_backward, forward, on_device))
        for tensor in on_gpu:
            tensor.grad = None
        image = forward()
        image.backward(on_device)
        ours = _image(rasterization, gaussians, viewmats, lens, width, height)
        ours.backward(weights)
        pixels = float((image.cpu() - ours).detach().abs().max())
        apart = []
        for name, theirs, mine in zip(_GRADIENTS, on_gpu, gaussians, strict=True):
            assert theirs.grad is not None and mine.grad is not None
            apart.append(f"{name} {float((theirs.grad.cpu() - mine.grad).norm() / mine.grad.norm()):.1e}")
        cells = [f"{count:,}", f"{width}×{height}", f"{once:.2f}", f"{twice:.2f}", f"{pixels:.1e}", ", ".join(apart)]
        print("| " + " | ".join(cells) + " |", flush=True)


def steps(name: str, size: int) -> None:
    """Milliseconds of a training step and of a render, and the memory, preset gpu."""
    from difixcli.evaluation.metrics import psnr
    from difixcli.reconstruction import Reconstruction
    from difixcli.scenes import load_photo, load_scene

    scene = load_scene(name, size)
    train = [i for i in range(len(scene.frames)) if i % 4]
    camera = scene.frames[0].camera
    print("| method | photos | step, ms | render, ms | peak, GiB | PSNR of a held-out photo |")
    print("|---|---|---|---|---|---|", flush=True)
    for method, iterations in (("splatfacto", 1500), ("nerfacto", 500)):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        with tempfile.TemporaryDirectory() as folder:
            model = Reconstruction.create(
                scene, train, method=method, folder=Path(folder), preset="gpu", device="cuda", iterations=iterations
            )
            model.train(iterations // 2)
            torch.cuda.synchronize()
            begun = time.perf_counter()
            model.train(iterations - iterations // 2)
            torch.cuda.synchronize()
            step = 1e3 * (time.perf_counter() - begun) / (iterations - iterations // 2)
            shown = milliseconds(lambda made=model: made.render(camera), 5)
            figure = psnr(model.render(camera).color, load_photo(scene.frames[0]))
        peak = torch.cuda.max_memory_allocated() / 2**30
        photos = f"{len(train)} of {camera.width}×{camera.height}"
        print(f"| {method} | {photos} | {step:.1f} | {shown:.1f} | {peak:.2f} | {figure:.2f} dB |", flush=True)


def frames() -> None:
    """Milliseconds and memory of large frames beside one reference, at SD-Turbo's width in bfloat16."""
    from fixer import pictures, random_network, sd_turbo_config

    from difixcli.fixer import Fixer
    from difixcli.fixer.weights import merge_adapters

    fixer = Fixer(merge_adapters(random_network(sd_turbo_config()))).to("cuda", torch.bfloat16)
    print("| frame | ms | peak, GiB |")
    print("|---|---|---|", flush=True)
    for height, width in ((576, 1024), (1080, 1920), (2160, 3840)):
        images = pictures(2, height // 16 * 16, width).cuda()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        took = milliseconds(lambda shown=images: fixer(shown[:1], shown[None, 1:]), 5)
        peak = torch.cuda.max_memory_allocated() / 2**30
        print(f"| {width}×{images.shape[-2]} | {took:.1f} | {peak:.2f} |", flush=True)


def run(name: str, size: int) -> None:
    """A small run from photos to figures, as it is typed."""
    for method in ("splatfacto", "nerfacto"):
        with tempfile.TemporaryDirectory() as folder:
            line = ["distill", name, "--method", method, "--compare", "--iterations", "2000", "--rounds", "2"]
            line += ["--size", str(size), "--preset", "gpu", "--device", "cuda", "--json", "--output", folder + "/run"]
            begun = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-m", "difixcli", *line], check=False, capture_output=True, text=True
            )
            took = time.perf_counter() - begun
            print(f"distill, {method}: {took:.0f} s, exit code {done.returncode}")
            print(done.stdout.strip().splitlines()[-1] if done.returncode == 0 else done.stderr[-3000:], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=("splats", "steps", "frames", "run"))
    parser.add_argument("--scene", default="sample:room", help="posed photos (steps, run)")
    parser.add_argument("--size", type=int, default=640, help="pixels of the photos' long side (steps, run)")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    if arguments.what == "splats":
        splats()
    elif arguments.what == "frames":
        frames()
    elif arguments.what == "steps":
        steps(arguments.scene, arguments.size)
    else:
        run(arguments.scene, arguments.size)


if __name__ == "__main__":
    main()
