"""Metrics agree with their references; folders, runs and reports are measured as they lie on disk."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from difixcli.errors import InputError
from difixcli.evaluation.metrics import best_unsharp, evaluate_images, image_metrics, psnr, ssim, unsharp_mask
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


@pytest.fixture(scope="module")
def noisy(photos) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    truths = [photo(path) for path in photos[:3]]
    return [(np.clip(t + rng.normal(0, 0.08, t.shape), 0, 1).astype(np.float32), t) for t in truths]


def test_psnr_and_ssim_agree_with_scikit_image(noisy):
    reference = pytest.importorskip("skimage.metrics")
    for image, truth in noisy:
        assert psnr(image, truth) == pytest.approx(reference.peak_signal_noise_ratio(truth, image), abs=1e-4)
        expected = reference.structural_similarity(
            truth, image, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1
        )
        assert ssim(image, truth) == pytest.approx(expected, abs=1e-4)


def test_identical_images_are_perfect(noisy):
    figures = image_metrics(noisy[0][1], noisy[0][1])
    assert figures["psnr"] == math.inf and figures["ssim"] == pytest.approx(1) and figures["st_lpips"] == 0


def test_a_mask_hides_everything_outside_it(noisy):
    image, truth = noisy[0]
    mask = np.zeros(truth.shape[:2], bool)
    mask[20:40, 30:70] = True
    spoiled = np.where(mask[..., None], image, 1 - truth)
    assert image_metrics(spoiled, truth, mask) == image_metrics(image, truth, mask)
    assert psnr(image, truth, mask) == pytest.approx(psnr(image[20:40, 30:70], truth[20:40, 30:70]))
    everywhere = np.ones_like(mask)
    assert ssim(image, truth, everywhere) == pytest.approx(ssim(image, truth), abs=1e-9)
    with pytest.raises(InputError, match="no pixel"):
        psnr(image, truth, np.zeros_like(mask))


def test_means_and_spreads_over_images(noisy):
    found = evaluate_images((a for a, _ in noisy), (b for _, b in noisy))
    values = [figures["psnr"] for figures in found["per_image"]]
    assert found["mean"]["psnr"] == pytest.approx(np.mean(values))
    assert found["std"]["psnr"] == pytest.approx(np.std(values))
    assert set(found["mean"]) >= {"psnr", "ssim", "st_lpips"}
    with pytest.raises(InputError, match="no image"):
        evaluate_images([], [])


def test_images_too_small_for_ssim_are_refused():
    small = np.zeros((8, 30, 3), np.float32)
    with pytest.raises(InputError, match="30×8"):
        ssim(small, small)


def test_unsharp_mask_sharpens_what_was_blurred(photos):
    cv2 = pytest.importorskip("cv2")
    truth = photo(photos[0])
    blurred = cv2.GaussianBlur(truth, (0, 0), 1.0)
    best = best_unsharp([(blurred, truth)])
    assert best.figures["psnr"] > psnr(blurred, truth) + 1
    assert best.figures["psnr"] == pytest.approx(psnr(best(blurred), truth))
    flat = np.full((20, 20, 3), 0.4, np.float32)
    np.testing.assert_allclose(unsharp_mask(flat, 1.0, 1.0), flat, atol=1e-6)
