"""Pace, agreement and memory of the fixer at SD-Turbo's width, with random weights.

    python recipes/bench/fixer.py pace [--frames 3] [--threads 2]     # CPU: 288×512 float32; CUDA: 576×1024 bfloat16
    python recipes/bench/fixer.py gpu [--batch 1 8] [--dtype bf16 fp32]   # 576×1024, compiled and not
    python recipes/bench/fixer.py memory [--width 0.25]               # an image of 1024 pixels, and one of 4K in tiles

Pace: a sequence of frames that share one reference, ours against the straightforward way: adapters apart, torch's own
convolutions, both views encoded, denoised and decoded for every frame, as Difix3D's release does.

GPU: milliseconds a frame between CUDA's events, after a warm-up in which kernels are compiled and chosen and the
reference is encoded; frames and results stay on the device. A row for every precision, batch, and compiled or not,
with the most memory that was allocated and how far the pixels lie from single precision's. It runs on a CPU too.

Memory: the largest resident size (CUDA: allocated bytes) of a process that fixes one image.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from difixcli.fixer import Fixer, FixerConfig, FixerNetwork, convolution
from difixcli.fixer.weights import merge_adapters

_ADAPTED = ("conv1", "conv2", "conv_in", "conv_shortcut", "conv", "conv_out", "to_k", "to_q", "to_v", "to_out.0")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
Timed = tuple[Tensor, float, float]  # what came out, wall and CPU seconds a frame


def sd_turbo_config(width: float = 1.0, lora_rank: int = 4) -> FixerConfig:
    """SD-Turbo's architecture with the release's adapters, its channels multiplied by `width`."""

    def scaled(channels: list[int]) -> list[int]:
        return [int(c * width) for c in channels]

    config = FixerConfig(
        unet={
            "in_channels": 4,
            "out_channels": 4,
            "block_out_channels": scaled([320, 640, 1280, 1280]),
            "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
            "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
            "attention_head_dim": [max(1, int(heads * width)) for heads in (5, 10, 20, 20)],
            "cross_attention_dim": int(1024 * width),
            "use_linear_projection": True,
            "norm_num_groups": max(1, int(32 * width)),
        },
        vae={
            "latent_channels": 4,
            "block_out_channels": scaled([128, 256, 512, 512]),
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
            "layers_per_block": 2,
            "norm_num_groups": max(1, int(32 * width)),
            "scaling_factor": 0.18215,
        },
    )
    if not lora_rank:
        return config
    with torch.device("meta"):
        modules = [name for name, _ in FixerNetwork(config).vae.decoder.named_modules()]
    adapted = [f"decoder.{name}" for name in modules if name.endswith(_ADAPTED) or name.startswith("skip_conv")]
    return FixerConfig(**{**config.to_json(), "lora_rank": lora_rank, "lora_targets": sorted(adapted)})


def random_network(config: FixerConfig) -> FixerNetwork:
    """Random weights, adapters and skips that change the picture among them."""
    torch.manual_seed(0)
    network = FixerNetwork(config)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_B" in name or "skip_conv" in name:
                parameter.normal_(std=0.01)
    return network.eval()


def pictures(count: int, height: int, width: int) -> Tensor:
    """(count, 3, H, W) smooth random images in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, height // 16, width // 16, generator=generator)
    return F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)


@contextmanager
def torchs_own_convolutions() -> Iterator[None]:
    held, convolution._available = convolution._available, lambda: False
    try:
        yield
    finally:
        convolution._available = held


@torch.no_grad()
def straightforward(network: FixerNetwork, image: Tensor, reference: Tensor) -> Tensor:
    """(1, 3, H, W) fixed as the release does: every stage for both views, then the reference's is dropped."""
    views = torch.cat([image, reference]).to(network.prompt)
    latents, skips = network.encode(views * 2 - 1)
    decoded = network.decode(network.denoise(latents, 2), skips)
    return ((decoded + 1) / 2).clamp(0, 1)[:1].to(image)


def timed(function: Callable[[], Tensor]) -> Timed:
    """What the function returns, wall seconds and CPU seconds."""
    wall, cpu = time.monotonic(), time.process_time()
    result = function()
    if result.device.type == "cuda":
        torch.cuda.synchronize()
    return result, time.monotonic() - wall, time.process_time() - cpu


def pace(frames: int, expected_frames: int, device: str, width: float) -> None:
    """Print seconds a frame of both ways, and how far their pixels lie apart."""
    size = (576, 1024) if device == "cuda" else (288, 512)
    images = pictures(frames + 1, *size)
    images, reference = images[:-1].to(device), images[-1:].to(device)
    network = random_network(sd_turbo_config(width)).to(device)
    if device == "cuda":
        network = network.to(torch.bfloat16)
    base = baseline(network, images[:expected_frames], reference)
    report("straightforward", base)
    fixer = Fixer(merge_adapters(network)).to(device, network.prompt.dtype)
    del network
    ours = sequence(fixer, images, reference)
    report("ours", ours)
    pixels, expected = (torch.cat([out for out, *_ in runs]) for runs in (ours, base))
    both = min(len(pixels), len(expected))
    print(f"  largest difference {float((pixels[:both] - expected[:both]).abs().max()):.1e} of 1", flush=True)


def baseline(network: FixerNetwork, images: Tensor, reference: Tensor) -> list[Timed]:
    with torchs_own_convolutions():
        if images.device.type == "cuda":
            straightforward(network, images[:1], reference)  # kernels are chosen at first use
        return [timed(partial(straightforward, network, image[None], reference)) for image in images]


