"""Curation: the strategies' geometry and pairs, manifests that the original trainer could read, killing, shards."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import begun, difix, done, killed, refused, told
from PIL import Image
from small_scenes import small_sample

from difixcli.cli.curate import CurateRequest
from difixcli.cli.curating import _as_begun, ended
from difixcli.curation.build import Build
from difixcli.curation.curated import Curated
from difixcli.curation.filters import Filters, blurred_photos
from difixcli.curation.manifest import StageSummary, sparkline
from difixcli.curation.pairs import Pair
from difixcli.curation.scene_list import expand_scenes, parse_shard, shard_of
from difixcli.curation.strategies import parse_stop
from difixcli.errors import InputError
from difixcli.reconstruction import Reconstruction, Render
from difixcli.reference_views import References
from difixcli.runs import write_json
from difixcli.samples.sample import cached_sample
from difixcli.scenes import load_scene
from difixcli.scenes.scene import Camera, Frame, Scene
from difixcli.scenes.trajectories import shift_distance, shift_path, shift_sideways

KILLS = int(os.environ.get("DIFIX_TEST_KILLS", "2"))
QUICK = ["--iterations", "12", "--set", "max_gaussians=300"]


# Geometry of the shifted path


def _camera(position: np.ndarray, heading: float, pitch: float = 0.0) -> Camera:
    """A camera at `position` looking along `heading` (radians from +y, clockwise from above), tilted by `pitch`."""
    forward = np.array([np.sin(heading) * np.cos(pitch), np.cos(heading) * np.cos(pitch), np.sin(pitch)])
    right = np.array([np.cos(heading), -np.sin(heading), 0.0])
    pose = np.eye(4)
    pose[:3, 0], pose[:3, 1], pose[:3, 2], pose[:3, 3] = right, np.cross(right, forward), -forward, position
    return Camera(pose, 100.0, 100.0, 32.0, 24.0, 64, 48)


def _check_level_and_same_heading(before: list[Camera], after: list[Camera], distance: float) -> np.ndarray:
    moves = np.stack([b.position - a.position for a, b in zip(before, after, strict=True)])
    assert np.allclose(np.linalg.norm(moves, axis=1), abs(distance), atol=1e-12)
    assert np.allclose(moves[:, 2], 0, atol=1e-12)
    for a, b in zip(before, after, strict=True):
        assert np.array_equal(a.camera_to_world[:3, :3], b.camera_to_world[:3, :3])
    return moves


@pytest.mark.parametrize("distance", [0.3, -0.3])
def test_a_straight_path_shifts_to_the_right_of_travel(distance: float) -> None:
    cameras = [_camera(np.array([0.0, y, 0.1 * y]), 0.0, pitch=-0.2) for y in np.linspace(-1, 1, 5)]
    moves = _check_level_and_same_heading(cameras, shift_sideways(cameras, distance), distance)
    assert np.allclose(moves, [distance, 0, 0])


def test_a_curved_path_shifts_radially() -> None:
    angles = np.linspace(0, np.pi, 181)
    cameras = [_camera(np.array([np.cos(a), np.sin(a), 0.0]), -a) for a in angles]
    moves = _check_level_and_same_heading(cameras, shift_sideways(cameras, 0.2), 0.2)
    outward = np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1)
    # counter-clockwise travel has its right outside; only the end points' one-sided tangents tilt, by half a step
    assert np.allclose(moves[1:-1], 0.2 * outward[1:-1], atol=1e-6)
    assert np.allclose(moves, 0.2 * outward, atol=0.2 * 0.01)


def test_a_single_frame_shifts_to_its_own_level_right() -> None:
    cameras = [_camera(np.zeros(3), heading=0.5, pitch=-0.6)]
    moves = _check_level_and_same_heading(cameras, shift_sideways(cameras, 0.1), 0.1)
    assert np.allclose(moves[0], 0.1 * np.array([np.cos(0.5), -np.sin(0.5), 0]))


def test_a_stop_is_no_travel() -> None:
    """A vehicle that stands has poses that jitter; it still shifts to the right of where it came from and goes to."""
    rng = np.random.default_rng(0)
    way = np.concatenate([np.linspace(-1, 0, 6), np.zeros(8), np.linspace(0, 1, 6)])
    jitter = 1e-5 * rng.standard_normal((len(way), 3))
    cameras = [_camera(np.array([0.0, y, 0.0]) + j, heading=np.pi) for y, j in zip(way, jitter, strict=True)]
    for after in (cameras, cameras[:14]):  # the path may end with the stop
        moves = np.stack([b.position - a.position for a, b in zip(after, shift_sideways(after, 0.2), strict=True)])
        assert np.allclose(moves, [0.2, 0, 0], atol=1e-3)


def _scene(metric: bool, scale: float = 0.25) -> Scene:
    to_world = np.diag([scale, scale, scale, 1.0])
    frames = []
    for i, y in enumerate((-1.0, 0.0, 1.0)):
        camera = _camera(np.array([0.0, y, 0.0]), 0.0)
        frames.append(Frame(f"{i}.png", Path(f"{i}.png"), camera, "0", camera.lens))
    return Scene("s", Path("."), frames, np.zeros((0, 3)), np.zeros((0, 3)), to_world, metric)


def test_metres_become_scene_units_and_shares_become_extent() -> None:
    assert shift_distance(_scene(metric=True), "2m") == pytest.approx(0.5)
    assert shift_distance(_scene(metric=True), "-2m") == pytest.approx(-0.5)
    assert shift_distance(_scene(metric=False), "0.1") == pytest.approx(0.2)


def test_a_photo_stored_on_its_side_shifts_level_too() -> None:
    upright = _camera(np.zeros(3), heading=0.5, pitch=-0.6)
    turned = upright.camera_to_world.copy()
    turned[:3, :2] = upright.camera_to_world[:3, [1, 0]] * [1, -1]
    (a,), (b,) = shift_sideways([upright], 0.1), shift_sideways([upright.moved(turned)], 0.1)
    assert np.allclose(a.position, b.position)


def test_each_camera_of_a_rig_travels_by_itself(rig: Path) -> None:
    scene = load_scene(rig)
    moved = shift_path(scene.frames, 0.2)
    before = [frame.camera for frame in scene.frames]
    moves = _check_level_and_same_heading(before, moved, 0.2)
    assert np.allclose(moves, moves[0], atol=0.02)  # the sample's street is almost straight


@pytest.mark.parametrize(("shift", "words"), [("2m", "no metric scale"), ("far", "not a distance"), ("0", "nothing")])
def test_shifts_that_make_no_sense_are_refused(shift: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        shift_distance(_scene(metric=False), shift)


# Scenes at toy size


def _street(folder: Path, places: Sequence[int], cameras: Sequence[str] = ("centre", "left", "right")) -> Path:
    """The sample street at 64 pixels, at some places along it and with some of its cameras."""
    wanted = {f"images/{camera}/{place:03d}.png" for camera in cameras for place in places}
    return small_sample("street", folder, 64, wanted)


@pytest.fixture(scope="session")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three cameras at six places."""
    return _street(tmp_path_factory.mktemp("rig") / "rig", range(6))


