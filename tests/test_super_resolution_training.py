"""Training a super-resolver: its samples, the loop, resuming, the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import difix, done, refused
from PIL import Image
from test_training import Killed, losses, terminated_at, texture

from difixcli import interrupts
from difixcli.errors import InputError
from difixcli.images import agreeing, enlarged, reduced
from difixcli.priors.super_resolution.network import SuperResolutionConfig, SuperResolutionNetwork
from difixcli.scenes import load_scene
from difixcli.training import SuperResolutionOptions, train_super_resolver
from difixcli.training.super_resolution_samples import (
    LargePhotos,
    SuperResolutionBatches,
    simulated_render,
    validation_batches,
)

FAST = {
    "channels": 8,
    "blocks": 1,
    "batch": 2,
    "crop": 32,
    "perceptual_weight": 0.0,
    "checkpoint_every": 1000,
    "validate_every": 1000,
    "log_every": 1,
}
COMMAND = ["--crop", 32, "--batch", 2, "--perceptual-weight", 0, "--set", "channels=8", "--set", "blocks=1"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four photos with hard edges; the last of them is kept for validation."""
    (tmp_path / "photos").mkdir()
    for i in range(4):
        edges = np.where(texture(i, 72, 80) > 127, 200, 60).astype(np.uint8)
        Image.fromarray(edges).save(tmp_path / "photos" / f"{i}.png")
    return tmp_path / "photos"


@torch.no_grad()
def mean_error(network: SuperResolutionNetwork, folder: Path) -> float:
    """The training's pixel loss over its first steps' samples."""
    batches = SuperResolutionBatches(LargePhotos(folder, [], 32), SuperResolutionOptions(crop=32, batch=8), 4)
    errors = []
    for batch in (batches[step] for step in range(8)):
        answers = agreeing(network(batch.photos, batch.renders, batch.shown), batch.photos, 4, batch.operator, 1)
        errors.append((answers - batch.targets).abs().mean())
    return float(torch.stack(errors).mean())


def test_loss_falls_and_the_result_loads(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    options = {**FAST, "channels": 16, "blocks": 2, "learning_rate": 2e-3, "warm_up": 5, "ema": 0.9}
    results = train_super_resolver([], "scratch", output, photos=folder, iterations=60, **options)
    assert len(losses(output)) == 60
    network = SuperResolutionNetwork.from_pretrained(output)
    assert mean_error(network, folder) < 0.9 * mean_error(SuperResolutionNetwork(network.config), folder)
    validation = results["validation"]
    assert set(validation) == {"bicubic", "unsharp", "render", "alone", "beside_render"}
    assert validation["alone"]["psnr"] > validation["bicubic"]["psnr"]
    assert validation["beside_render"]["psnr"] > validation["alone"]["psnr"]
    assert results["photos"] == {"folder": 3, "scenes": 0, "views": 0, "test": 1, "dropped": 0}
    assert network(torch.rand(1, 3, 10, 12)).shape == (1, 3, 40, 48)
    grid = np.asarray(Image.open(output / "validation" / "0000060.png"))
    assert grid.shape == (72, 80 * 5, 3)  # bicubic, alone, truth, render, beside it
    assert list((output / "tensorboard").iterdir())


def test_resuming_is_exact(folder: Path, tmp_path: Path) -> None:
    """With the perceptual term, renders, and the network's own answers among them."""
    options = {**FAST, "iterations": 6, "checkpoint_every": 3, "perceptual_weight": 0.1, "window": 32, "warm_up": 1}
    train_super_resolver([], "scratch", tmp_path / "whole", photos=folder, **options)
    killed = tmp_path / "killed"

    def kill(step: int) -> None:
        if step == 5:  # the checkpoint is from step 3: two steps are lost
            raise Killed

    with pytest.raises(Killed):
        train_super_resolver([], "scratch", killed, photos=folder, progress=kill, **options)
    torch.rand(5)  # whatever else the process does
    train_super_resolver([], "scratch", killed, photos=folder, **options)
    assert losses(killed) == losses(tmp_path / "whole")
    assert (killed / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="other photos, base or options"):
        train_super_resolver([], "scratch", killed, photos=folder, **options | {"batch": 4})
    (killed / "checkpoints" / "last.pt").write_bytes(b"no checkpoint")
    with pytest.raises(InputError, match=r"last\.pt is damaged"):
        train_super_resolver([], "scratch", killed, photos=folder, **options)


def test_a_signal_saves_first(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {**FAST, "iterations": 5}
    with monkeypatch.context() as asked, pytest.raises(interrupts.Terminated):
        heard = terminated_at(2, asked)
        train_super_resolver([], "scratch", tmp_path / "out", photos=folder, progress=heard, **options)
    assert torch.load(tmp_path / "out" / "checkpoints" / "last.pt", weights_only=True)["step"] == 3
    train_super_resolver([], "scratch", tmp_path / "out", photos=folder, **options)
    train_super_resolver([], "scratch", tmp_path / "whole", photos=folder, **options)
    assert losses(tmp_path / "out") == losses(tmp_path / "whole")


def test_training_goes_on_from_a_base(folder: Path, tmp_path: Path) -> None:
    """Its figures begin where the base's were, and its shape is the base's."""
    base = tmp_path / "base"
    train_super_resolver([], "scratch", base, photos=folder, iterations=30, learning_rate=2e-3, **FAST)
    shape = {name: FAST[name] for name in ("channels", "blocks")}
    rest = {name: value for name, value in FAST.items() if name not in shape}
    train_super_resolver([], base, tmp_path / "out", photos=folder, iterations=1, learning_rate=0.0, **rest)
    network, before = (SuperResolutionNetwork.from_pretrained(path) for path in (tmp_path / "out", base))
    assert network.config == SuperResolutionConfig(**shape)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), before.parameters(), strict=True))
    with pytest.raises(InputError, match="channels is the base's own"):
        train_super_resolver([], base, tmp_path / "other", photos=folder, channels=8)


