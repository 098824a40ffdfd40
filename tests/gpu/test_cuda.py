"""All that a GPU has to be asked about: `pytest tests/gpu -n 0 -rA` where there is one. It prints what it measures on
the way, and skips what needs the shared data where that is not beside the project (DIFIX_SHARED: where else it is).

Fixer: a CPU's pixels in float32, near them in half precision and compiled, for one image and eight, in tiles at 4K.
Training: a CPU's losses, bfloat16 and float16, going on. Reconstruction: methods trained, distilled and gone on with.
`recipes/bench/fixer.py gpu` has the figures of speed.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from difixcli.fixer import Fixer, new_small_fixer
from difixcli.fixer.alignment import align_references
from difixcli.fixer.confidence import bad_fixes, fix_confidence
from difixcli.fixer.weights import merge_adapters
from difixcli.frames.pictures import Picture
from difixcli.frames.pipeline import FrameOptions, FramePipeline

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))  # the other rooms' small networks and pictures

from test_fixer_inference import raw_config, raw_network  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here"),
]


def recipe(folder: str, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "recipes" / folder / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def nothing_left_over() -> Iterator[None]:
    yield
    torch._dynamo.reset()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def inputs(batch: int, height: int, width: int, views: int = 2) -> list[Tensor]:
    """Images, references, opacity and visibility."""
    generator = torch.Generator().manual_seed(0)
    size = (height, width)
    shapes = [(batch, 3, *size), (batch, views, 3, *size), (batch, 1, *size), (batch, views, 1, *size)]
    return [torch.rand(shape, generator=generator) for shape in shapes]


def moved(fixer: Fixer, dtype: torch.dtype = torch.float32) -> Fixer:
    return Fixer(copy.deepcopy(fixer.network)).to("cuda", dtype)


@pytest.mark.parametrize("references", ["raw", "aligned"])
def test_frames_come_back_as_from_a_cpu(references: str) -> None:
    fixer = raw() if references == "raw" else aligned()
    images, photos, _, _ = (x.numpy() for x in inputs(5, 72, 104))
    found = []
    for one in (fixer, moved(fixer)):
        pipeline = FramePipeline(one, options=FrameOptions(confidence=True))
        prepared = [
            pipeline.beside(Picture(image.transpose(1, 2, 0)), list(beside.transpose(0, 2, 3, 1)))
            for image, beside in zip(images, photos, strict=True)
        ]
        found.append([fix for i in range(0, 5, 4) for fix in pipeline.fix(prepared[i : i + 4])])
    for here, there in zip(*found, strict=True):
        assert here.confidence is not None and there.confidence is not None
        assert np.abs(here.color.astype(int) - there.color).max() <= 1
        assert np.abs(here.confidence - there.confidence).max() < 0.02


def raw(attention: str = "mutual") -> Fixer:
    return Fixer(merge_adapters(raw_network(reference_attention=attention)))


def aligned() -> Fixer:
    return new_small_fixer("tiny", seed=0)


MAKERS = {"mutual": raw, "one-way": partial(raw, "one-way"), "aligned": aligned}


@pytest.mark.parametrize("where", ["cpu", "cuda"])
@pytest.mark.parametrize("kind", MAKERS)
def test_the_fixer_gives_the_cpus_pixels(kind: str, where: str) -> None:
    fixer = MAKERS[kind]()
    given = inputs(2, 52, 68)
    gpu = moved(fixer)
    for count in (1, 4):
        arguments = given[:count]
        expected = fixer(*arguments, fill_seed=3)
        found = gpu(*(x.to(where) for x in arguments), fill_seed=3)
        assert found.device.type == where
        assert (found.cpu() - expected).abs().max() < 5e-3  # convolutions in TF32
    second = gpu.second_opinion(*(x.to(where) for x in given))
    assert (second.cpu() - fixer.second_opinion(*given)).abs().max() < 5e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", MAKERS)
def test_half_precision_compiled_at_many_sizes_alone_and_in_batches(kind: str, dtype: torch.dtype) -> None:
    fixer = MAKERS[kind]()
    half, compiled = moved(fixer, dtype), moved(fixer, dtype)
    compiled.compile()
    for batch, height, width in ((1, 64, 96), (8, 64, 96), (1, 72, 88), (2, 88, 64), (1, 104, 120)):
        given = inputs(batch, height, width)
        expected = fixer(*given)
        assert (half(*given) - expected).abs().mean() < 0.02
        assert (compiled(*given) - expected).abs().mean() < 0.02


def test_the_network_never_waits_for_the_gpu() -> None:
    for make in MAKERS.values():
        fixer = moved(make())
        given = [x.cuda() for x in inputs(2, 64, 96)]
        with torch.no_grad():
            fixer.network(*given)
            torch.cuda.set_sync_debug_mode("error")
            try:
                fixer.network(*given)
            finally:
                torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_4k_in_tiles_takes_the_memory_of_a_tile(dtype: torch.dtype) -> None:
    fixer = new_small_fixer("small", seed=0).to("cuda", dtype)
    peaks = {}
    for height, width in ((1536, 1536), (2160, 3840)):
        images, references, *_ = inputs(1, height, width, views=3)
        torch.cuda.reset_peak_memory_stats()
        fixed = fixer(images, references)
        peaks[height] = torch.cuda.max_memory_allocated() / 2**20
        print(f"{width}×{height}, {dtype}: peak {peaks[height]:.0f} MiB")
        assert fixed.shape == images.shape and torch.isfinite(fixed).all()
    assert fixer.tile is None and peaks[2160] < 1.2 * peaks[1536]


def test_confidence_and_alignment_are_the_cpus() -> None:
    images, references, opacity, _ = inputs(2, 60, 80)
    blurred = torch.nn.functional.avg_pool2d(images, 9, 1, 4)
    arguments = (blurred, blurred.flip(0), opacity, blurred * 0.9)
    on_gpu = [x.cuda() for x in arguments]
    assert (fix_confidence(*on_gpu).cpu() - fix_confidence(*arguments)).abs().max() < 1e-4
    assert torch.equal(bad_fixes(*on_gpu[:3]).cpu(), bad_fixes(*arguments[:3]))
    lens = torch.tensor([[70.0, 0, 40], [0, 70, 30], [0, 0, 1]])
    poses = torch.eye(4).expand(2, 2, 4, 4).clone()
    poses[:, 1, 0, 3] = 0.1
    cameras = (lens.expand(2, 3, 3), torch.eye(4).expand(2, 4, 4))
    scene = (blurred, 2 + opacity, *cameras, references, None, lens.expand(2, 2, 3, 3), poses)
    expected = align_references(*scene)
    for one, wanted in zip(align_references(*(None if x is None else x.cuda() for x in scene)), expected, strict=True):
        # where eight bits are rounded otherwise, the optical flow is another one
        assert ((one.cpu() - wanted).abs() > 1e-2).float().mean() < 0.01


def test_losses_and_figures_are_the_cpus() -> None:
    from difixcli.evaluation.metrics import image_metrics
    from difixcli.training.losses import FixerLoss

    (images, *_), target = inputs(2, 64, 64), inputs(2, 64, 64)[1][:, 0]
    totals = []
    for device in ("cpu", "cuda"):
        given = images.detach().to(device, copy=True).requires_grad_()
        total, _ = FixerLoss("l2", "st-lpips-alex", 1.0, 0.5, 0, 0, device)(given, target.to(device), 0)
        total.backward()
        assert given.grad is not None
        totals.append((float(total.detach()), float(given.grad.norm())))
    assert totals[1] == pytest.approx(totals[0], rel=1e-2)
    pair = [x[0].permute(1, 2, 0).numpy() for x in (images, target)]
    keys = ("psnr", "ssim", "st_lpips", "st_lpips_alex")
    assert image_metrics(*pair, None, "cuda", keys) == pytest.approx(image_metrics(*pair, None, "cpu", keys), rel=1e-2)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_training_has_the_cpus_losses_and_goes_on(dtype: str, tmp_path: Path) -> None:
    from test_training import FAST, Killed, losses, save, texture

    from difixcli.training import finetune

    for i in range(4):
        save(tmp_path / "photos" / f"{i}.png", texture(i))
    options: dict = {**FAST, "iterations": 6, "gram_weight": 0.1, "gram_start": 1, "validation_pairs": 1, "workers": 2}
    options |= {"perceptual": "st-lpips-vgg", "photos": tmp_path / "photos", "validate_every": 3, "checkpoint_every": 3}
    finetune([], "tiny", tmp_path / "cpu", **{**options, "workers": 0})
    finetune([], "tiny", tmp_path / "cuda", device="cuda", dtype=dtype, **options)
    expected = losses(tmp_path / "cpu")
    np.testing.assert_allclose(losses(tmp_path / "cuda"), expected, rtol=0.02 if dtype == "fp32" else 0.1)

    def kill(step: int) -> None:
        if step == 5:
            raise Killed

    with pytest.raises(Killed):
        finetune([], "tiny", tmp_path / "killed", device="cuda", dtype=dtype, progress=kill, **options)
    finetune([], "tiny", tmp_path / "killed", device="cuda", dtype=dtype, **options)
    # CUDA's gradients add in any order: alike, not equal
    np.testing.assert_allclose(losses(tmp_path / "killed"), losses(tmp_path / "cuda"), rtol=0.02)
    if dtype == "fp32":  # a checkpoint of the GPU goes on on the CPU
        with pytest.raises(Killed):
            finetune([], "tiny", tmp_path / "moved", device="cuda", progress=kill, **options)
        finetune([], "tiny", tmp_path / "moved", **{**options, "workers": 0})
        np.testing.assert_allclose(losses(tmp_path / "moved"), expected, rtol=0.02)


def test_a_networks_gradient_in_full_width(tmp_path: Path) -> None:
    """One step of the paper's recipe at SD-Turbo's width, 512 pixels: what it takes of memory and time is printed."""
    from difixcli.training.losses import FixerLoss
    from difixcli.training.parts import choose_parts

    bench = recipe("bench", "fixer")
    network = bench.random_network(bench.sd_turbo_config()).cuda()
    names = choose_parts(network, "all")
    weights = [p for name, p in network.named_parameters() if name in set(names)]
    optimiser = torch.optim.AdamW(weights, lr=2e-5)
    loss = FixerLoss("l2", "st-lpips-alex", 1.0, 0.5, 0, 400, "cuda")
    images, references, opacity, visibility = (x.cuda() for x in inputs(1, 512, 512, views=1))
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for step in range(2):
        begun.record()
        with torch.autocast("cuda", torch.bfloat16):
            output = network(images, references, opacity, visibility)
        total, _ = loss(output, images, step)
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        ended.record()
        assert torch.isfinite(total) and torch.isfinite(norm)
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() / 2**30
    print(f"a step at full width: {begun.elapsed_time(ended):.0f} ms, peak {peak:.1f} GiB")


def test_the_bench_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = recipe("bench", "fixer")
    monkeypatch.setattr(bench, "sd_turbo_config", lambda width: raw_config(int(16 * width)))
    rows = bench.gpu("cuda", (64, 96), 1.0, ["bf16", "fp16", "fp32"], [1, 8], 3)
    assert len(rows) == 12 and all(row.milliseconds > 0 and row.peak > 0 for row in rows)
    assert all(row.difference < 0.02 for row in rows)


def test_random_numbers_of_the_gpu_are_kept_and_put_back() -> None:
    from difixcli.reconstruction.surroundings import RandomState

    torch.manual_seed(7)
    outside = torch.cuda.get_rng_state()
    one, other = RandomState(3), RandomState(3)
    with one.active():
        first = torch.rand(4, device="cuda")
    held = one.state_dict()
    with one.active():
        second = torch.rand(4, device="cuda")
    other.load_state_dict(held)
    with other.active():
        assert torch.equal(torch.rand(4, device="cuda"), second)
    assert not torch.equal(first, second) and torch.equal(torch.cuda.get_rng_state(), outside)


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
    generator = torch.Generator().manual_seed(0)
    images, references = (torch.rand(shape, generator=generator) for shape in [(1, 3, 48, 64), (1, 2, 3, 48, 64)])
    fixed = Fixer.from_pretrained("bundled", device="cuda", dtype=torch.bfloat16)(images, references)
    expected = Fixer.from_pretrained("bundled")(images, references)
    assert fixed.dtype == torch.float32 and fixed.device.type == "cpu"
    assert (fixed - expected).abs().mean() < 0.02


def test_raw_references_in_half_precision_compiled_and_in_batches(shared: Path) -> None:
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


@pytest.mark.parametrize("implementation", ["torch", "tcnn"])
def test_fields_in_mixed_precision(implementation: str, shared_scenes: Path, tmp_path: Path) -> None:
    """The preset for GPUs: float16 with scaled losses, which are saved and gone on with; photos and pseudo-views."""
    from difixcli.reconstruction import PseudoView, Reconstruction
    from difixcli.runs import write_image
    from difixcli.scenes import load_scene

    if implementation == "tcnn":
        pytest.importorskip("tinycudann")
    scene = load_scene(shared_scenes / "fountain_p11", 96)
    small = [f"pipeline.model.implementation={implementation}", "pipeline.datamanager.train_num_rays_per_batch=1024"]
    made = Reconstruction.create(
        scene,
        [0, 2, 4, 6],
        method="nerfacto",
        folder=tmp_path / "run",
        preset="gpu",
        device="cuda",
        iterations=120,
        overrides=small,
    )
    camera = scene.frames[2].camera
    write_image(tmp_path / "views" / "0.png", np.full((camera.height, camera.width, 3), 0.5, np.float32))
    views = [PseudoView(camera, tmp_path / "views" / "0.png", None, 2)]
    made.train(50)
    made.set_pseudo_views(views, 0.4)
    made.train(20)
    made.save()
    assert made._scaler.is_enabled() and made._scaler.get_scale() > 1
    again = Reconstruction.load(tmp_path / "run", scene)
    assert again._scaler.get_scale() == made._scaler.get_scale()
    again.set_pseudo_views(views, 0.4)
    for one in (made, again):
        one.train(30)
    shown, wanted = again.render(camera).color, made.render(camera).color
    assert np.isfinite(shown).all() and np.abs(shown - wanted).mean() < 0.05


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
