"""Metrics agree with their references; folders, runs and reports are measured as they lie on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from difixcli.errors import InputError
from difixcli.evaluation.perceptual import Lpips, StLpips, lpips_available, shared_network


def photo(path: Path, size: tuple[int, int] = (96, 64)) -> np.ndarray:
    """(H, W, 3) in [0, 1] of a photo at `size` (width, height)."""
    return np.asarray(Image.open(path).convert("RGB").resize(size), dtype=np.float32) / 255


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None]


@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_st_lpips_is_the_packages_number(photos, net):
    from stlpips_pytorch import stlpips

    a = torch.cat([tensor(photo(p)) for p in photos[:2]])
    b = (a + 0.1 * torch.randn(a.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    ours = shared_network("st_lpips", net)
    with torch.no_grad():
        theirs = stlpips.LPIPS(net=net, variant="shift_tolerant", verbose=False)(a, b, normalize=True).flatten()
        torch.testing.assert_close(ours(a, b), theirs, atol=1e-6, rtol=1e-5)
        assert ours(a, a).abs().max() == 0
    assert ours(a, b).shape == (2,)


@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_st_lpips_gradients_are_finite_even_on_black(net):
    network = shared_network("st_lpips", net)
    black = torch.zeros(1, 3, 33, 40, requires_grad=True)
    network(black, torch.rand(1, 3, 33, 40)).sum().backward()
    assert black.grad is not None and torch.isfinite(black.grad).all() and black.grad.abs().max() > 0
    assert not any(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("size", [1, 7, 31])
def test_perceptual_networks_take_small_images(size):
    network = shared_network("st_lpips", "vgg")
    distance = network(torch.rand(2, 3, size, 40), torch.rand(2, 3, size, 40))
    assert distance.shape == (2,) and torch.isfinite(distance).all()


def test_vgg_features_have_vggs_shapes():
    features = shared_network("st_lpips", "vgg").features(torch.rand(1, 3, 64, 48))
    assert [f.shape[1] for f in features] == [64, 128, 256, 512, 512]
    assert features[0].shape[-2:] == (64, 48) and all(f.min() >= 0 for f in features)


def test_distance_stays_frozen_inside_a_training_module():
    parent = torch.nn.ModuleList([shared_network("st_lpips", "alex")])
    parent.train()
    assert not any(m.training for m in parent[0].modules())


def test_lpips_is_refused_without_its_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert not lpips_available("vgg")
    with pytest.raises(InputError, match=r"vgg16-397923af\.pth"):
        Lpips("vgg")
    with pytest.raises(InputError, match="vgg or alex"):
        StLpips("squeeze")  # type: ignore[arg-type]
