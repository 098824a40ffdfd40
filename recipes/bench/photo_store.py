"""What a training's start takes of time and memory, with decoded photos held and without.

    python recipes/bench/photo_store.py [--photos 300] [--width 3840] [--size 480] [--method splatfacto] [--rows 0 1]

Synthetic JPEGs of 16:9 (eight distinct ones, under as many names as wanted) around a cloud of seed points, in a
temporary folder. Each row is a process of its own: it loads the scene, writes the data set, and makes the seeds or the
seed depth that the method asks for (`--method none`: it looks at every photo once instead); then it looks at every
photo once more, as references and figures do. Times are CPU seconds. Peak memory is the process's, libraries included;
a row that holds none decodes a photo for each of its uses.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

DISTINCT = 8
ROWS = (
    ("nothing", 0, 0),
    ("32 MiB", 2**25, 0),
    ("32 MiB, the rest on disk", 2**25, 2**34),
    ("1 GiB, the rest on disk", 2**30, 2**34),
)
"""What is held: its name, and bytes of memory and of disk."""


def write_scene(folder: Path, count: int, width: int) -> None:
    """`count` photos on a circle that look at its middle, and 20,000 points there."""
    from difixcli.scenes.ply import write_points
    from difixcli.scenes.poses import look_at

    height = width * 9 // 16
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    frames = []
    for i in range(count):
        path = folder / "images" / f"{i:04d}.jpg"
        if i < DISTINCT:
            coarse = Image.fromarray(rng.integers(0, 256, (54, 96, 3), dtype=np.uint8))
            grain = rng.normal(0, 6, (height, width, 1))
            smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
            Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8)).save(path, quality=92)
        else:
            os.link(folder / "images" / f"{i % DISTINCT:04d}.jpg", path)
        angle = 2 * np.pi * i / count
        pose = look_at(np.array([4 * np.cos(angle), 4 * np.sin(angle), 1]), np.zeros(3), np.array([0, 0, 1.0]))
        frames.append({"file_path": f"images/{i:04d}.jpg", "transform_matrix": pose.tolist()})
    points = rng.normal(0, 0.5, (20_000, 3)).astype(np.float32)
    write_points(folder / "points.ply", points, rng.integers(0, 256, (20_000, 3), dtype=np.uint8))
    lens = {"fl_x": 0.8 * width, "fl_y": 0.8 * width, "cx": width / 2, "cy": height / 2, "w": width, "h": height}
    (folder / "transforms.json").write_text(json.dumps({**lens, "ply_file_path": "points.ply", "frames": frames}))


def peak_memory() -> float:
    """The most memory this process has had, in MiB; Linux alone. (getrusage tells the parent's as well.)"""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def start(folder: Path, size: int, method: str, memory: int, disk: int) -> dict[str, float]:
    """One row: CPU seconds of each part, and the peak in MiB."""
    from difixcli.scenes import load_photo, load_scene, photo_store
    from difixcli.scenes.spill import Spill

    if method != "none":
        from difixcli.reconstruction.dataset import write_dataset
        from difixcli.reconstruction.seed_depth import SeedRays
        from difixcli.reconstruction.seeding import Seeding
    photo_store.STORE = photo_store.PhotoStore(memory, Spill(disk))
    before = peak_memory()
    began = time.process_time()
    scene = load_scene(str(folder), size=size)
    loaded = time.process_time()
    train = [i for i in range(len(scene.frames)) if i % 8]
    with tempfile.TemporaryDirectory() as out:
        if method == "none":
            for frame in scene.frames:
                load_photo(frame)
        elif method == "splatfacto":
            write_dataset(scene, train, Path(out), beside=Seeding(scene, train, 50_000, 0).add)
        else:
            rays: list[SeedRays] = []
            write_dataset(scene, train, Path(out), beside=lambda i: rays.append(SeedRays.of_photo(scene, i, len(rays))))
    made = time.process_time()
    for frame in scene.frames:
        load_photo(frame)
    seen = time.process_time()
    peak = peak_memory()
    return {"load": loaded - began, "start": made - loaded, "again": seen - made, "before": before, "peak": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--photos", type=int, default=300)
    parser.add_argument("--width", type=int, default=3840, help="of the JPEGs, in pixels")
    parser.add_argument("--size", type=int, default=480, help="the long side that is worked at")
    parser.add_argument("--method", choices=["splatfacto", "nerfacto", "none"], default="splatfacto")
    parser.add_argument("--rows", nargs="+", type=int, default=range(len(ROWS)), help=f"of {[row[0] for row in ROWS]}")
    parser.add_argument("--row", nargs=3, metavar=("FOLDER", "MEMORY", "DISK"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.row:
        print(json.dumps(start(Path(asked.row[0]), asked.size, asked.method, *map(int, asked.row[1:]))))
        return
    print(f"{asked.photos} photos of {asked.width} pixels at {asked.size}, {asked.method}")
    print("| held | load_scene s | data set and seeds s | all photos again s | peak MiB | of it libraries |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "scene"
        write_scene(folder, asked.photos, asked.width)
        settings = ["--size", str(asked.size), "--method", asked.method]
        for name, memory, disk in (ROWS[number] for number in asked.rows):
            command = [sys.executable, __file__, *settings, "--row", str(folder), str(memory), str(disk)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            row = json.loads(done.stdout.splitlines()[-1])
            seconds = " | ".join(f"{row[part]:.1f}" for part in ("load", "start", "again"))
            print(f"| {name} | {seconds} | {row['peak']:.0f} | {row['before']:.0f} |", flush=True)


if __name__ == "__main__":
    main()
