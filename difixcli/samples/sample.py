"""The sample scenes, by name: written to a folder, or once into the user's cache."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import numpy as np
from PIL import Image

from difixcli.cache import cache_folder
from difixcli.errors import InputError
from difixcli.runs import Progress
from difixcli.samples.interior import interior
from difixcli.samples.names import check_sample
from difixcli.samples.raycast import World
from difixcli.samples.room import room
from difixcli.samples.street import street
from difixcli.samples.table import table
from difixcli.samples.views import View
from difixcli.scenes.colmap_writing import write_model
from difixcli.scenes.nerfstudio_format import write_transforms
from difixcli.scenes.ply import write_points
from difixcli.scenes.scene import Camera
from difixcli.scenes.splits import SPLIT_FILE

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

SAMPLES: dict[str, Callable[[np.random.Generator], tuple[World, list[View]]]] = {
    "room": room,
    "street": street,
    "table": table,
    "interior": interior,
}
"""What makes the world and the views of each sample scene. `room` and `street` are always the same places, whose paint
varies with the seed; with every seed `table` and `interior` are other places."""

WRITERS = (
    "samples/sample.py",
    "samples/room.py",
    "samples/street.py",
    "samples/table.py",
    "samples/interior.py",
    "samples/furniture.py",
    "samples/things.py",
    "samples/views.py",
    "samples/raycast.py",
    "samples/paint.py",
    "scenes/poses.py",
    "scenes/scene.py",
    "scenes/nerfstudio_format.py",
    "scenes/colmap_writing.py",
    "scenes/ply.py",
)
"""The modules that decide what a sample scene's files hold; the cache's folders are named after them."""

SEED_POINTS = 4000
"""How many seed points a scene has, at most, whose photos have a long side of `SEED_POINTS_SIDE` pixels; others have as
many more or fewer as their long side is longer or shorter."""
SEED_POINTS_SIDE = 320
SEED_NOISE = 0.003
"""Standard deviation of the seed points' error, as a share of their depth: about what structure from motion has."""
SEEN_WITHIN = 0.02
"""A photo saw a seed point that lies as deep as what it shows there, to this share of the depth."""


def write_sample(
    name: str,
    folder: str | Path,
    seed: int = 0,
    size: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Writes a sample scene (see `SAMPLES`) into a folder, made if missing.

    It holds `images/`, `transforms.json` (PINHOLE, OpenGL camera-to-world in metres, marked metric), `points.ply` (seed
    points near true surfaces), the same as a COLMAP model in `colmap/sparse/0`, which says which photos saw the points,
    and `split.json`. `size` is the photos' long side in pixels; None is the scene's own, 320. The same seed and size
    give the same bytes; at another size the place and the cameras are the same. transforms.json comes last, so a folder
    that has one is whole. `progress` shows how many photos are. Raises InputError for an unknown name or a folder that
    cannot be written.
    """
    check_sample(name)
    folder = Path(folder).expanduser()
    rng = np.random.default_rng(seed)
    world, views = SAMPLES[name](rng)
    if size is not None:
        views = [view.resized(size) for view in views]
    try:
        _write(world, views, folder, rng, progress)
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
    return cache_folder() / "samples" / f"{name}-{writers_digest(Path(__file__).parents[1])}"


def writers_digest(folder: Path) -> str:
    """A short hash of the modules of a package's folder that write the sample scenes (see `WRITERS`)."""
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


def _write(
    world: World,
    views: Sequence[View],
    folder: Path,
    rng: np.random.Generator,
    progress: Progress | None,
) -> None:
    frames: list[tuple[Camera, dict[str, object]]] = []
    split: dict[str, list[str]] = {"train": [], "test": []}
    points, colors = [], []
    training = sum(view.train for view in views)
    side = max(views[0].camera.width, views[0].camera.height)
    of_a_photo = SEED_POINTS * side // SEED_POINTS_SIDE // training
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryFile(dir=folder) as kept,  # of large photos the depths alone take gigabytes
        nullcontext() if progress is None else progress("paint", len(views)) as painted,
    ):
        for view, (image, depth, surface) in zip(views, _pictures(world, views), strict=True):
            path = folder / "images" / f"{view.name}.png"  # the name may be of a folder's in it
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path, compress_level=6)
            kept.write(depth.data)
            file_path = path.relative_to(folder).as_posix()
            frames.append((view.camera, {"file_path": file_path, "camera_id": view.camera_id}))
            split["train" if view.train else "test"].append(file_path)
            if view.train:
                seen = np.flatnonzero(depth.ravel() > 0)
                chosen = rng.choice(seen, min(seen.size, of_a_photo), replace=False)
                error = SEED_NOISE * depth.ravel()[chosen, None] * rng.standard_normal((chosen.size, 3))
                points.append(surface.reshape(-1, 3)[chosen] + error)
                colors.append(image.reshape(-1, 3)[chosen])
            if painted is not None:
                painted(len(frames))
        cloud, colored = np.concatenate(points), np.concatenate(colors)
        kept.seek(0)
        visible = []
        for view in views:
            shape = (view.camera.height, view.camera.width)
            depth = np.frombuffer(kept.read(4 * shape[0] * shape[1]), np.float32).reshape(shape)
            visible.append(_sees(view.camera, depth, cloud))
    write_points(folder / "points.ply", cloud, colored)
    images = [(f"{view.name}.png", view.camera) for view in views]
    write_model(folder / "colmap" / "sparse" / "0", images, cloud, colored, np.stack(visible))
    (folder / SPLIT_FILE).write_text(json.dumps(split, indent=1) + "\n", encoding="utf-8")
    # last: where it stands the scene is whole
    write_transforms(folder / "transforms.json", frames, metric=True, ply_file_path="points.ply")


def _pictures(world: World, views: Sequence[View]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """What each view shows (see `World.look`), a few of them at work at a time."""
    count = min(4, os.cpu_count() or 1)
    begun: deque[Future[tuple[np.ndarray, np.ndarray, np.ndarray]]] = deque()
    with ThreadPoolExecutor(count) as pool:
        try:
            for view in views:
                if len(begun) > count:
                    yield begun.popleft().result()
                begun.append(pool.submit(world.look, view.camera))
            while begun:
                yield begun.popleft().result()
        finally:  # whoever stops early does not wait for what has not begun
            for one in begun:
                one.cancel()


def _sees(camera: Camera, depth: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(N,) bool: which of the points (N, 3) a camera's picture, with z-depth (H, W), shows."""
    x, y, z = camera.project(points)
    inside = (z > 0) & (x >= 0) & (x < camera.width) & (y >= 0) & (y < camera.height)
    shown = depth[y[inside].astype(int), x[inside].astype(int)]
    inside[inside] = np.abs(shown - z[inside]) <= SEEN_WITHIN * z[inside]
    return inside
