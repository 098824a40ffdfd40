"""What runs on a GPU keeps its tensors there: the same results as on a CPU, from a device that refuses to mix.

See `pretend_cuda` for what such a device can tell and what only a real one can.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from planes import write_plane
from pretend_cuda import PretendTensor, pretend_cuda
from test_fixer_inference import raw_network, smooth
from test_training import FAST, Killed, losses, save, texture
from test_view_diffusion_training import FAST as FAST_VIEWS
from torch import Tensor

from difixcli.fixer import Fixer, new_small_fixer
from difixcli.fixer.alignment import align_references, register_references
from difixcli.fixer.confidence import bad_fixes, fix_confidence
from difixcli.fixer.diagnostics import collapse_signs
from difixcli.priors.view_diffusion.model import ViewDiffusion
from difixcli.scenes import load_scene
from difixcli.training import train_view_diffusion


@pytest.fixture
def waits() -> Iterator[dict[str, int]]:
    with pretend_cuda() as counted:
        yield counted


def on_cuda(*values: Tensor) -> list[Tensor]:
    return [value.to("cuda") for value in values]


def test_the_pretended_device_refuses_what_cuda_refuses(waits: dict[str, int]) -> None:
    here = torch.rand(2, 3, 4, 4)
    there = here.to("cuda")
    assert there.device.type == "cuda" and there.is_cuda and torch.equal(there.cpu(), here)
    mixed: list[Callable[[], object]] = [
        lambda: here + there,
        lambda: torch.cat([there, here]),
        lambda: torch.nn.functional.conv2d(there, here),
        lambda: torch.nn.functional.grid_sample(here, torch.zeros(2, 1, 1, 2, device="cuda"), align_corners=False),
        lambda: here[torch.arange(2, device="cuda")],
        lambda: there * torch.from_numpy(here.numpy()),
        lambda: torch.randn(2, device="cuda", generator=torch.Generator()),
        there.numpy,
        lambda: np.asarray(there),
        lambda: torch.linalg.inv(there.to(torch.bfloat16)),
    ]
    for attempt in mixed:
        with pytest.raises((RuntimeError, TypeError)):
            attempt()
    assert (there + torch.tensor(1.0)).is_cuda and there[torch.arange(2)].is_cuda  # as CUDA allows
    waits.clear()
    assert float(there.sum()) == pytest.approx(float(here.sum()))
    assert len(there[there > 0.5]) == int((here > 0.5).sum()) and sum(waits.values()) == 2


def moved(fixer: Fixer) -> Fixer:
    return fixer.to("cuda", torch.float32)


@pytest.mark.parametrize(("where", "attention"), [("cpu", "one-way"), ("cuda", "mutual")])
def test_raw_references(where: str, attention: str, waits: dict[str, int]) -> None:
    network = raw_network(reference_attention=attention)
    images, opacity = smooth(4, 3, 36, 44), smooth(4, 1, 36, 44)
    photos = smooth(8, 3, 36, 44, seed=1).unflatten(0, (4, 2))
    expected, alone = Fixer(network)(images, photos, opacity, fill_seed=3), Fixer(network)(images)
    second = Fixer(network).second_opinion(images, photos)
    fixer = moved(Fixer(network))
    given = [value.to(where) for value in (images, photos, opacity)]
    assert fixer.device.type == "cuda"
    for found, wanted in (
        (fixer(*given, fill_seed=3), expected),
        (fixer.second_opinion(*given[:2]), second),
        (fixer(given[0]), alone),
    ):
        assert found.device == given[0].device
        torch.testing.assert_close(found.cpu(), wanted, atol=1e-4, rtol=1e-3)
    # photos seen before are not encoded again, and told by few looks at the GPU
    waits.clear()
    fixer(*given)
    # the weights' state, the photos' pixels and each photo whole, or the weights' state and the results
    assert sum(waits.values()) <= (2 + 8 if where == "cuda" else 2)
    encoding = fixer.encode_references(given[1][0])
    expected_one = fixer(given[0][:1], given[1][:1])
    assert torch.equal(fixer(given[0][:1], encoding).cpu(), expected_one.cpu())


def test_aligned_references_and_tiles(waits: dict[str, int]) -> None:
    fixer = new_small_fixer("tiny", seed=0)
    shapes = [(4, 3, 52, 70), (4, 2, 3, 52, 70), (4, 1, 52, 70), (4, 2, 1, 52, 70)]
    inputs = [torch.rand(shape, generator=torch.Generator().manual_seed(i)) for i, shape in enumerate(shapes)]
    expected, alone, none = fixer(*inputs), fixer(inputs[0]), fixer(inputs[0], inputs[1][:, :0])
    signs = collapse_signs(fixer.network, *(x[..., :48, :64] for x in inputs))
    fixer.tile = 32
    tiled = fixer(*inputs)
    moved(fixer)
    given = [value.to("cuda") for value in inputs]
    found = fixer(*given)
    assert found.device == given[0].device
    torch.testing.assert_close(found.cpu(), tiled, atol=1e-5, rtol=1e-4)
    fixer.tile = None
    waits.clear()
    for made, wanted in ((fixer(*given), expected), (fixer(given[0]), alone), (fixer(given[0], given[1][:, :0]), none)):
        assert made.device == given[0].device
        torch.testing.assert_close(made.cpu(), wanted, atol=1e-5, rtol=1e-4)
    assert sum(waits.values()) == 3  # the results alone come back
    on_gpu = collapse_signs(fixer.network, *(x.to("cuda")[..., :48, :64] for x in inputs))
    assert on_gpu.reference_change == pytest.approx(signs.reference_change, rel=1e-3)


def test_weights_of_a_fixer_on_the_gpu_are_saved_and_compared(waits: dict[str, int], tmp_path: Path) -> None:
    fixer = moved(Fixer(raw_network()))
    fixer.save_pretrained(tmp_path / "fixer")
    assert fixer.is_saved_in(tmp_path / "fixer")
    again = Fixer.from_pretrained(tmp_path / "fixer", device="cuda", merge=True)
    image = smooth(1, 3, 32, 32)
    torch.testing.assert_close(again(image), fixer(image), atol=1e-4, rtol=1e-3)


def test_confidence_and_signs_of_bad_fixes(waits: dict[str, int]) -> None:
    render, fixed, second = (smooth(3, 3, 60, 80, seed=i) for i in range(3))
    fixed[1] = fixed[1] * 0 + torch.tensor([1.0, 0, 0])[:, None, None]
    fixed[2, 0, 0, 0] = float("nan")
    opacity = smooth(3, 1, 60, 80, seed=5)
    expected = fix_confidence(render, fixed, opacity, second), bad_fixes(render, fixed, opacity)
    given = on_cuda(render, fixed, opacity, second)
    waits.clear()
    confidence, bad = fix_confidence(*given), bad_fixes(*given[:3])
    assert not waits
    assert confidence.is_cuda and bad.is_cuda and torch.equal(bad.cpu(), expected[1])
    torch.testing.assert_close(confidence.cpu(), expected[0], atol=1e-5, rtol=1e-4)
    # the fix may come from the other device than the render, and in half precision
    assert fix_confidence(render, given[1].to(torch.bfloat16), opacity).device.type == "cpu"
    assert bool(bad_fixes(render, given[1].to(torch.bfloat16), opacity)[2])


def test_alignment(waits: dict[str, int]) -> None:
    render, photos = smooth(1, 3, 48, 64), smooth(2, 3, 60, 80, seed=1)[None]
    depth, ref_depths = 2 + smooth(1, 1, 48, 64, seed=2), 2 + smooth(2, 1, 60, 80, seed=3)[None]
    intrinsics = torch.tensor([[[60.0, 0, 32], [0, 60, 24], [0, 0, 1]]])
    ref_intrinsics = torch.tensor([[75.0, 0, 40], [0, 75, 30], [0, 0, 1]]).expand(1, 2, 3, 3)
    pose, ref_poses = torch.eye(4)[None], torch.eye(4).expand(1, 2, 4, 4).clone()
    ref_poses[0, 1, 0, 3] = 0.1
    masks = (smooth(2, 1, 60, 80, seed=4) > 0.2).float()[None]
    arguments = (render, depth, intrinsics, pose, photos, ref_depths, ref_intrinsics, ref_poses)
    expected = align_references(*arguments, ref_masks=masks)
    found = align_references(*on_cuda(*arguments), ref_masks=masks.to("cuda"))
    for one, wanted in zip(found, expected, strict=True):
        assert one.is_cuda
        torch.testing.assert_close(one.cpu(), wanted, atol=1e-5, rtol=1e-4)
    # cameras, depths and photos are small and may still lie on the CPU
    found = align_references(*on_cuda(render, depth), *arguments[2:], ref_masks=masks)
    torch.testing.assert_close(found[0].cpu(), expected[0], atol=1e-5, rtol=1e-4)
    expected = register_references(render, photos)
    found = register_references(render.to("cuda"), photos)
    torch.testing.assert_close(found[0].cpu(), expected[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[1].cpu(), expected[1], atol=1e-5, rtol=1e-4)


def test_losses_with_gradients(waits: dict[str, int]) -> None:
    from difixcli.training.losses import FixerLoss

    output, target = smooth(2, 3, 48, 48), smooth(2, 3, 48, 48, seed=1)
    found = []
    for device in ("cpu", "cuda"):
        loss = FixerLoss("l2", "st-lpips-alex", 1.0, 0.5, 0, 32, device)
        given = output.to(device).detach().requires_grad_()
        waits.clear()
        total, parts = loss(given, target.to(device), 5)
        total.backward()
        assert set(parts) == {"pixel", "perceptual", "gram"} and given.grad is not None
        assert all(part.device.type == device for part in parts.values())
        assert not waits
        found.append((float(total), given.grad.cpu()))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-4)
    torch.testing.assert_close(found[1][1], found[0][1], atol=1e-6, rtol=1e-3)


def test_figures(waits: dict[str, int]) -> None:
    from difixcli.evaluation.fid import FrechetDistance
    from difixcli.evaluation.metrics import best_unsharp, image_metrics

    truth, image = (smooth(1, 3, 40, 48, seed=i)[0].permute(1, 2, 0).numpy() for i in range(2))
    mask = np.ones((40, 48), bool)
    mask[:10] = False
    keys = ("psnr", "ssim", "st_lpips_alex")
    expected = image_metrics(image, truth, mask, "cpu", keys, "affine")
    assert image_metrics(image, truth, mask, "cuda", keys, "affine") == pytest.approx(expected, rel=1e-4)
    assert best_unsharp([(image, truth, None)], "st_lpips", "cuda").figures["psnr"] > 0

    class Mean(torch.nn.Module):
        num_features = 3

        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(3))

        def forward(self, images: Tensor) -> Tensor:
            return images.float().mean((2, 3)) * self.scale

    distance = FrechetDistance(Mean(), "cuda")
    for i in range(3):
        distance.add(smooth(1, 3, 32, 32, seed=i)[0].permute(1, 2, 0).numpy(), True)
        distance.add(smooth(1, 3, 32, 32, seed=i + 9)[0].permute(1, 2, 0).numpy(), False)
    assert np.isfinite(distance.distance())


@pytest.fixture
def accelerated(monkeypatch: pytest.MonkeyPatch, waits: dict[str, int]) -> None:
    """accelerate finds the pretended device."""
    from accelerate import PartialState

    monkeypatch.setattr(PartialState, "default_device", property(lambda state: torch.device("cuda")))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)


def textures(folder: Path) -> Path:
    for i in range(4):
        save(folder / f"{i}.png", texture(i))
    return folder


def test_training_stays_on_the_device_and_goes_on_exactly(
    accelerated: None, waits: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Synthetic pairs, augmentation, losses, Gram, gradient, optimiser, average, validation, checkpoint and resume."""
    from difixcli.training import finetune

    photos = textures(tmp_path / "photos")
    options = {
        **FAST,
        "iterations": 4,
        "gram_weight": 0.1,
        "perceptual": "st-lpips-vgg",
        "gram_start": 1,
        "validation_pairs": 1,
        "workers": 0,
    }
    options |= {"photos": photos, "signs_every": 3, "validate_every": 3, "checkpoint_every": 2}
    finetune([], "tiny", tmp_path / "cpu", **options)
    counted: list[int] = []

    def count(step: int) -> None:
        counted.append(sum(waits.values()))

    finetune([], "tiny", tmp_path / "cuda", device="cuda", progress=count, **options)
    np.testing.assert_allclose(losses(tmp_path / "cuda"), losses(tmp_path / "cpu"), rtol=1e-3)
    # a step that neither looks for collapse nor validates waits once, for its figures; the other one is a pretence:
    # clip_grad_norm_ asks for devices in C++
    assert counted[1] - counted[0] == 2

    def kill(step: int) -> None:
        if step == 3:
            raise Killed

    with pytest.raises(Killed):
        finetune([], "tiny", tmp_path / "killed", device="cuda", progress=kill, **options)
    shutil.copytree(tmp_path / "killed", tmp_path / "moved")
    finetune([], "tiny", tmp_path / "killed", device="cuda", **options)
    assert losses(tmp_path / "killed") == losses(tmp_path / "cuda")
    assert Fixer.from_pretrained(tmp_path / "killed").is_saved_in(tmp_path / "cuda")
    # and a checkpoint of one device goes on on the other
    finetune([], "tiny", tmp_path / "moved", **options)
    np.testing.assert_allclose(losses(tmp_path / "moved"), losses(tmp_path / "cpu"), rtol=1e-3)


