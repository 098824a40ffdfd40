"""Consistency, colour correction, FID, protocols and comparisons: what `difix eval` measures of runs."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from commands import IMPORT_PATH, told
from PIL import Image
from typer.testing import CliRunner

from difixcli.cli import app
from difixcli.errors import InputError
from difixcli.evaluation import Plan, consistency, evaluate_folders, evaluate_run, evaluate_runs
from difixcli.evaluation.charts import line_chart
from difixcli.evaluation.color_correction import color_correct
from difixcli.evaluation.consistency import (
    MIN_MATCHES,
    fundamental_matrix,
    symmetric_epipolar_distance,
    tsed,
    warped_difference,
)
from difixcli.evaluation.cross_view import FAR, View, _sampled, correspondence, cross_view, path_pairs
from difixcli.evaluation.evaluate import over_scenes, read_evaluated, suggested_metrics
from difixcli.evaluation.fid import FrechetDistance, inception, inception_file
from difixcli.evaluation.geometry import visible_pixels
from difixcli.evaluation.metrics import METRICS, how_made, image_metrics, parse_metrics, psnr, ssim
from difixcli.evaluation.perceptual import Lpips
from difixcli.evaluation.pose_accuracy import pose_auc, pose_errors
from difixcli.evaluation.protocols import DL3DV, OWN, ObjectCrop, parse_protocol
from difixcli.evaluation.report import _path_charts, write_report
from difixcli.evaluation.run_folders import TRUTH, RunFolder, is_run, row_names
from difixcli.posing.known_lenses import found_poses
from difixcli.runs import read_image, write_image, write_json
from difixcli.scenes import load_photo, load_scene, make_split
from difixcli.scenes.ply import write_points
from difixcli.scenes.scene import Camera

WIDTH, HEIGHT, FOCAL = 96, 64, 80.0
DEPTH = 2.0


@pytest.fixture(scope="module")
def texture() -> np.ndarray:
    """A wall with detail at several scales: (H, W, 3) in [0, 1], 100 pixels a unit, the origin in its middle."""
    rng = np.random.default_rng(3)
    layers = [cv2.GaussianBlur(rng.random((500, 900, 3)).astype(np.float32) - 0.5, (0, 0), s) * s for s in (1.5, 4, 12)]
    wall = sum(layers)
    return ((wall - wall.min()) / (wall.max() - wall.min())).astype(np.float32)


def camera_at(x: float, turn: float = 0.0) -> Camera:
    """A camera at (x, 0, 0) that looks at the wall z = −2, turned about the vertical by `turn` radians."""
    pose = np.eye(4)
    pose[:3, :3] = [[math.cos(turn), 0, math.sin(turn)], [0, 1, 0], [-math.sin(turn), 0, math.cos(turn)]]
    pose[0, 3] = x
    return Camera(pose, FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2, WIDTH, HEIGHT)


def wall_depth(camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Where each pixel's ray meets the wall: (H, W, 3) points and (H, W) z-depth."""
    x, y = np.meshgrid(np.arange(camera.width) + 0.5, np.arange(camera.height) + 0.5)
    rays = np.stack([(x - camera.cx) / camera.fx, -(y - camera.cy) / camera.fy, -np.ones_like(x)], axis=-1)
    world = rays @ camera.camera_to_world[:3, :3].T
    depth = -DEPTH / world[..., 2]
    return world * depth[..., None] + camera.position, depth


def wall_seen(texture: np.ndarray, camera: Camera) -> np.ndarray:
    points, _ = wall_depth(camera)
    u = (points[..., 0] * 100 + texture.shape[1] / 2).astype(np.float32)
    v = (texture.shape[0] / 2 - points[..., 1] * 100).astype(np.float32)
    return cv2.remap(texture, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def noisy(image: np.ndarray, sigma: float, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, sigma, image.shape)
    return np.clip(image + noise, 0, 1).astype(np.float32)


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]


# -- figures against their references ---------------------------------------------------------------------------------


def test_psnr_and_ssim_agree_with_torchmetrics(texture: np.ndarray) -> None:
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    truth = wall_seen(texture, camera_at(0))
    for sigma in (0.02, 0.1):
        image = noisy(truth, sigma)
        expected = peak_signal_noise_ratio(tensor(image), tensor(truth), data_range=1.0)
        assert psnr(image, truth) == pytest.approx(float(expected), abs=1e-4)
        _, full = structural_similarity_index_measure(
            tensor(image), tensor(truth), data_range=1.0, return_full_image=True
        )
        assert ssim(image, truth) == pytest.approx(float(full[..., 5:-5, 5:-5].mean()), abs=1e-4)


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_is_the_packages_number_for_the_same_weights(texture: np.ndarray, net: Any) -> None:
    import lpips

    torch.manual_seed(0)
    package = lpips.LPIPS(net=net, pretrained=True, pnet_rand=True, verbose=False).eval()
    ours = Lpips(net, package)
    truth = tensor(wall_seen(texture, camera_at(0)))
    image = tensor(noisy(truth[0].permute(1, 2, 0).numpy(), 0.1))
    with torch.no_grad():
        expected = package(image, truth, normalize=True).flatten()
        torch.testing.assert_close(ours(image, truth), expected, atol=1e-4, rtol=1e-4)
    assert expected.item() > 1e-3


class Colors(torch.nn.Module):
    """A network small enough to do by hand: mean colours of six cells."""

    num_features = 6

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, (2, 3)).mean(1).flatten(1)


