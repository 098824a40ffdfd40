"""Pace and memory of `difix curate`.

    python recipes/bench/curation.py [--scene sample:street] [--iterations 40] [--size 96] [--frames 50 500]

Pace: pairs a minute for each method and strategy, and the share of the time that is spent outside reconstruction
(setting up, training, loading, rendering): aligning references, measuring, writing images and sheets, reading photos.
With `--iterations 0` the preset's own schedule is used, which is what a real run does.

Memory: the largest resident size of a process that curates scenes of so many frames, of which as many train in each.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAM = [sys.executable, "-c", "from difixcli.cli import main; main()"]
STRATEGIES = {
    "sparse": ["--split", "every:4"],
    "cycle": ["--shift", "0.1"],
    "underfit": ["--split", "every:4"],
    "cross-camera": [],
}


@contextmanager
def stopwatch(owner: type, names: tuple[str, ...]) -> Iterator[dict[str, float]]:
    """Seconds spent in the methods `names` of a class, calls from one to another counted once."""
    seconds = dict.fromkeys(names, 0.0)
    depth = 0

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal depth
            begun, depth = time.monotonic(), depth + 1
            try:
                return function(*args, **kwargs)
            finally:
                depth -= 1
                if depth == 0:
                    seconds[name] += time.monotonic() - begun

        return call

    originals = {name: owner.__dict__[name] for name in names}
    for name, original in originals.items():
        bare = timed(name, original.__func__ if isinstance(original, classmethod) else original)
        setattr(owner, name, classmethod(bare) if isinstance(original, classmethod) else bare)
    try:
        yield seconds
    finally:
        for name, original in originals.items():
            setattr(owner, name, original)


def pace(scene: str, methods: list[str], iterations: int, size: int, folder: Path) -> None:
    """Print a row for every method and strategy."""
    from typer.testing import CliRunner

    from difixcli.cli import app
    from difixcli.reconstruction import Reconstruction

    def run(method: str, strategy: str, output: Path) -> dict[str, Any]:
        length = ["--iterations", str(iterations)] if iterations else []
        line = ["curate", scene, "--method", method, "--strategy", strategy, *STRATEGIES[strategy], *length]
        result = CliRunner().invoke(app, [*line, "--size", str(size), "--keep", "failed", "--json", "-o", str(output)])
        if result.exit_code:
            sys.exit(result.stderr)
        return json.loads(result.stdout.splitlines()[-1])["results"]

    print("| method | strategy | pairs | pairs a minute | training, s | rendering, s | outside reconstruction |")
    print("|---|---|---|---|---|---|---|")
    for method in methods:
        run(method, "sparse", folder / f"warm-{method}")  # compiled kernels are loaded once a process
        for strategy in STRATEGIES:
            begun = time.monotonic()
            with stopwatch(Reconstruction, ("create", "load", "train", "save", "render")) as seconds:
                pairs = run(method, strategy, folder / f"{strategy}-{method}")["pairs"]
            whole = time.monotonic() - begun
            outside = 1 - sum(seconds.values()) / whole
            print(
                f"| {method} | {strategy} | {pairs} | {60 * pairs / whole:.0f} | {seconds['train']:.1f} "
                f"| {seconds['render']:.1f} | {100 * outside:.0f} % |",
                flush=True,
            )


def memory(frames: list[int], training: int, method: str, iterations: int, size: int, folder: Path) -> None:
    """Print the peak of a process for each number of frames."""
    print("| frames | train | pairs | peak, MiB |")
    print("|---|---|---|---|")
    for count in frames:
        scene, output = folder / f"frames-{count}", folder / f"pairs-{count}"
        repeat_sample(scene, count)
        line = ["curate", str(scene), "--split", f"every:{count // training}", "--method", method, "--keep", "failed"]
        line += ["--iterations", str(iterations or 40), "--size", str(size), "--json", "-o", str(output)]
        process = subprocess.Popen([*PROGRAM, *line], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit(f"curating {count} frames failed")
        pairs = json.loads((output / "run.json").read_text())["results"]["pairs"]
        print(f"| {count} | {count - pairs} | {pairs} | {usage.ru_maxrss / 1024:.0f} |", flush=True)


def repeat_sample(folder: Path, count: int) -> None:
    """A scene of `count` frames: the sample street's, over and over. Memory does not care what they show."""
    from difixcli.samples.sample import cached_sample

    sample = cached_sample("street")
    meta = json.loads((sample / "transforms.json").read_text())
    frames = []
    for i in range(count):
        frame = meta["frames"][i % len(meta["frames"])]
        name = f"images/{i:05d}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(sample / frame["file_path"], folder / name)
        frames.append({**frame, "file_path": name})
    shutil.copy(sample / meta["ply_file_path"], folder)
    (folder / "transforms.json").write_text(json.dumps({**meta, "frames": frames}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--scene", default="sample:street")
    parser.add_argument("--methods", nargs="+", default=["splatfacto", "nerfacto"])
    parser.add_argument("--iterations", type=int, default=40, help="0: the preset's schedule")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--frames", type=int, nargs="*", default=[50, 500])
    parser.add_argument("--training", type=int, default=10, help="frames that train in the memory benchmark")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        pace(arguments.scene, arguments.methods, arguments.iterations, arguments.size, Path(temporary))
        memory(
            arguments.frames,
            arguments.training,
            arguments.methods[0],
            arguments.iterations,
            arguments.size,
            Path(temporary),
        )


if __name__ == "__main__":
    main()
