"""CPU time of the CPU rasteriser, forward and backward, at the sizes that splatfacto trains at here.

    OMP_NUM_THREADS=1 python recipes/bench/rasteriser.py [--repeats 60] [--threads 1]

The scene is made to resemble a trained one in what costs time, which is how much of the image the Gaussians cover:
every one is in view, sizes follow the distance to the neighbours, opacities are spread evenly. Times are process CPU
time, so that other work on the machine disturbs them less; median over the repeats.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor

from difixcli.reconstruction.rasteriser import rasterization

SIZES = ((10_000, 240, 135), (20_000, 240, 135), (50_000, 480, 270))


def scene(count: int, width: int, height: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """Gaussians that fill the view of one camera, the camera's world-to-camera matrix and its intrinsics."""
    generator = torch.Generator().manual_seed(0)
    focal = 200.0 * width / 240

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    depth = uniform(count) * 4 + 2
    across = (uniform(count, 2) - 0.5) * torch.tensor([width, height]) / focal
    means = torch.cat((across * depth[:, None], depth[:, None]), dim=-1)
    scales = torch.exp(normal(count, 3) * 0.5) * 0.03 * (10_000 / count) ** (1 / 3)
    gaussians = [means, normal(count, 4), scales, uniform(count), normal(count, 16, 3) * 0.2]
    K = torch.tensor([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])
    return [tensor.requires_grad_() for tensor in gaussians], torch.eye(4)[None], K[None]


def measure(count: int, width: int, height: int, repeats: int) -> tuple[float, float]:
    """Median CPU milliseconds of a forward pass, and of forward and backward."""
    gaussians, viewmats, Ks = scene(count, width, height)
    gradient = torch.ones(1, height, width, 3)
    forward, both = [], []
    for _ in range(repeats + 3):
        for tensor in gaussians:
            tensor.grad = None
        start = time.process_time()
        image, _, _ = rasterization(
            *gaussians, viewmats, Ks, width, height, sh_degree=3, packed=False, absgrad=True, render_mode="RGB"
        )
        middle = time.process_time()
        image.backward(gradient)
        end = time.process_time()
        forward.append(middle - start)
        both.append(end - start)
    return 1e3 * statistics.median(forward[3:]), 1e3 * statistics.median(both[3:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1, help="numba's threads")
    arguments = parser.parse_args()
    import numba

    torch.set_num_threads(1)
    numba.set_num_threads(min(arguments.threads, numba.config.NUMBA_NUM_THREADS))
    print("| Gaussians | size | forward, CPU ms | forward + backward, CPU ms |")
    print("|---|---|---|---|")
    for count, width, height in SIZES:
        forward, both = measure(count, width, height, arguments.repeats)
        print(f"| {count:,} | {width}×{height} | {forward:.1f} | {both:.1f} |", flush=True)


if __name__ == "__main__":
    main()
