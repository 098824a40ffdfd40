"""Scenes from films between a few photos: ways, agreement, whole runs at toy size, and what cannot be."""

from __future__ import annotations

import json
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import difix, refused, told
from scipy.ndimage import gaussian_filter

from difixcli.console import progress
from difixcli.distillation.agreement import UNSEEN, agreements, brought, reprojected_difference
from difixcli.distillation.filming import Filming
from difixcli.distillation.schedule import make_schedule
from difixcli.distillation.settings import Settings
from difixcli.distillation.video import Filmed, own_terms
from difixcli.distillation.video_prior import MOST, believed
from difixcli.distillation.ways import Ways
from difixcli.errors import InputError
from difixcli.priors.video.span import Span
from difixcli.reconstruction import Reconstruction, reconstruction
from difixcli.runs import Run, read_image, write_image
from difixcli.scenes import Camera, Scene, load_photo, load_scene, make_split
from difixcli.scenes.ply import read_points, write_points
from difixcli.scenes.trajectories import path_order

SIZE = 48
TOY: tuple[object, ...] = ("--prior", "video", "--size", SIZE, "--further", 12, "--iterations", 6, "--frames", 4)
TOY += ("--set", "max_gaussians=300", "--json")


class Blended:
    """Films by hand: both photos, brought along the way through the renders' depths, nearer ones count more."""

    def film(self, span: Span, seed: int) -> np.ndarray:
        made, last = [], len(span.cameras) - 1
        for place, camera in enumerate(span.cameras):
            total, picture = np.full((*span.depth[place].shape, 1), 1e-3, np.float32), 1e-3 * span.renders[place]
            for end, photo, share in ((0, span.photos[0], 1 - place / last), (last, span.photos[1], place / last)):
                shown, seen = brought(photo, span.depth[end], span.cameras[end], span.depth[place], camera)
                picture = picture + (share * seen)[..., None] * shown
                total = total + (share * seen)[..., None]
            made.append(picture / total)
        return np.clip(np.stack(made), 0, 1).astype(np.float32)


class Watched(Blended):
    """Blended, which sees whether its earlier films are still held."""

    def __init__(self) -> None:
        self.films: list[weakref.ref[np.ndarray]] = []

    def film(self, span: Span, seed: int) -> np.ndarray:
        assert all(film() is None for film in self.films)
        made = super().film(span, seed)
        self.films.append(weakref.ref(made))
        return made


def test_a_place_at_a_pictures_very_edge_is_inside() -> None:
    """The last half pixel belongs to the last pixel."""
    camera = Camera(np.eye(4), 40.0, 40.0, 24.0, 24.0, 48, 48)
    shifted = Camera(np.eye(4), 40.0, 40.0, 24.5 - 1e-9, 24.5 - 1e-9, 48, 48)
    picture, depth = np.ones((48, 48, 3), np.float32), np.full((48, 48), 2.0, np.float32)
    shown, seen = brought(picture, depth, shifted, depth, camera)
    assert seen.all() and shown.min() == 1