def test_a_step_is_a_function_of_its_number_and_the_seed(folder: Path) -> None:
    def drawn(step: int, seed: int = 0) -> list[torch.Tensor]:
        options = SuperResolutionOptions(crop=32, batch=8, seed=seed)
        batch = SuperResolutionBatches(LargePhotos(folder, [], 32), options, 4)[step]
        return list(batch[:5])

    first = drawn(3)
    assert all(torch.equal(a, b) for a, b in zip(first, drawn(3), strict=True))
    assert not torch.equal(first[1], drawn(4)[1]) and not torch.equal(first[1], drawn(3, seed=1)[1])
    photos, targets, renders, shown, own = first
    assert photos.shape == (8, 3, 8, 8) and targets.shape == renders.shape == (8, 3, 32, 32)
    assert all(t.min() >= 0 and t.max() <= 1 for t in first)
    assert 0 < shown.sum() < 8 and bool((own[shown == 0] == 0).all()) and bool((renders[shown == 0] == 0).all())


def test_the_photo_is_the_truth_made_small(folder: Path) -> None:
    """By the step's operator, in 8 bits."""
    photos = LargePhotos(folder, [], 32)
    for share, operator in ((0.0, "area"), (1.0, "bicubic")):
        options = SuperResolutionOptions(crop=32, batch=8, bicubic_share=share, render_share=0.0)
        batch = SuperResolutionBatches(photos, options, 4)[0]
        assert batch.operator == operator
        wanted = reduced(batch.targets, 4, batch.operator).clamp(0, 1)
        assert (batch.photos - wanted).abs().mean() < 1 / 255  # rounding, and in some a little noise
        assert torch.equal((batch.photos * 255).round() / 255, batch.photos)


def test_simulated_renders_know_more_than_bicubic_and_less_than_the_truth() -> None:
    errors = []
    for i in range(24):
        truth = texture(i, 64, 64).astype(np.float32) / 255
        small = reduced(torch.from_numpy(truth).permute(2, 0, 1)[None], 4)
        large = enlarged(small, 4)[0].permute(1, 2, 0).numpy()
        rng = np.random.default_rng(i)
        made = simulated_render(truth, large, np.zeros_like(truth), rng, fair=True)
        assert made.shape == truth.shape and made.dtype == np.float32
        errors.append([np.abs(made - truth).mean(), np.abs(large - truth).mean()])
    of_renders, of_bicubic = np.mean(errors, axis=0)
    assert 0.01 < of_renders < of_bicubic
    kinds = [simulated_render(truth, large, np.zeros_like(truth), np.random.default_rng(i)) for i in range(60)]
    assert any(np.array_equal(made, truth) for made in kinds)
    assert any(not made.any() for made in kinds)  # the other place, here black


