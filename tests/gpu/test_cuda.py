"""What needs CUDA: the same pixels as on a CPU, and methods trained on a GPU, also on photos and pseudo-views."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from difixcli.fixer import new_small_fixer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here"),
]


def test_the_fixer_gives_the_cpus_pixels() -> None:
    fixer = new_small_fixer("tiny", seed=0)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(1, 3, 48, 64, generator=generator)
    references = torch.rand(1, 2, 3, 48, 64, generator=generator)
    expected = fixer(images, references)
    fixer.network.cuda()
    assert (fixer(images, references) - expected).abs().max() < 1e-3


def test_splatfacto_trains_on_cuda(shared_scenes: Path, tmp_path: Path) -> None:
    from difixcli.evaluation.metrics import psnr
    from difixcli.reconstruction import Reconstruction
    from difixcli.scenes import load_photo, load_scene

    scene = load_scene(shared_scenes / "fountain_p11", 160)
    train = range(0, len(scene.frames), 2)
    reconstruction = Reconstruction.create(
        scene, train, method="splatfacto", folder=tmp_path, preset="cpu", device="cuda", iterations=200
    )

    def quality() -> float:
        return psnr(reconstruction.render(scene.frames[0].camera).color, load_photo(scene.frames[0]))

    before = quality()
    reconstruction.train(200)
    assert quality() > before + 3


def test_a_fixer_in_half_precision() -> None:
    from difixcli.fixer import Fixer

    generator = torch.Generator().manual_seed(0)
    images, references = (torch.rand(shape, generator=generator) for shape in [(1, 3, 48, 64), (1, 2, 3, 48, 64)])
    fixed = Fixer.from_pretrained("bundled", device="cuda", dtype=torch.bfloat16)(images, references)
    expected = Fixer.from_pretrained("bundled")(images, references)
    assert fixed.dtype == torch.float32 and fixed.device.type == "cpu"
    assert (fixed - expected).abs().mean() < 0.02


def test_raw_references_in_half_precision_compiled_and_in_batches(shared: Path) -> None:
    from difixcli.fixer import Fixer

    generator = torch.Generator().manual_seed(0)
    images, photos = (torch.rand(shape, generator=generator) for shape in [(3, 3, 64, 96), (3, 2, 3, 64, 96)])
    weights = shared / "golden" / "difix_ref"
    expected = Fixer.from_pretrained(weights)(images, photos)
    fixer = Fixer.from_pretrained(weights, device="cuda", merge=True)
    assert (fixer(images, photos) - expected).abs().max() < 5e-3  # convolutions in TF32
    half = Fixer.from_pretrained(weights, device="cuda", dtype=torch.bfloat16, merge=True)
    batch = half(images, photos)
    assert (batch - expected).abs().mean() < 0.02
    assert (half(images[:1], photos[:1]) - batch[:1]).abs().mean() < 0.01
    half.compile()
    assert (half(images, photos) - batch).abs().mean() < 0.01
    assert (half(images[:1], half.encode_references(photos[0])) - batch[:1]).abs().mean() < 0.01


def test_too_little_memory_on_cuda_falls_back_to_tiles() -> None:
    fixer = new_small_fixer("small", seed=0).to("cuda", torch.float32)
    said: list[str] = []
    fixer.notice = said.append
    image = torch.rand(1, 3, 1024, 1024, generator=torch.Generator().manual_seed(0))
    fixer.tile = 256
    fixer(image)
    torch.cuda.synchronize()
    share = 2 * torch.cuda.max_memory_allocated() / torch.cuda.get_device_properties(0).total_memory
    fixer.tile = None
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(share)
    try:
        fixed = fixer(image)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert said and "tiles of" in said[0]
    assert torch.isfinite(fixed).all()


@pytest.mark.parametrize("method", ["nerfacto", "splatfacto"])
def test_distill_compares_on_cuda(method: str, shared_scenes: Path, tmp_path: Path) -> None:
    """Three datamanagers in one process: the photos', the pseudo-views' and the plain run's."""
    from typer.testing import CliRunner

    from difixcli.cli import app

    fixer = new_small_fixer("tiny", seed=0).save_pretrained(tmp_path / "fixer")
    line = ["distill", shared_scenes / "fountain_p11", "--method", method, "--fixer", fixer, "--compare", "--json"]
    line += ["--device", "cuda", "--preset", "cpu", "--iterations", 60, "--rounds", 2, "--size", 64]
    result = CliRunner().invoke(app, [str(word) for word in [*line, "--output", tmp_path / "run"]])
    assert result.exit_code == 0, (result.stderr, result.exception)
    said = json.loads(result.stdout.splitlines()[-1])["results"]
    assert set(said) == {"plain", "distilled", "enhanced"}
    assert all(np.isfinite(figures["psnr"]) for figures in said.values())


@pytest.mark.parametrize("method", ["nerfacto", "splatfacto"])
def test_going_on_after_a_load_on_cuda(method: str, shared_scenes: Path, tmp_path: Path) -> None:
    """Going on from a checkpoint learns on; CUDA's kernels add in any order, so the pixels are alike, not equal."""
    from difixcli.reconstruction import Reconstruction
    from difixcli.scenes import load_scene

    scene = load_scene(shared_scenes / "fountain_p11", 64)
    made = Reconstruction.create(
        scene, [0, 2, 4, 6], method=method, folder=tmp_path, preset="cpu", device="cuda", iterations=100
    )
    made.train(53)
    made.save()
    camera = scene.frames[1].camera
    again = Reconstruction.load(tmp_path, scene, [0, 2, 4, 6])
    before = again.render(camera).color
    np.testing.assert_allclose(before, made.render(camera).color, atol=2e-3)
    for one in (made, again):
        one.train(47)
    after = again.render(camera).color
    assert np.abs(after - before).max() > 1e-3
    assert np.abs(after - made.render(camera).color).mean() < 0.02
    if method == "splatfacto":  # nerfacto's networks are tiny-cuda-nn's where that is installed
        on_cpu = Reconstruction.load(tmp_path, scene, device="cpu")
        assert np.abs(on_cpu.render(camera).color - before).mean() < 0.02