def test_fields_train_on_rays_of_photos_and_pseudo_views(
    waits: dict[str, int], arc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nerfacto without tiny-cuda-nn: datamanagers, rays through seed points, weights, rendering, saving, going on."""
    from test_reconstruction import create, pseudo_view

    from difixcli.reconstruction import Reconstruction
    from difixcli.reference_views import ReferenceViews
    from difixcli.scenes import load_scene

    monkeypatch.setattr("difixcli.reconstruction.reconstruction.check_device", lambda device, config: None)
    scene = load_scene(arc, size=32)
    small = ["mixed_precision=false", "pipeline.datamanager.train_num_rays_per_batch=64"]
    small += [
        "pipeline.model.implementation=torch",
        "pipeline.model.num_levels=2",
        "pipeline.model.log2_hashmap_size=8",
    ]
    small += ["pipeline.model.num_proposal_samples_per_ray=(8,)", "pipeline.model.num_nerf_samples_per_ray=8"]
    made = create(scene, tmp_path / "run", "nerfacto", device="cuda", overrides=small)
    assert all(isinstance(weights, PretendTensor) for weights in made._trainer.model.parameters())
    camera = scene.frames[3].camera
    red = np.zeros((camera.height, camera.width, 3), dtype=np.float32)
    made.set_pseudo_views([pseudo_view(tmp_path, camera, red, 0.4, nearest=4)], share=0.5)
    made.train(3)
    made.train(1)
    made.save()
    shown = made.render(camera)
    assert np.isfinite(shown.color).all() and shown.color.std() > 0
    again = Reconstruction.load(tmp_path / "run", scene)
    np.testing.assert_allclose(again.render(camera).color, shown.color, atol=1e-5)
    again.set_pseudo_views([pseudo_view(tmp_path, camera, red, 0.4, nearest=4)], share=0.5)
    for one in (made, again):
        one.train(2)
    np.testing.assert_allclose(again.render(camera).color, made.render(camera).color, atol=1e-5)
    on_cpu = Reconstruction.load(tmp_path / "run", scene, device="cpu")
    np.testing.assert_allclose(on_cpu.render(camera).color, shown.color, atol=1e-3)
    beside = [ReferenceViews(scene, [0, 2, 4], one, 2).beside(camera, shown) for one in (again, on_cpu)]
    assert beside[0].frames == beside[1].frames and beside[0].aligned.shape == beside[1].aligned.shape
    assert np.isfinite(beside[0].aligned).all() and beside[0].visibility.max() <= 1


def test_the_epipolar_transformer_trains_without_waiting(tmp_path: Path, waits: dict[str, int]) -> None:
    """On the device as on the CPU; the processor waits for its log, not for its steps."""
    scenes = [load_scene(write_plane(tmp_path / "plane", 0, count=6), 48)]
    counts = {}
    for where, steps in (("cpu", 3), ("cuda", 3), ("cuda", 6)):
        waits.clear()
        options = {**FAST_VIEWS, "epipolar_iterations": steps, "vae_iterations": 0, "diffusion_iterations": 0}
        output = tmp_path / f"{where}-{steps}"
        train_view_diffusion(scenes, "scratch", output, device=where, **(options | {"log_every": 100}))
        counts[where, steps] = waits["_local_scalar_dense"]  # torch's clipping moves what lies on one device already
    assert counts["cuda", 3] == counts["cuda", 6] > counts["cpu", 3]
    one, other = (ViewDiffusion.from_pretrained(tmp_path / name).state_dict() for name in ("cpu-3", "cuda-3"))
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], atol=1e-4, rtol=1e-3)
