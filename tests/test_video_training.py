"""Clips from posed scenes, and training a video model on them: samples, the two stages, resuming, the command."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import difix, done, refused
from small_fixers import smallest_fixer
from test_training import Killed, terminated_at
from test_video_prior import HEIGHT, WIDTH, raw_config, span

from difixcli import interrupts
from difixcli.curation.clips import clips_of
from difixcli.errors import InputError
from difixcli.evaluation.consistency import warped_difference
from difixcli.evaluation.metrics import evaluate_images
from difixcli.fixer import Fixer, new_small_fixer
from difixcli.fixer.network import FixerNetwork
from difixcli.priors.video.files import around, load_film
from difixcli.priors.video.film import FixerFilm
from difixcli.priors.video.opening import open_video_model
from difixcli.runs import write_image
from difixcli.scenes import load_scene, make_split
from difixcli.scenes.scene import Split
from difixcli.training import VideoOptions, train_video
from difixcli.training.video import Figures, _Training, base_network, unsteadiness
from difixcli.training.video_clips import end_points, read_clips

FAST: dict[str, Any] = {
    "structure_iterations": 2,
    "iterations": 3,
    "batch": 1,
    "perceptual_weight": 0.0,
    "validation_clips": 1,
    "log_every": 1,
    "spatial_learning_rate": 0.0,
}
COMMAND = ["--task", "video", "--iterations", 2, "--batch", 1, "--perceptual-weight", 0]
for name in ("structure_iterations=1", "validation_clips=1", "spatial_learning_rate=0"):
    COMMAND += ["--set", name]


def write_clips(folder: Path, train: int, test: int, count: int = 4) -> Path:
    """Clips of pictures along a wall, as `difix curate --strategy clips` writes them."""
    manifest: dict[str, Any] = {"train": {}, "test": {}}
    for number in range(train + test):
        shown = span(count, seed=number)
        half = "train" if number < train else "test"
        sharp = span(count, seed=number).photos
        for place, camera in enumerate(shown.cameras):
            name = f"wall/clips/{{}}/{number}-{place}"
            target = sharp[0] if place == 0 else sharp[1] if place == count - 1 else np.roll(sharp[0], -place, axis=1)
            for kind, image in (
                ("render", shown.renders[place]),
                ("target", target),
                ("opacity", shown.opacity[place]),
            ):
                write_image(folder / f"{name.format(kind)}.png", image)
            depth = folder / f"{name.format('depth')}.npz"
            depth.parent.mkdir(parents=True, exist_ok=True)
            np.savez(depth, depth=shown.depth[place])
            manifest[half][f"wall-{number}-{place}"] = {
                "image": f"{name.format('render')}.png",
                "target_image": f"{name.format('target')}.png",
                "opacity": f"{name.format('opacity')}.png",
                "depth": f"{name.format('depth')}.npz",
                "scene": "wall",
                "strategy_params": {"clip": number, "place": place, "of": count},
                "camera": {
                    "camera_to_world": camera.camera_to_world.tolist(),
                    **{key: getattr(camera, key) for key in ("fx", "fy", "cx", "cy", "width", "height")},
                },
            }
    (folder / "data.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def walls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("clips"), train=2, test=1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fixer that costs a tenth of the bundled one."""
    return smallest_fixer().save_pretrained(tmp_path_factory.mktemp("fixer"))


# Clips


