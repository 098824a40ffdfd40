"""The sample scenes: a furnished room and a street, made by our own ray caster with true images at every pose."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from difixcli.errors import InputError, unknown
from difixcli.scenes import paint
from difixcli.scenes.colmap_writing import write_model
from difixcli.scenes.nerfstudio_format import write_transforms
from difixcli.scenes.ply import write_points
from difixcli.scenes.poses import look_at
from difixcli.scenes.raycast import Light, Solid, World, box, cylinder, sphere
from difixcli.scenes.scene import Camera
from difixcli.scenes.splits import SPLIT_FILE

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

WRITERS = (
    "sample.py",
    "raycast.py",
    "paint.py",
    "poses.py",
    "scene.py",
    "nerfstudio_format.py",
    "colmap_writing.py",
    "ply.py",
)
"""The modules that decide what a sample scene's files hold; the cache's folders are named after them."""

SEED_POINTS = 4000
SEED_NOISE = 0.003
"""Standard deviation of the seed points' error, as a share of their depth: about what structure from motion has."""
SEEN_WITHIN = 0.02
"""A photo saw a seed point that lies as deep as what it shows there, to this share of the depth."""

CAR_COLORS = (
    (0.72, 0.73, 0.75),
    (0.20, 0.22, 0.26),
    (0.62, 0.14, 0.13),
    (0.16, 0.28, 0.46),
    (0.86, 0.84, 0.78),
    (0.30, 0.40, 0.34),
)

UP = np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True, eq=False)
class View:
    """One image to write: `name` without suffix, its camera (metres), camera id, and whether it trains."""

    name: str
    camera: Camera
    camera_id: str
    train: bool


def write_sample(name: str, folder: str | Path, seed: int = 0) -> None:
    """Writes the sample scene `room` or `street` into a folder, made if missing.

    It holds `images/`, `transforms.json` (PINHOLE, OpenGL camera-to-world in metres, marked metric), `points.ply`
    (seed points near true surfaces), the same as a COLMAP model in `colmap/sparse/0`, which says which photos saw the
    points, and `split.json`. The same seed gives the same bytes. transforms.json comes last, so a folder that has one
    is whole. Raises InputError for an unknown name or a folder that cannot be written.
    """
    check_sample(name)
    folder = Path(folder).expanduser()
    rng = np.random.default_rng(seed)
    world, views = _SAMPLES[name](rng)
    try:
        _write(world, views, folder, rng)
    except OSError as error:
        raise InputError(f"The sample cannot be written to {folder} ({error.strerror or error}).") from None


def cached_sample(name: str) -> Path:
    """The folder of a sample scene with seed 0 in the user's cache, written there the first time.

    The cache is `DIFIX_CACHE`, or `~/.cache/difix`. It is written under another name and renamed, so that a run that
    is killed never leaves half a scene; of several at once one writes and the others wait. Raises InputError as
    `write_sample` does.
    """
    folder = sample_folder(name)
    cache = folder.parent
    if (folder / "transforms.json").is_file():
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with (
            _alone(cache / f".{folder.name}.lock"),
            tempfile.TemporaryDirectory(prefix=f".{name}-", dir=cache) as temporary,
        ):
            if (folder / "transforms.json").is_file():
                return folder
            made = Path(temporary) / "scene"
            write_sample(name, made)
            try:
                made.rename(folder)
            except OSError:
                # Where locks have no effect, another process was first; its scene has the same bytes.
                if not (folder / "transforms.json").is_file():
                    raise
    except OSError as error:
        raise InputError(
            f"The sample scene cannot be written to {cache} ({error.strerror or error}); set DIFIX_CACHE to a folder "
            "that can be."
        ) from None
    return folder


def sample_folder(name: str) -> Path:
    """Where `cached_sample` keeps a sample scene, written or not; InputError for an unknown name.

    A version of the program that would write another scene keeps it elsewhere.
    """
    check_sample(name)
    cache = Path(os.environ.get("DIFIX_CACHE") or Path.home() / ".cache" / "difix") / "samples"
    return cache / f"{name}-{writers_digest(Path(__file__).parent)}"


