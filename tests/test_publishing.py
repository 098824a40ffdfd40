"""What leaves this program: the published layout, model cards, uploads and trackers, all without a network."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from commands import difix, done, refused, told
from safetensors.torch import load_file
from test_training import FAST, pairs  # noqa: F401 (a fixture)

from difixcli.errors import InputError
from difixcli.fixer import Fixer
from difixcli.training import finetune
from difixcli.training.trackers import TRACKERS, check_installed

QUICK = {**FAST, "perceptual_weight": 0.0, "gram_weight": 0.0, "learning_rate": 1e-3, "warm_up": 1, "iterations": 2}


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    parts = {part: load_file(folder / part / "diffusion_pytorch_model.safetensors") for part in ("unet", "vae")}
    return {f"{part}.{name}": value for part, held in parts.items() for name, value in held.items()}


def test_published_weights_come_out_as_they_went_in(shared: Path, tmp_path: Path) -> None:
    """Names, values, configurations and the parts that are only carried along."""
    base = shared / "golden" / "difix_ref"
    line = ["fix", "--fixer", base, "--export", tmp_path / "out", "--layout", "diffusers", "--json"]
    assert told(difix(*line))["exported"] == str(tmp_path / "out")
    before, after = tensors(base), tensors(tmp_path / "out")
    assert before.keys() == after.keys()
    assert all(torch.equal(value.float(), after[name]) for name, value in before.items())
    for part in ("unet", "vae", "scheduler"):
        [name] = [path.name for path in (base / part).glob("*config.json")]
        was, now = (json.loads((f / part / name).read_text()) for f in (base, tmp_path / "out"))
        known = {key: now.get(key) for key in was if key not in ("_diffusers_version", "force_upcast")}
        assert known == {key: value for key, value in was.items() if key in known}
    for path in (base / "tokenizer").iterdir():
        assert (tmp_path / "out" / "tokenizer" / path.name).read_bytes() == path.read_bytes()
    index = [json.loads((f / "model_index.json").read_text()) for f in (base, tmp_path / "out")]
    assert [one.pop("_diffusers_version") for one in index] and index[0] == index[1]
    difix(*line[:-1])  # the same again is no replacement
    copy = tmp_path / "copy"
    shutil.copytree(base, copy)
    refused(difix("fix", "--fixer", copy, "--export", copy, "--layout", "diffusers"), "holds the fixer")
    assert (copy / "text_encoder" / "model.safetensors").is_file()


def test_a_fixer_trained_here_reloads_from_the_published_layout_bit_for_bit(
    shared: Path,
    pairs: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    base, trained = shared / "golden" / "difix_ref", tmp_path / "trained"
    settings = [f"--set={name}={QUICK[name]}" for name in ("window", "log_every")]
    line = ["finetune", pairs, "--base", base, "--device", "cpu", "--iterations", "2", "--crop", "32", *settings]
    line += ["--perceptual-weight", "0", "--gram-weight", "0", "--learning-rate", "0.001", "--warm-up", "1"]
    done(difix(*line, "-o", trained, "--json"))
    out = tmp_path / "out"
    told(difix("fix", "--fixer", trained, "--export", out, "--layout", "diffusers", "--json"))
    ours, theirs = Fixer.from_pretrained(trained), Fixer.from_pretrained(out)
    state, again = ours.network.state_dict(), theirs.network.state_dict()
    assert state.keys() == again.keys() and all(torch.equal(state[name], again[name]) for name in state)
    assert not torch.equal(state["unet.conv_in.weight"], Fixer.from_pretrained(base).network.unet.conv_in.weight)
    assert ours.is_saved_in(out) and theirs.licence == ours.licence and theirs.config.views == ours.config.views
    generator = torch.Generator().manual_seed(0)
    images, references = torch.rand(1, 3, 32, 32, generator=generator), torch.rand(1, 1, 3, 32, 32, generator=generator)
    assert torch.equal(ours(images, references), theirs(images, references))

    # the card is made from the run, and says what would be pushed
    card = (trained / "README.md").read_text()
    for said in (
        "library_name: difixcli",
        "license: other",
        "`pairs`: 4 train, 1 test",
        "2 steps in 1 process",
        "NVIDIA",
    ):
        assert said in card
    figures = json.loads((trained / "run.json").read_text())["results"]["validation"]["fixed"]
    assert f"| fixed | {figures['psnr']:.4f} |" in card and "| learning_rate | 0.001 |" in card
    assert str(tmp_path) not in card


def test_networks_without_a_published_layout_are_told(tmp_path: Path) -> None:
    refused(difix("fix", "--export", tmp_path / "a", "--layout", "diffusers"), "leave out --layout")
    refused(difix("fix", tmp_path, "--layout", "diffusers"), "--layout belongs to --export")
    assert not (tmp_path / "a").exists()


def test_another_text_encoder_is_noticed(shared: Path, tmp_path: Path) -> None:
    from difixcli.errors import InputError
    from difixcli.fixer.publishing import save_published, text_encoder_of

    fixer = Fixer.from_pretrained(shared / "golden" / "difix_ref")
    fixer.network.prompt.data += 1
    with pytest.raises(InputError, match="embeds the prompt otherwise"):
        save_published(fixer.network, tmp_path / "out", text_encoder_of(shared / "golden" / "difix_ref"))


def test_pushing_and_tracking_without_a_network(
    pairs: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    out = tmp_path / "out"
    line = ["finetune", pairs, "--base", "tiny", "--device", "cpu", "--iterations", "2", "--crop", "32", "-o", out]
    line += ["--perceptual-weight", "0", "--set", "log_every=1"]
    refused(difix(*line, "--push-to-hub", "fixer"), "OWNER/NAME")
    refused(difix(*line, "--track", "wandbb"), "did you mean wandb")
    refused(difix(*line, "--track", "mlflow"), "pip install mlflow")
    assert not out.exists()
    refused(
        difix(*line, "--track", "wandb", "--push-to-hub", "someone/fixer"),
        "someone/fixer cannot be pushed",
        "README.md",
    )
    assert all((out / name).is_file() for name in ("README.md", "config.json", "model.safetensors"))
    assert "license: apache-2.0" in (out / "README.md").read_text()
    [offline] = (out / "wandb").glob("offline-run-*")
    assert list(offline.glob("*.wandb")) and list((out / "tensorboard").iterdir())
    refused(
        difix(*line, "--push-to-hub", "someone/fixer"), "someone/fixer cannot be pushed"
    )  # nothing is trained again
    refused(difix(*line[:2], "--task", "super-resolution", "--track", "wandb"), "--track is for fixers")


def test_trackers_that_are_known_without_accelerate_are_its_own() -> None:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    assert {str(name) for name in LOGGER_TYPE_TO_CLASS} == set(TRACKERS)
    for name in TRACKERS:
        (check_installed if find_spec(name) or name == "tensorboard" else _refused)([name])


def _refused(names: list[str]) -> None:
    with pytest.raises(InputError, match="needs its package"):
        check_installed(names)


def test_values_reach_the_trackers(pairs: Path, tmp_path: Path) -> None:  # noqa: F811
    """What a tracker of accelerate's kind is given: numbers by step, and grids."""
    from accelerate.tracking import GeneralTracker

    from difixcli.training.journal import Journal

    class Kept(GeneralTracker):
        name, requires_logging_directory = "kept", False

        def __init__(self) -> None:
            super().__init__(_blank=True)
            self.values: list = []

        def log(self, values: dict, step: int | None = None, **_: object) -> None:
            self.values.append((step, values))

    tracker = Kept()
    journal = Journal(tmp_path, trackers=[tracker])
    journal({"event": "step", "step": 3, "loss": 0.5, "pair": "a"})
    journal({"event": "start", "pairs": {}})
    assert tracker.values == [(3, {"step/loss": 0.5})]
    assert finetune([pairs], "tiny", tmp_path / "out", **QUICK)["steps"] == 2