def test_clips_of_a_scene(arc: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    quick = ["--iterations", "12", "--set", "max_gaussians=300"]
    results = done(difix("curate", arc, "--strategy", "clips", *quick, "--json", "-o", folder))
    entries = json.loads((folder / "data.json").read_text())["train"]
    assert results["pairs"] == len(entries) == 10 and not any(results["dropped"].values())
    # frames 0 to 4 and 4 to 8: the one in the middle ends one clip and begins the next, beside other photos
    places = sorted((e["strategy_params"]["clip"], e["strategy_params"]["place"]) for e in entries.values())
    assert places == [(clip, place) for clip in (0, 1) for place in range(5)]
    middle = [e for e in entries.values() if e["frame"] == "images/train_004.png"]
    assert len(middle) == 2 and middle[0]["aligned_refs"] != middle[1]["aligned_refs"]
    for entry in entries.values():
        clip = entry["strategy_params"]["clip"]
        ends = {f"train_{4 * clip:03d}", f"train_{4 * clip + 4:03d}"}
        assert {Path(path).stem.removeprefix("images-") for path in entry["ref_images"]} == ends
    # what training reads of them
    clips = read_clips([folder])
    assert [len(one.entries) for one in clips.train] == [5, 5] and not clips.dropped
    clip, scene = clips.train[1].load(), load_scene(arc)
    assert np.allclose(clip.span.cameras[2].camera_to_world, scene.frames[6].camera.camera_to_world, atol=1e-8)
    assert np.array_equal(clip.span.photos, clip.targets[[0, -1]])
    assert clip.span.depth.shape == clip.targets.shape[:3] and (clip.span.depth > 0).mean() > 0.5
    assert len(clip.span.points) == len(clip.span.colors) > 500


def test_photos_without_anything_between_them_make_no_clip(arc: Path) -> None:
    scene = load_scene(arc)
    assert clips_of(scene, make_split(scene, "every:5")) == [[0, 1, 2, 3, 4, 5], [5, 6, 7, 8, 9, 10]]
    for split in (Split((0, 1, 2), (5,), "file:x"), Split((0,), (1, 2), "file:y")):
        with pytest.raises(InputError, match="makes no clip"):
            clips_of(scene, split)
    # the first and the last look the other way
    apart = [*scene.frames]
    turned = apart[4].camera.camera_to_world @ np.diag([-1.0, 1, -1, 1])
    apart[4] = type(apart[4])(
        apart[4].name, apart[4].image_path, apart[4].camera.moved(turned), apart[4].camera_id, apart[4].lens
    )
    blind = type(scene)(scene.name, scene.root, apart, np.zeros((0, 3)), np.zeros((0, 3)), scene.source_to_world)
    assert clips_of(scene, Split((0, 4, 8), (2, 6), "file:z")) == [[0, 2, 4], [4, 6, 8]]
    with pytest.raises(InputError, match="makes no clip"):
        clips_of(blind, Split((0, 4, 8), (2, 6), "file:z"))


def test_clips_are_folders(arc: Path, tmp_path: Path) -> None:
    line = ["curate", arc, "--strategy", "clips", "--format", "webdataset", "-o", tmp_path / "tars"]
    refused(difix(*line), "Clips are read from folders")


def test_the_cloud_is_what_both_ends_see() -> None:
    shown = span(3)
    photos = shown.renders
    points, colors = end_points(shown.cameras, shown.depth, photos)
    assert np.allclose(points[:, 2], -1), "the wall"
    first = points[: len(points) // 2]
    x, y, _ = shown.cameras[0].project(first)
    assert np.allclose(colors[: len(first)], photos[0][(y - 0.5).round().astype(int), (x - 0.5).round().astype(int)])
    nothing = end_points(shown.cameras, np.zeros_like(shown.depth), photos)
    assert nothing[0].shape == nothing[1].shape == (0, 3)


def test_clips_that_lack_pictures_are_dropped(walls: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(walls, tmp_path / "some"))
    manifest = json.loads((folder / "data.json").read_text())
    del manifest["train"]["wall-1-2"]
    manifest["train"]["wall-0-9"] = {"image": "x.png"}
    (folder / "data.json").write_text(json.dumps(manifest))
    clips = read_clips([folder])
    assert len(clips.train) == len(clips.test) == 1
    assert sorted(clips.dropped.values()) == ["is no picture of a clip", "lacks some of its pictures"]
    # of entries in any order, what JSON makes of all of them with sorted keys
    text = json.dumps(manifest, sort_keys=True)
    assert clips.fingerprint == hashlib.sha256(text.encode()).hexdigest()[:16]
    del manifest["train"]["wall-0-0"]
    (folder / "data.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"no clips to train on in .* \(wall-0-9 is no picture of a clip\)"):
        read_clips([folder])


def test_figures_of_clips_one_after_another_are_those_of_all(walls: Path) -> None:
    clips, found = [files.load() for files in read_clips([walls]).train], Figures()
    for clip in clips:
        found.add(clip.span.renders, clip)
    inner = [picture for clip in clips for picture in clip.span.renders[1:-1]]
    truths = [photo for clip in clips for photo in clip.targets[1:-1]]
    apart = [pair for clip in clips for pair in warped_difference(list(clip.span.renders), list(clip.targets))]
    wanted = evaluate_images(inner, truths)["mean"]
    assert found.mean() == {**wanted, "warped_difference": np.mean([pair.difference for pair in apart if pair.share])}


def test_the_way_back(walls: Path) -> None:
    clip = read_clips([walls]).train[0].load()
    back = clip.reversed()
    assert np.array_equal(back.targets, clip.targets[::-1]) and np.array_equal(back.span.photos, clip.span.photos[::-1])
    assert back.span.cameras[0] is clip.span.cameras[-1]
    assert np.array_equal(back.span.depth[1], clip.span.depth[-2])


# Training


def test_unsteadiness_is_of_changes_that_the_photos_do_not_make() -> None:
    draw = torch.Generator().manual_seed(0)
    truth = torch.rand(3, 3, 8, 8, generator=draw)
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    places = ((torch.stack([x, y], -1) + 0.5) / 8 * 2 - 1).expand(2, -1, -1, -1)
    visible = torch.ones(2, 1, 8, 8)
    assert float(unsteadiness(truth + 0.1, truth, places, visible)) == pytest.approx(0, abs=1e-6)
    flickering = truth.clone()
    flickering[1] += 0.1
    assert float(unsteadiness(flickering, truth, places, visible)) == pytest.approx(0.1, abs=1e-5)
    assert float(unsteadiness(flickering, truth, places, 0 * visible)) == 0


def test_the_stages_train_what_the_paper_says(walls: Path, base: Path, tmp_path: Path) -> None:
    options = VideoOptions(**{**FAST, "spatial_learning_rate": 1e-3, "window": 3})
    training = _Training(base_network(base, options), options, tmp_path / "stages", "cpu", None)
    training.load_data([walls], str(base))
    moved = []
    for stage in (0, 1):
        training.stage = stage
        training.begin_stage()
        before = {name: value.detach().clone() for name, value in training.network.named_parameters()}
        for training.step in range(3):
            training.take_step()
        after = dict(training.network.named_parameters())
        names = {name for name, value in before.items() if not torch.equal(value, after[name])}
        moved.append({".".join(name.split(".")[: 2 if name.startswith("fixer") else 1]) for name in names})
    assert moved[0] == {"encoder", "structure"}
    assert moved[1] == {"encoder", "structure", "temporal", "neighbours", "fixer.unet"}
    training.journal.close()


def test_training_writes_a_model_and_goes_on(walls: Path, base: Path, tmp_path: Path) -> None:
    records: list[Any] = []
    results = train_video([walls], base, tmp_path / "whole", report=records.append, **FAST)
    assert results["steps"] == {"structure": 2, "film": 3} and results["clips"] == {"train": 2, "test": 1, "dropped": 0}
    assert {"render", "frame_by_frame", "film", "photos"} == results["validation"].keys()
    assert results["validation"]["film"]["psnr"] != results["validation"]["frame_by_frame"]["psnr"]
    assert [r["event"] for r in records if r["event"] in ("structure", "film")] == ["structure"] * 2 + ["film"] * 3
    assert list((tmp_path / "whole" / "validation").glob("*.png"))
    made = open_video_model(tmp_path / "whole").film(span(4), 0)
    plain = FixerFilm(base_network(base, VideoOptions())).film(span(4), 0)
    assert made.shape == plain.shape and not np.array_equal(made, plain)

    def kill(done: int) -> None:
        if done == 4:
            raise Killed

    with pytest.raises(Killed):
        train_video([walls], base, tmp_path / "cut", progress=kill, **FAST)
    checkpoint = tmp_path / "cut" / "checkpoints" / "last.pt"
    state = torch.load(checkpoint, weights_only=True)
    for group in state["optimiser"]["param_groups"]:
        group["peak"] = 1.0  # as checkpoints had it once, which counts for nothing
    torch.save(state, checkpoint)
    assert train_video([walls], base, tmp_path / "cut", **FAST)["steps"] == results["steps"]
    again = load_film(tmp_path / "cut").state_dict()
    for name, value in load_film(tmp_path / "whole").state_dict().items():
        assert torch.equal(value, again[name]), name
    with pytest.raises(InputError, match="other clips, base or options"):
        train_video([walls], base, tmp_path / "cut", **{**FAST, "seed": 1})


def test_a_signal_saves_first(walls: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step, (stage, within) in ((1, (1, 0)), (3, (1, 2))):
        with monkeypatch.context() as asked, pytest.raises(interrupts.Terminated):
            train_video([walls], base, tmp_path / "asked", progress=terminated_at(step, asked), **FAST)
        state = torch.load(tmp_path / "asked" / "checkpoints" / "last.pt", weights_only=True)
        assert (state["stage"], state["step"]) == (stage, within)
    train_video([walls], base, tmp_path / "asked", **FAST)
    train_video([walls], base, tmp_path / "whole", **FAST)
    again = load_film(tmp_path / "asked").state_dict()
    for name, value in load_film(tmp_path / "whole").state_dict().items():
        assert torch.equal(value, again[name]), name
    steps = [
        [record["step"] for record in map(json.loads, (tmp_path / name / "log.jsonl").read_text().splitlines())
         if record["event"] in ("structure", "film", "validation")]
        for name in ("asked", "whole")
    ]  # fmt: skip
    assert steps[0] == steps[1]


def test_time_ends_training_and_without_tests_the_last_weights_stay(walls: Path, base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(walls, tmp_path / "train"))
    manifest = json.loads((folder / "data.json").read_text())
    (folder / "data.json").write_text(json.dumps({**manifest, "test": {}}))
    many = {**FAST, "structure_iterations": 5000, "iterations": 5000, "seconds": 0.4}
    results = train_video([folder], base, tmp_path / "short", **many)
    assert 2 <= sum(results["steps"].values()) < 1000 and not results["validation"]
    assert open_video_model(tmp_path / "short").film(span(3), 0).shape == (3, HEIGHT, WIDTH, 3)


def test_a_fixer_in_a_folder_is_a_base_and_is_kept_with_the_layers(walls: Path, base: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(base, tmp_path / "fixer"))
    train_video([walls], copied, tmp_path / "video", **FAST)
    shutil.rmtree(copied)
    same = Fixer.from_pretrained(base).network.state_dict()
    film = load_film(tmp_path / "video")
    assert film.config.fixer is None
    assert all(torch.equal(value, same[name]) for name, value in film.fixer.state_dict().items())


def test_training_sees_what_the_film_is_made_of_where_photos_are_looked_up(walls: Path, tmp_path: Path) -> None:
    config = replace(raw_config(new_small_fixer("tiny").network, "mutual"), references="geometry")
    network = around(FixerNetwork(config), None)
    training = _Training(network, VideoOptions(**FAST), tmp_path / "run", "cpu", None)
    clip = read_clips([walls]).train[0].load()
    with torch.no_grad():
        made = training._made(clip, range(4), torch.arange(3), True).clamp(0, 1)
    wanted = FixerFilm(network).film(clip.span, 0)
    np.testing.assert_allclose(made.permute(0, 2, 3, 1).numpy(), wanted, atol=1e-5)
    clip.places = torch.zeros_like(clip.places)
    with torch.no_grad():
        without = training._made(clip, range(4), torch.arange(3), True).clamp(0, 1)
    assert float((made - without).abs().max()) > 1e-4
    training.journal.close()


def test_the_command(walls: Path, tmp_path: Path) -> None:
    line = ["finetune", walls, *COMMAND, "-o", tmp_path / "video", "--json"]
    ended = difix(*line)
    results = done(ended)
    assert "frame_by_frame" in ended.stderr and "photos  " not in ended.stderr  # no row of what has no figures
    assert results["steps"] == {"structure": 1, "film": 2}
    assert open_video_model(tmp_path / "video").film(span(3), 0).shape == (3, HEIGHT, WIDTH, 3)
    # the bundled fixer is not stored again
    assert (tmp_path / "video" / "model.safetensors").stat().st_size < 1e6


def test_what_the_command_refuses(walls: Path, tmp_path: Path) -> None:
    for more, words in (
        (["--crop", 64], ("--crop", "leave it out with --task video")),
        (["--photos", tmp_path], ("--photos says nothing to video models",)),
        (["--set", "canvas=3"], ("canvas",)),
        (["--set", "drop_structure=2"], ("drop_structure is a share",)),
    ):
        refused(difix("finetune", walls, *COMMAND, *more, "-o", tmp_path / "video"), *words)
    refused(difix("finetune", *COMMAND), "folders made by difix curate")
    (tmp_path / "data.json").write_text(json.dumps({"train": {}, "test": {}}))
    refused(difix("finetune", tmp_path, *COMMAND, "-o", tmp_path / "v"), "no clips to train on", "--strategy clips")