def writers_digest(folder: Path) -> str:
    """A short hash of the modules in a folder that write the sample scenes (see `WRITERS`)."""
    digest = hashlib.sha256()
    for name in WRITERS:
        digest.update(hashlib.sha256((folder / name).read_bytes()).digest())
    return digest.hexdigest()[:12]


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Waits until no other process holds the lock file; without effect where the system has no such locks."""
    with path.open("a") as held:
        if fcntl is not None:
            with suppress(OSError):
                fcntl.lockf(held, fcntl.LOCK_EX)
        yield


def check_sample(name: str) -> None:
    """Raises InputError, with near matches, if there is no sample scene of that name."""
    if name not in _SAMPLES:
        raise unknown("sample scene", name, _SAMPLES)


def _write(world: World, views: Sequence[View], folder: Path, rng: np.random.Generator) -> None:
    frames: list[tuple[Camera, dict[str, object]]] = []
    split: dict[str, list[str]] = {"train": [], "test": []}
    points, colors = [], []
    training = sum(view.train for view in views)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        pictures = list(pool.map(world.look, [view.camera for view in views]))
    for view, (image, depth, surface) in zip(views, pictures, strict=True):
        path = folder / "images" / f"{view.name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, compress_level=6)
        file_path = path.relative_to(folder).as_posix()
        frames.append((view.camera, {"file_path": file_path, "camera_id": view.camera_id}))
        split["train" if view.train else "test"].append(file_path)
        if view.train:
            seen = np.flatnonzero(depth.ravel() > 0)
            chosen = rng.choice(seen, min(seen.size, SEED_POINTS // training), replace=False)
            error = SEED_NOISE * depth.ravel()[chosen, None] * rng.standard_normal((chosen.size, 3))
            points.append(surface.reshape(-1, 3)[chosen] + error)
            colors.append(image.reshape(-1, 3)[chosen])
    cloud, colored = np.concatenate(points), np.concatenate(colors)
    write_points(folder / "points.ply", cloud, colored)
    images = [(f"{view.name}.png", view.camera) for view in views]
    visible = [_sees(view.camera, depth, cloud) for view, (_, depth, _) in zip(views, pictures, strict=True)]
    write_model(folder / "colmap" / "sparse" / "0", images, cloud, colored, np.stack(visible))
    (folder / SPLIT_FILE).write_text(json.dumps(split, indent=1) + "\n", encoding="utf-8")
    # last: where it stands the scene is whole
    write_transforms(folder / "transforms.json", frames, metric=True, ply_file_path="points.ply")


def _sees(camera: Camera, depth: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(N,) bool: which of the points (N, 3) a camera's picture, with z-depth (H, W), shows."""
    x, y, z = camera.project(points)
    inside = (z > 0) & (x >= 0) & (x < camera.width) & (y >= 0) & (y < camera.height)
    shown = depth[y[inside].astype(int), x[inside].astype(int)]
    inside[inside] = np.abs(shown - z[inside]) <= SEEN_WITHIN * z[inside]
    return inside


def _camera(pose: np.ndarray, width: int, height: int, field_of_view: float) -> Camera:
    """A camera with a horizontal field of view in degrees and its principal point in the middle."""
    focal = width / 2 / np.tan(np.deg2rad(field_of_view) / 2)
    return Camera(pose, focal, focal, width / 2, height / 2, width, height)


