"""Metrics agree with their references; folders, runs and reports are measured as they lie on disk."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from difixcli.errors import InputError
from difixcli.evaluation import evaluate_folders, evaluate_run, metrics, perceptual
from difixcli.evaluation.metrics import (
    best_unsharp,
    evaluate_images,
    image_metrics,
    metrics_against,
    psnr,
    ssim,
    unsharp_mask,
)
from difixcli.evaluation.perceptual import Lpips, StLpips, lpips_available, shared_network
from difixcli.evaluation.pictures import contact_sheet, error_map
from difixcli.evaluation.report import write_report
from difixcli.images import as_planes


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


@pytest.mark.parametrize("key", ["st_lpips", "st_lpips_alex", "lpips", "lpips_vgg"])
def test_a_large_images_distance_is_found_band_by_band(photos, monkeypatch, key):
    """It is that of the whole image, at borders and under a mask, too, whatever the bands' height."""
    import lpips

    kind, net = metrics._NETWORKS[key]
    network: StLpips | Lpips
    if kind == "lpips":  # its own weights are a download
        torch.manual_seed(0)
        package = lpips.LPIPS(net=net, pretrained=True, pnet_rand=True, verbose=False).eval()
        network = Lpips(net, package)
    else:
        network = shared_network(kind, net)
    monkeypatch.setattr(perceptual, "shared_network", lambda *_: network)
    for size in ((33, 120), (20, 70)):  # width and height; what is below 32 pixels is continued
        truth, other = (photo(path, size) for path in photos[:2])
        mask = np.zeros(truth.shape[:2], bool)
        mask[30:60, 4:] = True

        def found(truth=truth, other=other, mask=mask) -> list[float]:
            return [
                figures[key]
                for counted in (None, mask)
                for figures in metrics_against(truth, [other, other[::-1]], counted, metrics=(key,))
            ]

        with torch.no_grad():
            expected = [
                float(network(as_planes(np.where(counted[..., None], image, truth)), as_planes(truth)))
                for counted in (np.ones_like(mask), mask)
                for image in (other, other[::-1])
            ]
        with monkeypatch.context() as patch:
            assert found() == expected  # of one band, so no number differs
            patch.setattr(perceptual, "_BAND", 1)
            patch.setattr(perceptual, "_FEWEST_ROWS", 11)
            assert found() == pytest.approx(expected, rel=1e-6)


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


@pytest.mark.parametrize("rows", [11, 40, 53])
def test_ssim_of_a_large_image_is_that_of_its_bands(noisy, rows, monkeypatch):
    image, truth = noisy[0]
    mask = np.random.default_rng(0).random(truth.shape[:2]) < 0.7
    whole = [ssim(image, truth), ssim(image, truth, mask)]
    monkeypatch.setattr(metrics, "_AT_ONCE", rows * truth.shape[1])
    assert [ssim(image, truth), ssim(image, truth, mask)] == pytest.approx(whole, abs=1e-7)


def test_images_too_small_for_ssim_are_refused():
    small = np.zeros((8, 30, 3), np.float32)
    with pytest.raises(InputError, match="30×8"):
        ssim(small, small)


def test_unsharp_mask_sharpens_what_was_blurred(photos):
    cv2 = pytest.importorskip("cv2")
    truth = photo(photos[0])
    blurred = cv2.GaussianBlur(truth, (0, 0), 1.0)
    best = best_unsharp([(blurred, truth, None)])
    assert best.figures["psnr"] > psnr(blurred, truth) + 1
    assert best.figures["psnr"] == pytest.approx(psnr(best(blurred), truth))
    flat = np.full((20, 20, 3), 0.4, np.float32)
    np.testing.assert_allclose(unsharp_mask(flat, 1.0, 1.0), flat, atol=1e-6)


def write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)).save(path)


@pytest.fixture
def run(tmp_path, noisy) -> Path:
    """A run's folder with the truth and three variants, each better than the one before."""
    for i, (image, truth) in enumerate(noisy):
        write(tmp_path / "run/renders/truth" / f"{i}.png", truth)
        for name, share in (("enhanced", 0.2), ("distilled", 0.5), ("plain", 1.0)):
            write(tmp_path / "run/renders" / name / f"{i}.png", truth + share * (image - truth))
    return tmp_path / "run"


