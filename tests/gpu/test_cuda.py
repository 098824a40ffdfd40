"""What needs CUDA: the same pixels as on a CPU, and a splat trained through gsplat."""

from __future__ import annotations

from pathlib import Path

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