def _room(rng: np.random.Generator) -> tuple[World, list[View]]:
    """A living room of 6 × 5.4 × 2.7 m: 24 training views around a table, 8 test views on another path."""
    oak, walnut, pine = (0.72, 0.52, 0.33), (0.42, 0.27, 0.17), (0.80, 0.64, 0.42)
    paper = paint.wallpaper((0.80, 0.76, 0.64), (0.55, 0.62, 0.55), (0.76, 0.48, 0.30))
    cloth = paint.fabric((0.28, 0.38, 0.52), (0.78, 0.74, 0.62))
    wood, dark = paint.planks(oak, gloss=0.15), paint.planks(walnut, board=0.2, gloss=0.25)
    leaf = paint.leaves((0.30, 0.50, 0.20))
    solids: list[Solid] = [
        box(
            (0, 0, 1.35),
            (6, 5.4, 2.7),
            {
                "-x": paper,
                "+x": paint.bricks((0.62, 0.36, 0.27)),
                "-y": paint.plaster((0.78, 0.60, 0.46), 0.07),
                "+y": paper,
                "-z": paint.planks(oak, gloss=0.55),
                "+z": paint.plaster((0.88, 0.87, 0.84), 0.04),
            },
            inside=True,
        ),
        box((0, 0, 0.006), (2.7, 2.0, 0.012), paint.carpet((0.52, 0.14, 0.14), (0.15, 0.18, 0.32), (0.86, 0.72, 0.46))),
        # The table and what stands on it.
        box((0, 0, 0.43), (1.15, 0.75, 0.05), paint.marble((0.87, 0.85, 0.80), (0.35, 0.33, 0.36))),
        *(
            cylinder((x, y, 0.21), 0.03, 0.4, paint.plaster(walnut, 0.25, 0.4))
            for x in (-0.48, 0.48)
            for y in (-0.29, 0.29)
        ),
        cylinder((-0.30, 0.12, 0.57), 0.085, 0.24, paint.glaze((0.16, 0.34, 0.52), (0.92, 0.88, 0.78))),
        *(
            sphere((-0.30 + dx, 0.12 + dy, 0.80 + dz), r, leaf)
            for dx, dy, dz, r in (
                (0, 0, 0.05, 0.11),
                (0.09, 0.03, -0.02, 0.08),
                (-0.08, 0.05, 0.0, 0.085),
                (0.0, -0.09, -0.01, 0.075),
                (0.03, 0.05, 0.15, 0.07),
            )
        ),
        box((0.28, -0.14, 0.475), (0.30, 0.21, 0.04), paint.lettering((0.62, 0.16, 0.15), (0.95, 0.9, 0.8)), turn=18),
        box((0.28, -0.14, 0.51), (0.26, 0.19, 0.03), paint.lettering((0.14, 0.30, 0.28), (0.9, 0.85, 0.6)), turn=-6),
        box((0.28, -0.14, 0.54), (0.21, 0.15, 0.03), paint.lettering((0.88, 0.80, 0.58), (0.2, 0.2, 0.3)), turn=31),
        sphere((0.30, 0.20, 0.535), 0.08, paint.glaze((0.75, 0.36, 0.12), (0.98, 0.86, 0.62), 5, 1.0)),
        cylinder((0.05, -0.20, 0.50), 0.04, 0.09, paint.glaze((0.92, 0.90, 0.86), (0.70, 0.20, 0.18), 1)),
        # The sofa at −y.
        box((0, -2.26, 0.21), (2.1, 0.78, 0.42), cloth),
        box((0, -2.55, 0.60), (2.1, 0.22, 0.5), cloth),
        box((-1.13, -2.26, 0.31), (0.2, 0.8, 0.62), cloth),
        box((1.13, -2.26, 0.31), (0.2, 0.8, 0.62), cloth),
        box((-0.68, -2.36, 0.58), (0.42, 0.16, 0.36), paint.fabric((0.82, 0.52, 0.20), (0.95, 0.88, 0.72), 0.07), 12),
        box((0.62, -2.36, 0.58), (0.42, 0.16, 0.36), paint.fabric((0.60, 0.20, 0.24), (0.92, 0.82, 0.7), 0.05), -15),
        # The bookcase at +y.
        box((-0.55, 2.50, 1.03), (1.9, 0.36, 2.06), {"-y": paint.books(), "*": dark}),
        box((-0.2, 2.50, 2.16), (0.34, 0.26, 0.20), paint.planks(pine, board=0.1)),
        sphere((-1.0, 2.48, 2.19), 0.13, paint.marble((0.30, 0.42, 0.55), (0.85, 0.80, 0.6))),
        # The cabinet at −x, with a lamp and a bowl.
        box((-2.72, 0.1, 0.42), (0.46, 1.6, 0.84), {"+x": paint.planks(pine, board=0.4, gloss=0.3), "*": dark}),
        *(sphere((-2.475, y, 0.5), 0.025, paint.marble((0.9, 0.8, 0.5), (0.7, 0.6, 0.3))) for y in (-0.25, 0.0, 0.3)),
        cylinder((-2.72, 0.68, 1.0), 0.05, 0.32, paint.glaze((0.85, 0.82, 0.76), (0.35, 0.45, 0.5))),
        cylinder(
            (-2.72, 0.68, 1.28), 0.16, 0.26, paint.fabric((0.98, 0.88, 0.68), (0.94, 0.78, 0.52), 0.05), emission=1
        ),
        sphere((-2.70, -0.35, 0.94), 0.11, paint.glaze((0.22, 0.46, 0.36), (0.9, 0.88, 0.7), 4)),
        # An armchair, a side table and a plant in the corners.
        box((-1.95, -1.95, 0.22), (0.75, 0.75, 0.44), paint.fabric((0.55, 0.30, 0.22), (0.80, 0.62, 0.42), 0.09), 40),
        box((-2.24, -2.20, 0.62), (0.18, 0.75, 0.55), paint.fabric((0.55, 0.30, 0.22), (0.80, 0.62, 0.42), 0.09), 40),
        cylinder((2.35, -2.05, 0.22), 0.22, 0.44, paint.glaze((0.62, 0.34, 0.22), (0.30, 0.16, 0.10), 2, 0.3)),
        cylinder((2.35, -2.05, 0.75), 0.03, 0.7, paint.planks(walnut, board=0.03)),
        *(
            sphere((2.35 + dx, -2.05 + dy, 1.25 + dz), r, leaf)
            for dx, dy, dz, r in (
                (0, 0, 0.1, 0.3),
                (0.2, 0.1, -0.1, 0.22),
                (-0.22, 0.12, 0.0, 0.24),
                (0.05, -0.22, 0.05, 0.22),
                (-0.05, 0.1, 0.38, 0.2),
            )
        ),
        box((1.75, 2.42, 0.36), (0.9, 0.5, 0.72), {"-y": paint.planks(pine, board=0.24, gloss=0.3), "*": wood}),
        box((1.62, 2.45, 0.93), (0.44, 0.1, 0.42), paint.blocks(), turn=-10),
        cylinder((2.05, 2.38, 0.84), 0.07, 0.24, paint.glaze((0.80, 0.70, 0.30), (0.4, 0.2, 0.1), 2)),
        # Pictures, the window, beams, the lamp over the table.
        box((-2.985, 0.0, 1.72), (0.03, 1.0, 0.7), {"+x": paint.landscape(0.58), "*": dark}),
        box((-2.985, -1.45, 1.55), (0.03, 0.6, 0.8), {"+x": paint.blocks(), "*": dark}),
        box((-2.985, 1.50, 1.60), (0.03, 0.7, 0.9), {"+x": paint.landscape(0.05), "*": dark}),
        box((0, -2.685, 1.62), (1.3, 0.03, 0.75), {"+y": paint.landscape(0.75), "*": dark}),
        box((-1.45, -2.685, 1.72), (0.6, 0.03, 0.6), {"+y": paint.blocks(), "*": dark}),
        box((1.45, 2.685, 1.75), (0.75, 0.03, 0.55), {"-y": paint.landscape(0.33), "*": dark}),
        box((2.985, 0.35, 1.55), (0.04, 1.7, 1.25), {"-x": paint.window(3), "*": wood}, emission=1.25),
        box((2.93, 0.35, 0.89), (0.16, 1.9, 0.05), wood),
        box((2.95, -1.35, 1.6), (0.06, 0.6, 0.8), {"-x": paint.blocks(), "*": dark}),
        *(box((x, 0, 2.63), (0.16, 5.4, 0.14), dark) for x in (-1.8, 0.0, 1.8)),
        cylinder((0, 0, 2.4), 0.012, 0.5, paint.plaster((0.1, 0.1, 0.1))),
        sphere((0, 0, 2.08), 0.15, paint.plaster((1.0, 0.93, 0.80), 0.01), emission=1.6),
    ]
    lights = [
        Light(np.array([0, 0, 2.08]), np.array([1.75, 1.5, 1.15]), 0.16),
        Light(np.array([2.75, 0.35, 1.6]), np.array([1.7, 1.95, 2.3]), 0.5),
        Light(np.array([-2.6, 0.68, 1.3]), np.array([0.5, 0.38, 0.22]), 0.12),
    ]
    world = World(solids, lights, np.array([0.34, 0.33, 0.33]), 1.1, 14, rng)
    views = []
    for i in range(24):
        angle = 2 * np.pi * i / 24
        position = np.array([1.95 * np.cos(angle), 1.65 * np.sin(angle), 1.38 + 0.22 * np.sin(3 * angle)])
        target = np.array([0.12 * np.sin(2 * angle), 0.12 * np.cos(5 * angle), 0.78 + 0.12 * np.cos(2 * angle)])
        views.append(View(f"train_{i:03d}", _camera(look_at(position, target, UP), 320, 240, 66), "0", True))
    for i in range(8):
        t = i / 7
        angle = np.deg2rad(200 + 250 * t)
        radius = 1.25 - 0.25 * np.sin(np.pi * t)
        position = np.array([radius * np.cos(angle), radius * np.sin(angle), 0.95 + 0.85 * t])
        target = np.array([-0.35 * np.cos(angle + 0.6), -0.35 * np.sin(angle + 0.6), 0.85 - 0.15 * t])
        views.append(View(f"test_{i:03d}", _camera(look_at(position, target, UP), 320, 240, 66), "0", False))
    return world, views