def test_a_run_is_measured_variant_by_variant(run, noisy):
    found = evaluate_run(run, unsharp=True)
    assert list(found["results"]) == ["plain", "distilled", "enhanced"] and found["images"] == 3
    assert set(found["results"]["plain"]) >= {"psnr", "ssim", "st_lpips"}
    psnrs = [row["psnr"] for row in found["results"].values()]
    assert psnrs == sorted(psnrs)
    assert psnrs[0] == pytest.approx(np.mean([psnr(a, b) for a, b in noisy]), abs=0.05)  # 8-bit files
    sharpened = found["baselines"]["distilled + unsharp"]
    assert sharpened["psnr"] < found["results"]["distilled"]["psnr"] and sharpened["sigma"] > 0
    json.dumps(found)


def test_a_run_without_renders_is_refused(tmp_path):
    with pytest.raises(InputError, match="renders/truth"):
        evaluate_run(tmp_path)
    (tmp_path / "renders" / "truth").mkdir(parents=True)
    with pytest.raises(InputError, match="finish the run"):
        evaluate_run(tmp_path)


def test_folders_match_by_stem(run):
    renders = run / "renders"
    Image.open(renders / "plain/0.png").save(renders / "plain/0.bmp")
    (renders / "plain/0.png").unlink()
    found = evaluate_folders(renders / "plain", renders / "truth")
    assert list(found["per_image"]["images"]) == ["0", "1", "2"]
    assert found["results"]["psnr"] == pytest.approx(
        np.mean([f["psnr"] for f in found["per_image"]["images"].values()])
    )
    one = evaluate_folders(renders / "plain/1.png", renders / "truth/1.png")
    assert one["results"]["psnr"] == found["per_image"]["images"]["1"]["psnr"]


def test_bad_folders_are_named(run, tmp_path):
    renders = run / "renders"
    with pytest.raises(InputError, match="no folder"):
        evaluate_folders(tmp_path / "nowhere", renders / "truth")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no image"):
        evaluate_folders(tmp_path / "empty", renders / "truth")
    write(renders / "plain/extra.png", np.zeros((20, 20, 3)))
    with pytest.raises(InputError, match=r"truth lacks extra"):
        evaluate_run(run)
    write(renders / "truth/extra.png", np.zeros((20, 24, 3)))
    with pytest.raises(InputError, match=r"20×20 pixels but .*extra\.png is 24×20"):
        evaluate_folders(renders / "plain", renders / "truth")
    write(renders / "plain/extra.jpg", np.zeros((20, 20, 3)))
    with pytest.raises(InputError, match=r"extra\.jpg and extra\.png"):
        evaluate_folders(renders / "plain", renders / "truth")
    (renders / "plain/extra.jpg").unlink()
    (renders / "plain/extra.png").write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"extra\.png cannot be read"):
        evaluate_folders(renders / "plain", renders / "truth")


def test_the_report_is_one_file_that_needs_nothing(run):
    path = write_report(evaluate_run(run, unsharp=True), run / "report.html", "<room> & splatfacto")
    page = path.read_text(encoding="utf-8")
    assert "&lt;room&gt; &amp; splatfacto" in page and "<room>" not in page
    assert page.count("data:image/jpeg;base64,") == 3 * (1 + 3 + 3)
    assert not re.search(r"(src|href)=\"(?!data:)|url\(|@import", page)
    assert "3 images against the truth, 96×64 pixels" in page and "VGG-16" in page and "distilled + unsharp" in page
    of_folders = evaluate_folders(run / "renders/plain", run / "renders/truth")
    assert "PSNR" in write_report(of_folders, run / "folders.html", "plain").read_text(encoding="utf-8")


def test_the_worst_view_comes_first(run):
    found = evaluate_run(run)
    page = write_report(found, run / "report.html", "run").read_text(encoding="utf-8")
    figures = found["per_image"]["enhanced"]
    assert re.findall(r"<h3>(\d)</h3>", page) == sorted(figures, key=lambda stem: figures[stem]["psnr"])


def test_contact_sheets_and_error_maps(noisy):
    image, truth = noisy[0]
    strip = contact_sheet([[truth, image]], ["truth", "render"])
    sheet = contact_sheet([[truth, image], [image[::2, ::2], truth]], ["truth", "render"])
    assert strip.shape[1] == sheet.shape[1] and sheet.shape[0] > strip.shape[0] > truth.shape[0]
    np.testing.assert_allclose(strip[22:86, 6:102], truth, atol=1 / 255)
    assert strip[:22].min() < 0.5  # there are letters
    assert error_map(truth, truth).max() < 0.05 and error_map(1 - truth, truth).max() > 0.8
    with pytest.raises(ValueError, match="label"):
        contact_sheet([[truth]], ["a", "b"])