@pytest.fixture(scope="session")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three small scenes of one camera."""
    home = tmp_path_factory.mktemp("three")
    return [_street(home / name, range(i, i + 5), ["centre"]) for i, name in enumerate("abc")]


def manifest(folder: Path) -> dict:
    return json.loads((folder / "data.json").read_text())


class ReleaseDataset:
    """The manifest as the original trainer's data set takes it, written anew from what is known of it.

    Paths are opened as they stand, from the manifest's folder as the current one; all images are resized to one size
    and mapped to [-1, 1]; a sample stacks the view and its reference along a first axis.
    """

    def __init__(self, path: Path, split: str, size: tuple[int, int]) -> None:
        self.entries = json.loads(path.read_text())[split]
        self.ids = list(self.entries)
        self.size = size

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict:
        entry = self.entries[self.ids[index]]
        view, target, reference = (self._image(entry[key]) for key in ("image", "target_image", "ref_image"))
        return {
            "conditioning_pixel_values": np.stack([view, reference]),
            "output_pixel_values": np.stack([target, reference]),
            "caption": entry["prompt"],
        }

    def _image(self, name: str) -> np.ndarray:
        with Image.open(name) as image:
            assert image.mode == "RGB"  # it does not convert: other modes would have another number of channels
            return np.asarray(image.resize(self.size), np.float32).transpose(2, 0, 1) / 127.5 - 1


# The strategies

CHOICES = {
    "sparse": ["--split", "every:3", "--split", "groups:4", "--split", "clusters"],
    "cycle": ["--shift", "2m", "--shift", "-0.1"],
    "underfit": ["--split", "every:3", "--stop", "25%", "--stop", "0.75", "--depth", "--image-format", "webp"],
    "cross-camera": ["--image-format", "jpeg"],
}


@pytest.fixture(scope="session")
def curated(rig: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The pairs of each strategy, made once; nothing is filtered away from such short trainings."""
    home = tmp_path_factory.mktemp("curated")

    def make(strategy: str) -> Path:
        folder = home / strategy
        if not folder.exists():
            keep = ["--keep", "failed", "--keep", "blurred", "--keep-models"]
            done(
                difix("curate", rig, "--strategy", strategy, *CHOICES[strategy], *QUICK, *keep, "--json", "-o", folder)
            )
        return folder

    return make