def _street(rng: np.random.Generator) -> tuple[World, list[View]]:
    """A street driven along +y for 17 m with a left, a centre and a right camera; the centre one trains."""
    near, far = -6.0, 44.0
    middle, length = (near + far) / 2, far - near
    curb = paint.slabs((0.62, 0.61, 0.58), 0.9)
    solids: list[Solid] = [
        box((0, middle, -0.25), (7.4, length, 0.5), {"+z": paint.asphalt((3.7,), (1.75, 5.65))}, density=44),
    ]
    for side in (-1, 1):
        yard = paint.slabs((0.45, 0.46, 0.40), 1.2)
        solids.append(box((side * 16.2, middle, -0.25), (20, length + 60, 0.6), {"+z": yard}, density=10))
        pavement = {"+z": paint.slabs((0.58, 0.56, 0.53), 0.6), "-x" if side > 0 else "+x": curb}
        solids.append(box((side * 5.0, middle, -0.18), (2.6, length, 0.6), pavement, density=40))
        solids += _houses(side, near, far, rng)
        at = near + 3.0 + 2.5 * (side > 0)
        while at < far - 6:
            solids += _tree(side * 4.7, at, rng)
            at += rng.uniform(7.5, 9.5)
        for y in np.arange(near + (4 if side < 0 else 10), far, 13.0):
            metal = paint.plaster((0.22, 0.26, 0.24), 0.2, 0.3)
            solids.append(cylinder((side * 4.05, y, 2.3), 0.06, 4.4, metal, density=40))
            solids.append(cylinder((side * 3.75, y, 4.45), 0.035, 0.7, metal, axis="x", density=40))
            solids.append(sphere((side * 3.4, y, 4.38), 0.17, paint.plaster((0.95, 0.93, 0.85)), density=40))
        at = near + rng.uniform(1, 3)
        while at < far - 8:
            if rng.random() < 0.66:
                solids += _car(side * 2.85, at, rng)
            at += rng.uniform(5.3, 6.4)
    for i, x in enumerate((-9.5, 0.0, 9.5)):
        front = paint.facade(paint.bricks(((0.60, 0.40, 0.32), (0.70, 0.62, 0.50), (0.52, 0.44, 0.42))[i]))
        solids.append(box((x, far + 5, 6.0), (9.4, 8, 12 + 1.5 * i), {"-y": front}, density=24))
    sky = _sky(rng)
    sun = Light(np.array([-0.34, -0.44, 0.83]), np.array([1.7, 1.52, 1.25]), 0.02, distant=True, samples=4)
    world = World(solids, [sun], sky, 7.0, 4, rng)
    views = []
    for name, offset, turn in (("centre", 0.0, 0.0), ("left", -0.5, -32.0), ("right", 0.5, 32.0)):
        for i in range(16):
            y = 1.1 * i
            position = np.array([0.4 + offset + 0.12 * np.sin(0.35 * i), y, 1.55])
            heading = np.deg2rad(turn)
            target = position + np.array([np.sin(heading), np.cos(heading), -0.04])
            camera = _camera(look_at(position, target, UP), 320, 200, 72)
            views.append(View(f"{name}/{i:03d}", camera, name, name == "centre"))
    return world, views