def test_fid_is_the_frechet_distance_of_two_gaussians(texture: np.ndarray) -> None:
    from scipy.linalg import sqrtm

    truths = [wall_seen(texture, camera_at(x)) for x in np.linspace(-1, 1, 12)]
    renders = [noisy(np.clip(0.8 * truth + 0.15, 0, 1), 0.1, i) for i, truth in enumerate(truths)]
    distance = FrechetDistance(Colors())
    for image in truths:
        distance.add(image, true=True)
    for image in renders:
        distance.add(image, true=False)
    found = distance.distance()

    def moments(images: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        features = np.concatenate([Colors()((tensor(i) * 255 + 0.5).to(torch.uint8)).numpy() for i in images])
        return features.mean(0, dtype=np.float64), np.cov(features.astype(np.float64), rowvar=False)

    (mean_one, cov_one), (mean_two, cov_two) = moments(truths), moments(renders)
    expected = ((mean_one - mean_two) ** 2).sum() + np.trace(cov_one + cov_two - 2 * sqrtm(cov_one @ cov_two).real)
    assert found == pytest.approx(expected, abs=1e-4) and found > 0.001
    # the true set is kept from one variant to the next
    for image in truths:
        distance.add(image, true=False)
    assert distance.distance() == pytest.approx(0, abs=1e-6)
    distance.add(truths[0], true=False)
    with pytest.raises(InputError, match="at least two images"):
        distance.distance()


def test_fid_of_several_scenes_is_that_of_their_images_as_one_set(
    run: Path, texture: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only Inception's weights, which are not here, are replaced: by mean colours of six cells."""
    (tmp_path / "weights.pth").write_bytes(b"colours")
    monkeypatch.setattr("difixcli.evaluation.fid.inception", lambda path, device: Colors())
    plan = Plan(("psnr", "fid"), inception=tmp_path / "weights.pth")
    other = make_scene(tmp_path / "second", texture, {f"{i}.png": 1 + 0.1 * i for i in range(5)})
    runs = [run, make_run(tmp_path / "c", other, "every:2", plain=0.2, distilled=0.1)]
    found = evaluate_runs(runs, plan)
    own = [found["scenes"][name]["results"]["plain"]["fid"] for name in found["scenes"]]
    assert found["results"]["plain"]["fid"] == pytest.approx(np.mean(own))
    together = FrechetDistance(Colors())
    for folder in runs:
        for kind in ("truth", "plain"):
            for path in sorted((folder / "renders" / kind).iterdir()):
                together.add(read_image(path), true=kind == "truth")
    assert found["results"]["plain"]["fid_pooled"] == pytest.approx(together.distance(), rel=1e-4)
    assert found["results"]["plain"]["fid_pooled"] != pytest.approx(np.mean(own), rel=0.01)
    assert (
        "as one set" in found["protocol"]["fid_pooled"] and "fid_pooled" not in evaluate_run(run, plan=plan)["results"]
    )


def test_every_figure_says_range_and_resizing() -> None:
    for key, words in how_made(METRICS, resize="to 960").items():
        assert "pixels in " in words and "resized: to 960" in words, key
    assert "299×299" in how_made(["fid"])["fid"] and "resized: no" in how_made(["psnr"])["psnr"]


def test_fid_is_refused_without_its_own_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(InputError, match=r"weights-inception-2015-12-05-6726825d\.pth into .*--inception"):
        inception_file()
    with pytest.raises(InputError, match="is no file"):
        inception_file(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(InputError, match=r"is damaged.*FID needs torch-fidelity's"):
        inception(inception_file(tmp_path / "text.pth"))
    torch.save({"other.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="does not hold Inception's weights"):
        inception(tmp_path / "other.pth")


# -- colour correction ------------------------------------------------------------------------------------------------


def test_color_correction_undoes_what_an_exposure_did(texture: np.ndarray) -> None:
    truth = 0.1 + 0.8 * wall_seen(texture, camera_at(0))
    mixed = truth @ np.array([[0.8, 0.1, 0], [0.05, 0.7, 0.05], [0, 0.1, 0.75]], np.float32).T + 0.02
    assert psnr(mixed, truth) < 26
    for correction in ("affine", "quadratic"):
        assert psnr(color_correct(mixed, truth, correction=correction), truth) > 50  # type: ignore[arg-type]
    gamma = truth**1.6
    affine, quadratic = (psnr(color_correct(gamma, truth, correction=c), truth) for c in ("affine", "quadratic"))
    assert quadratic > affine + 3 > psnr(gamma, truth) + 3
    # what the mask leaves out is not looked at
    mask = np.zeros(truth.shape[:2], bool)
    mask[:, :40] = True
    spoiled = mixed.copy()
    spoiled[:, 40:] = 0.5
    corrected = color_correct(spoiled, truth, mask)
    assert psnr(corrected, truth, mask) > 50


def test_corrected_figures_stand_beside_the_others(texture: np.ndarray) -> None:
    truth = 0.1 + 0.8 * wall_seen(texture, camera_at(0))
    figures = image_metrics(0.7 * truth, truth, metrics=("psnr", "ssim"), correction="affine")
    assert list(figures) == ["psnr", "ssim", "cc_psnr", "cc_ssim"] and figures["cc_psnr"] > figures["psnr"] + 20
    assert set(figures) <= set(METRICS)


# -- consistency ------------------------------------------------------------------------------------------------------


def test_warped_difference_sees_flicker_and_not_motion(texture: np.ndarray) -> None:
    truth = [wall_seen(texture, camera_at(x)) for x in np.linspace(0, 0.3, 6)]
    still = warped_difference(truth)
    assert len(still) == 5 and all(pair.share > 0.7 for pair in still)
    moved = np.mean([np.abs(a - b).mean() for a, b in pairwise(truth)])
    assert np.mean([pair.difference for pair in still]) < 0.35 * moved
    flicker = [np.clip(frame + 0.1 * (i % 2), 0, 1) for i, frame in enumerate(truth)]
    seen = warped_difference(iter(flicker), iter(truth))
    assert np.mean([pair.difference for pair in seen]) == pytest.approx(0.1, abs=0.02)
    # the same places count for every variant of one sequence
    assert [pair.share for pair in seen] == [pair.share for pair in still]
    noise = warped_difference([noisy(frame, 0.1, i) for i, frame in enumerate(truth)], truth)
    assert min(pair.difference for pair in noise) > 2 * max(pair.difference for pair in still)
    assert warped_difference(truth[:1]) == []
    with pytest.raises(InputError, match="one size"):
        warped_difference([truth[0], truth[1][:-2]])
    with pytest.raises(InputError, match="too small"):
        warped_difference([truth[0][:8], truth[1][:8]])


def test_a_point_lies_on_the_epipolar_line_of_itself() -> None:
    one, two = camera_at(0.0), camera_at(0.4, 0.2)
    matrix = fundamental_matrix(one, two)
    assert matrix is not None
    points = np.random.default_rng(0).uniform([-0.5, -0.5, -4], [0.5, 0.5, -2], (50, 3))

    def pixels(camera: Camera) -> np.ndarray:
        local = (points - camera.position) @ camera.camera_to_world[:3, :3]
        x, y = -local[:, 0] / local[:, 2], local[:, 1] / local[:, 2]
        return np.stack([camera.fx * x + camera.cx, camera.fy * y + camera.cy], axis=1)

    first, second = pixels(one), pixels(two)
    np.testing.assert_allclose(symmetric_epipolar_distance(matrix, first, second), 0, atol=1e-9)
    # a shift across the line counts in full in one image; OpenCV's lines agree
    lines = cv2.computeCorrespondEpilines(first.reshape(-1, 1, 2), 1, matrix).reshape(-1, 3)
    shifted = second + 3 * lines[:, :2]
    back = cv2.computeCorrespondEpilines(shifted.reshape(-1, 1, 2), 2, matrix).reshape(-1, 3)
    other = np.abs((back[:, :2] * first).sum(1) + back[:, 2])
    np.testing.assert_allclose(symmetric_epipolar_distance(matrix, first, shifted), (3 + other) / 2, atol=1e-6)
    assert fundamental_matrix(one, camera_at(0.0, 0.3)) is None


def test_tsed_knows_the_true_path_from_a_wrong_one(texture: np.ndarray) -> None:
    cameras = [camera_at(x, turn) for x, turn in ((0, 0), (0.15, 0.05), (0.3, 0.0), (0.3, 0.05))]
    big = [camera.resized(3 * WIDTH, 3 * HEIGHT) for camera in cameras]
    frames = [wall_seen(texture, camera) for camera in big]
    pairs = tsed(frames, big)
    assert pairs[2] is None  # it only turned
    true = [pair for pair in pairs if pair is not None]
    assert all(pair.consistent and pair.matches > MIN_MATCHES and pair.error < 1 for pair in true)
    # frames that are shifted against each other in the image do not show one scene from these cameras
    wrong = [frames[0], np.roll(frames[1], 25, axis=0), frames[2]]
    assert not any(pair.consistent for pair in tsed(wrong, big[:3]) if pair is not None)
    blank = tsed([np.full_like(frames[0], 0.5)] * 2, big[:2])[0]
    assert blank is not None and blank.matches == 0 and math.isnan(blank.error) and not blank.consistent


@pytest.mark.parametrize("held", [1, 2000, 2**22])
def test_matches_are_those_of_opencvs_two_searches(
    texture: np.ndarray, monkeypatch: pytest.MonkeyPatch, held: int
) -> None:
    monkeypatch.setattr(consistency, "_DISTANCES", held)
    cameras = [camera.resized(3 * WIDTH, 3 * HEIGHT) for camera in (camera_at(0), camera_at(0.15, 0.05))]
    detector: Any = cv2.SIFT.create()
    one, two = (detector.detectAndCompute(consistency._gray(wall_seen(texture, camera)), None)[1] for camera in cameras)
    two = np.concatenate([two, two[:9]])  # with equals among them

    def passing(here: np.ndarray, there: np.ndarray) -> dict[int, int]:
        pairs: Any = cv2.BFMatcher(cv2.NORM_L2).knnMatch(here, there, k=2)
        return {m.queryIdx: m.trainIdx for m, n in pairs if m.distance < 0.75 * n.distance}

    back = passing(two, one)
    expected = [(i, j) for i, j in passing(one, two).items() if back.get(j) == i]
    assert len(expected) > 20 and consistency._matches(one, two) == expected
    assert consistency._matches(one[:1], two) == [] == consistency._matches(None, two)


# -- visibility -------------------------------------------------------------------------------------------------------


def test_only_what_is_in_another_cameras_frustum_is_visible() -> None:
    here, there = camera_at(0.0), camera_at(1.0)
    depth, points = wall_depth(here)[1], wall_depth(here)[0]
    seen = visible_pixels(depth, here, [there])
    inside = np.abs(points[..., 0] - 1.0) < DEPTH * WIDTH / 2 / FOCAL
    assert (seen == inside).mean() > 0.98 and 0.1 < seen.mean() < 0.9
    assert (visible_pixels(depth, here, [there.resized(48, 32)]) == seen).all()
    assert visible_pixels(depth, here, [there, here]).all()
    assert not visible_pixels(depth, here, [camera_at(0.0, math.pi)]).any()  # the wall is behind it
    assert not visible_pixels(np.zeros_like(depth), here, [there]).any()


# -- runs, protocols, comparisons -------------------------------------------------------------------------------------


def make_scene(folder: Path, texture: np.ndarray, frames: dict[str, float], scale: int = 1) -> Path:
    """A posed scene of the wall: {file name: position along x}."""
    entries = []
    for name, x in frames.items():
        camera = camera_at(x).resized(WIDTH * scale, HEIGHT * scale)
        write_image(folder / name, wall_seen(texture, camera))
        entries.append({"file_path": name, "transform_matrix": camera.camera_to_world.tolist()})
    lens = {"fl_x": FOCAL * scale, "fl_y": FOCAL * scale, "w": WIDTH * scale, "h": HEIGHT * scale}
    lens |= {"cx": WIDTH * scale / 2, "cy": HEIGHT * scale / 2}
    (folder / "transforms.json").write_text(json.dumps({**lens, "frames": entries}))
    return folder


def make_run(folder: Path, scene: Path, rule: str, seed: int = 0, **variants: float) -> Path:
    """A run as `difix distill` leaves it, its variants' renders as noisy as asked."""
    loaded = load_scene(str(scene))
    for i in make_split(loaded, rule).test:
        name = f"{loaded.file_names[i]}.png"
        photo = load_photo(loaded.frames[i])
        write_image(folder / "renders/truth" / name, photo)
        for number, (variant, sigma) in enumerate((variants or {"plain": 0.1, "distilled": 0.05}).items()):
            write_image(folder / "renders" / variant / name, noisy(photo, sigma, 100 * seed + 10 * number + i))
    for number in (1, 2):
        (folder / f"rounds/{number:02d}").mkdir(parents=True, exist_ok=True)
        views = [{"frame": "a", "mean_confidence": 0.5 * number}, {"frame": "b", "mean_confidence": 0.25 * number}]
        record = {"round": number, "views": views, "holdout_psnr": 20.0 + number}
        (folder / f"rounds/{number:02d}/round.json").write_text(json.dumps(record))
    arguments = {"scene": str(scene), "split": rule, "method": "splatfacto", "seed": seed, "size": None}
    record = {"command": "distill", "arguments": arguments, "timings": {"round 1/2: train": 3.0, "round 2/2: train": 2}}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


PATH = {f"images/{i:03d}.png": 0.1 * i for i in range(8)}


@pytest.fixture(scope="module")
def scene(texture: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_scene(tmp_path_factory.mktemp("scenes") / "wall", texture, PATH)


@pytest.fixture(scope="module")
def run(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "a", scene, "every:4")


QUICK = Plan(("psnr",))


def test_the_whole_of_a_run_is_measured(run: Path, tmp_path: Path) -> None:
    metrics, left_out = suggested_metrics([run])
    assert {"psnr", "ssim", "st_lpips", "tsed", "warped"} <= set(metrics) and not left_out
    found = evaluate_run(run, plan=Plan(("psnr", "ssim", "tsed", "warped"), "affine"))
    plain, distilled = found["results"]["plain"], found["results"]["distilled"]
    assert set(plain) == {"psnr", "ssim", "cc_psnr", "cc_ssim", "tsed", "warped"} == set(found["protocol"])
    assert distilled["psnr"] > plain["psnr"] + 4 and distilled["warped"] < plain["warped"]
    assert found["reference"]["tsed"] >= plain["tsed"] and found["reference"]["warped"] < distilled["warped"]
    assert found["std"]["plain"]["warped"] >= 0 and "tsed" not in found["std"]["plain"]
    # the six test views are one path of five pairs
    assert next((p["from"], p["to"]) for p in found["pairs"]["plain"]) == ("images-001", "images-002")
    assert len(found["pairs"]["truth"]) == 5
    assert found["conditions"]["split"] == "every:4" and found["conditions"]["size"] == f"{WIDTH}×{HEIGHT} pixels"
    rounds = found["rounds"]["wall"]
    assert rounds["mean confidence"] == [[1, 0.375], [2, 0.75]] and rounds["holdout psnr"] == [[1, 21], [2, 22]]
    assert rounds["seconds of training"] == [[1, 3], [2, 2]]
    page = write_report(found, tmp_path / "report.html", "run").read_text(encoding="utf-8")
    assert page.count("<svg") == 6 and "Holdout psnr by round" in page
    assert not re.search(r"(src|href)=\"(?!data:)|url\(|@import|https?:", page)


def test_how_far_consistency_is_can_be_seen(run: Path) -> None:
    """Each frame of the truth and of both variants is taken once for each figure."""
    seen: dict[tuple[str, int], list[int]] = {}

    @contextmanager
    def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
        yield seen.setdefault((label, total), []).append

    evaluate_run(run, plan=Plan(("psnr", "tsed", "warped")), progress=progress)
    assert seen == {("measure", 6): list(range(1, 7)), ("compare neighbours", 36): list(range(1, 37))}


def test_every_says_which_views_train(run: Path, scene: Path, tmp_path: Path) -> None:
    found = evaluate_run(run, plan=Plan(("psnr",), protocol=parse_protocol("every:4")))
    assert found["images"] == 6 and found["conditions"]["protocol"] == "every:4"
    assert found["results"] == evaluate_run(run, plan=QUICK)["results"]
    with pytest.raises(
        InputError, match=r"every:4, which is not .* every:2 .*trains on images/002\.png.*--split every:2"
    ):
        evaluate_run(run, plan=Plan(("psnr",), protocol=parse_protocol("every:2")))
    other = make_run(tmp_path / "b", scene, "every:2")
    assert evaluate_run(other, plan=Plan(("psnr",), protocol=parse_protocol("every:2")))["images"] == 4


@pytest.mark.parametrize("count", [2, 3, 6, 9])
def test_sparse_has_a_few_evenly_spaced_views(texture: np.ndarray, tmp_path: Path, count: int) -> None:
    folder = make_scene(tmp_path / "wall", texture, {f"images/{i:03d}.png": 0.02 * i for i in range(20)})
    loaded = load_scene(str(folder))
    split = make_split(loaded, f"sparse:{count}")
    others = [i for i in range(20) if i % 8]
    assert list(split.test) == [0, 8, 16] and len(split.train) == count
    assert split.train[0] == others[0] and split.train[-1] == others[-1]
    gaps = np.diff([others.index(i) for i in split.train])
    assert gaps.max() - gaps.min() <= 1
    run = make_run(tmp_path / "run", folder, f"sparse:{count}")
    found = evaluate_run(run, plan=Plan(("psnr",), protocol=parse_protocol(f"sparse:{count}")))
    assert found["images"] == 3 and found["conditions"]["protocol"] == f"sparse:{count}"
    assert found["conditions"]["crop"] == "none"
    with pytest.raises(InputError, match=f"Train it with --split sparse:{count}"):
        evaluate_run(
            make_run(tmp_path / "b", folder, "every:4"),
            plan=Plan(("psnr",), protocol=parse_protocol(f"sparse:{count}")),
        )


def test_sparse_has_no_seed_point_from_a_held_out_photo(texture: np.ndarray, tmp_path: Path) -> None:
    """Of the room's points those are trained on that two training photos saw; who saw them has to be known."""
    room = load_scene("sample:room")
    split = make_split(room, "sparse:6")
    known = room.known_to(split.train)
    assert room.tracks is not None and known.tracks is not None
    assert 0 < len(known.points) < 0.7 * len(room.points)
    assert (known.tracks.counts(split.train) >= 2).all()
    others = [i for i in range(len(room.frames)) if i not in split.train]
    of_others = (room.tracks.counts(others) > 0) & (room.tracks.counts(split.train) < 2)
    left = {point.tobytes() for point in known.points}
    assert of_others.sum() > 500 and not any(point.tobytes() in left for point in room.points[of_others])
    # a scene that does not know is refused
    folder = make_scene(tmp_path / "wall", texture, {f"images/{i:03d}.png": 0.02 * i for i in range(10)})
    rng = np.random.default_rng(0)
    write_points(folder / "points.ply", rng.normal(size=(50, 3)), rng.integers(0, 255, (50, 3), dtype=np.uint8))
    meta = json.loads((folder / "transforms.json").read_text())
    (folder / "transforms.json").write_text(json.dumps({**meta, "ply_file_path": "points.ply"}))
    with pytest.raises(InputError, match="sparse:3 allows no seed points from held-out photos"):
        evaluate_run(
            make_run(tmp_path / "run", folder, "sparse:3"), plan=Plan(("psnr",), protocol=parse_protocol("sparse:3"))
        )


def test_co3d_measures_objects_before_black(texture: np.ndarray, tmp_path: Path) -> None:
    folder = make_scene(tmp_path / "wall", texture, {f"images/{i:03d}.png": 0.01 * i for i in range(40)})
    loaded = load_scene(str(folder))
    split = make_split(loaded, "co3d:2")
    shown = sorted((*split.train, *split.test))
    assert len(split.train) == 2 and len(split.test) == 30
    assert shown == [round(place) for place in np.linspace(0, 39, 32)]
    run = make_run(tmp_path / "run", folder, "co3d:2")
    protocol = parse_protocol("co3d-2view")
    with pytest.raises(InputError, match=r"has no mask.*--masks"):
        evaluate_run(run, plan=Plan(("psnr",), protocol=protocol))
    rows, columns = slice(10, 34), slice(20, 50)
    mask = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    mask[rows, columns] = 1
    for i in split.test:
        write_image(run / "renders/mask" / f"{loaded.file_names[i]}.png", mask)
    found = evaluate_run(run, plan=Plan(("psnr",), protocol=protocol))
    assert found["images"] == 30 and found["conditions"]["size"] == "256×256 pixels"
    assert found["conditions"]["mask"] == "black outside the object" and "0.3" in found["conditions"]["crop"]
    # a row of pixels that only the background has does not count, one of the object's does
    name = f"{loaded.file_names[split.test[0]]}.png"
    image = read_image(run / "renders/plain" / name)
    for place, alike in ((5, True), (20, False)):
        spoiled = image.copy()
        spoiled[place] = 1 - spoiled[place]
        write_image(run / "renders/plain" / name, spoiled)
        again = evaluate_run(run, plan=Plan(("psnr",), protocol=protocol))
        assert (again["results"]["plain"]["psnr"] == pytest.approx(found["results"]["plain"]["psnr"])) == alike
    with pytest.raises(InputError, match="cuts each to its object"):
        evaluate_run(run, plan=Plan(("psnr", "warped"), protocol=protocol))
    assert "warped" not in suggested_metrics([run], protocol)[0]


def test_an_object_fills_the_crop_with_its_context() -> None:
    crop = ObjectCrop(context=0.3, side=256)
    mask = np.zeros((120, 200), bool)
    mask[40:80, 50:130] = True  # 80 × 40; with context 104 × 52
    image = np.zeros((120, 200, 3), np.float32)
    image[mask] = (0.2, 0.4, 0.6)
    image[~mask] = 1.0
    cut = crop.cut(image, mask)
    assert cut.shape == (256, 256, 3) and cut[128:].max() == 0
    scale = 256 / 104
    np.testing.assert_allclose(cut[int(26 * scale), int(52 * scale)], (0.2, 0.4, 0.6), atol=1e-6)
    assert (cut[:, :, 2] > 0.3).sum() == pytest.approx(80 * 40 * scale**2, rel=0.03)
    # the context ends where the photo does
    corner = np.zeros((120, 200), bool)
    corner[:40, :80] = True
    assert (crop.cut(image, corner)[:2, :2] == 1).all()


def test_dl3dv_wants_two_clusters_and_shrinks(texture: np.ndarray, tmp_path: Path) -> None:
    places = {f"{i}.png": x for i, x in enumerate((0.0, 0.1, 0.2, 2.0, 2.1))}
    scene = make_scene(tmp_path / "far", texture, places, scale=11)
    run = make_run(tmp_path / "run", scene, "clusters")
    own, fixed = (evaluate_run(run, plan=Plan(("psnr",), protocol=one)) for one in (OWN, DL3DV))
    assert sorted(own["per_image"]["plain"]) == ["3", "4"] == sorted(fixed["per_image"]["plain"])
    assert own["conditions"]["size"].startswith("1056×704") and fixed["conditions"]["size"].startswith("960×640")
    # noise is averaged away where an image shrinks
    assert fixed["results"]["plain"]["psnr"] > own["results"]["plain"]["psnr"] + 0.5
    with pytest.raises(InputError, match="not that of the protocol dl3dv"):
        evaluate_run(make_run(tmp_path / "every", scene, "every:2"), plan=Plan(("psnr",), protocol=DL3DV))


def test_rds_measures_the_side_cameras_one_by_one(texture: np.ndarray, scene: Path, run: Path, tmp_path: Path) -> None:
    places = {
        f"{c}/{i}.png": x + 0.2 * i for c, x in (("left", 0.0), ("centre", 0.4), ("right", 0.8)) for i in range(3)
    }
    rig = make_scene(tmp_path / "rig", texture, places)
    protocol = parse_protocol("rds")
    ours = make_run(tmp_path / "run", rig, "camera:centre")
    found = evaluate_run(ours, plan=Plan(("psnr",), protocol=protocol))
    by_camera = found["by_camera"]
    assert sorted(by_camera) == ["left", "right"] and "by_camera" not in evaluate_run(ours, plan=QUICK)
    both = np.mean([by_camera[c]["plain"]["psnr"] for c in by_camera])
    assert both == pytest.approx(found["results"]["plain"]["psnr"])
    # frames of two cameras are not consecutive
    pairs = evaluate_run(ours, plan=Plan(("warped",)))["pairs"]["plain"]
    assert len(pairs) == 4 and all(p["from"].split("-")[0] == p["to"].split("-")[0] for p in pairs)
    assert "Camera left" in write_report(found, tmp_path / "r.html", "rig").read_text(encoding="utf-8")
    with pytest.raises(InputError, match="trains on cameras centre, left"):
        evaluate_run(make_run(tmp_path / "two", rig, "camera:left,centre"), plan=Plan(("psnr",), protocol=protocol))
    with pytest.raises(InputError, match="needs a rig"):
        evaluate_run(run, plan=Plan(("psnr",), protocol=protocol))


@pytest.fixture(scope="module")
def two_paths(texture: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A capture of two paths, a run on the first and a small reconstruction of both; the second path goes where no
    photo of the first looks."""
    from difixcli.reconstruction import Reconstruction

    folder = tmp_path_factory.mktemp("nerfbusters")
    places = {f"frame_1_{i}.png": 0.1 * i for i in range(5)} | {f"frame_2_{i}.png": 0.2 + 0.5 * i for i in range(3)}
    scene = make_scene(folder / "capture", texture, places)
    rule = "names:train=frame_1_,test=frame_2_"
    loaded = load_scene(str(scene))
    for name, split in (("run", rule), ("both", "all")):
        made = make_run(folder / name, scene, rule)
        record = json.loads((made / "run.json").read_text())
        (made / "run.json").write_text(json.dumps({**record, "arguments": {**record["arguments"], "split": split}}))
        reconstruction = Reconstruction.create(
            loaded,
            make_split(loaded, split, need_test=False).train,
            method="splatfacto",
            folder=made,
            preset="cpu",
            device="cpu",
            iterations=30,
            overrides=["max_gaussians=400"],
            seed=0,
        )
        reconstruction.train(30)
        reconstruction.save()
    return scene, folder / "run", folder / "both"


def test_nerfbusters_counts_only_what_a_photo_sees(two_paths: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, run, both = two_paths
    plan = Plan(("psnr",), protocol=parse_protocol("nerfbusters"), geometry=[both])
    found = evaluate_run(run, plan=plan, work=tmp_path)
    masks = {path.stem: np.asarray(Image.open(path)) > 0 for path in (tmp_path / "visibility").glob("*.png")}
    assert sorted(masks) == ["frame_2_0", "frame_2_1", "frame_2_2"]
    assert masks["frame_2_0"].mean() > masks["frame_2_2"].mean()  # it stands among the photos
    assert "frustum" in found["conditions"]["mask"] and "do not count" in found["protocol"]["psnr"]
    own = evaluate_run(run, plan=QUICK)
    name = next(stem for stem, mask in masks.items() if 0 < mask.mean() < 1)
    truth, image = (
        np.asarray(Image.open(run / "renders" / v / f"{name}.png"), float) / 255 for v in ("truth", "plain")
    )
    expected = psnr(image.astype(np.float32), truth.astype(np.float32), masks[name])
    assert found["per_image"]["plain"][name]["psnr"] == pytest.approx(expected)
    assert expected != own["per_image"]["plain"][name]["psnr"]


def test_visibility_is_one_for_all_methods(two_paths: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """The masks, whose digest stands beside every figure, do not depend on which runs are compared, nor on their depth:
    a run without a reconstruction is measured, too."""
    scene, run, both = two_paths
    bare = make_run(tmp_path / "bare", scene, "names:train=frame_1_,test=frame_2_", seed=3)
    plan = Plan(("psnr",), protocol=parse_protocol("nerfbusters"), geometry=[both])
    single, other = (evaluate_run(one, plan=plan, work=tmp_path / one.name) for one in (run, bare))
    together = evaluate_runs([run, bare], plan, tmp_path / "together")
    said = single["conditions"]["mask"]
    assert re.search(r"by the depth of both, on all photos, \w{8} \(masks' SHA-256 \w{12}…\)", said)
    assert said == other["conditions"]["mask"] == together["conditions"]["mask"]
    assert together["results"]["bare plain"] == other["results"]["plain"]
    plain = replace(plan, geometry=())
    with pytest.raises(InputError, match=r"of one reconstruction for all methods.*--geometry"):
        evaluate_run(run, plan=plain, work=tmp_path)
    with pytest.raises(InputError, match=r"has not seen all photos of capture \(not frame_2_0\.png\)"):
        evaluate_run(run, plan=replace(plan, geometry=[run]), work=tmp_path)
    with pytest.raises(InputError, match="is no trained run"):
        evaluate_run(run, plan=replace(plan, geometry=[bare]), work=tmp_path)


# -- one scene in several views ---------------------------------------------------------------------------------------


def test_the_same_thing_in_several_views_is_nearer_than_what_differs(texture: np.ndarray) -> None:
    """Detail that each view invents for itself tells it from the others, the more of it the more."""
    cameras = [camera_at(0.12 * i, 0.02 * i) for i in range(7)]
    depths = [wall_depth(camera)[1].astype(np.float32) for camera in cameras]
    photos = [wall_seen(texture, camera) for camera in cameras]
    invented = [wall_seen(np.roll(texture, 97 * (i + 1), axis=1), camera) for i, camera in enumerate(cameras)]
    near, far = path_pairs(7, 1), path_pairs(7, FAR)
    assert near[0] == (0, 1) and far == [(0, 4), (1, 5), (2, 6)]
    found: dict[str, list[float]] = {"near": [], "far": []}
    for amount in (0, 0.1, 0.25, 0.5, 1):

        def view(i: int, amount: float = amount) -> View:
            return View((1 - amount) * photos[i] + amount * invented[i], depths[i], cameras[i])

        for name, pairs in (("near", near), ("far", far)):
            pairs_found = cross_view(view, pairs)
            assert all(0.05 < pair.share < 1 for pair in pairs_found)
            found[name].append(float(np.mean([pair.distance for pair in pairs_found])))
    for values in found.values():
        assert (np.diff(values) > 0).all() and values[-1] > 2 * values[0]
    assert found["far"][0] > found["near"][0]
    # images that are sharp but stand elsewhere are not consistent either, nor is one whose colours drift
    moved = cross_view(lambda i: View(np.roll(photos[i], 3 * i, axis=1), depths[i], cameras[i]), near)
    assert np.mean([pair.distance for pair in moved]) > found["near"][0]
    # behind a wall that only one of them sees nothing is compared
    blocked = [depths[0], *[np.full_like(depth, 0.5) for depth in depths[1:]]]
    hidden = cross_view(lambda i: View(photos[i], blocked[i], cameras[i]), [(0, 1)])[0]
    assert math.isnan(hidden.distance) and hidden.share < 0.05


def test_at_the_border_of_what_is_seen_a_cell_is_looked_up_where_its_seen_pixels_are(texture: np.ndarray) -> None:
    """On a map that holds where it is itself."""
    cameras = camera_at(0), camera_at(0.53)
    one, two = (View(wall_seen(texture, c), wall_depth(c)[1].astype(np.float32), c) for c in cameras)
    places, seen = correspondence(one, two)
    rows, columns = HEIGHT // 16, WIDTH // 16
    x_of_cells = (2 * np.arange(columns) + 1) / columns - 1
    ramp = torch.from_numpy(np.tile(x_of_cells, (rows, 1)).astype(np.float32))[None, None]
    grid, weights = torch.from_numpy(places).permute(2, 0, 1)[None], torch.from_numpy(seen)[None, None].float()
    found = _sampled(ramp, grid, weights)[0, 0].numpy()
    cells = [
        (r, c, slice(16 * r, 16 * r + 16), slice(16 * c, 16 * c + 16)) for r in range(rows) for c in range(columns)
    ]
    shares = [seen[y, x].mean() for _, _, y, x in cells]
    assert any(0 < share < 0.9 for share in shares)
    for (r, c, y, x), share in zip(cells, shares, strict=True):
        if share:
            expected = places[y, x, 0][seen[y, x]].mean()
            assert found[r, c] == pytest.approx(np.clip(expected, x_of_cells[0], x_of_cells[-1]), abs=1e-4)


def test_a_pose_error_is_the_larger_of_turn_and_direction() -> None:
    cameras = [camera_at(0), camera_at(1), camera_at(2, 0.1)]
    poses = {i: camera.camera_to_world.copy() for i, camera in enumerate(cameras)}
    world = camera_at(3, 0.7).camera_to_world
    moved = {i: world @ np.vstack([np.hstack([p[:3, :3], 5 * p[:3, 3:]]), [0, 0, 0, 1]]) for i, p in poses.items()}
    np.testing.assert_allclose(pose_errors(cameras, moved), 0, atol=1e-5)  # another world, at another scale
    assert pose_auc(pose_errors(cameras, moved)) == 1
    turned = {**poses, 2: camera_at(2, 0.1 + np.radians(2.5)).camera_to_world}
    np.testing.assert_allclose(pose_errors(cameras, turned), [0, 2.5, 2.5], atol=1e-4)
    assert pose_auc(pose_errors(cameras, turned)) == pytest.approx((1 / 3 + 1 / 3 + 1 + 1 + 1) / 5)
    aside = poses[2].copy()
    aside[1, 3] = 2 * np.tan(np.radians(4))
    np.testing.assert_allclose(pose_errors(cameras, {**poses, 2: aside})[1], 4, atol=0.05)
    assert np.isinf(pose_errors(cameras, {0: poses[0], 1: poses[1]})).sum() == 2


def test_cameras_are_found_from_views_of_one_scene_alone() -> None:
    """The worse views fit together, the fewer pairs of cameras are found as they were."""
    frames = [frame for frame in load_scene("sample:room", 240).frames if "train" in frame.name][:6]
    photos, cameras = [load_photo(frame) for frame in frames], [frame.camera for frame in frames]
    rng = np.random.default_rng(0)
    height, width = photos[0].shape[:2]
    waves = [cv2.GaussianBlur(rng.normal(size=(height, width, 2)).astype(np.float32), (0, 0), 20) for _ in photos]
    waves = [wave / np.abs(wave).max() for wave in waves]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    aucs = []
    for pixels in (0, 4, 20):  # each view is warped in a way of its own
        bent = [
            cv2.remap(one, x + pixels * wave[..., 0], y + pixels * wave[..., 1], cv2.INTER_LINEAR,
                      borderMode=cv2.BORDER_REPLICATE)
            for one, wave in zip(photos, waves, strict=True)
        ]  # fmt: skip
        aucs.append(pose_auc(pose_errors(cameras, found_poses(bent, cameras))))
    assert aucs[0] > 0.9 and aucs[0] > aucs[1] > aucs[2]


def test_cameras_are_found_anew_from_each_variant(run: Path) -> None:
    """With a finder that knows the cameras but for one."""

    def all_but_one(images: Iterable[np.ndarray], cameras: Sequence[Camera]) -> dict[int, np.ndarray]:
        assert all(
            image.shape == (camera.height, camera.width, 3) for image, camera in zip(images, cameras, strict=True)
        )
        return {i: camera.camera_to_world for i, camera in enumerate(cameras[1:], start=1)}

    found = evaluate_run(run, plan=Plan(("psnr", "pose_auc"), find_poses=all_but_one))
    count = found["images"]
    expected = (count - 1) * (count - 2) / (count * (count - 1))
    assert count >= 3 and found["results"]["plain"]["pose_auc"] == found["reference"]["pose_auc"] == expected
    assert "not placed counting as wrong" in found["protocol"]["pose_auc"]


def test_a_run_is_compared_across_its_views(two_paths: tuple[Path, Path, Path], run: Path, tmp_path: Path) -> None:
    from difixcli.reconstruction import Reconstruction

    scene, ours, both = two_paths
    found = evaluate_run(ours, plan=Plan(("psnr", "cross_view"), geometry=[both]))
    loaded = load_scene(str(scene))
    seen = Reconstruction.load(both, loaded, None, "cpu")
    frames = [loaded.frames[i] for i in make_split(loaded, "names:train=frame_1_,test=frame_2_").test]

    def view(i: int) -> View:
        return View(load_photo(frames[i]), seen.render(frames[i].camera).depth, frames[i].camera)

    expected = np.nanmean([pair.distance for pair in cross_view(view, path_pairs(len(frames), 1))])
    assert found["reference"]["cross_view"] == pytest.approx(expected, rel=0.02)  # its photos have 8 bits
    assert found["results"]["plain"]["cross_view"] != found["reference"]["cross_view"]
    assert "both, on all photos" in found["protocol"]["cross_view"] and "256" in found["protocol"]["cross_view_far"]
    assert "the run's own" in evaluate_run(ours, plan=Plan(("cross_view",)))["protocol"]["cross_view"]
    bare = make_run(tmp_path / "bare", scene, "names:train=frame_1_,test=frame_2_")
    with pytest.raises(InputError, match="--geometry"):
        evaluate_runs([ours, bare], Plan(("cross_view",)))
    with pytest.raises(InputError, match="reconstruction"):
        evaluate_run(run, plan=Plan(("cross_view",)))


def test_nerfbusters_wants_two_paths(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs two camera paths"):
        evaluate_run(run, plan=Plan(("psnr",), protocol=parse_protocol("nerfbusters")), work=tmp_path)


def test_names_that_are_none_are_answered_with_near_ones() -> None:
    assert parse_metrics("lpips-vgg, PSNR,psnr") == ("psnr", "lpips_vgg")
    for text, message in (
        ("psrn", "did you mean psnr"),
        ("cross-vieww", "called cross-vieww; .* cross-view"),
        (" , ", "names no figure"),
    ):
        with pytest.raises(InputError, match=message):
            parse_metrics(text)
    for text, message in (
        ("nerfbuster", "did you mean nerfbusters"),
        ("sparse", "as in sparse:3"),
        ("sparse:4", "every:4|name every:N"),
        ("every:1", "at least 2"),
        ("rds:2", "takes no argument"),
    ):
        with pytest.raises(InputError, match=message):
            parse_protocol(text)


def test_masks_of_a_folder_count_for_folders_too(run: Path, tmp_path: Path) -> None:
    pair = (run / "renders/plain", run / "renders/truth")
    stems = [path.stem for path in pair[1].glob("*.png")]
    for stem in stems:
        half = np.zeros((HEIGHT, WIDTH), np.float32)
        half[:, :30] = 1
        write_image(tmp_path / "masks" / f"{stem}.png", half)
    found = evaluate_folders(*pair, plan=Plan(("psnr",), masks=tmp_path / "masks"))
    assert found["results"] != evaluate_folders(*pair, plan=QUICK)["results"]
    assert found["conditions"]["mask"] == "masks of masks"
    write_image(tmp_path / "masks" / f"{stems[0]}.png", np.ones((9, 9)))
    with pytest.raises(InputError, match="9×9"):
        evaluate_folders(*pair, plan=Plan(("psnr",), masks=tmp_path / "masks"))
    with pytest.raises(InputError, match="holds no mask"):
        evaluate_folders(*pair, plan=Plan(("psnr",), masks=tmp_path / "none"))
    write_image(tmp_path / "jpegs" / f"{stems[0]}.jpg", np.ones((HEIGHT, WIDTH)))  # would not be read
    with pytest.raises(InputError, match="holds no mask"):
        evaluate_folders(*pair, plan=Plan(("psnr",), masks=tmp_path / "jpegs"))
    for plan, message in ((Plan(("tsed",)), "poses"), (Plan(("psnr",), protocol=DL3DV), "split")):
        with pytest.raises(InputError, match=message):
            evaluate_folders(*pair, plan=plan)
    with pytest.raises(InputError, match="two files or two folders"):
        evaluate_folders(pair[0] / f"{stems[0]}.png", pair[1], plan=QUICK)


def test_a_view_without_ssim_does_not_take_the_mean_away(run: Path, tmp_path: Path) -> None:
    pair = (run / "renders/plain", run / "renders/truth")
    first = min(path.stem for path in pair[1].glob("*.png"))
    border = np.zeros((HEIGHT, WIDTH), np.float32)
    border[:, :3] = 1
    write_image(tmp_path / f"{first}.png", border)
    found = evaluate_folders(*pair, plan=Plan(("psnr", "ssim"), masks=tmp_path))
    each = [figures["ssim"] for figures in found["per_image"]["images"].values()]
    assert np.isnan(each[0]) and np.isfinite(each[1:]).all() and len(each) > 2
    assert found["results"]["ssim"] == pytest.approx(np.mean(each[1:]))
    assert found["std"]["ssim"] == pytest.approx(np.std(each[1:]))
    assert found["std"]["psnr"] > 0


def test_where_every_view_is_wholly_masked_that_is_said(
    run: Path, two_paths: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    pair = (run / "renders/plain", run / "renders/truth")
    for path in pair[1].glob("*.png"):
        write_image(tmp_path / "black" / path.name, np.zeros((HEIGHT, WIDTH)))
    with pytest.raises(InputError, match=r"Every view is wholly masked by .*black; white in a mask is what counts"):
        evaluate_folders(*pair, plan=Plan(("psnr",), masks=tmp_path / "black"))
    with pytest.raises(InputError, match="Every view is wholly masked"):
        evaluate_run(run, plan=Plan(("psnr",), masks=tmp_path / "black"))
    _, own, both = two_paths
    plan = Plan(("psnr",), protocol=parse_protocol("nerfbusters"), geometry=[both])
    evaluate_run(own, plan=plan, work=tmp_path)
    for path in (tmp_path / "visibility").glob("*.png"):
        write_image(tmp_path / "unseen" / path.name, 1 - read_image(path))
    with pytest.raises(InputError, match=r"No training photo sees a pixel .*unseen leaves white.* nerfbusters"):
        evaluate_run(own, plan=replace(plan, masks=tmp_path / "unseen"), work=tmp_path)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_folders_are_measured_upright(texture: np.ndarray, tmp_path: Path, suffix: str) -> None:
    """As `difix fix` writes what it was given."""
    truth = wall_seen(texture, camera_at(0))
    write_image(tmp_path / "fixed/a.png", truth)
    (tmp_path / "photos").mkdir()
    turned = Image.fromarray((truth * 255 + 0.5).astype(np.uint8)).transpose(Image.Transpose.ROTATE_90)
    tags = Image.Exif()
    tags[0x0112] = 6
    turned.save(tmp_path / f"photos/a.{suffix}", exif=tags, **({"quality": 98} if suffix == "jpg" else {}))
    found = evaluate_folders(tmp_path / "fixed", tmp_path / "photos", plan=QUICK)
    assert found["results"]["psnr"] > 25 and found["conditions"]["size"] == f"{WIDTH}×{HEIGHT} pixels"
    same = evaluate_folders(tmp_path / "photos", tmp_path / "photos", plan=QUICK)
    assert same["results"]["psnr"] == math.inf
    page = write_report(same, tmp_path / "report.html", "turned").read_text(encoding="utf-8")
    assert f"{WIDTH}×{HEIGHT} pixels" in page and f'width="{WIDTH}" height="{HEIGHT}"' in page
    left = np.zeros((HEIGHT, WIDTH))
    left[:, :30] = 1
    write_image(tmp_path / "masks/a.png", left)
    evaluate_folders(tmp_path / "fixed", tmp_path / "photos", plan=Plan(("psnr",), masks=tmp_path / "masks"))


def test_views_of_alternating_sizes_have_no_consistency(tmp_path: Path) -> None:
    """It is left out unless asked for."""
    for i in range(4):
        for part in ("truth", "plain"):
            write_image(tmp_path / "renders" / part / f"{i}.png", np.full((40 + i % 2, 48, 3), 0.5))
    keys, _ = suggested_metrics([tmp_path])
    assert "warped" not in keys and "psnr" in keys
    evaluate_run(tmp_path, plan=Plan(tuple(key for key in keys if key in ("psnr", "ssim"))))
    with pytest.raises(InputError, match="of one size"):
        evaluate_run(tmp_path, plan=Plan(("warped",)))


def test_an_enhanced_folder_is_a_folder_of_images(run: Path, tmp_path: Path) -> None:
    """Although it has a folder renders: of the frames before the fix."""
    for path in (run / "renders/plain").glob("*.png"):
        write_image(tmp_path / path.name, read_image(path))
        write_image(tmp_path / "renders" / path.name, read_image(path))
    (tmp_path / "run.json").write_text(json.dumps({"command": "enhance"}))
    assert not is_run(tmp_path) and is_run(run)


def test_a_path_that_only_the_truth_follows_has_its_chart() -> None:
    """Renders that are not all there have no consecutive pairs; the true photos have."""
    pairs = [{"from": f"v{i}", "to": f"v{i + 1}", "warped": 0.01 * (i + 1)} for i in range(3)]
    charts = _path_charts({"pairs": {TRUTH: pairs}}, ["plain"], [], None)
    assert len(charts) == 1 and "v0" in charts[0] and "v3" in charts[0]


def test_a_run_that_was_measured_by_jobs_is_still_a_run(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", IMPORT_PATH)
    own = Path(shutil.copytree(run, tmp_path / "own"))
    for path in (own / "renders/truth").glob("*.png"):
        shutil.copy(path, own / "renders/plain")  # whose PSNR is infinite, which JSON does not have
    quick = ["--metrics", "psnr", "--json"]
    by_jobs = told(difix(own, *quick, "--cluster", "local", "--wait", "-o", tmp_path / "by-jobs"))
    assert (tmp_path / "by-jobs" / "jobs").is_dir() and not (own / "jobs").exists()
    again = told(difix(own, *quick, "-o", tmp_path / "again"))
    assert by_jobs["results"] == again["results"] and by_jobs["results"]["plain"]["psnr"] is None
    tables = [(tmp_path / name / "eval.csv").read_text() for name in ("by-jobs", "again")]
    assert all(re.search(r"plain,mean,,inf", table) for table in tables)


def test_figures_that_are_not_finite_come_back_from_a_file(run: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(run, tmp_path / "own"))
    for i, path in enumerate(sorted((own / "renders/truth").glob("*.png"))):
        shutil.copy(path, own / "renders/distilled")
        border = np.zeros((HEIGHT, WIDTH))
        border[:, : 3 if i else WIDTH] = 1
        write_image(own / "renders/mask" / path.name, border)
    found = evaluate_run(own, plan=Plan(("psnr", "ssim"), "affine"))
    write_json(tmp_path / "eval.json", found, sort_keys=False)
    again = read_evaluated(tmp_path / "eval.json")
    assert again["results"]["distilled"]["psnr"] == math.inf and math.isnan(again["std"]["distilled"]["psnr"])
    assert repr(again) == repr(found) and again["results"]["distilled"]["cc_psnr"] > 60
    over = over_scenes({"a": again, "b": evaluate_run(run, plan=Plan(("psnr", "ssim"), "affine"))})
    assert over["results"]["distilled"]["psnr"] < 60 and over["fewer"]["distilled"]["psnr"] == 1
    write_report({**over, "scenes": {"a": again}}, tmp_path / "report.html", "again")
    write_json(tmp_path / "eval.json", {**found, "results": 3})
    with pytest.raises(InputError, match=r"eval\.json .*results.*measure again"):
        read_evaluated(tmp_path / "eval.json")


def test_a_job_of_eval_is_done_when_its_figures_are_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits for it reads them at once."""
    from difixcli.cluster.jobs import Jobs
    from difixcli.cluster.worker import JOB

    Jobs(tmp_path).add({"wall": ["eval"]})
    states = []

    def written(*_: object) -> Path:
        states.append(Jobs(tmp_path).read("wall").state)  # type: ignore[union-attr]
        return tmp_path / "report.html"

    monkeypatch.setattr("difixcli.evaluation.report.write_report", written)
    monkeypatch.setenv(JOB, f"{tmp_path}:wall")
    told(difix(run, "--metrics", "psnr", "--json", "-o", tmp_path / "out"))
    assert states == ["running"] and Jobs(tmp_path).read("wall").state == "done"  # type: ignore[union-attr]


def test_runs_of_one_scene_share_a_table(run: Path, scene: Path, tmp_path: Path) -> None:
    better = make_run(tmp_path / "b", scene, "every:4", 1, plain=0.1, distilled=0.02, enhanced=0.01)
    found = evaluate_runs([run, better], Plan(("psnr", "warped")))
    assert list(found["results"]) == ["a plain", "a distilled", "b plain", "b distilled", "b enhanced"]
    alone = evaluate_run(better, plan=Plan(("psnr", "warped")))
    assert found["results"]["b enhanced"] == alone["results"]["enhanced"]
    assert set(found["rounds"]) == {"a", "b"} and found["images"] == 6
    page = write_report(found, tmp_path / "report.html", "a and b").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 6 * (1 + 2 * 5)
    with pytest.raises(InputError, match="two different runs"):
        evaluate_runs([run, run], QUICK)


def test_runs_that_differ_are_not_compared(run: Path, scene: Path, texture: np.ndarray, tmp_path: Path) -> None:
    def refused(change: Any, message: str) -> None:
        other = tmp_path / "other"
        shutil.rmtree(other, ignore_errors=True)
        shutil.copytree(run, other)
        change(other / "renders")
        with pytest.raises(InputError, match=message):
            evaluate_runs([run, other], QUICK)

    with pytest.raises(InputError, match="every:4 and every:2"):
        evaluate_runs([run, make_run(tmp_path / "half", scene, "every:2")], QUICK)

    def without_one(renders: Path) -> None:
        for folder in renders.iterdir():
            (folder / "images-003.png").unlink()

    def smaller(renders: Path) -> None:
        for path in renders.glob("*/*.png"):
            Image.open(path).resize((48, 32)).save(path)

    def other_photo(renders: Path) -> None:
        write_image(renders / "truth/images-005.png", wall_seen(texture, camera_at(1.0)))

    def masked(renders: Path) -> None:
        write_image(renders / "mask/images-005.png", np.ones((HEIGHT, WIDTH)))

    refused(without_one, r"Only .*a shows images-003;")
    refused(smaller, r"images-001 at 96×64 pixels, .*48×32")
    refused(other_photo, r"images-005\.png are different photos")
    refused(masked, "different masks of images-005")


def test_scenes_have_a_mean_and_a_spread(run: Path, texture: np.ndarray, scene: Path, tmp_path: Path) -> None:
    other = make_scene(tmp_path / "second", texture, {f"{i}.png": 1 + 0.1 * i for i in range(5)})
    runs = [run, make_run(tmp_path / "c", other, "every:2", plain=0.2, distilled=0.1, enhanced=0.1)]
    found = evaluate_runs(runs, Plan(("psnr", "tsed")))
    assert list(found["scenes"]) == ["wall", "second"] and list(found["results"]) == ["plain", "distilled"]
    assert found["partial"] == ["enhanced"]
    means = [found["scenes"][name]["results"]["plain"]["psnr"] for name in found["scenes"]]
    assert found["results"]["plain"]["psnr"] == pytest.approx(np.mean(means))
    assert found["std"]["plain"]["psnr"] == pytest.approx(np.std(means)) and np.std(means) > 2
    assert "wall: every:4; second: every:2" in found["conditions"]["split"]
    page = write_report(found, tmp_path / "report.html", "two").read_text(encoding="utf-8")
    assert "Mean over scenes" in page and "Not in every scene: enhanced" in page
    # several runs a scene go by what differs
    seeds = [*runs, make_run(tmp_path / "d", scene, "every:4", 1), make_run(tmp_path / "e", other, "every:2", 1)]
    names = row_names([RunFolder.read(one) for one in seeds])
    assert names == ["seed 0", "seed 0", "seed 1", "seed 1"]
    assert "seed 1 distilled" in evaluate_runs(seeds, QUICK)["results"]


def test_a_scene_without_ssim_does_not_take_the_mean_away(run: Path, texture: np.ndarray, tmp_path: Path) -> None:
    other = make_scene(tmp_path / "second", texture, {f"{i}.png": 1 + 0.1 * i for i in range(4)})
    masked = make_run(tmp_path / "c", other, "every:2")
    border = np.zeros((HEIGHT, WIDTH), np.float32)
    border[:, :3] = 1
    for path in (masked / "renders/truth").glob("*.png"):
        write_image(masked / "renders/mask" / path.name, border)
    found = evaluate_runs([run, masked], Plan(("psnr", "ssim")))
    first = found["scenes"]["wall"]["results"]["plain"]
    assert math.isnan(found["scenes"]["second"]["results"]["plain"]["ssim"])
    assert found["results"]["plain"]["ssim"] == first["ssim"] and found["std"]["plain"]["psnr"] > 0
    assert found["fewer"] == {"plain": {"ssim": 1}, "distilled": {"ssim": 1}}
    assert "own (plain of 1 of 2, distilled of 1 of 2 that have a finite one)" in found["protocol"]["ssim"]
    assert found["protocol"]["psnr"].endswith("own")
    said = difix(run, masked, "--metrics", "psnr,ssim", "-o", tmp_path / "out")
    assert "SSIM of plain: 1 of 2 scenes has a finite one, and the mean is over these." in " ".join(said.stderr.split())


def test_rows_go_by_what_a_person_chose(tmp_path: Path) -> None:
    """Words, not settings: what was left alone, or follows from what is said, is not there."""

    def made(scene: str, name: str, **changes: Any) -> RunFolder:
        schedule = {"kind": "progressive", "photos": 900, "rounds": 5, "every": 120, "step": None, "share": 0.5}
        schedule |= changes.pop("schedule", {})
        arguments = {"scene": f"/data/{scene}", "split": "every:4", "size": None, "method": "splatfacto", "seed": 0}
        arguments |= {"fixer": "bundled", "preset": "cpu", "overrides": [], "start": None, "guard": True}
        arguments |= {"targets": ["test"], "schedule": schedule, **changes}
        return RunFolder(tmp_path / scene / name, {"arguments": arguments}, {})

    once = {"kind": "one-shot", "rounds": 1, "every": 600, "step": None}
    none = {"kind": "none", "photos": 1500, "rounds": 0, "every": 0, "step": None, "share": 0.0}
    runs = [
        made(scene, name, **changes)
        for scene in ("a", "b")
        for name, changes in (
            ("1", {"size": 640 if scene == "a" else None}),
            ("2", {"size": 640 if scene == "a" else None, "schedule": once}),
            ("3", {"size": 640 if scene == "a" else None, "schedule": none}),
        )
    ]
    assert row_names(runs) == ["progressive", "one-shot", "no rounds"] * 2
    methods = [made(scene, m, method=m, schedule={"photos": n}) for scene in "ab" for m, n in (("x", 9), ("y", 600))]
    assert row_names(methods) == ["x", "y"] * 2
    fixers = [made(scene, f[-3:], fixer=f) for scene in "ab" for f in ("bundled", "/a/fixers/one", "/b/one")]
    assert row_names(fixers) == ["fixer bundled", "fixer fixers/one", "fixer b/one"] * 2
    longer = [made(scene, str(n), schedule={"photos": n}, guard=n == 9) for scene in "ab" for n in (9, 99)]
    assert row_names(longer) == ["609 iterations", "699 iterations"] * 2
    options = [made("a", "1"), made("a", "2", overrides=["pipeline.model.sh_degree=1"]), made("b", "1")]
    assert row_names(options) == ["", "sh_degree=1", ""]
    # runs of one scene go by their folders, unless difix has named them by the time
    assert row_names(runs[:2]) == ["1", "2"]
    times = [
        made("a", "2026-01-02_030405"),
        made("a", "2026-01-02_030406", seed=1),
        made("a", "2026-01-02_030407", seed=1),
    ]
    assert row_names(times) == ["seed 0", "seed 1, 2026-01-02_030406", "seed 1, 2026-01-02_030407"]


def test_a_long_runs_report_stays_small(texture: np.ndarray, tmp_path: Path) -> None:
    truth = wall_seen(texture, camera_at(0))
    for i in range(40):
        write_image(tmp_path / f"run/renders/truth/{i:03d}.png", truth)
        write_image(tmp_path / f"run/renders/plain/{i:03d}.png", noisy(truth, 0.01 * (i + 1), i))
    found = evaluate_run(tmp_path / "run", plan=QUICK)
    page = write_report(found, tmp_path / "report.html", "long").read_text(encoding="utf-8")
    assert page.count("<h3>") == 24 and page.count("data:image/jpeg;base64,") == 24 * 3
    assert "24 of 40 views have pictures, by PSNR of plain: the 16 worst and the 8 best" in page
    shown = re.findall(r"<h3>(\d+)</h3>", page)
    assert shown == [f"{i:03d}" for i in [*range(39, 23, -1), *range(8)]]


def test_poses_that_are_not_there_are_said_to_be(run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    record = json.loads((moved / "run.json").read_text())
    record["arguments"]["scene"] = str(tmp_path / "gone")
    (moved / "run.json").write_text(json.dumps(record))
    metrics, left_out = suggested_metrics([moved])
    assert "tsed" not in metrics and "warped" in metrics and "gone, which is not there" in left_out
    with pytest.raises(InputError, match="its poses are needed"):
        evaluate_run(moved, plan=Plan(("tsed",)))
    (moved / "run.json").unlink()
    with pytest.raises(InputError, match=r"no run\.json that names its scene"):
        evaluate_run(moved, plan=Plan(("psnr",), protocol=DL3DV))
    for path in (run / "renders").glob("*/images-001.png"):
        (moved / path.relative_to(run)).unlink()
    shutil.copy(run / "run.json", moved / "run.json")
    with pytest.raises(InputError, match="changed since"):
        evaluate_run(moved, plan=Plan(("tsed",)))


def difix(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


def test_the_command_compares_and_refuses(run: Path, scene: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "b", scene, "every:4", 1)
    out = tmp_path / "out"
    done = difix(run, other, "--metrics", "psnr,warped", "--output", out, "--json")
    assert done.exit_code == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert set(said["results"]) == {"a plain", "a distilled", "b plain", "b distilled"}
    assert "split: every:4" in done.stderr and Path(said["report"]).is_file()
    assert "enhanced is" not in done.stderr
    both = make_run(tmp_path / "c", scene, "every:4", 1, distilled=0.05, enhanced=0.04)
    for runs in ([both], [run, both]):  # which of the two rows to prefer is said where both are
        assert "enhanced is" in difix(*runs, "--metrics", "psnr", "--output", tmp_path / f"{len(runs)}").stderr
    held = json.loads((out / "eval.json").read_text())
    rows = list(csv.DictReader((out / "eval.csv").open(encoding="utf-8")))
    images = [row for row in rows if row["statistic"] == "image" and row["variant"] == "b plain"]
    assert len(images) == 6 and all("every:4" in row["protocol"] for row in rows)
    mean = next(row for row in rows if row["statistic"] == "mean" and row["variant"] == "b plain")
    assert float(mean["psnr"]) == pytest.approx(held["results"]["b plain"]["psnr"], rel=1e-5)
    assert float(mean["psnr"]) == pytest.approx(np.mean([float(row["psnr"]) for row in images]), rel=1e-4)
    pair = (run / "renders/plain", run / "renders/truth")
    folders = difix(*pair, "--metrics", "psnr", "--color-correct", "affine", "--output", tmp_path / "pair", "--json")
    assert set(json.loads(folders.stdout.splitlines()[-1])["results"]) == {"psnr", "cc_psnr"}
    (tmp_path / "empty/renders/truth").mkdir(parents=True)
    for arguments, message in (
        ((run, pair[1]), "is no run"),
        ((pair[0],), "is no run"),
        ((tmp_path / "empty",), "finish the run"),
        ((run, "--protocol", "dl3v"), "did you mean dl3dv"),
        ((run, "--metrics", "ssmi"), "did you mean ssim"),
        ((run, "--color-correct", "linear"), "affine and quadratic"),
        ((run, "--masks", tmp_path / "nothing"), "There is no"),
        ((run, "--inception", run / "run.json"), "--metrics names fid"),
    ):
        refused = difix(*arguments)
        assert refused.exit_code == 2 and message in refused.stderr.replace("\n", " "), refused.stderr
        assert "Traceback" not in refused.stderr


def test_charts_hold_what_they_are_given() -> None:
    chart = line_chart("<t>", {"a": [(1, 2.0), (2, 4.0)], "b & c": [(1, math.nan), (2, 3.0)]}, "round")
    assert (
        chart.count("<polyline") == 2 and chart.count("<circle") == 3 and "b &amp; c" in chart and "&lt;t&gt;" in chart
    )
    assert line_chart("none", {"a": [(0, math.inf)]}, "x") == ""
    flat = line_chart("flat", {"a": [(3, 5.0)]}, "x")
    assert "nan" not in flat and "inf" not in flat
