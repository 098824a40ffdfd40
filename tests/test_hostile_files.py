"""Files that are broken or were made to do harm: thousands of seeded mutations of whole ones, through every reader.

A reader may take a mutated file or refuse it with InputError; it may raise nothing else, and may neither take more
than a bounded memory (the process is given no more) nor more than a second of the processor.
"""

from __future__ import annotations

import copy
import json
import random
import resource
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_scenes import write_colmap

from difixcli.curation.manifest import scene_records, stage_stands, summaries, write_manifest
from difixcli.distillation.rounds import Rounds
from difixcli.errors import InputError
from difixcli.evaluation.run_folders import RunFolder as MeasuredRun
from difixcli.fixer.fixer import new_small_fixer
from difixcli.fixer.weights import load_network
from difixcli.reconstruction.checkpoints import read_checkpoint
from difixcli.reconstruction.configuration import Recipe
from difixcli.reconstruction.gaussians import Gaussians
from difixcli.reconstruction.run_folder import RunFolder
from difixcli.runs import Run, read_image
from difixcli.scenes import load_scene
from difixcli.scenes.colmap_files import count_points, read_cameras, read_images, read_model_points
from difixcli.scenes.image_paths import image_header
from difixcli.scenes.ply import read_points
from difixcli.scenes.scene import Scene
from difixcli.scenes.splits import make_split
from difixcli.scenes.trajectories import make_trajectory
from difixcli.training.pairs import inspect_pairs, read_manifests

MEMORY = 2**30  # bytes beyond what the process has when a reader begins
SECONDS = 3.0  # of the processor: a slow one, beside other work, needs most of one for what is whole


@contextmanager
def _bounded_memory() -> Iterator[None]:
    """No more address space than there is now and a bounded rest: what asks for more gets MemoryError, and fails."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _withstands(read: Callable[[], object], mutate: Callable[[random.Random], object], count: int) -> None:
    """Reads `count` mutations; what it comes to, is said of the first seed that fails."""
    refused = 0
    read()  # imports and compiles, and takes the whole file
    with _bounded_memory():
        for seed in range(count):
            mutate(random.Random(seed))
            begun = time.process_time()
            try:
                read()
            except InputError as error:
                refused += 1
                assert len(str(error)) < 1500, f"seed {seed}: {error}"
            except Exception as error:
                raise AssertionError(f"seed {seed} raises {type(error).__name__}: {error}") from error
            took = time.process_time() - begun
            assert took < SECONDS, f"seed {seed} takes {took:.1f} s"
    assert refused > count // 20, "the mutations do no harm, so they prove nothing"


# Mutations

_NUMBERS = (0, 1, 2, 127, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 10**12, 2**63 - 1, 2**64 - 1)
_WORDS = (b"", b"nan", b"-1", b"1e999", b"inf", b"99999999999999", b"\0", b"\xff\xfe", b"[" * 300, b"#", b"\n", b" ")


def _bytes(whole: bytes, rng: random.Random) -> bytes:
    """A few changes of a file's bytes: flipped, cut, doubled, moved, overwritten by numbers that are limits."""
    data = bytearray(whole)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        # headers, where the counts and sizes are, are what most harm comes of
        at = rng.randrange(min(len(data), 300) if rng.random() < 0.6 else len(data)) if data else 0
        match rng.randrange(7):
            case 0 if data:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                del data[at:]
            case 2:
                data[at:at] = data[at : at + rng.randrange(1, 64)]
            case 3:
                del data[at : at + rng.randrange(1, 32)]
            case 4:
                size = rng.choice((1, 2, 4, 8))
                value = (rng.choice(_NUMBERS) % 256**size).to_bytes(size, rng.choice(("little", "big")))
                data[at : at + size] = value
            case 5:
                data[at : at + rng.randrange(4)] = rng.choice(_WORDS)
            case 6:
                size = rng.randrange(1, 16)
                data[at : at + size] = rng.randbytes(size)
    return bytes(data)


_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 3, 1e308, 10**400, float("nan"), float("inf"), 2**63, 0.5, "", "x", "0", "/", "..", "\0",
    "\ud800", "caf\udce9.png", "a" * 10_000, "a/" * 3000, [], {}, [[]], [None], [1, 2], ["x"], {"a": 1}, {"": None},
    [[0] * 4] * 4, [[float("nan")] * 4] * 4, [10**400] * 6,
)  # fmt: skip


