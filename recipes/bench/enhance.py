"""Memory and pace of `difix enhance` over long sequences.

    python recipes/bench/enhance.py [--frames 200 2000] [--size 64 48] [--steady]

For each number of frames a video is made (a pan over noise), enhanced with the bundled fixer and one reference, with a
side-by-side video, in a process of its own, whose largest resident size (FFmpeg's included) and seconds are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from difixcli.enhancement.video import VideoWriter
from difixcli.runs import write_image

PROGRAM = [sys.executable, "-c", "from difixcli.cli import main; main()"]


def pan(path: Path, count: int, width: int, height: int) -> None:
    """A video of so many frames that go to and fro over blurred noise."""
    import cv2

    noise = np.random.default_rng(0).random((height, width + 64, 3)).astype(np.float32)
    image = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 0, 1, cv2.NORM_MINMAX)  # type: ignore[call-overload]
    with VideoWriter(path, 24) as video:
        for i in range(count):
            left = abs(i % 128 - 64)
            video.add(image[:, left : left + width])
    write_image(path.with_suffix(".png"), image[:, 32 : 32 + width])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--frames", type=int, nargs="*", default=[200, 2000])
    parser.add_argument("--size", type=int, nargs=2, default=[64, 48], metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--steady", action="store_true")
    arguments = parser.parse_args()
    print("| frames | peak, MiB | seconds a frame |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        for count in arguments.frames:
            source, output = Path(temporary) / f"pan-{count}.mp4", Path(temporary) / f"out-{count}"
            pan(source, count, *arguments.size)
            line = ["enhance", str(source), "--reference", str(source.with_suffix(".png")), "--side-by-side"]
            line += ["--steady"] * arguments.steady + ["--output", str(output)]
            process = subprocess.Popen([*PROGRAM, *line], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            if status:
                sys.exit(f"enhancing {count} frames failed")
            results = json.loads((output / "run.json").read_text())["results"]
            assert results["frames"] == count
            print(f"| {count} | {usage.ru_maxrss / 1024:.0f} | {results['seconds_per_frame']:.3f} |", flush=True)


if __name__ == "__main__":
    main()