@pytest.fixture(scope="module")
def split_file(arc: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three photos of the arc train, one between each two of them is measured."""
    names = [frame.name for frame in load_scene(str(arc), SIZE).frames]
    file = tmp_path_factory.mktemp("split") / "three.json"
    file.write_text(json.dumps({"train": [names[i] for i in (3, 5, 7)], "test": [names[i] for i in (4, 6)]}))
    return f"file:{file}"


@pytest.fixture(scope="module")
def compared(arc: Path, split_file: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("filmed") / "run"
    return folder, told(difix("distill", arc, *TOY, "--split", split_file, "--compare", "-o", folder))


def test_the_rows_are_photos_alone_with_the_points_and_the_films(compared: tuple[Path, dict]) -> None:
    folder, said = compared
    assert set(said["results"]) == {"plain", "points", "distilled"}
    record = json.loads((folder / "rounds" / "01" / "round.json").read_text())
    assert [view["target"] for view in record["views"]] == [
        f"between-{way}-{place:03d}" for way in (1, 2) for place in (1, 2)
    ]
    assert record["share"] == 0.2 and record["accepted"]
    for view in record["views"]:
        weight = read_image(folder / "rounds" / view["files"]["confidence"])[..., 0]
        ratio = view["terms"]["perceptual"] / view["terms"]["method"]
        assert ratio == pytest.approx(0.1) and weight.max() == pytest.approx(1) and 0 < weight.mean() < 1
        assert set(view["figures"]) == {"change", "mean_confidence", "reprojected_difference"}
    # over all pictures together, the mean weight is that of a photo
    means = [
        view["terms"]["method"] * read_image(folder / "rounds" / view["files"]["confidence"])[..., 0].mean()
        for view in record["views"]
    ]
    assert np.mean(means) == pytest.approx(1, abs=0.05)
    told(difix("eval", folder, "--metrics", "psnr", "--json"))
    report = (folder / "report.html").read_text()
    assert "Confidence in the fixes by round" in report and "Reprojected difference by round" in report


def test_the_cloud_is_kept_and_can_be_given_again(
    compared: tuple[Path, dict], arc: Path, split_file: str, tmp_path: Path
) -> None:
    """The run's own maps, and the .ply beside them, in place of making them."""
    folder, _ = compared
    points, _ = read_points(folder / "cloud" / "cloud.ply")
    assert len(points) > 200 and len(list((folder / "cloud").glob("*.depth.png"))) == 3
    for name, number in (("maps.npz", len(points)), ("cloud.ply", None)):
        line = ["distill", arc, *TOY, "--split", split_file, "--points", folder / "cloud" / name]
        told(difix(*line, "-o", tmp_path / name))
        again, _ = read_points(tmp_path / name / "cloud" / "cloud.ply")
        assert (len(again), name) == (number, name) if number else len(again) > 100
    one, other = (
        (run / "rounds" / "01" / "between-1-001.target.png").read_bytes() for run in (folder, tmp_path / "maps.npz")
    )
    assert one == other


def test_a_stopped_run_goes_on_to_the_same_bytes(
    compared: tuple[Path, dict], arc: Path, split_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle of the round, right after it has saved."""
    monkeypatch.setattr(reconstruction, "SAVE_EVERY", 0.0)
    own = Reconstruction.save

    def stopped(self: Reconstruction, beside: object = None) -> Path:
        saved = own(self, beside)  # type: ignore[arg-type]
        if self.step >= 11:
            raise KeyboardInterrupt
        return saved

    line = ["distill", arc, *TOY, "--split", split_file, "--compare", "-o", tmp_path / "part"]
    monkeypatch.setattr(Reconstruction, "save", stopped)
    assert difix(*line).exit_code == 130
    monkeypatch.setattr(Reconstruction, "save", own)
    told(difix(*line))
    whole, part = (
        {path.name: path.read_bytes() for path in (run / "renders" / "distilled").iterdir()}
        for run in (compared[0], tmp_path / "part")
    )
    assert whole == part and len(whole) == 2


def _plan(**other: object) -> Settings:
    settings = Settings(
        method="splatfacto",
        preset="cpu",
        device="cpu",
        schedule=make_schedule("cpu", 6, 8, 1, share=0.5),
        seed=0,
        compare=False,
        overrides=["max_gaussians=300"],
        targets=(),
        prior="video",
        terms=own_terms(True, "gpu"),
        raised=1.0,
        guard=False,
        filming=Filming("none", "by hand", 4),
    )
    return replace(settings, **other)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def scene(arc: Path) -> Scene:
    return load_scene(str(arc), SIZE)


class Lost(Blended):
    """Ends where it began."""

    def film(self, span: Span, seed: int) -> np.ndarray:
        return np.repeat(span.photos[:1], len(span.cameras), axis=0)


class Small(Blended):
    def film(self, span: Span, seed: int) -> np.ndarray:
        return super().film(span, seed)[:, ::2]


@pytest.mark.parametrize(
    ("model", "sentence"), [(Lost(), "does not go to the second photo"), (Small(), "made pictures of")]
)
def test_films_that_are_none_are_refused(
    model: Blended, sentence: str, scene: Scene, split_file: str, tmp_path: Path
) -> None:
    run = Run.open(tmp_path / "run", "distill", {}, {}, False)
    with pytest.raises(InputError, match=sentence):
        Filmed(scene, make_split(scene, split_file), _plan()).film(model, run, progress, lambda said: None)


@pytest.mark.parametrize("method", ["splatfacto", "nerfacto"])
def test_films_teach_splats_and_rays_without_a_cloud(
    method: str, scene: Scene, split_file: str, tmp_path: Path
) -> None:
    """All of a film believed: weights are none, and the terms are those that were asked for."""
    own = {"splatfacto": "max_gaussians=300", "nerfacto": "pipeline.datamanager.train_num_rays_per_batch=256"}
    terms = own_terms(method == "splatfacto", "gpu")
    plan = _plan(method=method, overrides=[own[method]], terms=terms, trust="all")
    run = Run.open(tmp_path / "run", "distill", {}, {}, False)
    (tmp_path / "run" / "rounds" / ".films-killed.part").mkdir(parents=True)
    watched = Watched()
    results = Filmed(scene, make_split(scene, split_file), plan).film(watched, run, progress, lambda said: None)
    assert np.isfinite(results["distilled"]["psnr"]) and len(watched.films) == 2
    assert not list((tmp_path / "run" / "rounds").glob(".*"))  # of a process that was killed, and of this one
    record = json.loads((tmp_path / "run" / "rounds" / "01" / "round.json").read_text())
    assert all(view["terms"] == terms and "confidence" not in view["files"] for view in record["views"])
    assert not (tmp_path / "run" / "cloud").exists()


# Parts


def test_ways_lead_from_photo_to_neighbour(scene: Scene) -> None:
    shuffled = [8, 2, 5]
    ways = Ways(scene, shuffled, 5).ways
    assert {(way.first, way.last) for way in ways} in ({(2, 5), (5, 8)}, {(8, 5), (5, 2)})
    for way in ways:
        assert len(way.cameras) == 5 and len(way.names) == 3
        for camera, frame in ((way.cameras[0], way.first), (way.cameras[-1], way.last)):
            np.testing.assert_allclose(camera.camera_to_world, scene.frames[frame].camera.camera_to_world, atol=1e-9)
    assert path_order([scene.frames[i].camera for i in (2, 5, 8)]) == [0, 1, 2]


def _wall(places: list[float]) -> tuple[list[np.ndarray], list[np.ndarray], list[Camera]]:
    """A painted wall at distance 2, seen by cameras side by side, one pixel for each hundredth."""
    paint = gaussian_filter(np.random.default_rng(0).random((40, 200, 3)), (3, 3, 0))
    paint = ((paint - paint.min()) / np.ptp(paint)).astype(np.float32)
    pictures, cameras = [], []
    for place in places:
        pose = np.eye(4)
        pose[0, 3] = place
        cameras.append(Camera(pose, 200, 200, 30, 20, 60, 40))
        left = round(100 * place) + 60
        pictures.append(paint[:, left : left + 60])
    return pictures, [np.full((40, 60), 2.0, np.float32)] * len(places), cameras


def test_pictures_of_one_place_agree_and_what_one_of_them_invents_does_not() -> None:
    pictures, depths, cameras = _wall([0, 0.05, 0.1, 0.15, 0.2])
    for found in agreements(pictures, depths, cameras):
        assert found[:, 20:40].min() > 0.9
    assert max(reprojected_difference(pictures, depths, cameras)) < 0.01
    invented = [picture.copy() for picture in pictures]
    invented[2][10:30, 20:40] = 1 - invented[2][10:30, 20:40]
    found = agreements(invented, depths, cameras)
    assert found[2][15:25, 25:35].mean() < 0.5 * found[2][:, 45:55].mean()
    assert found[1][15:25, 30:36].mean() > 0.5  # three of four others say so, too
    assert reprojected_difference(invented, depths, cameras)[1] > 0.02


def test_what_no_other_picture_sees_counts_little() -> None:
    pictures, depths, cameras = _wall([0, 0.4])
    found = agreements(pictures, depths, cameras)
    assert (found[0][:, :35] == np.float32(UNSEEN)).all() and found[0][:, 45:].min() > 0.9
    depths = [np.zeros_like(depths[0]), depths[1]]
    assert (agreements(pictures, depths, cameras)[0] == np.float32(UNSEEN)).all()


def test_weights_are_the_agreement_by_its_mean() -> None:
    agreement = np.array([[0.2, 0.4], [0.8, 1.0]], np.float32)
    weight, terms = believed(agreement, 0.5, {"method": 1.0, "perceptual": 0.5})
    np.testing.assert_allclose(weight * terms["method"], [[0.4, 0.8], [1.6, 2.0]], rtol=1e-6)
    assert weight.max() == 1 and terms["perceptual"] == terms["method"] / 2
    weight, terms = believed(agreement, 0.1, {"method": 1.0})
    assert terms["method"] == MOST and (weight == 1).all()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--frames", "2"], "--frames 2 shows nothing between two photos"),
        (["--points", "cloud.xyz"], "neither auto nor a file that ends with .npz or .ply"),
        (["--points", "absent.npz"], "There is no point file absent.npz"),
        (["--video", "nowhere"], "nowhere"),
        (["--targets", "spiral"], "--targets says nothing to the prior video"),
        (["--trust", "some"], "kind of trust called some"),
        (["--split", "groups:1"], "at least two photos"),
        (["--split", "all", "--compare"], "leave --compare out"),
        (["--seek", "mode"], "--seek belongs to --prior view-diffusion"),
    ],
)
def test_what_cannot_be_is_said(words: list[str], sentence: str, arc: Path, tmp_path: Path) -> None:
    given = [] if "--split" in words else ["--split", "groups:2"]
    refused(difix("distill", arc, "--prior", "video", *given, *words, "-o", tmp_path / "run"), sentence)
    assert not (tmp_path / "run").exists()


def test_options_of_films_belong_to_the_video_prior(arc: Path, tmp_path: Path) -> None:
    for words in (["--frames", "8"], ["--points", "auto"], ["--video", "bundled"]):
        refused(difix("distill", arc, *words, "-o", tmp_path / "run"), f"{words[0]} belongs to --prior video")


def test_photos_that_have_nothing_in_common_are_told(arc: Path, tmp_path: Path) -> None:
    """Photos of which nothing is found in two."""
    blank = tmp_path / "blank"
    (blank / "images").mkdir(parents=True)
    shutil.copy(arc / "transforms.json", blank)
    shutil.copy(arc / "points.ply", blank)
    for frame in load_scene(str(arc)).frames:
        write_image(blank / frame.name, np.full_like(load_photo(frame), 0.5))
    line = ["distill", blank, *TOY, "--split", "groups:2", "-o", tmp_path / "run"]
    refused(difix(*line), "choose photos that overlap more, or name a point cloud with --points FILE")


def test_photos_that_hardly_overlap_are_told(
    compared: tuple[Path, dict], arc: Path, split_file: str, tmp_path: Path
) -> None:
    """With the share that is known of them, and what to do; a cloud of points covers few pixels anywhere."""
    folder, _ = compared
    maps = dict(np.load(folder / "cloud" / "maps.npz"))
    maps["confidence"][:, maps["confidence"].shape[1] // 10 :] = 0  # of the top alone something is known
    np.savez(tmp_path / "little.npz", **maps)
    known = (maps["confidence"] >= 0.5).mean()
    assert 0 < known < 0.15
    line = ["distill", arc, *TOY, "--split", split_file, "--points"]
    shown = difix(*line, tmp_path / "little.npz", "-o", tmp_path / "little").stderr
    assert f"hardly overlap: only {known:.0%} of what they show is known" in shown and "--views K" in shown
    points, colors = read_points(folder / "cloud" / "cloud.ply")
    write_points(tmp_path / "thin.ply", points[::20], colors[::20])
    shown = difix(*line, tmp_path / "thin.ply", "-o", tmp_path / "thin").stderr
    assert "Point cloud: " in shown and "hardly overlap" not in shown
