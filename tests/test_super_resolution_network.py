"""The super-resolver's network: its equation, its files, and what the bundled one does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from difixcli.errors import InputError
from difixcli.evaluation.metrics import psnr
from difixcli.images import agreeing, enlarged, reduced
from difixcli.priors.super_resolution.files import BUNDLED, resolver_files
from difixcli.priors.super_resolution.network import (
    SuperResolutionConfig,
    SuperResolutionNetwork,
)
from difixcli.runs import read_image

SMALL = SuperResolutionConfig(factor=4, channels=8, blocks=2)


def images(factor: int = 4, batch: int = 2) -> tuple[Tensor, Tensor]:
    """Photos of 9×7 pixels and renders of the same views."""
    generator = torch.Generator().manual_seed(0)
    photos = torch.rand(batch, 3, 7, 9, generator=generator)
    return photos, torch.rand(batch, 3, 7 * factor, 9 * factor, generator=generator)


def random_network(config: SuperResolutionConfig = SMALL) -> SuperResolutionNetwork:
    """One whose last layers are not zero."""
    torch.manual_seed(1)
    network = SuperResolutionNetwork(config)
    for layer in (network.tail, network.gate):
        nn.init.normal_(layer.weight, std=0.05)
        nn.init.normal_(layer.bias, std=0.05)  # type: ignore[arg-type]
    return network.eval()


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_a_new_network_is_bicubic(factor: int) -> None:
    photos, renders = images(factor)
    network = SuperResolutionNetwork(SuperResolutionConfig(factor=factor, channels=8, blocks=1))
    with torch.no_grad():
        assert torch.equal(network(photos), enlarged(photos, factor))
        assert torch.equal(network(photos, renders), enlarged(photos, factor))


@torch.no_grad()
def test_the_gate_takes_the_render() -> None:
    """With g = 0 and w = 1 everywhere the answer is the render, where there is one."""
    photos, renders = images()
    network = SuperResolutionNetwork(SMALL)
    nn.init.ones_(network.gate.bias)  # type: ignore[arg-type]
    torch.testing.assert_close(network(photos, renders), renders)
    shown = network(photos, renders, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(shown[0], enlarged(photos, 4)[0])
    torch.testing.assert_close(shown[1], renders[1])


@torch.no_grad()
def test_a_render_that_is_not_shown_changes_nothing() -> None:
    photos, renders = images()
    network = random_network()
    alone = network(photos)
    torch.testing.assert_close(network(photos, renders, torch.zeros(2)), alone)
    assert (network(photos, renders) - alone).abs().mean() > 1e-3


@torch.no_grad()
def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    photos, renders = images()
    network = random_network()
    folder = network.save_pretrained(tmp_path / "new" / "network")
    loaded = SuperResolutionNetwork.from_pretrained(folder)
    assert loaded.config == SMALL and not loaded.training and loaded.factor == 4
    assert torch.equal(loaded(photos, renders), network(photos, renders))
    assert [path.name for path in resolver_files(folder)] == ["config.json", "model.safetensors"]
    network.half().save_pretrained(folder)
    half = SuperResolutionNetwork.from_pretrained(folder)
    assert all(weight.dtype == torch.float32 for weight in half.parameters())
    torch.testing.assert_close(half(photos, renders), loaded(photos, renders), atol=2e-3, rtol=0)


def test_a_render_of_another_size_is_refused() -> None:
    photos, renders = images()
    with pytest.raises(InputError, match=r"render of 35×28 .* becomes 36×28"):
        SuperResolutionNetwork(SMALL)(photos, renders[..., :-1])


@pytest.mark.parametrize(("name", "value"), [("factor", 1), ("factor", 2.5), ("blocks", 0), ("channels", True)])
def test_a_shape_that_is_none_is_refused(name: str, value: object) -> None:
    with pytest.raises(InputError, match=name):
        SuperResolutionConfig(**{name: value})  # type: ignore[arg-type]


def test_files_that_are_no_network_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere holds no super-resolver .* bundled"):
        SuperResolutionNetwork.from_pretrained(tmp_path / "nowhere")
    folder = SuperResolutionNetwork(SMALL).save_pretrained(tmp_path / "network")
    config, weights = folder / "config.json", folder / "model.safetensors"
    values, whole = json.loads(config.read_text()), weights.read_bytes()

    def refusal(text: str) -> None:
        with pytest.raises(InputError, match=text):
            SuperResolutionNetwork.from_pretrained(folder)

    config.write_text(json.dumps({"format": "difixcli-fixer-1"}))
    refusal("holds a fixer, which --fixer takes")
    config.write_text(json.dumps({"format": "another"}))
    refusal("not a super-resolver's configuration")
    config.write_text(json.dumps(values | {"heads": 3}))
    refusal(r"unknown entries \(heads\)")
    config.write_text(json.dumps(values | {"blocks": 3}))
    refusal("does not fit the configuration")
    config.write_text(json.dumps(values))
    weights.write_bytes(whole[:100])
    refusal("damaged")
    tensors = load_file(SuperResolutionNetwork(SMALL).save_pretrained(folder) / "model.safetensors")
    tensors["head.bias"][0] = float("nan")
    save_file(tensors, weights)
    refusal("not numbers")


def test_the_bundled_network_is_small_and_described() -> None:
    network = SuperResolutionNetwork.from_pretrained("bundled")
    assert network.factor == 4 and network.licence == "Apache-2.0"
    assert 0.8e6 < sum(weight.numel() for weight in network.parameters()) < 1.3e6
    assert (BUNDLED / "model.safetensors").stat().st_size < 3e6
    card = (BUNDLED / "README.md").read_text(encoding="utf-8")
    assert all(word in card for word in ("Apache-2.0", "Limits", "bicubic", "unsharp"))


@torch.no_grad()
def test_the_bundled_network_beats_bicubic(photos: list[Path]) -> None:
    """On photos of a room it never saw: alone, and more so beside a render that is blurred but true."""
    network = SuperResolutionNetwork.from_pretrained("bundled")
    rows = []
    for path in photos[::8]:
        truth = torch.from_numpy(read_image(path)).permute(2, 0, 1)[None]
        photo = (reduced(truth, 4) * 255).round() / 255
        render = (truth + enlarged(photo, 4).clamp(0, 1)) / 2
        answers = (enlarged(photo, 4), network(photo), network(photo, render))
        served = [answers[0].clamp(0, 1), *(agreeing(answer, photo, 4) for answer in answers[1:])]
        rows.append([psnr(_array(image), _array(truth)) for image in served])
    bicubic, alone, beside = np.mean(rows, axis=0)
    assert alone > bicubic + 0.1 and beside > alone + 1


def _array(image: Tensor) -> np.ndarray:
    return image[0].permute(1, 2, 0).numpy()