def test_validation_photos_are_never_drawn(folder: Path, arc: Path) -> None:
    scene = load_scene(arc)
    both = LargePhotos(folder, [scene], 32)
    assert [path.name for path in both.test] == ["3.png"] and len(both.files) == 3  # type: ignore[union-attr]
    assert len(both.frames) == len(scene.frames)
    alone = LargePhotos(None, [scene], 32)
    assert len(alone.frames) == len(scene.frames) - 1 and not alone.files
    assert [p.shape for p in (alone.draw(0.5, np.random.default_rng(i)) for i in range(3))] == [(72, 96, 3)] * 3
    batches = validation_batches(both, both.test, 4)
    assert len(batches) == 1 and batches[0].targets.shape == (1, 3, 72, 80)
    again = validation_batches(both, both.test, 4)
    assert torch.equal(batches[0].renders, again[0].renders)


def test_photos_that_cannot_be_used_are_told(folder: Path, tmp_path: Path) -> None:
    (folder / "1.png").write_bytes(b"no image")
    Image.fromarray(texture(9, 40, 34)).save(folder / "small.png")
    options = {**FAST, "crop": 64}
    results = train_super_resolver([], "scratch", tmp_path / "out", photos=folder, iterations=1, **options)
    assert results["photos"]["dropped"] == 2
    assert "34×40 pixels are less than the crop of 64" in results["dropped"][str(folder / "small.png")]
    for name in ("0.png", "2.png"):
        (folder / name).unlink()
    with pytest.raises(InputError, match="not two usable photos of at least 64 pixels"):
        train_super_resolver([], "scratch", tmp_path / "other", photos=folder, **options)


def test_the_command_trains_and_goes_on(folder: Path, arc: Path, tmp_path: Path) -> None:
    line = ["finetune", arc, "--task", "super-resolution", "--photos", folder, "--base", "scratch", *COMMAND]
    line += ["--device", "cpu", "-o", tmp_path / "out", "--json"]
    results = done(difix(*line, "--iterations", 2))
    assert results["steps"] == 2 and results["photos"] == {
        "folder": 3,
        "scenes": 11,
        "views": 0,
        "test": 1,
        "dropped": 0,
    }
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["state"] == "done" and record["arguments"]["task"] == "super-resolution"
    assert set(record["inputs"]) == {"photos", "scene arc"}
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert done(difix(*line, "--iterations", 2)) == results
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == weights
    refused(difix(*line, "--iterations", 3), "already holds another run")
    after = ["finetune", "--task", "super-resolution", "--photos", folder, "--base", tmp_path / "out", *COMMAND[:6]]
    assert done(difix(*after, "--iterations", 1, "-o", tmp_path / "next", "--json"))["parameters"] > 0


def test_what_a_super_resolver_cannot_heed_is_refused(folder: Path, tmp_path: Path) -> None:
    line = ["finetune", "--task", "super-resolution", "--photos", folder, "--base", "scratch", "-o", tmp_path / "out"]
    for words in (["--stream"], ["--train", "all"], ["--lora-rank", 4], ["--gram-weight", 1], ["--accumulate", 2],
                  ["--gradient-checkpointing"]):  # fmt: skip
        refused(difix(*line, *words), str(words[0]), "for fixers")
    refused(difix(*line, "--dtype", "bf16"), "--dtype", "for other tasks")
    refused(difix(*line, "--set", "drop_references=0.1"), "drop_references")
    refused(difix(*line, "--set", "crop=64"), "--crop")
    refused(difix(*line, "--crop", 34), "34 pixels", "factor 4")
    refused(difix(*line, "--set", "factor=1"), "factor")
    refused(difix(*line, "--set", "photo_share=0.3"), "photo_share", "scenes")
    refused(difix("finetune", "--task", "super-resolution"), "name scenes, or --photos")
    refused(difix(*line[:-4], "--base", tmp_path / "none", "-o", tmp_path / "out"), "holds no super-resolver")
    assert not (tmp_path / "out" / "model.safetensors").exists()
