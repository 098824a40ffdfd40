"""Photos are decoded once for all who need them, and never take more memory or disk than they may."""

from __future__ import annotations

import os
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile
from small_scenes import small_sample

from difixcli.errors import InputError
from difixcli.reconstruction import Reconstruction
from difixcli.reconstruction.seed_depth import SeedRays
from difixcli.reconstruction.seeding import seed_gaussians
from difixcli.runs import read_image
from difixcli.scenes import load_mask, load_photo, load_scene, photo_store
from difixcli.scenes.photo_store import PhotoStore, default_bound
from difixcli.scenes.photos import decode_mask, decode_photo
from difixcli.scenes.scene import Scene
from difixcli.scenes.spill import Spill

WIDTH, HEIGHT = 48, 36
BYTES = WIDTH * HEIGHT * 3 * 4  # of a photo


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """Six photos of the sample room; the first is transparent in a corner and the second has a mask."""
    folder = small_sample("room", tmp_path / "scene", WIDTH, {f"images/train_{i:03d}.png" for i in range(6)})
    first = folder / "images/train_000.png"
    alpha = np.full((HEIGHT, WIDTH), 255, np.uint8)
    alpha[:9, :9] = 0
    with Image.open(first) as photo:
        pixels = np.asarray(photo.convert("RGB"))
    Image.fromarray(np.dstack([pixels, alpha])).save(first)
    Image.fromarray(alpha[::-1].copy()).save(folder / "mask.png")
    text = (folder / "transforms.json").read_text()
    name = '"file_path": "images/train_001.png"'
    assert name in text
    (folder / "transforms.json").write_text(text.replace(name, f'{name}, "mask_path": "mask.png"'))
    return load_scene(folder)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many times each image file is decoded."""
    counted: Counter[str] = Counter()
    load, lock = ImageFile.ImageFile.load, threading.Lock()

    def counting(self: Any) -> Any:
        if self.tile:  # what is decoded already has none left
            with lock:
                counted[str(self.filename or getattr(self.fp, "name", ""))] += 1
        return load(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", counting)
    return counted


def use(monkeypatch: pytest.MonkeyPatch, bound: int) -> PhotoStore:
    store = PhotoStore(bound, Spill(0))
    monkeypatch.setattr(photo_store, "STORE", store)
    return store


@pytest.mark.parametrize("bound", [1, 0], ids=["all fit", "one fits"])
@pytest.mark.parametrize("method", ["splatfacto", "nerfacto"])
def test_a_training_start_decodes_each_photo_once(
    scene: Scene,
    decoded: Counter[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    bound: int,
) -> None:
    """Also where they are more than memory holds: all is taken from a photo while it is at hand."""
    use(monkeypatch, 2**20 if bound else BYTES + WIDTH * HEIGHT)
    train = [0, 1, 2, 4]
    made = Reconstruction.create(
        scene, train, method=method, folder=tmp_path / "run", preset="cpu", device="cpu", iterations=10, seed=3
    )
    used = [frame.image_path for frame in scene.frames] + [scene.root / "mask.png"]
    assert {path.name: decoded[str(path)] for path in used} == {path.name: 1 for path in used}
    if method == "nerfacto":
        rays, wanted = SeedRays.load(tmp_path / "run" / "seed_rays.npz"), SeedRays.of(scene, train)
        assert len(rays.pixels) > 20
        np.testing.assert_array_equal(rays.pixels, wanted.pixels)
        np.testing.assert_array_equal(rays.distances, wanted.distances)
        np.testing.assert_array_equal(rays.colors, wanted.colors)
    else:
        points, _ = seed_gaussians(scene, train, made.gaussians or 0, 3)
        np.testing.assert_array_equal(made._trainer.model.means.detach().numpy(), points)
    # the data set has a mask for every photo, and the photos' own pixels
    data = tmp_path / "run" / "scene"
    for i, frame in enumerate(scene.frames):
        mask = read_image(data / f"masks/{i:05d}.png")[..., 0] > 0.5
        kept = load_mask(frame)
        assert (mask == (True if kept is None else kept)).all() and (i < 2) == (kept is not None)


def test_what_is_held_is_what_is_decoded_and_nobody_changes_it(
    scene: Scene, decoded: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, 2**20)
    for frame in scene.frames:
        photo, mask = load_photo(frame), load_mask(frame)
        assert load_photo(frame) is photo and load_mask(frame) is mask
        np.testing.assert_array_equal(photo, decode_photo(frame))
        wanted = decode_mask(frame)
        assert (mask is None) == (wanted is None) and (mask is None or np.array_equal(mask, wanted))
        with pytest.raises(ValueError, match="read-only"):
            photo[0] = 0
    smaller = load_scene(scene.root, size=24).frames[0]
    assert load_photo(smaller).shape == (18, 24, 3)
    # another file of that name is another photo
    path = scene.frames[3].image_path
    Image.new("RGB", (WIDTH, HEIGHT), (255, 0, 0)).save(path)
    os.utime(path, ns=(1, 1))
    np.testing.assert_array_equal(load_photo(scene.frames[3]), np.broadcast_to([1, 0, 0], (HEIGHT, WIDTH, 3)))
    Image.new("RGB", (WIDTH, 3)).save(path)
    for _ in range(2):  # what fails is not held, nor anybody's turn for ever
        with pytest.raises(InputError, match="changed its size"):
            load_photo(scene.frames[3])
    path.unlink()
    with pytest.raises(InputError, match="train_003"):
        load_photo(scene.frames[3])


def test_the_least_recently_used_are_given_up(scene: Scene, decoded: Counter[str]) -> None:
    store, frames = PhotoStore(3 * BYTES, Spill(0)), scene.frames[2:]
    for i in (0, 1, 2, 0, 3, 0, 2, 3):  # 1 makes room for 3
        store.photo(frames[i])
        assert store._bytes <= store.bound and sum(array.nbytes for array in store._held.values()) == store._bytes
    assert sum(decoded.values()) == 4
    store.photo(frames[1])
    assert sum(decoded.values()) == 5
    store.clear()
    store.photo(frames[1])
    assert sum(decoded.values()) == 6
    none = PhotoStore(BYTES - 1, Spill(0))
    for _ in range(2):
        none.photo(frames[0])
        assert none._bytes == 0
    assert sum(decoded.values()) == 8
    assert 2**20 < default_bound() <= 2**30


def test_threads_that_ask_at_once_share_one_decoding(scene: Scene, decoded: Counter[str]) -> None:
    store, barrier = PhotoStore(2**20, Spill(0)), threading.Barrier(8)

    def ask(_: int) -> list[int]:
        barrier.wait()
        return [id(store.photo(frame)) for frame in scene.frames] + [id(store.mask(frame)) for frame in scene.frames]

    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(ask, range(8)))
    assert all(one == told[0] for one in told)
    assert max(decoded.values()) == 1 and sum(decoded.values()) == len(scene.frames) + 1


@pytest.mark.parametrize("most", [0, 1, 2], ids=["none fits", "one fits", "two fit"])
def test_what_memory_gives_up_is_decoded_once_all_the_same(
    scene: Scene, decoded: Counter[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setenv("DIFIX_CACHE", str(tmp_path / "cache"))
    store = PhotoStore(max(most * BYTES, 1), Spill())
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(store.photo, [*scene.frames, *reversed(scene.frames), *scene.frames]))
    for _ in range(2):
        masks = [store.mask(frame) for frame in scene.frames]
    assert max(decoded.values()) == 1 and sum(decoded.values()) == len(scene.frames) + 1
    assert store._bytes <= store.bound and not list((tmp_path / "cache").iterdir()), "the file has no name"
    for frame, mask in zip(scene.frames, masks, strict=True):
        photo = store.photo(frame)
        assert photo.tobytes() == decode_photo(frame).tobytes() and not photo.flags.writeable
        wanted = decode_mask(frame)
        assert (mask is None) == (wanted is None) and (mask is None or np.array_equal(mask, wanted))
    Image.new("RGB", (WIDTH, HEIGHT), (0, 255, 0)).save(scene.frames[2].image_path)
    os.utime(scene.frames[2].image_path, ns=(1, 1))
    assert store.photo(scene.frames[2]).mean(axis=(0, 1)).tolist() == [0, 1, 0]
    decoded.clear()
    store.clear()
    store.photo(scene.frames[5])
    assert sum(decoded.values()) == 1


def test_a_spill_keeps_the_newest_within_its_bound() -> None:
    rng = np.random.default_rng(0)
    spill, put = Spill(10_000), {}
    for key in range(300):
        shape = tuple(rng.integers(1, 25, int(rng.integers(1, 4))))
        put[key] = rng.random(shape).astype(rng.choice(["f4", "u1"])) if key % 50 else np.zeros(3000)
        spill.put(key, put[key])
        held = [old for old in put if old in spill]
        for old in held[-4:]:
            array = spill.get(old)
            assert array is not None and array.dtype == put[old].dtype
            np.testing.assert_array_equal(array, put[old])
        assert os.fstat(spill._file.fileno()).st_size <= 10_000
        assert (key in spill) == (put[key].nbytes <= 10_000)
        assert sum(put[old].nbytes for old in held) <= 10_000
    assert max(held) == 299 and len(held) > 1
    assert Spill(0).get(1) is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_process_leaves_its_parents_spill_alone() -> None:
    spill, mine, other = Spill(10_000), np.arange(100), -np.arange(100)
    spill.put("mine", mine)
    child = os.fork()
    if not child:
        empty = spill.get("mine") is None
        spill.put("other", other)
        held = spill.get("other")
        os._exit(not (empty and held is not None and (held == other).all()))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    held = spill.get("mine")
    assert held is not None and (held == mine).all()


def test_without_a_disk_to_write_photos_are_decoded_again(
    scene: Scene, decoded: Counter[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resource = pytest.importorskip("resource")
    (tmp_path / "file").touch()
    monkeypatch.setenv("DIFIX_CACHE", str(tmp_path / "file"))
    store = PhotoStore(BYTES, Spill())
    for _ in range(2):
        for frame in scene.frames:
            store.photo(frame)
    assert sum(decoded.values()) == 2 * len(scene.frames)
    # a disk that is full in the middle of the third photo
    monkeypatch.setenv("DIFIX_CACHE", str(tmp_path / "cache"))
    store = PhotoStore(BYTES, Spill())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * BYTES + BYTES // 2, before[1]))
    try:
        photos = [store.photo(frame) for _ in range(2) for frame in scene.frames]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    for frame, photo in zip(scene.frames * 2, photos, strict=True):
        np.testing.assert_array_equal(photo, decode_photo(frame))
    assert not any(("photo" in key) for key in store.spill._places), "what was written before is given back"
    assert store.spill._file is None
