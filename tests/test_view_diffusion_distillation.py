"""Scenes from few photos: cameras around them, mode seeking, whole runs at toy size, views by networks alone."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import difix, refused, told

from difixcli.distillation.few_photos import known_scene
from difixcli.distillation.prior import Context
from difixcli.distillation.seeking import SEEK, Seeking, bootstrapped, highest_level
from difixcli.distillation.view_diffusion_prior import ViewDiffusionPrior, mode_weight, weighted
from difixcli.errors import InputError
from difixcli.novel_views import NovelViews
from difixcli.priors.view_diffusion.denoising import NoiseSchedule, denoised
from difixcli.priors.view_diffusion.epipolar import EpipolarConfig
from difixcli.priors.view_diffusion.model import ViewDiffusion, new_small_view_diffusion
from difixcli.reconstruction import Reconstruction, reconstruction
from difixcli.runs import read_image
from difixcli.scenes import Camera, Scene, load_photo, load_scene, make_split
from difixcli.scenes.camera_files import read_cameras
from difixcli.scenes.poses import look_at
from difixcli.scenes.ring import ELEVATION, around

SIZE = 32
TOY: tuple[object, ...] = (
    "--prior",
    "view-diffusion",
    "--split",
    "groups:2",
    "--size",
    SIZE,
    "--further",
    18,
    "--rounds",
    3,
)
TOY += ("--targets", "around:2", "--reuse", 2, "--denoise-steps", 3, "--set", "max_gaussians=300", "--json")
ROWS = ["plain", "eft", "vldm", "mean", "distilled"]


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small networks of random weights."""
    epipolar = EpipolarConfig(features=8, width=8, view_layers=1, ray_layers=1, depths=6, mending=8)
    shape = {"vae_channels": (8, 16), "latent_channels": 4, "unet_channels": (16, 32), "condition_channels": 8}
    made = new_small_view_diffusion(0, size=SIZE, epipolar=epipolar, **shape)
    return made.save_pretrained(tmp_path_factory.mktemp("networks") / "tiny")


@pytest.fixture(scope="session")
def compared(arc: Path, networks: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("compared") / "run"
    line = ["distill", arc, *TOY, "--view-diffusion", networks, "--compare", "--method", "splatfacto"]
    return folder, told(difix(*line, "-o", folder))


def _cameras(angles: list[float], radius: float = 2.0, height: float = 0.4) -> list[Camera]:
    """On a level circle about the origin's vertical, looking at the origin."""
    places = [np.array([radius * np.cos(a), radius * np.sin(a), height]) for a in angles]
    return [Camera(look_at(p, np.zeros(3), np.array([0, 0, 1.0])), 40, 40, 16, 12, 32, 24) for p in places]


@pytest.mark.parametrize("count", [2, 3, 8])
def test_cameras_around_photos_stand_on_their_circle(count: int) -> None:
    span = 0.9 if count < 8 else 2 * np.pi * 7 / 8
    made = around(_cameras(np.linspace(0.2, 0.2 + span, count).tolist()), 40)
    found = np.array([camera.position for camera in made])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), math.hypot(2, 0.4), rtol=1e-3)
    raised = np.arcsin(found[:, 2] / np.linalg.norm(found, axis=1)) - np.arctan2(0.4, 2)
    assert np.abs(raised).max() < ELEVATION + 1e-3 and raised.std() > 0.05
    for camera in made:
        forward = -camera.camera_to_world[:3, 2]
        np.testing.assert_allclose(np.cross(forward, -camera.position), 0, atol=1e-2)
    angles = np.arctan2(found[:, 1], found[:, 0])
    if count < 8:  # beyond the photos by a quarter of their arc, no farther
        assert angles.min() == pytest.approx(0.2 - 0.225, abs=0.01)
        assert angles.max() == pytest.approx(1.1 + 0.225, abs=0.01)
    else:
        assert np.diff(np.sort(angles)).max() < 0.2


