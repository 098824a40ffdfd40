"""View-conditioned diffusion on a GPU: a CPU's views, and training in bfloat16 that goes on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from planes import write_plane
from test_view_diffusion import PLACES, plane_views, tiny
from test_view_diffusion_training import FAST

from difixcli.priors.view_diffusion.views import Pinhole
from difixcli.scenes import load_scene
from difixcli.training import train_view_diffusion

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_views_are_a_cpus() -> None:
    views = plane_views(1, 3.0, PLACES)
    query = Pinhole(views.intrinsics[0], views.poses[0], *views.images.shape[-2:])
    made = []
    for device in ("cpu", "cuda"):
        model = tiny().to(device)
        condition = model.condition(views, query)
        sampled = model.sample(condition, 0, steps=4)
        made.append((condition.picture.cpu(), condition.features.cpu(), sampled.cpu()))
    for one, other in zip(*made, strict=True):
        torch.testing.assert_close(one, other, atol=2e-2, rtol=1e-2)


def test_training_in_half_precision_goes_on(tmp_path: Path) -> None:
    scenes = [load_scene(write_plane(tmp_path / "plane", 0), 48)]
    options = {**FAST, "epipolar_iterations": 30, "vae_iterations": 30, "diffusion_iterations": 30, "dtype": "bf16"}
    results = train_view_diffusion(scenes, "scratch", tmp_path / "out", device="cuda", **options)
    assert results["steps"] == {"epipolar": 30, "vae": 30, "diffusion": 30}
    assert all(value < 2 for value in results["loss"].values())
    again = train_view_diffusion(scenes, "scratch", tmp_path / "out", device="cuda", **options)
    assert again["validation"] == results["validation"]
