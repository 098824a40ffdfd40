"""Time and memory of reading a scene of many 4K photos, without decoding any.

    python recipes/bench/scene_loading.py [--counts 300 3000] [--folder DIR]

A few photos of noise, 3840×2160, stand for all: the others are hard links to them. Each count is read by a process of
its own, once as difix writes scenes and once as an export of another machine (drive letters, other suffix), after one
reading that brings the files into the system's cache.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from difixcli.scenes import load_scene
from difixcli.scenes.poses import look_at

_DISTINCT = 4
_SIZE = (3840, 2160)


def write(folder: Path, count: int, foreign: bool) -> None:
    """A circle of `count` photos in `folder`; `foreign` ones are named as another machine called them."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    frames = []
    for i in range(count):
        name = f"images/frame_{i:05d}.jpg"
        if i < _DISTINCT:
            small = rng.integers(0, 256, (_SIZE[1] // 8, _SIZE[0] // 8, 3), dtype=np.uint8)
            Image.fromarray(small).resize(_SIZE, Image.Resampling.BICUBIC).save(folder / name, quality=90)
        else:
            os.link(folder / f"images/frame_{i % _DISTINCT:05d}.jpg", folder / name)
        angle = 2 * np.pi * i / count
        position = np.array([3 * np.cos(angle), 3 * np.sin(angle), 1.0])
        pose = look_at(position, np.zeros(3), np.array([0.0, 0, 1])).tolist()
        said = rf"C:\captures\{folder.name}\images\frame_{i:05d}.PNG" if foreign else name
        frames.append({"file_path": said, "transform_matrix": pose})
    lens = {"fl_x": 3000.0, "fl_y": 3000.0, "cx": _SIZE[0] / 2, "cy": _SIZE[1] / 2, "w": _SIZE[0], "h": _SIZE[1]}
    (folder / "transforms.json").write_text(json.dumps({**lens, "frames": frames}))


def measure(folder: Path) -> None:
    """Prints what one `load_scene` takes, the second time."""
    load_scene(folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    scene = load_scene(folder)
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    for _ in scene.frames:
        len(scene.file_names)
    names = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{folder.name}: load_scene {seconds:.2f} s, file_names for each frame {names:.3f} s, peak {peak / 1024:.0f} "
        f"MiB ({before / 1024:.0f} MiB after the first reading)",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[300, 3000])
    parser.add_argument("--folder", type=Path, help="where to make the photos; a temporary one unless named")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        measure(options.measure)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        for count in options.counts:
            for kind in ("plain", "foreign"):
                folder = Path(temporary) / f"{kind}_{count}"
                write(folder, count, kind == "foreign")
                subprocess.run([sys.executable, __file__, "--measure", str(folder)], check=True)


if __name__ == "__main__":
    main()