def test_cameras_in_a_row_that_face_one_way_have_no_circle_but_an_arc() -> None:
    towards = np.array([0, 4.0, 0])
    row = [Camera(look_at(np.array([x, 0, 0.0]), towards, np.array([0, 0, 1.0])), 40, 40, 16, 12, 32, 24)
           for x in (-0.5, 0, 0.5)]  # fmt: skip
    for camera in around(row, 12):
        # beyond the photos by 0.17 radians of a circle of radius 4
        assert abs(camera.position[0]) < 1.25 and camera.position[1] < 0.6
        assert camera.camera_to_world[2, 1] > 0.9  # up is up


def test_only_points_that_two_of_the_photos_saw_are_known(arc: Path) -> None:
    scene = load_scene(str(arc), SIZE)
    split = make_split(scene, "groups:2")
    if scene.tracks is None:
        assert len(scene.points) and not len(known_scene(scene, split).points)
    sample = load_scene("sample:room", SIZE)
    split = make_split(sample, "groups:2")
    assert sample.tracks is not None
    known = known_scene(sample, split)
    assert 0 < len(known.points) < len(sample.points)
    assert known.tracks is not None and (known.tracks.counts(split.train) == 2).all()
    assert not len(known_scene(replace(sample, tracks=None), split).points)


class Mixture(NovelViews):
    """A density of pictures that is known: two of them, each blurred by Gaussian noise of s = 0.05."""

    def __init__(self, means: torch.Tensor, shares: torch.Tensor) -> None:
        self.means, self.shares, self.schedule = means, shares, NoiseSchedule()

    def denoised(
        self, camera: Camera, render: np.ndarray, level: float, seed: int, steps: int
    ) -> tuple[np.ndarray, float]:
        alphas = self.schedule.alphas()
        start = self.schedule.timestep(level)
        noise = torch.randn(render.shape, generator=torch.Generator().manual_seed(seed))
        alpha = float(alphas[start])
        noisy = math.sqrt(alpha) * torch.from_numpy(render) + math.sqrt(1 - alpha) * noise

        def velocity(latents: torch.Tensor, time: int) -> torch.Tensor:
            a = float(alphas[time])
            spread = a * 0.05**2 + 1 - a
            apart = ((latents - math.sqrt(a) * self.means) ** 2).sum(dim=(1, 2, 3))
            owner = torch.softmax(self.shares.log() - apart / (2 * spread), dim=0)
            drawn = self.means + math.sqrt(a) * 0.05**2 / spread * (latents - math.sqrt(a) * self.means)
            clean = (owner[:, None, None, None] * drawn).sum(dim=0, keepdim=True)
            eps = (latents - math.sqrt(a) * clean) / math.sqrt(1 - a)
            return math.sqrt(a) * eps - math.sqrt(1 - a) * clean

        return denoised(noisy[None], start, velocity, self.schedule, steps, "plms")[0].numpy(), alpha


@pytest.mark.parametrize("seek", ["mode", "sds"])
@pytest.mark.parametrize(("pictures", "highest"), [(1, 0.99), (2, 0.4)])
def test_what_is_sought_is_a_mode_of_the_density(seek: str, pictures: int, highest: float) -> None:
    """Of one likely picture at all noise levels. From a blend of two the render goes to the nearer, where their mean is
    likely nowhere, at levels that still tell them apart: noised to nothing, either may come of it.
    """
    rng = np.random.default_rng(0)
    means = torch.from_numpy(rng.uniform(0.1, 0.9, (2, 6, 8, 3)).astype(np.float32))
    prior = _prior_of(Mixture(means[:pictures], torch.ones(pictures) / pictures), seek)
    camera = Camera(np.eye(4), 8, 8, 4, 3, 8, 6)
    render = (0.6 * means[0] + 0.4 * means[1]).numpy()
    prior.restore({"highest": highest, "cameras": {"a": _numbers_of(camera)}, "made": {}})
    torch.manual_seed(0)
    for _ in range(500):
        wanted = prior.refresh("a", render.copy)
        assert wanted.terms is not None and wanted.weight is None
        render = render - 0.15 * wanted.terms["l2"] * (render - wanted.image)  # along l2's gradient
    assert np.abs(render - means[0].numpy()).mean() < 0.02
    assert np.abs(render - means.mean(0).numpy()).mean() > 0.1


