"""How much faster two processes that share a curation are than one.

    python recipes/bench/workers.py [--scenes 6] [--iterations 1000] [--size 96]

The same line over copies of sample:room, by one process and by two at once, each with one thread. Beside the wall clock
stands the CPU time of the process that used most: on a core of its own that is how long it takes, whatever else the
machine does meanwhile.
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
from pathlib import Path

PROGRAM = [sys.executable, "-m", "difixcli"]


def curate(line: list[str], workers: int, output: Path) -> tuple[float, list[float]]:
    """Wall seconds, and each process's CPU seconds."""
    environment = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")}
    begun = time.monotonic()
    processes = [
        subprocess.Popen(
            [*PROGRAM, *line, "-o", str(output)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(workers)
    ]
    used = []
    for process in processes:
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit(f"curating with {workers} processes failed")
        used.append(usage.ru_utime + usage.ru_stime)
    return time.monotonic() - begun, used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--scenes", type=int, default=6)
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--size", type=int, default=96)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        subprocess.run([*PROGRAM, "sample", "room", str(folder / "0")], check=True, capture_output=True)
        scenes = [folder / "0"]
        for i in range(1, asked.scenes):
            scenes.append(Path(shutil.copytree(scenes[0], folder / str(i))))
        line = ["curate", *map(str, scenes), "--split", "every:2", "--iterations", str(asked.iterations)]
        line += ["--size", str(asked.size), "--preset", "cpu", "--device", "cpu", "--keep", "failed"]
        curate(["curate", str(scenes[0]), *line[1 + len(scenes) :]], 1, folder / "warm")  # kernels are compiled once
        print("| processes | scenes of each | wall, s | CPU s of each | speed-up by wall | by CPU |")
        print("|---|---|---|---|---|---|")
        first: tuple[float, float] | None = None
        for workers in (1, 2):
            output = folder / f"pairs-{workers}"
            wall, used = curate(line, workers, output)
            records = [json.loads(path.read_text()) for path in (output / "jobs").glob("*.job.json")]
            pids = [record["pid"] for record in records]
            shares = ", ".join(str(pids.count(pid)) for pid in sorted(set(pids)))
            first = first or (wall, max(used))
            spent = ", ".join(f"{seconds:.1f}" for seconds in used)
            print(
                f"| {workers} | {shares} | {wall:.1f} | {spent} | {first[0] / wall:.2f} | {first[1] / max(used):.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