def _json(whole: Any, rng: random.Random) -> bytes:
    """A JSON text of another shape: entries replaced, removed, swapped, or its bytes changed."""
    value = copy.deepcopy(whole)
    for _ in range(rng.choice((1, 1, 2, 4))):
        places = [(value, key) for key in (value if isinstance(value, dict) else range(len(value)))]
        for inside, key in places:  # grows on the way
            deeper = inside[key]
            if isinstance(deeper, (dict, list)) and len(places) < 3000:
                places += [(deeper, one) for one in (deeper if isinstance(deeper, dict) else range(len(deeper)))]
        if not places:
            break
        inside, key = rng.choice(places[:20] if rng.random() < 0.4 else places)
        match rng.randrange(6):
            case 0:
                del inside[key]
            case 1:
                other, one = rng.choice(places)
                try:
                    inside[key] = copy.deepcopy(other[one])
                except (KeyError, IndexError):
                    continue
            case _:
                inside[key] = copy.deepcopy(rng.choice(_VALUES))
    if rng.random() < 0.02:
        return b"[" * 5000 + b"]" * 5000
    if rng.random() < 0.02:
        return json.dumps(rng.choice(_VALUES)).encode()
    text = json.dumps(value).encode()
    return _bytes(text, rng) if rng.random() < 0.15 else text


def _json_file(path: Path) -> Callable[[random.Random], object]:
    whole = json.loads(path.read_text())
    return lambda rng: path.write_bytes(_json(whole, rng))


def _file(path: Path) -> Callable[[random.Random], object]:
    whole = path.read_bytes()
    return lambda rng: path.write_bytes(_bytes(whole, rng))


# JSON