def _numbers_of(camera: Camera) -> list[float]:
    lens = [camera.fx, camera.fy, camera.cx, camera.cy, float(camera.width), float(camera.height)]
    return [*lens, *camera.camera_to_world.ravel().tolist()]


def _prior_of(novel: NovelViews, seek: str, reuse: int = 1) -> ViewDiffusionPrior:
    seeking = Seeking("known", seek, 1 if seek == "sds" else 20, reuse, False)
    scene: Scene = load_scene("sample:room", SIZE)
    terms = {"l2": 1.0, "perceptual": 0.1}
    return ViewDiffusionPrior(
        Context(None, scene, "cpu", 0, None, "all", 0.0, terms, novel_views=novel, seeking=seeking)
    )


def test_weights_levels_and_rounds() -> None:
    assert mode_weight("mode", 0.75) == 0.25 and mode_weight("sds", 0.75) == pytest.approx(math.sqrt(0.75 * 0.25))
    assert weighted({"l2": 2.0, "perceptual:1": 0.1}, 0.25) == {"l2": 0.5, "perceptual:1": 0.1}
    assert [bootstrapped(rounds) for rounds in (2, 3, 6, 9)] == [1, 1, 2, 3]
    plain, falling = (Seeking("bundled", "mode", 10, 1, anneal) for anneal in (False, True))
    assert {highest_level(plain, number, 6) for number in (3, 4, 5, 6)} == {0.99}
    levels = [highest_level(falling, number, 6) for number in (3, 4, 5, 6)]
    assert levels[0] == 0.99 and levels == sorted(levels, reverse=True) and levels[-1] == pytest.approx(0.198)


def test_one_estimate_serves_its_draws_and_comes_back_from_a_state() -> None:
    means = torch.rand(2, 6, 8, 3, generator=torch.Generator().manual_seed(0))
    camera = Camera(np.eye(4), 8, 8, 4, 3, 8, 6)
    prior = _prior_of(Mixture(means, torch.tensor([0.5, 0.5])), "mode", reuse=3)
    prior.restore({"highest": 0.99, "cameras": {"a": _numbers_of(camera)}, "made": {}})
    asked = []

    def render() -> np.ndarray:
        asked.append(1)
        return np.full((6, 8, 3), 0.5, np.float32)

    torch.manual_seed(1)
    first = prior.refresh("a", render).image
    again = _prior_of(Mixture(means, torch.tensor([0.5, 0.5])), "mode", reuse=3)
    again.restore(prior.state())
    for one in (prior, again):
        torch.manual_seed(2)
        images = [one.refresh("a", render).image for _ in range(3)]
        assert np.array_equal(images[0], first) and np.array_equal(images[1], first)
        assert not np.array_equal(images[2], first)
    assert len(asked) == 3


def test_the_rows_are_the_papers(compared: tuple[Path, dict]) -> None:
    folder, said = compared
    assert set(said["results"]) == set(ROWS)
    assert all(np.isfinite(list(figures.values())).all() for figures in said["results"].values())
    one = sorted((folder / "renders" / "truth").glob("*.png"))[0].name
    assert len({(folder / "renders" / row / one).read_bytes() for row in ROWS}) == len(ROWS)
    records = [json.loads((folder / "rounds" / f"{n:02d}" / "round.json").read_text()) for n in (1, 2, 3)]
    assert [record["views"][0]["fresh"] for record in records] == [False, True, True]
    assert records[0]["views"][0]["terms"] == {"method": 1.0}
    assert records[1]["views"][0]["terms"] == {"method": 1.0, "perceptual": 0.1}
    assert all(record["share"] == 0.5 for record in records)
    again = difix("eval", folder, "--metrics", "psnr", "--json")
    assert set(told(again)["results"]) == set(ROWS) and (folder / "report.html").stat().st_size > 10_000