def sequence(fixer: Fixer, images: Tensor, reference: Tensor) -> list[Timed]:
    """Frames beside one reference, whose encoding is part of the first."""
    if images.device.type == "cuda":
        fixer(images[:1], reference[None])  # kernels are chosen at first use
    fixer._held.clear()
    return [timed(partial(fixer, image[None], reference[None])) for image in images]


@dataclass(frozen=True)
class Row:
    """`milliseconds` a frame, the median and the fastest of the calls; `warm_up` seconds of the first call; `peak` GiB
    allocated on the GPU (NaN on a CPU); `difference` the mean from single precision's pixels, uncompiled.
    """

    dtype: str
    compiled: bool
    batch: int
    milliseconds: float
    fastest: float
    warm_up: float
    peak: float
    difference: float


def gpu(
    device: str, size: tuple[int, int], width: float, dtypes: Sequence[str], batches: Sequence[int], calls: int
) -> list[Row]:
    """Measure every combination and print a row for each."""
    images = pictures(max(batches) + 1, *size).to(device)
    images, reference = images[:-1], images[-1:]
    network = merge_adapters(random_network(sd_turbo_config(width))).to(device)
    expected = torch.cat([Fixer(network).to(device, torch.float32)(image[None], reference[None]) for image in images])
    rows = []
    print("| precision | compiled | batch | ms a frame | fastest | first call, s | peak, GiB | difference |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for name in dtypes:
        for compiled in (False, True):
            fixer = Fixer(copy.deepcopy(network)).to(device, DTYPES[name])
            if compiled:
                fixer.compile()
            for batch in batches:
                beside = reference[None].expand(batch, -1, -1, -1, -1)
                fixed, *figures = clocked(partial(fixer, images[:batch], beside), device, calls)
                difference = float((fixed - expected[:batch]).abs().mean())
                row = Row(name, compiled, batch, *(x / batch for x in figures[:2]), *figures[2:], difference)
                cells = [name, "yes" if compiled else "no", batch, f"{row.milliseconds:.1f}", f"{row.fastest:.1f}"]
                cells += [f"{row.warm_up:.1f}", f"{row.peak:.2f}", f"{difference:.1e}"]
                print("| " + " | ".join(map(str, cells)) + " |", flush=True)
                rows.append(row)
            del fixer
    return rows


def clocked(function: Callable[[], Tensor], device: str, calls: int) -> tuple[Tensor, float, float, float, float]:
    """What the function returns, median and least milliseconds of a call, seconds of the first, peak GiB."""
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.empty_cache()
    begun = time.monotonic()
    result = function()
    if cuda:
        torch.cuda.synchronize()
    first = time.monotonic() - begun
    for _ in range(2):  # what is compiled at the first call may be chosen at the second
        function()
    times = []
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    for _ in range(calls):
        if cuda:
            ends = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            ends[0].record()
            result = function()
            ends[1].record()
            torch.cuda.synchronize()
            times.append(ends[0].elapsed_time(ends[1]))
        else:
            started = time.perf_counter()
            result = function()
            times.append(1000 * (time.perf_counter() - started))
    peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else math.nan
    return result, statistics.median(times), min(times), first, peak


def report(label: str, runs: list[Timed]) -> None:
    walls, cpus = [wall for _, wall, _ in runs], [cpu for *_, cpu in runs]
    print(
        f"{label}: {len(runs)} calls, wall seconds a frame {sum(walls) / len(walls):.3f} "
        f"(first {walls[0]:.3f}, fastest {min(walls):.3f}), CPU seconds {sum(cpus) / len(cpus):.2f} "
        f"(fastest {min(cpus):.2f})",
        flush=True,
    )


def memory(device: str, width: float) -> None:
    """Print the peak of a process for each size of image."""
    for name, height, breadth in (("1024×1024", 1024, 1024), ("3840×2160", 2160, 3840)):
        line = [sys.executable, __file__, "one", "--size", str(height), str(breadth), "--width", str(width)]
        done = subprocess.run([*line, "--device", device], capture_output=True, text=True, check=True)
        print(f"{name}: {done.stdout.strip()}", flush=True)


def one(height: int, breadth: int, device: str, width: float) -> None:
    """Fix one image beside one reference and print the peak."""
    import resource

    fixer = Fixer(random_network(sd_turbo_config(width, lora_rank=0)).to(device))
    images = pictures(2, height, breadth).to(device)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    begun = time.monotonic()
    fixer(images[:1], images[None, 1:])
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak {peak:.0f} MiB ({before:.0f} before), {time.monotonic() - begun:.1f} s")


def main(line: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=("pace", "gpu", "memory", "one"))
    parser.add_argument("--frames", type=int, help="default 3 on a CPU, 24 on CUDA")
    parser.add_argument("--straightforward", type=int, help="how many of them the straightforward way too; all")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--width", type=float, default=1.0, help="share of SD-Turbo's channels")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="default 576 1024")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["bf16", "fp32"], help="precisions (gpu)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="frames at once (gpu)")
    parser.add_argument("--calls", type=int, default=20, help="calls that are timed (gpu)")
    arguments = parser.parse_args(line)
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    if arguments.what == "pace":
        frames = arguments.frames or (24 if arguments.device == "cuda" else 3)
        pace(frames, arguments.straightforward or frames, arguments.device, arguments.width)
    elif arguments.what == "gpu":
        size = tuple(arguments.size or (576, 1024))
        gpu(arguments.device, size, arguments.width, arguments.dtype, arguments.batch, arguments.calls)
    elif arguments.what == "memory":
        memory(arguments.device, arguments.width)
    else:
        one(*(arguments.size or (576, 1024)), arguments.device, arguments.width)


if __name__ == "__main__":
    main()