@pytest.fixture(scope="module")
def scene(arc: Path) -> Scene:
    return load_scene(arc)


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str, Any], Path]:
    """Writes JSON in the test's folder."""

    def write(name: str, value: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
        return path

    return write


def test_transforms(arc: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scene"
    shutil.copytree(arc, folder)
    path = folder / "transforms.json"
    meta = json.loads(path.read_text())
    names = [frame["file_path"] for frame in meta["frames"]]
    meta |= {"train_filenames": names[:6], "test_filenames": names[6:], "applied_transform": np.eye(4)[:3].tolist()}
    meta["frames"][0] |= {"distortion_params": [0.01, 0, 0, 0, 0, 0], "camera_model": "OPENCV", "mask_path": None}
    meta["frames"] = meta["frames"][:8]
    meta["train_filenames"], meta["test_filenames"] = names[:6], names[6:8]
    path.write_text(json.dumps(meta))
    _withstands(lambda: load_scene(folder, 48), _json_file(path), 200)


def test_split_files(scene: Scene, written: Callable[[str, Any], Path]) -> None:
    names = [frame.name for frame in scene.frames]
    path = written("split.json", {"train": names[:6], "test": names[6:]})
    _withstands(lambda: make_split(scene, f"file:{path}"), _json_file(path), 200)


def test_viewers_camera_paths(scene: Scene, written: Callable[[str, Any], Path]) -> None:
    pose = np.eye(4).ravel().tolist()
    held = {
        "keyframes": [{"matrix": pose, "fov": 50, "aspect": 1.3} for _ in range(3)],
        "camera_path": [{"camera_to_world": pose, "fov": 50, "aspect": 1.3} for _ in range(4)],
        **{"camera_type": "perspective", "render_height": 48, "render_width": 64, "fps": 24, "seconds": 4},
        **{"smoothness_value": 0.5, "is_cycle": False, "default_fov": 50, "default_transition_sec": 0.5},
    }
    path = written("path.json", held)
    _withstands(lambda: make_trajectory(scene, [0, 1, 2], str(path)), _json_file(path), 150)
    del held["camera_path"]
    path = written("keyframes.json", held)
    _withstands(lambda: make_trajectory(scene, [0, 1, 2], str(path)), _json_file(path), 150)


def test_manifests_of_pairs(scene: Scene, written: Callable[[str, Any], Path]) -> None:
    image = str(scene.frames[0].image_path)
    pair = {"image": image, "target_image": image, "ref_images": [image], "aligned_refs": [image], "opacity": None}
    path = written("data.json", {"train": {"a": pair, "b": {**pair, "ref_image": image}}, "test": {"c": pair}})

    def read() -> None:
        pairs = read_manifests([path])
        inspect_pairs(pairs.train, 32, 8)

    _withstands(read, _json_file(path), 150)


def test_records_of_curation(tmp_path: Path, written: Callable[[str, Any], Path]) -> None:
    record = written("room/scene.json", {"name": "room", "fingerprint": "a1", "test": False, "format": "folder"})
    pair = {"psnr": 20.0, "ssim": 0.5, "image": "a.png"}
    split = {"train": ["a"], "test": ["b"]}
    seconds = {"reconstruction": 1.0, "pairs": 2.0}
    stage = written(
        "room/sparse/pairs.json", {"split": split, "pairs": {"a": pair}, "dropped": {"b": "few"}, "seconds": seconds}
    )

    def read() -> None:
        stage_stands(stage.parent, split)
        summaries(scene_records(tmp_path))
        write_manifest(tmp_path)

    whole = record.read_bytes()
    _withstands(read, _json_file(record), 75)
    record.write_bytes(whole)
    _withstands(read, _json_file(stage), 125)


def test_records_of_runs(tmp_path: Path, written: Callable[[str, Any], Path]) -> None:
    Run.open(tmp_path / "run", "distill", {"seed": 0, "targets": ["test"], "schedule": {"kind": "none"}}, {"a": "b"})
    for name in ("truth", "plain"):
        (tmp_path / "run" / "renders" / name).mkdir(parents=True)
    path = tmp_path / "run" / "run.json"
    held = json.loads(path.read_text()) | {"timings": {"round 1/3: train": 1.0}, "results": {"plain": {"psnr": 3}}}
    path.write_text(json.dumps(held))

    def read() -> None:
        Run.held(tmp_path / "run", "distill", {}, {})
        measured = MeasuredRun.read(tmp_path / "run")
        measured.rounds()

    _withstands(read, _json_file(path), 200)


def test_records_of_rounds(tmp_path: Path, written: Callable[[str, Any], Path]) -> None:
    view = {
        **{"target": "a", "frame": "a.png", "camera_to_world": np.eye(4).tolist(), "lens": [50, 50, 24, 24, 48, 48]},
        **{"nearest": "a.png", "files": {"target": "01/a.png"}, "terms": {"method": 1.0}, "fresh": False},
        **{"figures": {"mean_confidence": 0.5}, "dropped": None, "kept": False},
    }
    guard = {"gain": 0.1, "error": None, "views": 3, "before": 20.0, "after": 20.1}
    held = {"round": 1, "schedule": {}, "share": 0.2, "views": [view, view], "kept": 0, "dropped": 0}
    path = written("rounds/01/round.json", {**held, "mean_confidence": 0.5, "accepted": True, "guard": guard})
    measured = MeasuredRun(tmp_path, {}, {})

    def read() -> None:
        for record in Rounds(tmp_path).records():
            assert all(np.array(one["camera_to_world"]).shape == (4, 4) for one in record["views"])
        measured.rounds()

    _withstands(read, _json_file(path), 200)


def test_recipes_of_reconstructions(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    poses = [np.eye(4).tolist()]
    recipe = Recipe(
        "splatfacto", "cpu", "cpu", 10, ["a=1"], 0, ["a.png"], [0], poses, 0.1, 5.0, world=np.eye(4).tolist()
    )
    folder.write_recipe(recipe)
    assert asdict(folder.read_recipe()) == asdict(recipe)
    _withstands(folder.read_recipe, _json_file(tmp_path / "reconstruction.json"), 150)


# Weights and checkpoints


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_small_fixer("tiny", seed=0).save_pretrained(tmp_path_factory.mktemp("fixer") / "tiny")


def test_configurations_of_fixers(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "fixer"
    shutil.copytree(tiny, folder)
    _withstands(lambda: load_network(folder), _json_file(folder / "config.json"), 40)


def test_weights_of_fixers(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "fixer"
    shutil.copytree(tiny, folder)
    _withstands(lambda: load_network(folder), _file(folder / "model.safetensors"), 40)


@pytest.mark.parametrize("old", [False, True])
def test_checkpoints(tmp_path: Path, old: bool) -> None:
    path = tmp_path / "step-000000001.ckpt"
    state = {"step": 1, "pipeline": {"_model.means": torch.zeros(20, 3)}, "optimizers": {"a": {"lr": 1e-3}}}
    torch.save(state, path, _use_new_zipfile_serialization=not old)
    _withstands(lambda: read_checkpoint(path), _file(path), 200)


# Points and Gaussians


def _vertices(names: list[str], count: int = 30, ascii_text: bool = False) -> bytes:
    rng = np.random.default_rng(0)
    table = rng.normal(size=(count, len(names))).astype("<f4")
    kind = "ascii" if ascii_text else "binary_little_endian"
    header = [f"ply\nformat {kind} 1.0\nelement vertex {count}", *(f"property float {name}" for name in names)]
    body = "\n".join(" ".join(map(str, row)) for row in table.tolist()).encode() if ascii_text else table.tobytes()
    return "\n".join([*header, "end_header\n"]).encode() + body


_POINT = [*"xyz", "red", "green", "blue"]
_GAUSSIAN = [
    *"xyz", *(f"f_dc_{i}" for i in range(3)), *(f"f_rest_{i}" for i in range(9)), "opacity",
    *(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4)),
]  # fmt: skip


@pytest.mark.parametrize("ascii_text", [False, True])
def test_points(tmp_path: Path, ascii_text: bool) -> None:
    path = tmp_path / "points.ply"
    path.write_bytes(_vertices(_POINT, ascii_text=ascii_text))
    _withstands(lambda: read_points(path), _file(path), 200)


@pytest.mark.parametrize("ascii_text", [False, True])
def test_gaussians(tmp_path: Path, ascii_text: bool) -> None:
    path = tmp_path / "splat.ply"
    path.write_bytes(_vertices(_GAUSSIAN, ascii_text=ascii_text))
    _withstands(lambda: Gaussians.read(path), _file(path), 200)


def test_a_ply_without_vertices_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.ply"
    for names in (_POINT, _GAUSSIAN):
        for ascii_text in (False, True):
            path.write_bytes(_vertices(names, 0, ascii_text))
            assert read_points(path)[0].shape == (0, 3)
            with pytest.raises(InputError, match=r"empty\.ply"):
                Gaussians.read(path)


def test_counts_beyond_the_files_bytes_are_no_matter_of_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.ply"
    for ascii_text in (False, True):
        whole = _vertices(_GAUSSIAN, 30, ascii_text)
        for claim in (b"1000000000000", b"9" * 400):
            path.write_bytes(whole.replace(b"vertex 30", b"vertex " + claim))
            for read in (read_points, Gaussians.read):
                with pytest.raises(InputError, match=r"large\.ply claims to hold"):
                    read(path)


def test_numbers_beyond_any_scene_are_left_out_and_told(tmp_path: Path) -> None:
    path = tmp_path / "far.ply"
    header, body = _vertices(_GAUSSIAN).split(b"end_header\n")
    table = np.frombuffer(body, "<f4").reshape(30, -1).copy()
    table[0, 0], table[1, 4], table[2, 1] = 1e30, np.nan, -np.inf
    path.write_bytes(header + b"end_header\n" + table.tobytes())
    assert (len(Gaussians.read(path)), Gaussians.read(path).left_out) == (27, 3)
    notes: list[str] = []
    assert len(read_points(path, notes)[0]) == 27 and "3 of 30" in notes[-1]


# Pictures


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".bmp"])
def test_pictures(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    pixels = np.random.default_rng(0).integers(0, 255, (40, 48, 4), dtype=np.uint8)
    picture = Image.fromarray(pixels if suffix in (".png", ".webp") else pixels[..., :3])
    picture.save(path, **({"exif": picture.getexif()} if suffix == ".jpg" else {}))

    def read() -> None:
        image_header(path)
        read_image(path, alpha=True, upright=True)

    _withstands(read, _file(path), 125)


def test_pictures_that_claim_more_than_is_read(tmp_path: Path) -> None:
    """The size in a PNG's header, which is right in itself (its checksum fits)."""
    path = tmp_path / "a.png"
    Image.new("RGB", (40, 40)).save(path)
    whole = path.read_bytes()
    for side, words in ((100_000, "million pixels"), (12_000, "12000×12000")):
        header = b"IHDR" + side.to_bytes(4, "big") * 2 + whole[24:29]
        path.write_bytes(whole[:12] + header + zlib.crc32(header).to_bytes(4, "big") + whole[33:])
        for read in (read_image, image_header):
            with _bounded_memory(), pytest.raises(InputError, match=words):
                read(path)


def test_code_in_checkpoints_is_named_and_not_run(tmp_path: Path) -> None:
    """What torch advises, to read the file without care, is not passed on."""
    path = tmp_path / "step-000000001.ckpt"
    for old in (False, True):
        torch.save({"pipeline": {"a": Path("x")}}, path, _use_new_zipfile_serialization=not old)
        with pytest.raises(InputError, match=r"PosixPath.*would be run as code; nothing") as raised:
            read_checkpoint(path)
        assert "weights_only" not in str(raised.value)


# COLMAP


@pytest.mark.parametrize("suffix", [".txt", ".bin"])
@pytest.mark.parametrize("part", ["cameras", "images", "points3D"])
def test_colmap(arc: Path, tmp_path: Path, suffix: str, part: str) -> None:
    model = tmp_path / "model"
    write_colmap(arc, model)
    points = (model / "points3D.txt").read_text().splitlines()[:20]
    track = " 1 0 2 1" if suffix == ".txt" else ""  # pycolmap wants its features, too
    (model / "points3D.txt").write_text("".join(f"{line}{track}\n" for line in points))
    if suffix == ".bin":
        import pycolmap

        pycolmap.Reconstruction(str(model)).write_binary(str(model))
        for path in model.glob("*.txt"):
            path.unlink()

    def read() -> None:
        count_points(model)
        read_cameras(model)
        read_images(model)
        read_model_points(model)

    _withstands(read, _file(model / f"{part}{suffix}"), 125)
