"""Scenes larger than their photos: whole runs at toy size, what they are compared with, images by themselves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import difix, refused, told
from small_scenes import HALF_ROOM, small_sample
from test_masks import masked_scene
from test_super_resolvers import compact, published  # noqa: F401

from difixcli.distillation.super_resolution_prior import SuperResolutionPrior
from difixcli.errors import InputError
from difixcli.images import as_pixels, as_planes, enlarged, reduced, resized
from difixcli.priors.super_resolution.enlargement import Enlargement, small_and_large
from difixcli.priors.super_resolution.network import SuperResolutionConfig, SuperResolutionNetwork
from difixcli.priors.super_resolution.single_step import SingleStep
from difixcli.runs import read_image, write_image
from difixcli.scenes import load_photo, load_scene
from difixcli.training import train_super_resolver
from difixcli.training.super_resolution_runs import SceneView, scene_views, view_crop
from difixcli.training.super_resolution_samples import view_batches

TOY = ("--prior", "super-resolution", "--upscale", "2", "--iterations", "40", "--rounds", "2", "--further", "20")
TOY += ("--set", "max_gaussians=400", "--json")
ROWS = ["low_resolution", "supersampled", "bicubic", "per_image", "distilled", "enhanced"]


@pytest.fixture(scope="session")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_sample("room", tmp_path_factory.mktemp("scene") / "room", 96, HALF_ROOM)


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of random weights whose images are not the bicubic ones, with and without a render."""
    torch.manual_seed(0)
    made = SuperResolutionNetwork(SuperResolutionConfig(factor=2, channels=8, blocks=1))
    for layer in (made.tail, made.gate):
        torch.nn.init.normal_(layer.weight, std=0.02)
    return made.save_pretrained(tmp_path_factory.mktemp("network") / "tiny")