def _sky(rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
    """A sky: directions (3, N) to linear colours (N, 3), blue to haze with broken clouds."""
    from scipy.ndimage import map_coordinates

    around, overlap = 1024, 128
    strip = paint.noise((256, around + overlap), 90, rng, 6, stretch=2)
    # The last columns turn into those before the first, so that the sky has no seam behind the camera.
    clouds = strip[:, overlap:].copy()
    blend = np.linspace(0, 1, overlap, dtype=np.float32)
    clouds[:, -overlap:] = (1 - blend) * clouds[:, -overlap:] + blend * strip[:, :overlap]

    def sky(directions: np.ndarray) -> np.ndarray:
        height = np.clip(directions[2], 0, 1)
        column = (np.arctan2(directions[0], directions[1]) / (2 * np.pi) + 0.5) * (around - 1)
        cloud = map_coordinates(clouds, np.stack([(1 - height) * 255, column]), order=1, mode="nearest")
        cover = np.clip(1.3 * cloud + 0.15, 0, 1)[:, None]
        blue = np.array([0.22, 0.42, 0.80]) + (1 - height[:, None]) ** 2 * np.array([0.42, 0.34, 0.10])
        return (blue + 0.75 * cover * (np.array([1.0, 0.99, 0.97]) - blue)).astype(np.float32)

    return sky


def _houses(side: int, near: float, far: float, rng: np.random.Generator) -> list[Solid]:
    """A row of houses on one side (−1 left, 1 right), with an alley now and then."""
    solids: list[Solid] = []
    tones = [(0.66, 0.38, 0.28), (0.80, 0.70, 0.52), (0.56, 0.60, 0.62), (0.74, 0.48, 0.36), (0.70, 0.72, 0.60)]
    y, number = near, 0
    while y < far - 3:
        wide, high = rng.uniform(6, 9), rng.uniform(8, 12.5)
        tone = tones[int(rng.integers(len(tones)))]
        wall = paint.bricks(tone) if rng.random() < 0.55 else paint.plaster(tone, 0.09)
        shop = paint.hue_of(rng) if rng.random() < 0.5 else None
        front = paint.facade(wall, rng.uniform(2.9, 3.3), rng.uniform(1.8, 2.4), shop)
        setback = rng.uniform(0, 0.5)
        x = side * (6.3 + setback + 3)
        inner = "+x" if side < 0 else "-x"
        solids.append(box((x, y + wide / 2, high / 2), (6, wide, high), {inner: front, "-y": wall}, density=44))
        if shop is not None:
            wall_x = side * (6.3 + setback)
            sign = paint.lettering(shop, (0.96, 0.93, 0.84))
            solids.append(box((wall_x, y + wide / 2, 2.65), (0.24, 0.8 * wide, 0.5), sign, density=70))
            awning = paint.fabric((0.92, 0.90, 0.84), shop, 0.5)
            solids.append(box((wall_x - side * 0.45, y + wide / 2, 2.38), (1.0, 0.7 * wide, 0.06), awning, density=44))
        if number % 2:
            plate = paint.lettering((0.12, 0.25, 0.42), (0.95, 0.95, 0.95))
            solids.append(box((side * (5.9 + setback), y + 0.6, 3.6), (0.8, 0.1, 0.7), plate, density=70))
        y += wide + (1.8 if number % 3 == 2 else 0.0)
        number += 1
    return solids


def _tree(x: float, y: float, rng: np.random.Generator) -> list[Solid]:
    """A street tree: a trunk in an iron ring and a crown of leafy balls."""
    bark = paint.planks((0.36, 0.29, 0.22), board=0.07, length=0.3, gloss=0.0, across=True)
    leaf = paint.leaves((0.34, 0.50, 0.20), 0.22)
    high = rng.uniform(3.2, 4.0)
    solids = [cylinder((x, y, high / 2), 0.14, high, bark, density=60)]
    for _ in range(5):
        dx, dy, dz = rng.uniform(-0.75, 0.75, 3)
        solids.append(sphere((x + dx, y + dy, high + 0.5 + dz), rng.uniform(0.55, 0.9), leaf, density=40))
    return solids


def _car(x: float, y: float, rng: np.random.Generator) -> list[Solid]:
    """A parked car, 4.2 m long, its middle at (x, y)."""
    color = CAR_COLORS[int(rng.integers(len(CAR_COLORS)))]
    side, end, plain = paint.car_side(color), paint.car_end(color), paint.plaster(color, 0.02, 0.35)
    glass = {"+z": plain, "*": paint.glasshouse(color)}
    shift = float(rng.uniform(-0.2, 0.1))
    solids = [
        box((x, y, 0.62), (1.72, 4.2, 0.62), {"-x": side, "+x": side, "-y": end, "+y": end, "*": plain}, density=70),
        box((x, y + shift, 1.17), (1.5, 2.3, 0.5), glass, density=70),
        box((x, y + shift, 1.44), (1.4, 1.9, 0.06), plain, density=40),
    ]
    tyre = {"side": paint.plaster((0.1, 0.1, 0.11)), "*": paint.wheel()}
    # Only the wheels on the road's side are ever seen.
    at = x - float(np.sign(x)) * 0.76
    solids += [cylinder((at, y + dy, 0.33), 0.33, 0.22, tyre, axis="x", density=70) for dy in (-1.3, 1.3)]
    return solids


_SAMPLES: dict[str, Callable[[np.random.Generator], tuple[World, list[View]]]] = {"room": _room, "street": _street}
