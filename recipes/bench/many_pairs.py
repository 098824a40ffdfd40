"""A training on many pairs beside one on few: how long until its first step, what memory, how quick its steps.

    python recipes/bench/many_pairs.py [--few 80] [--many 80000] [--steps 60] [--workers 1] [--turns 2] [--cache 0]

A set of `--few` pairs of 288×512 pixels as `difix curate` writes them (render, photo, two references, raw and aligned,
opacity; sizes and hashes in the manifest), and one of `--many` whose manifest names the same files again and again
under other ids: every pair is its own as far as training knows. A process for each trains `tiny` from nothing, the
perceptual loss on; the two take turns. CPU time, of the process and its workers, tells more than the clock where other
work is done on the machine. No pair is kept decoded (`--cache` MiB would be): a small set's pairs come again and are
decoded less often the more of them are kept, which says nothing of how the number of pairs tells on a step.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (288, 512)


def write_set(folder: Path, few: int) -> dict[str, dict]:
    """So many pairs of smooth noise, and their manifest's entries."""
    from difixcli.curation.pairs import recorded_files

    rng = np.random.default_rng(0)
    entries = {}

    def picture(name: str, channels: int) -> str:
        coarse = rng.integers(0, 256, (36, 64, channels), dtype=np.uint8).squeeze()
        image = Image.fromarray(coarse).resize(SIZE[::-1], Image.Resampling.BICUBIC)
        grain = rng.integers(-6, 7, (*SIZE, channels)).squeeze()
        Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8)).save(folder / name)
        return name

    for i in range(few):
        entry = {
            "image": picture(f"render{i:05}.png", 3),
            "target_image": picture(f"photo{i:05}.png", 3),
            "ref_images": [picture(f"ref{i:05}.{v}.png", 3) for v in range(2)],
            "aligned_refs": [picture(f"aligned{i:05}.{v}.png", 4) for v in range(2)],
            "opacity": picture(f"opacity{i:05}.png", 1),
            "prompt": "remove degradation",
            "camera": {"height": SIZE[0], "width": SIZE[1], "camera_to_world": np.eye(4).tolist()},
        }
        entry["files"] = recorded_files(folder, entry)
        entries[f"scene__sparse-4__{i:05}"] = entry
    return entries


def write_manifest(path: Path, entries: dict[str, dict], count: int) -> None:
    """A line a pair; of more pairs than there are entries these come again under other ids."""
    texts, names = [json.dumps(entry, sort_keys=True) for entry in entries.values()], list(entries)
    with path.open("w") as file:
        file.write('{"train": {')
        for i in range(count):
            name = f"{names[i % len(names)]}__{i // len(names):06}"
            file.write((",\n" if i else "\n") + f"{json.dumps(name)}: {texts[i % len(names)]}")
        file.write('\n}, "test": {\n}}\n')


def train(manifest: Path, output: Path, steps: int, workers: int, cache: int) -> None:
    """In this process; prints JSON: seconds to the first step, milliseconds a sample, MiB at a quarter and at the end.

    Seconds and milliseconds are by the clock and of CPU time.
    """
    import torch

    from difixcli.training import finetune

    torch.set_num_threads(1)
    started = time.perf_counter(), _spent()
    times: list[tuple[float, float]] = []
    memory: list[float] = []

    def stepped(step: int) -> None:
        times.append((time.perf_counter(), _spent()))
        memory.append(_resident())

    finetune(
        [manifest], "tiny", output, iterations=steps, batch=4, crop=128, workers=workers, cache_mib=cache,
        checkpoint_every=10**6, signs_every=10**6, progress=stepped,
    )  # fmt: skip
    begun = steps // 4
    told = {
        "first": [now - before for now, before in zip(times[0], started, strict=True)],
        "sample": [250 * (z - a) / (steps - begun) for z, a in zip(times[-1], times[begun - 1], strict=True)],
        "memory": [memory[begun - 1], memory[-1]],
    }
    print(json.dumps(told))


def _resident() -> float:
    """MiB of this process and its workers; pages that they share count in each."""
    pages = sum(int(Path(f"/proc/{process}/statm").read_text().split()[1]) for process in _processes())
    return pages * resource.getpagesize() / 2**20


def _spent() -> float:
    """Seconds of CPU time of this process and its workers."""
    times = (Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13] for process in _processes())
    return sum(int(ticks) for both in times for ticks in both) / os.sysconf("SC_CLK_TCK")


def _processes() -> list[str]:
    return ["self", *Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--few", type=int, default=80)
    parser.add_argument("--many", type=int, default=80_000)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--cache", type=int, default=0)
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train is not None:
        train(arguments.train, arguments.train.parent / "out", arguments.steps, arguments.workers, arguments.cache)
        return
    with tempfile.TemporaryDirectory() as made:
        home = Path(made)
        entries = write_set(home, arguments.few)
        found: dict[int, list[dict]] = {arguments.few: [], arguments.many: []}
        for _ in range(arguments.turns):
            for count, turns in found.items():
                manifest = home / f"{count}.json"
                write_manifest(manifest, entries, count)
                line = [sys.executable, __file__, "--train", str(manifest), "--steps", str(arguments.steps)]
                line += ["--workers", str(arguments.workers), "--cache", str(arguments.cache)]
                ran = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True)
                turns.append(json.loads(ran.stdout.splitlines()[-1]))
                print(count, turns[-1], file=sys.stderr)
                shutil.rmtree(home / "out")
        print(
            "| pairs | manifest | first step after, s (CPU) | a sample, ms (CPU) | memory at a quarter / the end, MiB |"
        )
        print("|---|---|---|---|---|")
        for count, turns in found.items():
            size = (home / f"{count}.json").stat().st_size / 2**20
            first, sample = ([min(one[k][i] for one in turns) for i in range(2)] for k in ("first", "sample"))
            print(
                f"| {count:,} | {size:.1f} MiB | {first[0]:.1f} ({first[1]:.1f}) | {sample[0]:.0f} ({sample[1]:.0f}) | "
                f"{turns[0]['memory'][0]:.0f} / {turns[0]['memory'][1]:.0f} |"
            )


if __name__ == "__main__":
    main()