@pytest.fixture(scope="session")
def compared(room: Path, network: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("compared") / "run"
    line = ["distill", room, *TOY, "--sr", network, "--reduce", "2", "--size", "96", "--compare"]
    return folder, told(difix(*line, "-o", folder))


def test_the_rows_are_the_papers_at_the_truths_size(compared: tuple[Path, dict], room: Path) -> None:
    folder, said = compared
    assert set(said["results"]) == set(ROWS)
    assert all(np.isfinite(list(figures.values())).all() for figures in said["results"].values())
    truth = load_scene(str(room), 96)
    by_name = {f"{name}.png": frame for name, frame in zip(truth.file_names, truth.frames, strict=True)}
    for path in (folder / "renders" / "truth").glob("*.png"):
        shown = load_photo(by_name[path.name])
        assert np.abs(read_image(path) - shown).max() < 0.6 / 255
        for row in ROWS:
            assert read_image(folder / "renders" / row / path.name).shape == shown.shape
    # every row is another thing
    one = sorted((folder / "renders" / "truth").glob("*.png"))[0].name
    assert len({(folder / "renders" / row / one).read_bytes() for row in ROWS}) == len(ROWS)


def test_rounds_are_made_from_small_photos_and_agree_with_them(compared: tuple[Path, dict]) -> None:
    folder, said = compared
    for number in ("01", "02"):
        record = json.loads((folder / "rounds" / number / "round.json").read_text())
        assert record["share"] == 1 and not record["kept"] and not record["dropped"]
        for view in record["views"]:
            # the first round waits for a render that is worth a look
            assert view["terms"] == {"low_resolution:2": 1.0, **({"method": 0.25} if number == "02" else {})}
            target, photo, render = (
                as_planes(read_image(folder / "rounds" / view["files"][kind])) for kind in ("target", "photo", "render")
            )
            assert max(photo.shape) == 48 and max(target.shape) == 96
            assert (target - render).abs().max() > 4 / 255
            if number == "02":
                assert (reduced(target, 2) - photo).abs().mean() < 2 / 255  # two roundings, and clipped colours
                assert (target - enlarged(photo, 2)).abs().max() > 4 / 255
    assert 10 < said["agreement"] < 40


def test_the_scene_has_its_say_in_the_second_round(compared: tuple[Path, dict], network: Path) -> None:
    """The second round's targets are the network's of photo and render."""
    from difixcli.priors.super_resolution.opening import open_super_resolver

    folder, _ = compared
    resolver = open_super_resolver(str(network), 2, "area", "cpu")
    view = json.loads((folder / "rounds" / "02" / "round.json").read_text())["views"][3]
    files = {kind: folder / "rounds" / file for kind, file in view["files"].items()}
    photo, render = as_planes(read_image(files["photo"])), as_planes(read_image(files["render"]))
    with torch.no_grad():
        begun = resolver.begin(photo, 2, 0)
        heard, _ = resolver.estimate(photo, resolver.advance(photo, begun, render))
        alone, _ = resolver.estimate(photo, begun)
    # of eight-bit files, where the run had all digits
    target = read_image(files["target"])
    assert np.abs(as_pixels(heard) - target).mean() < 1 / 255 < np.abs(as_pixels(alone) - target).mean()


def test_going_back_a_round_gives_the_same_figures(compared: tuple[Path, dict], room: Path, network: Path) -> None:
    """What the super-resolver knew of each photo comes back from the checkpoint."""
    folder, said = compared
    line = ["distill", room, *TOY, "--sr", network, "--reduce", "2", "--size", "96", "--compare", "-o", folder]
    assert told(difix(*line))["results"] == said["results"]  # it is done
    again = told(difix(*line, "--from-round", "2"))
    assert again["results"] == said["results"] and again["agreement"] == said["agreement"]


def test_a_diffusing_super_resolver_goes_on_from_its_latents(
    room: Path,
    published: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Rounds of the paper's update; what was not denoised yet comes back from the checkpoint, bit for bit."""
    line = ["distill", room, "--prior", "super-resolution", "--sr", published, "--sr-update", "paper", "--reduce", "4"]
    line += ["--size", "96", "--iterations", "20", "--rounds", "3", "--further", "6", "--split", "every:4"]
    line += ["--set", "max_gaussians=400", "--json", "-o", tmp_path / "run"]
    said = told(difix(*line))
    targets = {path.name: path.read_bytes() for path in (tmp_path / "run" / "rounds" / "03").glob("*.target.png")}
    assert len(targets) == 4
    again = told(difix(*line, "--from-round", "3"))
    assert again["results"] == said["results"]
    for name, pixels in targets.items():
        assert (tmp_path / "run" / "rounds" / "03" / name).read_bytes() == pixels
        first = (tmp_path / "run" / "rounds" / "01" / name).read_bytes()
        assert first != pixels


def test_what_is_made_once_of_each_photo_is_no_part_of_checkpoints(
    room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that looks at no render is asked once for each photo; the large images lie on disk between rounds, and
    a run that goes on without them makes them again.
    """
    torch.manual_seed(5)
    network, asked = compact(), []
    torch.save({"params": network.state_dict()}, tmp_path / "x4.pth")
    inside = SingleStep._enlarged
    monkeypatch.setattr(SingleStep, "_enlarged", lambda *given: asked.append(1) or inside(*given))
    shown = []
    own = SuperResolutionPrior.state

    def state(prior: SuperResolutionPrior) -> dict:
        held = own(prior)
        shown.append(({name for one in held["states"].values() for name in one}, sorted(prior._folder.glob("*"))))
        return held

    monkeypatch.setattr(SuperResolutionPrior, "state", state)
    line = ["distill", room, "--prior", "super-resolution", "--sr", tmp_path / "x4.pth", "--reduce", "4"]
    line += ["--size", "96", "--iterations", "20", "--rounds", "3", "--further", "6", "--split", "every:4"]
    line += ["--set", "max_gaussians=400", "--json", "-o", tmp_path / "run"]
    said = told(difix(*line))
    photos = len(list((tmp_path / "run" / "rounds" / "03").glob("*.target.png")))
    enhanced = len(list((tmp_path / "run" / "renders" / "enhanced").iterdir()))
    assert len(asked) == photos + enhanced
    assert shown and all(names == {"round", "rounds"} and len(files) == photos for names, files in shown)
    assert not (tmp_path / "run" / "made").exists()
    last = {path.name: path.read_bytes() for path in (tmp_path / "run" / "rounds" / "03").glob("*.target.png")}
    assert told(difix(*line, "--from-round", "3"))["results"] == said["results"]
    for name, pixels in last.items():
        assert (tmp_path / "run" / "rounds" / "03" / name).read_bytes() == pixels


def test_a_run_is_enhanced_by_its_super_resolver(compared: tuple[Path, dict], tmp_path: Path) -> None:
    """Along a path too, large, and without a look at the photos that were reduced."""
    folder, _ = compared
    said = told(difix("enhance", folder, "-o", tmp_path / "test", "--json"))
    for path in (folder / "renders" / "enhanced").glob("*.png"):
        assert np.abs(read_image(path) - read_image(tmp_path / "test" / path.name)).max() < 1.5 / 255
    assert said["results"]["frames"] == len(list((folder / "renders" / "enhanced").glob("*.png")))
    told(difix("enhance", folder, "--trajectory", "spiral:3", "-o", tmp_path / "path", "--json"))
    assert max(read_image(tmp_path / "path" / "frame_00001.png").shape) == 96
    for words in (["--fixer", "tiny"], ["--tile", "512"], ["--confidence"], ["--dtype", "bf16"], ["--compile"]):
        refused(difix("enhance", folder, *words), f"leave {words[0]} out")


def test_super_resolvers_train_on_what_a_run_shows(
    compared: tuple[Path, dict], photos: list[Path], tmp_path: Path
) -> None:
    """Photo, truth and render of a view belong together, cut and turned alike; the last of several runs validates."""
    folder, _ = compared
    views = scene_views(folder, 2)
    entries = json.loads((folder / "rounds" / "02" / "round.json").read_text())["views"]
    assert len(views) == len(entries)
    shown = read_image(folder / "rounds" / entries[0]["files"]["render"])
    assert np.abs(views[0].render / 255 - shown).max() < 0.6 / 255
    # read when they are needed, and kept as far as there is memory for them
    anew = scene_views(folder, 2, cache_mib=0)
    assert views[1] is views[-len(views) + 1] and anew[1] is not anew[1]
    assert np.array_equal(anew[1].truth, views[1].truth) and anew.sizes()[1] == anew[1].truth.shape[:2]
    rng = np.random.default_rng(0)
    for _ in range(8):
        crop = view_crop(views, 32, 2, rng)
        assert crop["photo"].shape == (16, 16, 3) and crop["render"].shape == crop["truth"].shape == (32, 32, 3)
        assert np.abs(as_pixels(reduced(as_planes(crop["truth"]), 2)) - crop["photo"]).mean() < 1.5 / 255
    # also where the middle of an odd side would lie between pixels
    odd = [SceneView(view.photo[:35], view.render[:70], view.truth[:70]) for view in views[:2]]
    for batch in view_batches(odd, 2, 48):
        assert batch.photos.shape[-2:] == (24, 24)
        assert (reduced(batch.targets, 2) - batch.photos).abs().mean() < 1.5 / 255
    other = shutil.copytree(folder, tmp_path / "other")
    options = {"factor": 2, "channels": 8, "blocks": 1, "batch": 2, "crop": 32, "perceptual_weight": 0.0}
    source = tmp_path / "photos"
    source.mkdir()
    for path in photos[:3]:
        shutil.copy(path, source)
    made = train_super_resolver(
        [],
        "scratch",
        tmp_path / "out",
        photos=source,
        runs=[folder, other],
        iterations=2,
        validation_photos=5,
        **options,
    )
    assert made["photos"]["views"] == len(views) and made["photos"]["test"] == 5
    line = ["finetune", folder, "--task", "super-resolution", "--base", "scratch", "--photos", source, "--crop", 32]
    line += ["--iterations", 1, "--set", "factor=2", "--set", "channels=8", "--set", "blocks=1", "--device", "cpu"]
    assert told(difix(*line, "-o", tmp_path / "by-command", "--json"))["results"]["photos"]["views"] == len(views)
    refused(
        difix(*line, "--set", "factor=4", "-o", tmp_path / "four"), "cannot be trained on", "--upscale 4 --reduce 4"
    )


def test_without_reduction_figures_are_at_the_photos_size(room: Path, network: Path, tmp_path: Path) -> None:
    line = ["distill", room, *TOY, "--sr", network, "--size", "48", "--downscale", "bicubic", "-o", tmp_path / "run"]
    result = difix(*line)
    said = told(result)
    assert set(said["results"]) == {"low_resolution", "distilled", "enhanced"}
    assert "No photo is as large as the result" in result.stderr
    for row in said["results"]:
        for path in (tmp_path / "run" / "renders" / row).glob("*.png"):
            large = read_image(tmp_path / "run" / "large" / row / path.name)
            small = read_image(path)
            assert max(small.shape) == 48 and max(large.shape) == 96
            assert np.abs(resized(large, small.shape[1], small.shape[0], "bicubic") - small).max() < 3 / 255
    assert "low_resolution:2:bicubic" in (tmp_path / "run" / "rounds" / "01" / "round.json").read_text()
    assert told(difix("eval", tmp_path / "run", "--json"))["results"].keys() == said["results"].keys()


def test_radiance_fields_learn_large_views_beside_photos(room: Path, network: Path, tmp_path: Path) -> None:
    line = ["--prior", "super-resolution", "--upscale", "2", "--iterations", "12", "--rounds", "2", "--further", "4"]
    line += ["--split", "every:4", "--method", "nerfacto", "--sr", network, "--reduce", "2", "--size", "64", "--json"]
    line += ["--set", "pipeline.datamanager.train_num_rays_per_batch=64"]
    said = told(difix("distill", room, *line, "-o", tmp_path / "run"))
    assert set(said["results"]) == {"low_resolution", "distilled", "enhanced"}
    assert json.loads((tmp_path / "run" / "rounds" / "01" / "round.json").read_text())["share"] == 0.8


def test_a_scene_of_all_photos_is_made_without_figures(room: Path, network: Path, tmp_path: Path) -> None:
    line = ["distill", room, *TOY, "--sr", network, "--size", "48", "--split", "all", "-o", tmp_path / "run"]
    result = difix(*line)
    assert told(result)["results"] == {} and "nothing is measured" in result.stderr
    assert "enhance" in result.stderr
    said = told(difix("enhance", tmp_path / "run", "--trajectory", "spiral:3", "-o", tmp_path / "path", "--json"))
    assert said["results"]["frames"] == 3
    assert max(read_image(tmp_path / "path" / "frame_00001.png").shape) == 96


def test_sizes_divide_and_small_ones_are_refused() -> None:
    scene = load_scene("sample:room", 97)
    small, large = small_and_large(scene, Enlargement(2, 3, "area", "bundled", "posterior"))
    for before, one, two in zip(scene.frames, small.frames, large.frames, strict=True):
        assert (one.camera.width, one.camera.height) == (before.camera.width // 3, before.camera.height // 3)
        assert (two.camera.width, two.camera.height) == (2 * one.camera.width, 2 * one.camera.height)
        # the same view: a ray through a corner is the same
        assert two.camera.plane(np.array(0.0), np.array(0.0)) == pytest.approx(
            one.camera.plane(np.array(0.0), np.array(0.0))
        )
    with pytest.raises(InputError, match="--reduce 2 leaves no photo"):
        small_and_large(scene, Enlargement(4, 2, "area", "bundled", "posterior"))
    with pytest.raises(InputError, match="larger --size"):
        small_and_large(scene, Enlargement(4, 8, "area", "bundled", "posterior"))


def test_what_a_mask_leaves_out_is_not_learned_at_any_size(network: Path, tmp_path: Path) -> None:
    """The red half is masked: no large view trusts it, and the figures do not count it."""
    masked_scene(tmp_path / "scene", np.zeros((0, 3)))
    line = ["distill", tmp_path / "scene", *TOY, "--sr", network, "--reduce", "2", "--size", "64", "--compare"]
    said = told(difix(*line, "--split", "every:2", "-o", tmp_path / "run"))
    for view in json.loads((tmp_path / "run" / "rounds" / "01" / "round.json").read_text())["views"]:
        trust = read_image(tmp_path / "run" / "rounds" / view["files"]["confidence"])[..., 0]
        assert trust.shape == (48, 64) and not trust[:, :32].any() and trust[:, 34:].all()
    shown = read_image(next((tmp_path / "run" / "renders" / "distilled").glob("*.png")))
    assert shown[:, :32, 0].mean() < 0.2 and said["results"]["distilled"]["psnr"] > 12


def test_lines_that_make_no_sense(room: Path, network: Path, tmp_path: Path) -> None:
    line = ["distill", room, *TOY, "--sr", network, "--size", "48", "-o", tmp_path / "run"]
    refused(difix(*line[:2], "--upscale", "4"), "--upscale", "--prior super-resolution")
    refused(difix(*line, "--targets", "spiral"), "--targets", "leave it out")
    refused(difix(*line, "--downscale", "lanczos"), "lanczos", "bicubic")
    refused(difix(*line, "--sr-update", "papper"), "papper", "paper")
    refused(difix(*line, "--sr", tmp_path / "none.pth"), "none.pth")
    refused(difix(*line, "--share", "0.5"), "--share")
    refused(difix(*line, "--upscale", "3"), "2 times larger, not 3")
    refused(difix(*line, "--split", "all", "--compare"), "all", "--compare")
    refused(difix(*line, "--loss", "low_resolution:80=1"), "otherwise than the photos", "low_resolution:2")
    refused(difix(*line, "--loss", "low_resolution:2=1", "--downscale", "bicubic"), "low_resolution:2:bicubic")
    refused(difix(*line, "--rounds", "0"), "--rounds 0 is no number of rounds")
    refused(difix(*line, "--sr-update", "paper"), "--sr-update", "one step")
    refused(difix(*line, "--start", network), "--further")
    assert difix(*line, "--upscale", "1").exit_code == 2
    assert not (tmp_path / "run" / "run.json").exists()


def test_images_are_made_larger_each_by_itself(photos: list[Path], network: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, path in enumerate(photos[:2]):
        write_image(folder / f"{i}.png", resized(read_image(path)[..., :3], 40, 30))
    line = ["fix", folder, "--upscale", "2", "--sr", network, "--json"]
    said = told(difix(*line))
    output = Path(said["output"])
    assert output == tmp_path / "photos_large" and said["results"]["frames"] == 2
    for i in range(2):
        large, photo = (as_planes(read_image(place / f"{i}.png")) for place in (output, folder))
        assert large.shape[-2:] == (60, 80)
        assert (reduced(large, 2) - photo).abs().mean() < 1 / 255
    (output / "1.png").unlink()
    assert told(difix(*line))["results"]["kept"] == 1
    refused(difix(*line, "--confidence"), "--confidence", "--upscale")
    refused(difix("fix", folder, "--upscale", "4", "--sr", network), "2 times larger, not 4")
    (folder / "2.png").write_bytes(b"no image")
    refused(difix(*line, "--force"), "2.png")
