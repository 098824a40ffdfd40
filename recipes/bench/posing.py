"""Poses thrown away and found again: how many photos are placed, how far off, in what time.

    python recipes/bench/posing.py SCENE... [--output DIR] [--size PIXELS] [--video] [--seed 0]

SCENE is a posed scene's folder. Its photos, as they are or resized to a long side, go into a folder of their own (with
--video into an MP4 in their order, ten frames a second) and `difix pose` is run on it. Its camera positions are laid
over the scene's by the similarity that fits best; their error is a share of the scene's extent, twice the largest
distance of a camera from the mean of all. A photo that was not placed has no error and counts against "placed". Focal
lengths are compared after undistortion. Where the scene's own model falls into parts that hardly share a point, which
its poses say nothing between, the row on stderr has their sizes.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pycolmap
from PIL import Image

from difixcli.enhancement.video import VideoWriter
from difixcli.posing.mapping import parts
from difixcli.runs import read_image
from difixcli.scenes import load_scene
from difixcli.scenes.nerfstudio_format import read_transforms


def fitted(points: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(N, 3) points moved by the similarity that brings them nearest to their targets (N, 3) in the mean square."""
    mean, wanted = points.mean(axis=0), targets.mean(axis=0)
    u, d, vt = np.linalg.svd((targets - wanted).T @ (points - mean))
    sign = np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    scale = (d * np.diag(sign)).sum() / ((points - mean) ** 2).sum()
    return scale * (points - mean) @ (u @ sign @ vt).T + wanted


def measure(folder: Path, output: Path, size: int | None, video: bool, seed: int) -> dict[str, object]:
    """One row of the table."""
    scene = load_scene(folder)
    frames = scene.frames
    scale = 1.0 if size is None else size / max(frames[0].lens.size)
    if video:
        source = output / f"{scene.name}.mp4"
        with VideoWriter(source, 10) as film:
            for frame in frames:
                film.add(read_image(frame.image_path))
    else:
        source = output / scene.name
        source.mkdir(parents=True)
        for frame in frames:
            target = source / Path(frame.name).name
            if size is None:
                shutil.copy(frame.image_path, target)
                continue
            with Image.open(frame.image_path) as photo:
                wanted = (round(photo.width * scale), round(photo.height * scale))
                photo.convert("RGB").resize(wanted, Image.Resampling.LANCZOS).save(target, quality=95)
    posed = output / f"{scene.name}-posed"
    line = [sys.executable, "-m", "difixcli", "pose", source, "--output", posed, "--seed", str(seed), "--json"]
    begun, cpu = time.monotonic(), _cpu_seconds()
    done = subprocess.run([str(word) for word in line], capture_output=True, text=True, check=False)
    seconds = time.monotonic() - begun
    row: dict[str, object] = {"scene": scene.name, "photos": len(frames), "seconds": round(seconds)}
    row["cpu_seconds"] = round(_cpu_seconds() - cpu)
    if (folder / "sparse/0").is_dir():
        apart = parts(pycolmap.Reconstruction(folder / "sparse/0"))
        row |= {"reference_parts": [len(members) for members in apart]} if len(apart) > 1 else {}
    said = json.loads(done.stdout.splitlines()[-1])
    if done.returncode:
        return row | {"placed": 0, "says": said["error"]}
    results = said["results"]
    row |= {"photos": results["photos"], "placed": results["placed"], "mapper": results["mapper"]}
    found = read_transforms(posed / "transforms.json").frames
    numbers = {Path(frame.name).name: i for i, frame in enumerate(frames)}
    which = [int(re.findall(r"\d+", one.name)[-1]) if video else numbers[Path(one.name).name] for one in found]
    truth = np.stack([frames[i].camera.position for i in which])
    centres = np.stack([one.pose[:3, 3] for one in found])
    extent = 2 * np.linalg.norm(truth - truth.mean(axis=0), axis=1).max()
    errors = np.linalg.norm(fitted(centres, truth) - truth, axis=1) / extent
    focals = [one.lens.fx / (scale * frames[i].lens.fx) - 1 for one, i in zip(found, which, strict=True)]
    return row | {
        "mean_error": f"{100 * errors.mean():.2f} %",
        "largest_error": f"{100 * errors.max():.2f} %",
        "focal_error": f"{100 * np.mean(focals):+.2f} %",
        "timings": json.loads((posed / "run.json").read_text())["timings"],
    }


def _cpu_seconds() -> float:
    """What processes that have ended used; on a busy machine it says more than the clock."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("scenes", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, help="where to keep what is made; a temporary folder by default")
    parser.add_argument("--size", type=int, help="the long side in pixels that photos are resized to")
    parser.add_argument("--video", action="store_true", help="pose a video of the photos in place of the photos")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.video and arguments.size:
        parser.error("--size is of photos, not of a video")
    with tempfile.TemporaryDirectory() as temporary:
        output = arguments.output or Path(temporary)
        output.mkdir(parents=True, exist_ok=True)
        print(
            "| scene | photos | placed | mean error | largest error | focal error | seconds | CPU seconds | mapper |",
            flush=True,
        )
        print("|---|---|---|---|---|---|---|---|---|", flush=True)
        for folder in arguments.scenes:
            row = measure(folder, output, arguments.size, arguments.video, arguments.seed)
            print(f"{json.dumps(row)}", file=sys.stderr, flush=True)
            keys = ["scene", "photos", "placed", "mean_error", "largest_error", "focal_error"]
            keys += ["seconds", "cpu_seconds", "mapper"]
            print("| " + " | ".join(str(row.get(key, "–")) for key in keys) + " |", flush=True)


if __name__ == "__main__":
    main()