def test_the_networks_rows_are_theirs(compared: tuple[Path, dict], arc: Path, networks: Path) -> None:
    folder, _ = compared
    scene = load_scene(str(arc), SIZE)
    split = make_split(scene, "groups:2")
    assert len(split.train) == 2
    novel = NovelViews(ViewDiffusion.from_pretrained(networks), known_scene(scene, split), split.train)
    i = split.test[0]
    shown = read_image(folder / "renders" / "eft" / f"{scene.file_names[i]}.png")
    assert shown.shape == load_photo(scene.frames[i]).shape
    assert np.abs(shown - novel.epipolar(scene.frames[i].camera)).max() < 1 / 255


@pytest.mark.parametrize("method", ["splatfacto", "nerfacto"])
def test_a_stopped_run_goes_on_to_the_same_bytes(
    method: str, arc: Path, networks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle of a round in which an x̂₀ serves several steps."""
    monkeypatch.setattr(reconstruction, "SAVE_EVERY", 0.0)
    own_setting = {"splatfacto": "max_gaussians=300", "nerfacto": "pipeline.datamanager.train_num_rays_per_batch=256"}
    toy = [own_setting[method] if word == own_setting["splatfacto"] else word for word in TOY]
    line = ["distill", arc, *toy, "--view-diffusion", networks, "--method", method, "-o"]
    told(difix(*line, tmp_path / "whole"))
    own = Reconstruction.save

    def stopped(self: Reconstruction, beside: object = None) -> Path:
        saved = own(self, beside)  # type: ignore[arg-type]
        if self.folder.name == "part" and self.step >= 15:
            raise KeyboardInterrupt
        return saved

    monkeypatch.setattr(Reconstruction, "save", stopped)
    assert difix(*line, tmp_path / "part").exit_code == 130
    assert not (tmp_path / "part" / "renders" / "distilled").exists()
    monkeypatch.setattr(Reconstruction, "save", own)
    told(difix(*line, tmp_path / "part"))
    whole, part = (
        {path.name: path.read_bytes() for path in (tmp_path / run / "renders" / "distilled").iterdir()}
        for run in ("whole", "part")
    )
    assert whole == part and len(whole) == 9


def test_photos_and_nothing_held_out(arc: Path, networks: Path, tmp_path: Path) -> None:
    """Targets have pictures, and nothing is measured."""
    names = tmp_path / "two.json"
    scene = load_scene(str(arc), SIZE)
    names.write_text(json.dumps({"train": [scene.frames[0].name, scene.frames[6].name], "test": []}))
    line = ["distill", arc, *TOY, "--view-diffusion", networks, "--split", f"file:{names}", "--seek", "sds"]
    line = [word for word in line if word not in ("--denoise-steps", 3, "--rounds", 2, "--reuse")] + ["--rounds", 2]
    said = told(difix(*line, "-o", tmp_path / "run"))
    assert not said["results"]
    assert len(list((tmp_path / "run" / "path" / "distilled").glob("around-*.png"))) == 2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--split", "groups:1"], "at least two photos"),
        (["--split", "groups:2", "--trust", "all"], "--trust says nothing to the prior view-diffusion"),
        (["--split", "groups:2", "--upscale", "2"], "--upscale belongs to --prior super-resolution"),
        (["--split", "groups:2", "--seek", "median"], "way of seeking called median"),
        (
            ["--split", "groups:2", "--seek", "sds", "--denoise-steps", "4"],
            "--denoise-steps says nothing to --seek sds",
        ),
        (["--split", "groups:2", "--seek", "mean", "--anneal"], "--anneal says nothing to --seek mean"),
        (["--split", "groups:2", "--rounds", "1"], "none is left"),
        (["--split", "groups:2", "--view-diffusion", "nowhere"], "no view-conditioned diffusion model called nowhere"),
        (["--split", "all", "--compare"], "leave --compare out"),
    ],
)
def test_what_cannot_be_is_said(words: list[str], sentence: str, arc: Path, networks: Path, tmp_path: Path) -> None:
    line = ["distill", arc, "--prior", "view-diffusion", "-o", tmp_path / "run"]
    trained = [] if "--view-diffusion" in words else ["--view-diffusion", networks]
    refused(difix(*line, *trained, *words), sentence)
    assert not (tmp_path / "run").exists()


def test_options_of_few_photos_belong_to_them(arc: Path, networks: Path) -> None:
    refused(difix("distill", arc, "--seek", "mode"), "--seek belongs to --prior view-diffusion")
    refused(difix("fix", arc, "--trajectory", "spiral"), "--trajectory belongs to --task novel-view")
    refused(difix("fix", arc, "--task", "novel-view", "--fixer", "x"), "--fixer says nothing to --task novel-view")
    refused(difix("fix", arc, "--task", "deblur"), "task called deblur")
    line = ["fix", arc, "--task", "novel-view", "--split", "groups:1"]
    refused(difix(*line, "--view-diffusion", networks), "at least two photos")
    for unread in (line, ["distill", arc, "--prior", "view-diffusion"]):
        refused(difix(*unread), "No trained view-conditioned diffusion model comes with this version")
    assert SEEK == ("mode", "sds", "mean")


def test_views_come_straight_from_the_networks(arc: Path, networks: Path, tmp_path: Path) -> None:
    line = ["fix", arc, "--task", "novel-view", "--split", "groups:2", "--view-diffusion", networks, "--size", SIZE]
    line += ["--denoise-steps", 2, "--json"]
    said = told(difix(*line, "-o", tmp_path / "test"))
    scene = load_scene(str(arc), SIZE)
    split = make_split(scene, "groups:2")
    assert said["results"]["frames"] == len(split.test) and said["results"]["video"] is None
    # the same view by a file of cameras, in the scene's own world
    i = split.test[2]
    held = json.loads((arc / "transforms.json").read_text())
    entry = next(one for one in held["frames"] if one["file_path"] == scene.frames[i].name)
    (tmp_path / "one.json").write_text(json.dumps({"transform_matrix": entry["transform_matrix"]}))
    told(difix(*line, "--camera", tmp_path / "one.json", "-o", tmp_path / "one"))
    for part in (".", "eft"):
        one = read_image(tmp_path / "one" / part / "camera-0000.png")
        other = read_image(tmp_path / "test" / part / f"{scene.file_names[i]}.png")
        assert np.abs(one - other).max() < 3 / 255
    said = told(difix(*line, "--trajectory", "spiral:3", "-o", tmp_path / "path"))
    assert said["results"]["frames"] == 3 and Path(said["results"]["side_by_side"]).stat().st_size > 500
    told(difix(*line, "--trajectory", "spiral:3", "-o", tmp_path / "path"))  # what is there is kept


@pytest.mark.parametrize(
    ("held", "sentence"),
    [
        ({"frames": []}, "holds no camera"),
        ({"frames": [{"pose": 1}]}, "no transform_matrix for camera 0"),
        ({"transform_matrix": [[1, 0], [0, 1]]}, "not 4×4"),
        ({"transform_matrix": np.eye(4).tolist(), "fl_x": 3}, "lacks fl_y, cx, cy, w, h"),
    ],
)
def test_files_of_cameras_that_are_none(held: dict, sentence: str, arc: Path, tmp_path: Path) -> None:
    scene = load_scene(str(arc), SIZE)
    (tmp_path / "cameras.json").write_text(json.dumps(held))
    with pytest.raises(InputError, match=sentence):
        read_cameras(tmp_path / "cameras.json", scene, scene.frames[0].camera)