@pytest.mark.parametrize("strategy", CHOICES)
def test_the_original_trainer_could_read_it(
    strategy: str, curated: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = curated(strategy)
    assert list(manifest(folder)) == ["train", "test"]
    monkeypatch.chdir(folder)
    dataset = ReleaseDataset(folder / "data.json", "train", (96, 64))
    assert len(dataset) > 10
    for i in range(len(dataset)):
        sample = dataset[i]
        assert sample["caption"] == "remove degradation"
        for key in ("conditioning_pixel_values", "output_pixel_values"):
            assert sample[key].shape == (2, 3, 64, 96)
            assert -1 <= sample[key].min() < sample[key].max() <= 1
            assert sample[key].std() > 0.02


@pytest.mark.parametrize("strategy", CHOICES)
def test_what_stands_beside_a_pair(strategy: str, curated: Callable[[str], Path], rig: Path) -> None:
    folder, scene = curated(strategy), load_scene(rig)
    for identity, entry in manifest(folder)["train"].items():
        assert entry["strategy"] == strategy and entry["method"] == "splatfacto" and entry["scene"] == "rig"
        assert entry["ref_image"] == entry["ref_images"][0] and len(entry["ref_images"]) == 3
        assert entry["target_image"] not in entry["ref_images"]
        assert "." not in identity
        camera = scene.frames[[frame.name for frame in scene.frames].index(entry["frame"])].camera
        assert np.allclose(entry["camera"]["camera_to_world"], camera.camera_to_world, atol=1e-8)
        size = (camera.width, camera.height)
        paths = [entry["image"], entry["target_image"], entry["opacity"], *entry["ref_images"], *entry["aligned_refs"]]
        contents = {path: (folder / path).read_bytes() for path in paths}
        assert entry["files"] == {p: [len(c), hashlib.sha256(c).hexdigest()[:16]] for p, c in contents.items()}
        assert all(Image.open(folder / path).size == size for path in paths)
        assert Image.open(folder / entry["opacity"]).mode == "L"
        assert all(Image.open(folder / path).mode == "RGBA" for path in entry["aligned_refs"])
        assert all(Path(path).suffix == ".png" for path in (entry["opacity"], *entry["aligned_refs"]))
        if strategy in ("sparse", "cycle"):  # without loss, the figures can be had again from the files
            render, photo = (np.asarray(Image.open(folder / entry[k]), float) for k in ("image", "target_image"))
            assert entry["psnr"] == pytest.approx(-10 * np.log10(((render - photo) ** 2).mean() / 255**2), abs=0.05)


def test_sparse_renders_what_it_did_not_see(curated: Callable[[str], Path]) -> None:
    entries = manifest(curated("sparse"))["train"].values()
    by_rule: dict[str, list[dict]] = {}
    for entry in entries:
        by_rule.setdefault(entry["strategy_params"]["split"], []).append(entry)
    assert {rule: len(group) for rule, group in by_rule.items()} == {"every:3": 12, "groups:4": 14, "clusters": 9}
    for group in by_rule.values():
        targets = {entry["target_image"] for entry in group}
        assert not targets & {path for entry in group for path in entry["ref_images"]}


def test_which_seed_points_are_used_is_said(three: list[Path], tmp_path: Path) -> None:
    line = ["curate", tmp_path / "a", "--split", "every:2", "--split", "every:4", *QUICK, "--keep", "failed"]
    shutil.copytree(three[0], tmp_path / "a")
    next((tmp_path / "a" / "images" / "centre").iterdir()).unlink()
    said = difix(*line, "-o", tmp_path / "unknown").stderr
    assert said.count("a: The scene does not say which photos saw its seed points") == 1
    assert said.count("images is missing") == 1  # a lone scene is looked at before, and opened once
    shutil.copytree(cached_sample("street") / "colmap", tmp_path / "a" / "colmap")
    said = difix(*line, "-o", tmp_path / "known").stderr
    told = [line for line in said.splitlines() if "seed points were seen by" in line]
    assert len(told) == 2 and all(line.startswith("a: ") and "of 4,000" in line for line in told), said


def test_cycle_keeps_the_models_of_both_stages(curated: Callable[[str], Path], rig: Path) -> None:
    folder = curated("cycle")
    assert {entry["strategy_params"]["shift"] for entry in manifest(folder)["train"].values()} == {"2m", "-0.1"}
    names = {path.name for path in (folder / "rig" / "models").iterdir()}
    assert names == {"cycle-photos", "cycle-2m-renders", "cycle--0.1-renders"}
    scene = load_scene(rig)
    first = Reconstruction.load(folder / "rig" / "models" / "cycle-photos", scene)
    camera = shift_path(scene.frames, shift_distance(scene, "2m"))[0]
    written = np.asarray(Image.open(folder / "rig" / "cycle-2m" / "shifted" / "images-centre-000.png"), float) / 255
    assert np.abs(first.render(camera).color - written).max() < 0.6 / 255


def test_underfit_renders_every_view_at_every_stop(curated: Callable[[str], Path], rig: Path) -> None:
    folder = curated("underfit")
    entries = list(manifest(folder)["train"].values())
    assert len(entries) == 2 * 18
    assert {(e["strategy_params"]["stop"], e["strategy_params"]["stopped_at"]) for e in entries} == {
        (0.25, 3),
        (0.75, 9),
    }
    mean = {
        stop: np.mean([e["psnr"] for e in entries if e["strategy_params"]["stop"] == stop]) for stop in (0.25, 0.75)
    }
    assert mean[0.25] < mean[0.75]
    depth = np.load(folder / entries[0]["depth"])["depth"]
    assert depth.dtype == np.float32 and depth.shape == (40, 64)
    metres = depth[depth > 0] * entries[0]["depth_scale"]
    assert entries[0]["metric"] and 1 < np.median(metres) < 60
    places = np.load(folder / entries[0]["correspondence"])["correspondence"]
    assert places.dtype == np.float32 and places.shape == (len(entries[0]["ref_images"]), 3, 40, 64)
    x, y, known = places.swapaxes(0, 1)
    assert known.mean() > 0.1 and x[known > 0].max() <= 63 and y[known > 0].max() <= 39
    assert not (places * (known == 0)[:, None]).any()
    from difixcli.training.pairs import decode, read_manifests

    decoded = decode(read_manifests([folder]).train[0], "geometry", 1)
    assert decoded.correspondence is not None and np.array_equal(decoded.correspondence, places[:1])
    assert all(entry["image"].endswith(".webp") and entry["target_image"].endswith(".webp") for entry in entries)


def test_cross_camera_trains_on_one_camera(curated: Callable[[str], Path], rig: Path, tmp_path: Path) -> None:
    entries = manifest(curated("cross-camera"))["train"].values()
    assert {entry["frame"].split("/")[1] for entry in entries} == {"left", "right"} and len(entries) == 12
    assert all("images-centre-" in path for entry in entries for path in entry["ref_images"])
    by_name = ["--strategy", "cross-camera", "--split", "names:train=left/,test=centre/", "--keep", "failed"]
    said = done(difix("curate", rig, *by_name, *QUICK, "--method", "nerfacto", "--json", "-o", tmp_path / "out"))
    assert said["pairs"] == 6 and said["train"] == 6


def test_the_pages_to_look_at(curated: Callable[[str], Path]) -> None:
    folder = curated("sparse")
    page = (folder / "index.html").read_text()
    sources = re.findall(r'src="([^"]+)"', page)
    assert len(sources) == 3 and "http" not in page
    for source in sources:
        sheet = Image.open(folder / source)
        assert sheet.width > 6 * 64 and sheet.height > 8 * 40  # render, photo, three references, opacity; eight pairs
    assert "12" in page and "groups-4" in page
    assert sparkline([0, 1, 4, 8]) == " ▁▄█" and sparkline([0, 0]) == ""


# Filters


def test_filters(rig: Path) -> None:
    scene = load_scene(rig)
    frame = scene.frames[0]
    shape = (frame.camera.height, frame.camera.width)
    whole = Render(np.zeros((*shape, 3), np.float32), np.ones(shape, np.float32), np.ones(shape, np.float32))
    nothing = References([], [], np.zeros((0, *shape, 3)), np.zeros((0, *shape)))
    fine = Pair(0, frame.camera, whole, whole.color, nothing, 20.0, 0.5, {})
    empty = replace(fine, render=replace(whole, accumulation=np.full(shape, 0.3, np.float32)))
    bad, good = replace(fine, psnr=9.0), replace(fine, psnr=36.0)
    # an object on a ground that its masks leave out
    inside = np.zeros(shape, bool)
    inside[:20, :20] = True
    cut_out = replace(fine, render=replace(whole, accumulation=inside.astype(np.float32)), mask=inside)
    missing = replace(cut_out, mask=~inside)
    filters = Filters(scene, [])
    assert [filters.reason(pair) for pair in (cut_out, missing)] == [None, "failed"]
    assert [filters.reason(pair) for pair in (fine, empty, bad, good)] == [None, "failed", "failed", "perfect"]
    keeping = Filters(scene, ["failed", "perfect"])
    assert not any(keeping.reason(pair) for pair in (fine, empty, bad, good))


def test_blurred_photos_are_found_and_counted(three: list[Path], tmp_path: Path) -> None:
    from PIL import ImageFilter

    folder = shutil.copytree(three[0], tmp_path / "scene")
    name = sorted((folder / "images" / "centre").iterdir())[1]
    Image.open(name).filter(ImageFilter.GaussianBlur(3)).save(name)
    assert blurred_photos(load_scene(folder)) == {1}
    line = ["curate", folder, "--split", "every:2", *QUICK, "--keep", "failed", "--json"]
    said = done(difix(*line, "-o", tmp_path / "out"))
    assert said["dropped"] == {"failed": 0, "perfect": 0, "blurred": 1} and said["pairs"] == 1
    said = done(difix(*line, "--keep", "blurred", "-o", tmp_path / "kept"))
    assert said["dropped"]["blurred"] == 0 and said["pairs"] == 2


# Scale


def test_lists_globs_and_shards_of_scenes(three: list[Path], tmp_path: Path) -> None:
    home = three[0].parent
    (home / "notes.txt").write_text("no scene")
    assert list(expand_scenes([f"{home}/[abc]"])) == ["a", "b", "c"]
    (tmp_path / "scenes.txt").write_text(f"# of one day\n{home}/b\n\n{home}/[ac]\nsample:street\n")
    found = expand_scenes([f"@{tmp_path / 'scenes.txt'}"])
    assert list(found) == ["b", "a", "c", "street"] and Path(found["b"]) == home / "b"
    assert shard_of(list(found), parse_shard("1/2")) == ["a", "street"]
    assert shard_of(list(found), None) == list(found)
    inner = tmp_path / "lists" / "inner.txt"
    inner.parent.mkdir()
    inner.write_text("x\n")
    (tmp_path / "lists" / "all.txt").write_text("@inner.txt\nsample:room\n")
    (tmp_path / "outer.txt").write_text("@lists/all.txt\n")
    assert expand_scenes([f"@{tmp_path / 'outer.txt'}"]) == {"x": str(inner.parent / "x"), "room": "sample:room"}
    inner.write_text("@all.txt\n")
    with pytest.raises(InputError, match=r"all\.txt is a line of itself"):
        expand_scenes([f"@{tmp_path / 'outer.txt'}"])
    with pytest.raises(InputError, match="No folder matches"):
        expand_scenes([f"{tmp_path}/nothing*"])
    with pytest.raises(InputError, match="cannot be read"):
        expand_scenes(["@nowhere.txt"])
    for wrong in ("2/2", "1", "a/b", "-1/2"):
        with pytest.raises(InputError, match="no shard"):
            parse_shard(wrong)


def test_a_bad_scene_stops_no_other(three: list[Path], tmp_path: Path) -> None:
    bad = shutil.copytree(three[1], tmp_path / "bad")
    (bad / "transforms.json").write_text('{"frames": [')
    line = ["curate", three[0], bad, three[2], "--split", "every:2", *QUICK, "--keep", "failed", "--test-scene", "[c]"]
    result = difix(*line, "--json", "-o", tmp_path / "out")
    assert result.exit_code == 3 and "bad" in result.stderr and "transforms.json" in result.stderr
    said = json.loads(result.stdout.splitlines()[-1])["results"]
    assert said["pairs"] == 4 and list(said["failed"]) == ["bad"]
    entries = manifest(tmp_path / "out")
    assert {e["scene"] for e in entries["train"].values()} == {"a"}
    assert {e["scene"] for e in entries["test"].values()} == {"c"}
    # mended, the same line makes what is missing
    shutil.copy(three[1] / "transforms.json", bad)
    assert done(difix(*line, "--json", "-o", tmp_path / "out"))["pairs"] == 6


def _line(scenes: Sequence[Path], output: Path, *more: str) -> list[str]:
    strategy = ["--strategy", "cycle", "--shift", "0.2", "--keep", "failed", "--test-scene", "b"]
    return ["curate", *map(str, scenes), *strategy, *QUICK, *more, "-o", str(output)]


def _files(folder: Path) -> dict[str, bytes]:
    """The pairs: everything but records of the run, figures of time, and the page that shows them."""
    kinds = (".png", ".tar")
    found = [path for path in folder.rglob("*") if path.suffix in kinds or path.name == "data.json"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(found)}


@pytest.fixture(scope="session")
def undisturbed(three: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over three scenes that nobody disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed") / "out"
    done(difix(*_line(three, folder, "--json")))
    assert len(manifest(folder)["train"]) == 10 and len(manifest(folder)["test"]) == 5
    return folder


def test_killed_at_any_moment_the_manifest_is_the_same(
    three: list[Path], undisturbed: Path, forked: Path, tmp_path: Path
) -> None:
    moments, line = random.Random(0), _line(three, tmp_path / "out")
    for share in ((kill + moments.uniform(0.1, 0.9)) / KILLS for kill in range(KILLS)):  # early ones and late ones
        killed(forked, line, tmp_path / "out", undisturbed, share)
    done(difix(*line, "--json"))
    assert _files(tmp_path / "out") == _files(undisturbed)
    assert not list((tmp_path / "out").glob("*/**/.*.part"))


def test_shards_at_the_same_time_in_one_folder(
    three: list[Path], undisturbed: Path, forked: Path, tmp_path: Path
) -> None:
    both = [begun(forked, *_line(three, tmp_path / "out", "--shard", f"{i}/2")) for i in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    written = (tmp_path / "out" / "data.json").stat().st_mtime_ns
    for _ in range(2):  # whoever came last has written the manifest; merging changes nothing
        assert done(difix("curate", "--merge", tmp_path / "out", "--json"))["pairs"] == 15
        assert (tmp_path / "out" / "data.json").stat().st_mtime_ns == written
        assert _files(tmp_path / "out") == _files(undisturbed)
    # into another folder
    assert done(difix("curate", "--merge", tmp_path / "out", "-o", tmp_path / "merged", "--json"))["test"] == 5
    assert _files(tmp_path / "merged") == _files(undisturbed)
    refused(difix("curate", "--merge", tmp_path / "out", undisturbed), "--output")


@pytest.fixture(scope="module")
def sparse(three: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[list[object], Path]:
    """A line over three scenes without its output, and the pairs that it makes."""
    line = ["curate", *three, "--split", "every:2", *QUICK, "--keep", "failed", "--test-scene", "b"]
    folder = tmp_path_factory.mktemp("sparse") / "out"
    assert done(difix(*line, "--json", "-o", folder))["pairs"] == 6
    return line, folder


def test_merging_strategies_and_unfinished_shards(
    sparse: tuple[list[object], Path], undisturbed: Path, tmp_path: Path
) -> None:
    line, made = sparse
    merged = tmp_path / "merged"
    assert done(difix("curate", "--merge", made, undisturbed, "-o", merged, "--json"))["pairs"] == 21
    both = [*manifest(made)["train"], *manifest(undisturbed)["train"]]
    assert sorted(both) == list(manifest(merged)["train"])
    for entry in manifest(merged)["train"].values():
        assert (merged / entry["image"]).is_file() and (merged / entry["ref_image"]).is_file()
    # the same scene for training here and for testing there
    other = tmp_path / "other"
    done(difix(*line[:-2], "--json", "-o", other))
    refused(difix("curate", "--merge", other, undisturbed, "-o", tmp_path / "mixed"), "testing")
    assert not (tmp_path / "mixed").exists()
    shard = tmp_path / "shard"
    done(difix(*line, "--shard", "0/2", "--json", "-o", shard))
    refused(difix("curate", "--merge", shard), "b is still to be made", "--partial")
    assert not (shard / "data.json").exists()
    part = difix("curate", "--merge", shard, "--partial", "--json")
    assert done(part)["left"] == ["b"] and done(part)["pairs"] == 4
    assert "Still to be made: b; they are not in this manifest." in " ".join(part.stderr.split())
    refused(difix("curate", "--merge", tmp_path), "no pairs")
    refused(difix(*line, "--seed", "1", "--shard", "1/2", "-o", shard), "another run")
    # the other scene elsewhere: together they are the whole
    rest = tmp_path / "rest"
    done(difix(*line, "--shard", "1/2", "--json", "-o", rest))
    assert done(difix("curate", "--merge", shard, rest, "-o", tmp_path / "whole", "--json"))["pairs"] == 6
    assert _files(tmp_path / "whole") == _files(made)


def test_a_stage_that_was_made_in_two_ways_cannot_be_merged(sparse: tuple[list[object], Path], tmp_path: Path) -> None:
    """It is told before anything is written, and how it can be trained on nevertheless."""
    made = sparse[1]

    def copied(name: str, **asked: object) -> Path:
        folder = Path(shutil.copytree(made, tmp_path / name))
        run = json.loads((folder / "run.json").read_text())
        run["arguments"] |= asked
        (folder / "run.json").write_text(json.dumps(run))
        return folder

    other = copied("other", method="nerfacto", seed=3)
    for record in other.glob("*/*/pairs.json"):
        held = json.loads(record.read_text())
        for entry in held["pairs"].values():
            entry |= {"method": "nerfacto", "iterations": 40}
        record.write_text(json.dumps(held))
    merged = tmp_path / "merged"
    refused(
        difix("curate", "--merge", made, other, "-o", merged),
        f"{made} and {other} made a/sparse-every-2 in two ways (--method splatfacto and nerfacto; --iterations 12 and "
        "40; --seed 0 and 3)",
        f"difix finetune {made} {other}",
    )
    large = copied("large", size=96)
    photo = next((large / "b" / "photos").iterdir())
    Image.new("RGB", (96, 72)).save(photo)
    refused(
        difix("curate", "--merge", made, large, "-o", merged),
        f"The photos of b differ in {made} and {large} (--size default and 96)",
    )
    assert not merged.exists()


def test_tars_train_like_folders(sparse: tuple[list[object], Path], tmp_path: Path) -> None:
    from webdataset import WebDataset

    from difixcli.training import finetune
    from difixcli.training.pairs import PairStore, read_manifests

    line, folder = [*sparse[0], "--json"], sparse[1]
    assert done(difix(*line, "--format", "webdataset", "-o", tmp_path / "tars"))["pairs"] == 6
    assert not (tmp_path / "tars" / "data.json").exists() and not list((tmp_path / "tars").glob("*/*/render"))
    again = _files(tmp_path / "tars")
    done(difix(*line, "--format", "webdataset", "-o", tmp_path / "tars"))
    assert _files(tmp_path / "tars") == again
    sets = [read_manifests([pairs]) for pairs in (folder, tmp_path / "tars")]
    for part in ("train", "test"):
        one, other = (getattr(found, part) for found in sets)
        assert [pair.id for pair in one] == [pair.id for pair in other] and one
        for kind in ("raw", "aligned"):
            stores = [PairStore(pairs, kind, 3) for pairs in (one, other)]
            for i in range(len(stores[0])):
                assert all(np.array_equal(a, b) for a, b in zip(stores[0][i], stores[1][i], strict=True))
    # what webdataset itself makes of them
    tars = [str(path) for path in sorted((tmp_path / "tars" / "train").glob("*.tar"))]
    samples = list(WebDataset(tars, shardshuffle=False).decode("pil"))
    assert sorted(sample["__key__"] for sample in samples) == [pair.id for pair in sets[1].train]
    entries = manifest(folder)["train"]
    for sample in samples:
        entry = entries[sample["__key__"]]
        assert sample["json"]["psnr"] == entry["psnr"] and sample["json"]["camera"] == entry["camera"]
        render = np.asarray(Image.open(folder / entry["image"]))
        assert np.array_equal(np.asarray(sample["image.png"].convert("RGB")), render)
    options = {"iterations": 2, "batch": 1, "crop": 32, "window": 32, "perceptual_weight": 0.0}
    results = [
        finetune([pairs], "tiny", tmp_path / f"fixer-{kind}", **options)
        for kind, pairs in (("folder", folder), ("tars", tmp_path / "tars"))
    ]
    assert results[0]["loss"] == results[1]["loss"] and results[1]["pairs"]["train"] == 4
    refused(difix("curate", "--merge", folder, tmp_path / "tars", "-o", tmp_path / "both"), "--format")
    assert not (tmp_path / "both").exists()
    merged = done(difix("curate", "--merge", tmp_path / "tars", "-o", tmp_path / "merged", "--json"))
    assert merged["pairs"] == 6 and len(read_manifests([tmp_path / "merged"]).train) == 4
    (tmp_path / "tars" / "train" / Path(tars[0]).name).write_bytes(b"half a tar")
    refused(difix("finetune", tmp_path / "tars", "--base", "tiny", "-o", tmp_path / "f"), Path(tars[0]).name)


def test_scenes_chosen_for_testing_later(sparse: tuple[list[object], Path], tmp_path: Path) -> None:
    line, made = sparse
    out = Path(shutil.copytree(made, tmp_path / "out"))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.png") if path.name != "sheet.png"}
    changed = difix(*line, "--test-scene", "c", "--json", "-o", out)
    said = done(changed)
    assert (said["train"], said["test"], said["failed"]) == (2, 4, {})
    assert "c: its pairs are for testing from now on" in changed.stderr and "b: its pairs" not in changed.stderr
    entries, first = manifest(out), manifest(made)
    assert entries["train"] | entries["test"] == first["train"] | first["test"]
    assert {entry["scene"] for entry in entries["test"].values()} == {"b", "c"}
    assert {path: path.stat().st_mtime_ns for path in before} == before  # nothing is made again
    assert done(difix(*line, "--json", "-o", out))["test"] == 2
    assert _files(out) == _files(made)
    handed = difix(*line, "--test-scene", "c", "--cluster", "local", "--wait", "--json", "-o", out)
    assert done(handed)["test"] == 4  # its line is another, so it is handed out


def test_a_run_that_knew_what_auto_was_goes_on(tmp_path: Path) -> None:
    """As earlier versions have recorded it; not where auto is another now, nor for a run of this version."""
    auto, here = {"preset": "auto", "device": "auto", "size": 96}, {"preset": "cpu", "device": "cpu"}
    record = {"command": "curate", "state": "running", "arguments": here, "inputs": {}, "results": {}}
    record |= {"seconds": 0.0, "timings": {}, "versions": {"difixcli": "0"}}
    assert _as_begun(tmp_path, auto, here) == auto
    write_json(tmp_path / "run.json", record)
    assert _as_begun(tmp_path, auto, here) == {**auto, **here}
    assert _as_begun(tmp_path, auto, {"preset": "gpu", "device": "cuda"}) == auto
    write_json(tmp_path / "run.json", {**record, "preset": "cpu"})
    assert _as_begun(tmp_path, auto, here) == auto


def test_tars_of_a_scene_chosen_for_testing_later(three: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    line = ["curate", three[0], "--split", "every:2", *QUICK, "--keep", "failed", "--format", "webdataset", "-o", out]
    done(difix(*line, "--json"))
    name, moved = (f"{part}/a__sparse-every-2.tar" for part in ("train", "test"))
    held = (out / name).read_bytes()

    def tars() -> dict[str, bytes]:
        return {name: content for name, content in _files(out).items() if name.endswith(".tar")}

    assert done(difix(*line, "--test-scene", "a", "--json"))["test"] == 2
    assert tars() == {moved: held}
    assert done(difix(*line, "--json"))["train"] == 2  # and back
    # killed between the two: the tar has moved, and the record has not
    (out / name).rename(out / moved)
    assert done(difix(*line, "--json"))["train"] == 2
    assert tars() == {name: held}


def test_a_trained_reconstruction_is_given_up_for_a_reason_alone(three: list[Path], tmp_path: Path) -> None:
    scene, said = load_scene(three[0]), []
    build = Build(tmp_path, "splatfacto", "cpu", "cpu", 2, ["max_gaussians=300"], 0, _no_bars, said.append)
    build(scene, [0, 2, 4], "a")
    (checkpoint,) = tmp_path.glob("a/nerfstudio_models/*.ckpt")
    trained, record = checkpoint.read_bytes(), tmp_path / "a" / "reconstruction.json"
    recipe = record.read_text()
    said.clear()
    record.write_text(json.dumps({**json.loads(recipe), "device": "cuda"}))  # on another machine: it goes on here
    assert build(scene, [0, 2, 4], "a").step == 2 and checkpoint.read_bytes() == trained
    record.write_text(recipe)
    checkpoint.rename(tmp_path / "aside")
    checkpoint.mkdir()  # which the system reads no bytes of, as of a server that is away
    with pytest.raises(InputError, match="cannot be read"):
        build(scene, [0, 2, 4], "a")
    checkpoint.rmdir()
    (tmp_path / "aside").rename(checkpoint)
    assert build(scene, [4, 2, 0], "a").step == 2 and not said and checkpoint.read_bytes() == trained
    checkpoint.write_bytes(trained[:1000])
    build(scene, [0, 2, 4], "a")
    checkpoint.unlink()
    build(scene, [0, 2, 4], "a")
    record.write_text("{")
    build(scene, [0, 2, 4], "a")
    build(scene, [1, 3], "a")
    build(scene, [1, 3], "a", 1)
    told = [line for line in said if "anew" in line]
    for line, why in zip(told, ("damaged", "before its first", "damaged", "other photos", "beyond 1 it"), strict=True):
        assert line.startswith("a: a is reconstructed anew: it was") or why == "damaged"
        assert why in line


@contextmanager
def _no_bars(label: str, total: int) -> Iterator[Callable[[int], None]]:
    yield lambda done: None


# Bad input


def test_requests_that_no_scene_could_fulfil(three: list[Path], tmp_path: Path) -> None:
    out = ["-o", tmp_path / "out"]
    refused(difix("curate", three[0], "--split", "names:*", *out), "no test view")
    refused(difix("curate", three[0], "--strategy", "cross-camera", *out), "one camera", "a rig")
    refused(difix("curate", three[0], "--strategy", "cycle", "--shift", "0", *out), "moves nothing")
    refused(difix("curate", three[0], "--strategy", "cycel", *out), "cycle")
    refused(difix("curate", three[0], "--keep", "blurry", *out), "blurred")
    refused(difix("curate", three[0], "--image-format", "jpg", *out), "jpeg")
    refused(difix("curate", three[0], "--format", "tar", *out), "webdataset")
    refused(difix("curate", three[0], "--test-scene", "d", *out), "--test-scene d", "a")
    named = CurateRequest([f"{three[0]}/", "sample:room"], test_scene=[str(three[0]), "sample:room", "r*"])
    assert named.tested == ["a", "room", "r*"]  # as they are given, too
    refused(difix("curate", three[0], "--shard", "2/2", *out), "no shard")
    refused(difix("curate", three[0], "--split", "every:2", "--split", "every:2", *out), "every-2", "leave one out")
    for stop in ("0", "100%", "half"):
        with pytest.raises(InputError, match="--stop"):
            parse_stop(stop)
    assert parse_stop("25%") == parse_stop("0.25") == 0.25
    assert not (tmp_path / "out").exists()


def test_metres_without_a_scale(three: list[Path], tmp_path: Path) -> None:
    folder = shutil.copytree(three[0], tmp_path / "scene")
    meta = json.loads((folder / "transforms.json").read_text())
    (folder / "transforms.json").write_text(json.dumps({**meta, "metric": False}))
    line = ["curate", folder, "--strategy", "cycle", "--shift", "2m", *QUICK, "-o", tmp_path / "out"]
    refused(difix(*line), "no metric scale", "0.1")


def test_two_scenes_of_one_name(three: list[Path], tmp_path: Path) -> None:
    other = shutil.copytree(three[0], tmp_path / "a")
    refused(difix("curate", three[0], other, "-o", tmp_path / "out"), "Two scenes are called a", str(other))
    assert not (tmp_path / "out").exists()


def test_records_that_were_cut_off(three: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    line = ["curate", three[0], "--split", "every:2", *QUICK, "--keep", "failed", "--json", "-o", out]
    done(difix(*line))
    whole = _files(out)
    for record in (out / "data.json", out / "a" / "sparse-every-2" / "pairs.json"):
        record.write_bytes(record.read_bytes()[:200])
    refused(difix("finetune", out, "--base", "tiny", "-o", tmp_path / "fixer"), "data.json")
    done(difix(*line))  # a stage whose record is broken is made again
    assert _files(out) == whole
    photo = next((three[0] / "images" / "centre").iterdir())
    meta = three[0] / "transforms.json"
    kept = meta.read_text()
    moved = json.loads(kept)
    moved["frames"][0]["transform_matrix"][0][3] += 0.1
    meta.write_text(json.dumps(moved))
    refused(difix(*line), "changed", photo.parts[-4])
    meta.write_text(kept)


def test_a_full_disk(three: list[Path], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "none", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here (needs to be root)")
    try:
        line = ["curate", *three, "--split", "every:2", *QUICK, "--keep", "failed", "--json", "-o", disk / "out"]
        refused(difix(*line), "No space left", "Nothing already written is lost")
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        assert done(difix(*line))["pairs"] == 6
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_names_that_differ_in_a_dot_are_two_scenes(three: list[Path], tmp_path: Path) -> None:
    scenes = [Path(shutil.copytree(three[0], tmp_path / name)) for name in ("room.1", "room_1")]
    for scene in scenes:
        meta = json.loads((scene / "transforms.json").read_text())
        for frame, name in zip(meta["frames"], ("a.1", "a_1", "b", "c", "d"), strict=True):
            (scene / frame["file_path"]).rename(scene / f"{name}.png")
            frame["file_path"] = f"{name}.png"
        (scene / "transforms.json").write_text(json.dumps(meta))
    out = tmp_path / "out"
    said = done(difix("curate", *scenes, "--split", "every:5", *QUICK, "--keep", "failed", "--json", "-o", out))
    entries = manifest(out)["train"]
    assert len(entries) == said["pairs"] == 8
    assert len({entry["image"] for entry in entries.values()}) == 8 and not any("." in key for key in entries)


def test_a_split_that_changed_is_made_again(three: list[Path], tmp_path: Path) -> None:
    scene = Path(shutil.copytree(three[0], tmp_path / "scene"))
    names = [frame["file_path"] for frame in json.loads((scene / "transforms.json").read_text())["frames"]]
    line = ["curate", scene, *QUICK, "--keep", "failed", "--keep-models", "--json", "-o", tmp_path / "out"]
    for train in (names[::2], names[1::2]):
        rest = [name for name in names if name not in train]
        (scene / "split.json").write_text(json.dumps({"train": train, "test": rest}))
        done(difix(*line))
        entries = manifest(tmp_path / "out")["train"].values()
        assert {entry["frame"] for entry in entries} == set(rest)
        (record,) = (tmp_path / "out").glob("scene/models/*/reconstruction.json")
        held = json.loads(record.read_text())
        assert [held["frames"][i] for i in held["train"]] == train


def test_what_a_mask_leaves_out_is_no_target(three: list[Path], tmp_path: Path) -> None:
    scene = Path(shutil.copytree(three[0], tmp_path / "scene"))
    meta = json.loads((scene / "transforms.json").read_text())
    mask = np.full((meta["frames"][0]["h"], meta["frames"][0]["w"]), 255, np.uint8)
    mask[:, :20] = 0
    Image.fromarray(mask).save(scene / "mask.png")
    for frame in meta["frames"]:
        frame["mask_path"] = "mask.png"
    (scene / "transforms.json").write_text(json.dumps(meta))
    out = tmp_path / "out"
    done(difix("curate", scene, "--split", "every:2", *QUICK, "--keep", "failed", "--json", "-o", out))
    for entry in manifest(out)["train"].values():
        render, target = (np.asarray(Image.open(out / entry[key]), float) for key in ("image", "target_image"))
        photo = np.asarray(Image.open(scene / entry["frame"]).convert("RGB"), float)
        assert np.array_equal(target[:, :20], render[:, :20]) and np.array_equal(target[:, 20:], photo[:, 20:])
        error = np.mean((render - photo)[:, 20:] ** 2)
        assert entry["psnr"] == pytest.approx(20 * np.log10(255 / np.sqrt(error)), abs=0.05)


def test_runs_made_twice_merge(undisturbed: Path, tmp_path: Path) -> None:
    first = undisturbed
    second = Path(shutil.copytree(first, tmp_path / "again"))
    for record in second.glob("*/*/pairs.json"):
        held = json.loads(record.read_text())
        record.write_text(json.dumps({**held, "seconds": {"reconstruction": 1.0, "pairs": 2.0}}))
    done(difix("curate", "--merge", first, second, "-o", tmp_path / "both", "--json"))
    assert (tmp_path / "both" / "data.json").read_bytes() == (first / "data.json").read_bytes()


def test_what_difix_wrote_is_no_scene(three: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for scene in three[:2]:
        shutil.copytree(scene, tmp_path / scene.name)
    (tmp_path / "outputs").mkdir()
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "run.json").write_text("{}")
    (tmp_path / "list.txt").write_text("\ufeff# two\na\n./a\nb\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert list(expand_scenes(["*"])) == ["a", "b"]
    assert list(expand_scenes(["@list.txt"])) == ["a", "b"]


def test_cameras_of_a_rig_must_be_told_apart(rig: Path, tmp_path: Path) -> None:
    line = ("curate", rig, "--strategy", "cross-camera", "--split", "every:2", *QUICK, "-o", tmp_path / "out")
    refused(difix(*line), "every:2", "camera:ID")


def test_inside_a_scenes_folder_defaults_are_told(
    three: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(three[0], tmp_path / "scene")
    monkeypatch.chdir(tmp_path / "scene")
    line = ("curate", "--strategy", "cycle", *QUICK, "--keep", "failed", "--json")
    first = difix(*line)
    assert told(first)["output"] == str(tmp_path / "scene" / "outputs" / "pairs" / "scene-cycle-splatfacto")
    for said in ("shift: 0.1", "iterations: ", "size: ", "method: splatfacto"):
        assert said in first.stderr
    assert done(first)["pairs"] == 5 and done(difix(*line))["pairs"] == 5  # what was written is no part of the scene
    asked = CurateRequest(strategy="cycle", iterations=12, settings=["max_gaussians=300"], keep=["failed"])
    assert asked.run().told() == told(first)


def test_no_pair_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage = StageSummary(
        "a", "sparse", "a/sparse", False, 0, {"failed": 3}, 0.0, 0.0, [0] * 14, {"reconstruction": 0.0, "pairs": 0.0}
    )
    ended(tmp_path, Curated([stage], {}))
    assert "No pair is left (3 failed)" in " ".join(capsys.readouterr().err.split())
