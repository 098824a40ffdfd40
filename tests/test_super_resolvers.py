"""Super-resolvers: the equations of the denoising loop, networks of one step, latent diffusion, and what is opened."""

from __future__ import annotations

import importlib.util
import io
import json
import math
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from commands import difix
from PIL import Image
from pretend_cuda import pretend_cuda
from torch import Tensor, nn
from torch.nn import functional

from difixcli.errors import InputError
from difixcli.images import Operator, agreeing, enlarged, reduced
from difixcli.priors.super_resolution import latent_diffusion, tiles
from difixcli.priors.super_resolution.latent_diffusion import LatentDiffusion, Upscaler, load_upscaler
from difixcli.priors.super_resolution.opening import open_super_resolver
from difixcli.priors.super_resolution.resolver import State, SuperResolver
from difixcli.priors.super_resolution.schedule import (
    estimates,
    noised,
    paper_move,
    posterior_move,
    posterior_weights,
    spaced_timesteps,
)
from difixcli.priors.super_resolution.single_step import MARGIN, SingleStep
from difixcli.priors.super_resolution.wavelet import low_band, with_colors_of

RECIPE = Path(__file__).parents[1] / "recipes" / "super_resolution" / "real_esrgan.py"


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    """(1, 3, H, W) in [0, 1]: random detail on random colours."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 3, 3, generator=generator)
    large = functional.interpolate(coarse, (height, width), mode="bilinear")
    return (large + 0.2 * (torch.rand(1, 3, height, width, generator=generator) - 0.5)).clamp(0, 1)


def through_a_file(state: State) -> State:
    """A state as a run that was stopped takes it up again."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def alphas(last: float = 0.012) -> Tensor:
    """(1000,) float64 ᾱ of Stable Diffusion."""
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=last, beta_schedule="scaled_linear")
    return scheduler.alphas_cumprod.double()


# the equations


def test_steps_are_evenly_spaced() -> None:
    assert spaced_timesteps(4) == [999, 666, 333, 0]
    assert spaced_timesteps(1) == [999]
    assert spaced_timesteps(2, 50) == [49, 0]
    assert spaced_timesteps(1000) == list(range(999, -1, -1))


def test_the_releases_weights() -> None:
    levels = [float(alphas()[t]) for t in spaced_timesteps(4)]
    assert levels == pytest.approx([0.0047, 0.1051, 0.5350, 0.9992], abs=6e-5)
    table = [(0.311, 0.189, 0.927), (0.657, 0.230, 0.646), (0.9986, 0.0013, 0.029)]
    for (alpha, following), expected in zip(pairwise(levels), table, strict=True):
        assert posterior_weights(alpha, following) == pytest.approx(expected, abs=5e-4)
    assert posterior_weights(levels[-1], 1.0) == pytest.approx((1, 0, 0))


@pytest.mark.parametrize(("alpha", "following"), [(0.0047, 0.1051), (0.5, 0.51), (0.3, 1.0)])
def test_moves_lead_to_the_next_noise_level(alpha: float, following: float) -> None:
    """Of x = √ᾱ·x₀ + √(1 − ᾱ)·ε, both moves given x₀ itself make one with mean √ᾱ'·x₀ and variance 1 − ᾱ'."""
    of_clean, of_noisy, sigma = posterior_weights(alpha, following)
    assert of_clean + of_noisy * math.sqrt(alpha) == pytest.approx(math.sqrt(following))
    assert of_noisy**2 * (1 - alpha) + sigma**2 == pytest.approx(1 - following)
    clean, noise, fresh = (torch.randn(5, dtype=torch.float64) for _ in range(3))
    x = noised(clean, noise, alpha)
    for eta in (0.0, 0.5, 1.0):
        moved = paper_move(clean, noise, fresh, alpha, following, eta)
        along = (moved - math.sqrt(following) * clean - eta * sigma * fresh) / noise
        assert torch.allclose(along**2 + (eta * sigma) ** 2, torch.full_like(along, 1 - following))
    # with η = 1 and the noise that x₀ implies, the paper's move is the release's
    same = posterior_move(x, clean, fresh, alpha, following)
    assert torch.allclose(paper_move(clean, noise, fresh, alpha, following, 1.0), same)


def test_both_predictions_mean_the_same() -> None:
    clean, noise = (torch.randn(6, dtype=torch.float64) for _ in range(2))
    x, alpha = noised(clean, noise, 0.3), 0.3
    v = math.sqrt(alpha) * noise - math.sqrt(1 - alpha) * clean
    for found in (estimates(x, noise, alpha, "epsilon"), estimates(x, v, alpha, "v_prediction")):
        assert torch.allclose(found[0], clean) and torch.allclose(found[1], noise)
    # where nothing of the signal is left, v still tells
    assert torch.allclose(estimates(noise, -clean, 0.0, "v_prediction")[0], clean)


class Gaussian(nn.Module):
    """The exact v of data ~ N(mean, spread²), each value by itself; what lies beside the latents is not looked at."""

    def __init__(self, mean: float, spread: float, alphas: Tensor, channels: int) -> None:
        super().__init__()
        self.mean, self.spread, self.alphas, self.channels = mean, spread, alphas, channels
        self.config = SimpleNamespace(block_out_channels=(8,), sample_size=64)

    def forward(self, x: Tensor, timestep: int, **_: Any) -> Any:
        alpha = float(self.alphas[timestep])
        latents = x[:, : self.channels]
        variance = alpha * self.spread**2 + 1 - alpha
        clean = (math.sqrt(alpha) * self.spread**2 * latents + (1 - alpha) * self.mean) / variance
        return SimpleNamespace(sample=(math.sqrt(alpha) * latents - clean) / math.sqrt(1 - alpha))


def gaussian_upscaler(mean: float, spread: float, own: Tensor) -> Upscaler:
    torch.manual_seed(0)
    upscaler = small_upscaler(unet=Gaussian(mean, spread, own, 4).double())
    return replace(upscaler, alphas=own, prediction="v_prediction")


def test_the_loop_lands_where_algebra_says() -> None:
    """With σ = 0 and a scene that shows what it is given, x − √ᾱ·μ shrinks at every move by a known factor."""
    mean, spread, own = 0.4, 0.7, alphas()
    resolver = LatentDiffusion(gaussian_upscaler(mean, spread, own), "area", "cpu", update="paper", eta=0.0)
    photo = picture(12, 16)
    state = resolver.begin(photo, 4, 5)
    state["latents"] = state["latents"].double()
    levels = [*(float(own[t]) for t in spaced_timesteps(4)), 1.0]
    offset = state["latents"] - math.sqrt(levels[0]) * mean
    for alpha, following in pairwise(levels):
        clean, state = resolver.denoised(photo, state)
        state = resolver.moved(state, clean)
        along = math.sqrt(following * alpha) * spread**2 + math.sqrt((1 - following) * (1 - alpha))
        offset = offset * along / (alpha * spread**2 + 1 - alpha)
        # the network's outputs are single precision
        assert torch.allclose(state["latents"], math.sqrt(following) * mean + offset, atol=1e-6)


def test_many_steps_follow_the_probability_flow() -> None:
    """As the steps grow many, the deterministic loop maps x_T to μ + s·(x_T − √ᾱ·μ) / √(ᾱ·s² + 1 − ᾱ)."""
    mean, spread = 0.4, 0.7
    # fine steps over the whole schedule
    own = torch.linspace(math.pi / 2 - 1e-3, 0, 4001, dtype=torch.float64).cos() ** 2
    x = torch.randn(50, dtype=torch.float64)
    expected = mean + spread * (x - math.sqrt(own[0]) * mean) / torch.sqrt(own[0] * spread**2 + 1 - own[0])
    for alpha, following in pairwise(own.tolist()):
        variance = alpha * spread**2 + 1 - alpha
        clean = (math.sqrt(alpha) * spread**2 * x + (1 - alpha) * mean) / variance
        noise = (x - math.sqrt(alpha) * clean) / math.sqrt(1 - alpha)
        x = paper_move(clean, noise, torch.zeros_like(x), alpha, min(following, 1.0), 0.0)
    assert torch.allclose(x, expected, atol=2e-3)


# colours, tiles


def test_the_low_band_is_five_binomial_blurs() -> None:
    image = picture(40, 50).double()
    expected = image
    kernel = torch.tensor([1.0, 2, 1], dtype=torch.float64)
    kernel = (kernel[:, None] * kernel / 16).expand(3, 1, 3, 3)
    for step in (1, 2, 4, 8, 16):
        padded = functional.pad(expected, (step,) * 4, mode="replicate")
        expected = functional.conv2d(padded, kernel, dilation=step, groups=3)
    assert torch.allclose(low_band(image), expected)
    tinted = image * 0.5 + 0.3
    fixed = with_colors_of(image, tinted)
    assert torch.allclose(fixed - (image - low_band(image)), low_band(tinted))
    assert torch.allclose(with_colors_of(image, image), image)


def _noted(seen: list[tuple[int, int]], done: int, total: int) -> None:
    seen.append((done, total))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (65, 300), (250, 97), (128, 129)])
def test_tiles_cover_an_image_once(height: int, width: int) -> None:
    cut = tiles.cut(height, width, 64, 32, 16)
    assert all(t.rows.stop - t.rows.start <= 64 and t.columns.stop - t.columns.start <= 64 for t in cut)
    assert all(t.rows.start % 16 == 0 and t.columns.start % 16 == 0 for t in cut)
    image = picture(height, width)
    for weigh in (tiles.gaussian, tiles.trapezoid(32, 8)):
        done: list[tuple[int, int]] = []
        told = partial(_noted, done)
        whole = tiles.blended(cut, lambda tile: tile.of(image), height, width, weigh, told=told)
        assert torch.allclose(whole, image, atol=1e-5)
        assert done == ([(i, len(cut)) for i in range(1, len(cut) + 1)] if len(cut) > 1 else [])


# networks of one step


class Small(nn.Module):
    """A network of the interface of the bundled one; it sees eight pixels far."""

    def __init__(self, factor: int = 4) -> None:
        super().__init__()
        self.factor = factor
        self.first = nn.Conv2d(6, 8, 9, padding=4)
        self.second = nn.Conv2d(8, 3 * factor**2, 9, padding=4)
        self.largest = 0
        self.calls = 0

    def forward(self, photos: Tensor, renders: Tensor | None = None) -> Tensor:
        self.largest = max(self.largest, *photos.shape[-2:])
        self.calls += 1
        shown = torch.zeros_like(photos) if renders is None else reduced(renders, self.factor)
        detail = self.second(torch.tanh(self.first(torch.cat([photos, shown], dim=1))))
        return enlarged(photos, self.factor) + functional.pixel_shuffle(detail, self.factor)


@pytest.fixture
def small() -> Small:
    torch.manual_seed(3)
    return Small()


def single_step(network: Small, takes_renders: bool, operator: Operator = "area", **options: int) -> SingleStep:
    return SingleStep(network, network.factor, operator, "cpu", takes_renders=takes_renders, **options)


@pytest.mark.parametrize("takes_renders", [True, False])
def test_large_photos_are_enlarged_in_tiles(small: Small, takes_renders: bool) -> None:
    photo, render = picture(150, 205), picture(600, 820, 1)
    images = []
    for tile in (256, 80):
        small.largest = 0
        resolver = single_step(small, takes_renders, tile=tile)
        state = resolver.begin(photo, 4, 0)
        first, state = resolver.estimate(photo, state)
        second, _ = resolver.estimate(photo, resolver.advance(photo, state, render))
        images.append((first, second))
        assert small.largest <= tile
    for whole, tiled in zip(*images, strict=True):
        # where it is kept in half precision, a hair's difference may round another way
        assert (whole - tiled).abs().max() < (1e-5 if takes_renders else 1e-3)
        assert (whole - tiled).abs().mean() < 1e-5
    assert MARGIN >= 8


def test_the_render_is_mixed_in_more_at_every_round(small: Small) -> None:
    photo, rounds = picture(20, 28), 4
    resolver = single_step(small, takes_renders=False)
    assert isinstance(resolver, SuperResolver)
    made = small(photo).clamp(0, 1).detach()
    state = resolver.begin(photo, rounds, 0)
    render = made
    for k in range(1, rounds + 1):
        image, state = resolver.estimate(photo, state)
        share = (k - 1) / rounds
        expected = agreeing((1 - share) * made + share * render, photo, 4)
        assert torch.allclose(image, expected, atol=1e-3)  # kept in half precision
        assert -10 * torch.log10(functional.mse_loss(reduced(image, 4), photo)) > 35
        render = picture(80, 112, k)
        before = state
        state = through_a_file(resolver.advance(photo, state, render))
        assert int(before["round"]) == k  # states are not changed
    assert small.calls == 2  # once here and once for all rounds
    with pytest.raises(ValueError, match="no round 5 of 4"):
        resolver.estimate(photo, state)


def test_a_network_that_takes_renders_gets_them(small: Small) -> None:
    photo, render = picture(20, 28), picture(80, 112, 1)
    resolver = single_step(small, takes_renders=True, operator="bicubic")
    state = resolver.begin(photo, 3, 0)
    image, state = resolver.estimate(photo, state)
    assert torch.equal(image, agreeing(small(photo), photo, 4, "bicubic"))
    state = resolver.advance(photo, state, render)
    image, again = resolver.estimate(photo, state)
    assert torch.allclose(image, agreeing(small(photo, render), photo, 4, "bicubic"), atol=2e-3)
    assert "render" not in again  # of every photo a large image in every checkpoint
    # stopped before the estimate: the same
    assert torch.equal(resolver.estimate(photo, through_a_file(state))[0], image)
    with pytest.raises(ValueError, match="112×80"):
        resolver.advance(photo, state, picture(40, 56))


def test_a_stopped_run_sees_the_same_image(small: Small) -> None:
    photo = picture(20, 28)
    resolver = single_step(small, takes_renders=False)
    begun = resolver.begin(photo, 2, 0)
    image, state = resolver.estimate(photo, begun)
    for held in (begun, state):
        assert torch.equal(resolver.estimate(photo, through_a_file(held))[0], image)


def test_broken_weights_are_said(small: Small) -> None:
    with torch.no_grad():
        small.second.bias.fill_(math.nan)  # type: ignore[union-attr]
    resolver = single_step(small, takes_renders=False)
    photo = picture(8, 8)
    with pytest.raises(InputError, match="not numbers"):
        resolver.estimate(photo, resolver.begin(photo, 4, 0))


# latent diffusion


SMALL_UNET: dict[str, Any] = {
    "in_channels": 7,
    "out_channels": 4,
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 16,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
    "num_class_embeds": 1000,
    "sample_size": 16,
}
SMALL_VAE: dict[str, Any] = {
    "block_out_channels": (8, 8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 4,
    "scaling_factor": 0.08333,
    "sample_size": 64,
}
SCHEDULE = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "scaled_linear", "clip_sample": False}


def small_upscaler(unet: nn.Module | None = None) -> Upscaler:
    """Stable Diffusion's upscaler at a small width, with random weights."""
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

    torch.manual_seed(0)
    unet = unet or UNet2DConditionModel(**SMALL_UNET)
    vae = AutoencoderKL(**SMALL_VAE)
    return Upscaler(
        unet=unet.eval(),
        vae=vae.eval(),
        prompt=torch.randn(5, 16),
        alphas=DDPMScheduler(**SCHEDULE).alphas_cumprod.double(),
        photo_alphas=DDPMScheduler(**SCHEDULE).alphas_cumprod.double(),
        prediction="v_prediction",
    )


@pytest.fixture(scope="module")
def upscaler() -> Upscaler:
    return small_upscaler()


def plain_sampling(resolver: LatentDiffusion, photo: Tensor, state: State) -> State:
    """The loop with a scene that shows exactly what it is given."""
    for _ in range(int(state["rounds"])):
        clean, state = resolver.denoised(photo, state)
        state = resolver.moved(state, clean)
    return state


@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon"])
@pytest.mark.parametrize(("update", "eta"), [("posterior", 1.0), ("paper", 0.0), ("paper", 1.0)])
def test_diffusers_pipeline_computes_the_same(
    upscaler: Upscaler, update: Any, eta: float, prediction: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scene that shows exactly what it is given makes the loop a plain sampler: DDPM's, or DDIM's with the paper's
    update. DDIM of diffusers counts its steps back by whole numbers, so there every step of a short schedule is made.
    """
    from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionUpscalePipeline
    from transformers import CLIPTextConfig, CLIPTextModel

    options: dict[str, Any] = {**SCHEDULE, "prediction_type": prediction, "timestep_spacing": "linspace"}
    if update == "posterior":
        rounds, scheduler = 4, DDPMScheduler(**options)
    else:
        rounds, scheduler = 6, DDIMScheduler(**options, num_train_timesteps=6)
    own = replace(upscaler, alphas=scheduler.alphas_cumprod.double(), prediction=prediction)
    resolver = LatentDiffusion(own, "area", "cpu", update=update, eta=eta)
    photo, seed = picture(16, 16), 11
    start = resolver.begin(photo, rounds, seed)
    end = plain_sampling(resolver, photo, start)["latents"]

    def drawn(shape: Any, **_: Any) -> Tensor:
        return latent_diffusion._noise(torch.Size(shape), seed, *next(purposes))

    for module in (
        "pipelines.stable_diffusion.pipeline_stable_diffusion_upscale",
        "schedulers.scheduling_ddim",
        "schedulers.scheduling_ddpm",
    ):
        monkeypatch.setattr(f"diffusers.{module}.randn_tensor", drawn)
    clip = CLIPTextConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    pipeline = StableDiffusionUpscalePipeline(
        vae=own.vae,
        unet=own.unet,
        text_encoder=CLIPTextModel(clip),
        tokenizer=None,
        low_res_scheduler=DDPMScheduler(**SCHEDULE),
        scheduler=scheduler,
    )
    pipeline.set_progress_bar_config(disable=True)
    made = {}
    for output in ("latent", "pt"):
        purposes = iter([("photo", 0), *(("move", i) for i in range(1, 9))])
        made[output] = pipeline(
            image=photo,
            num_inference_steps=rounds,
            guidance_scale=1.0,
            eta=eta,
            latents=start["latents"],
            prompt_embeds=own.prompt[None],
            output_type=output,
        ).images
    assert scheduler.timesteps.tolist() == spaced_timesteps(rounds, len(own.alphas))
    assert (made["latent"] - end).abs().max() < 1e-4
    assert (made["pt"] - resolver.decode(end).clamp(0, 1)).abs().max() < 1e-4
    assert end.std() > 0.2 and made["pt"].std() > 0.01


def test_it_starts_from_the_noised_enlargement(upscaler: Upscaler) -> None:
    resolver, photo = LatentDiffusion(upscaler, "area", "cpu"), picture(16, 24)
    assert isinstance(resolver, SuperResolver) and resolver.factor == 4
    states = [resolver.begin(photo, 4, seed) for seed in (1, 1, 2)]
    assert torch.equal(states[0]["latents"], states[1]["latents"])
    assert not torch.equal(states[0]["latents"], states[2]["latents"])
    alpha = float(upscaler.alphas[-1])
    encoded = resolver.encode(enlarged(photo, 4).clamp(0, 1))
    mode = upscaler.vae.encode(2 * enlarged(photo, 4).clamp(0, 1) - 1).latent_dist.mode() * 0.08333
    assert torch.allclose(encoded, mode)
    noise = (states[0]["latents"] - math.sqrt(alpha) * encoded) / math.sqrt(1 - alpha)
    assert abs(float(noise.mean())) < 0.1 and abs(float(noise.std()) - 1) < 0.1


@pytest.mark.parametrize("update", ["posterior", "paper"])
def test_a_loop_of_latent_diffusion(upscaler: Upscaler, update: Any) -> None:
    """Of a photo whose sides are odd; stopped anywhere it goes on exactly; estimates agree with the photo."""
    resolver, photo = LatentDiffusion(upscaler, "area", "cpu", update=update), picture(17, 13)
    state = resolver.begin(photo, 3, 7)
    used = []
    for _ in range(3):
        image, found = resolver.estimate(photo, state)
        again, _ = resolver.estimate(photo, through_a_file(state))
        assert image.shape == (1, 3, 68, 52) and torch.equal(image, again)
        decoded = resolver.decode(resolver.denoised(photo, state)[0])[..., :68, :52]
        assert torch.equal(image, agreeing(with_colors_of(decoded, enlarged(photo, 4)), photo, 4))
        assert image.min() >= 0 and image.max() <= 1
        assert -10 * torch.log10(functional.mse_loss(reduced(image, 4), photo)) > 35
        render = (image * 0.9 + 0.05).detach()
        state = resolver.advance(photo, found, render)
        resumed = resolver.advance(photo, through_a_file(found), render)
        assert state.keys() == resumed.keys() and all(torch.equal(state[n], resumed[n]) for n in state)
        assert all(value.device.type == "cpu" for value in state.values())
        used.append(image)
    assert not torch.allclose(used[0], used[1], atol=1e-3)
    assert torch.equal(state["latents"], resolver.encode(render))  # nothing is left of the noise
    with pytest.raises(ValueError, match="no round 4 of 3"):
        resolver.estimate(photo, state)
    with pytest.raises(ValueError, match="pixels"):
        resolver.advance(photo, state, photo)


def test_the_noise_of_a_move_follows_from_seed_and_move(upscaler: Upscaler) -> None:
    resolver, photo = LatentDiffusion(upscaler, "area", "cpu"), picture(16, 16)
    clean = torch.zeros(1, 4, 16, 16)
    moves = {}
    for seed in (1, 2):
        state = resolver.begin(photo, 4, seed)
        for number in (1, 2):
            at = {**state, "latents": torch.zeros_like(clean), "round": torch.tensor(number)}
            moved = [resolver.moved(at, clean)["latents"] for _ in range(2)]
            assert torch.equal(*moved)
            moves[seed, number] = moved[0] / moved[0].std()
    pairs = [(a, b) for a in moves for b in moves if a < b]
    assert len(pairs) == 6
    assert all(abs(float((moves[a] * moves[b]).mean())) < 0.15 for a, b in pairs)


def test_the_papers_update_keeps_the_networks_noise(upscaler: Upscaler) -> None:
    photo = picture(16, 16)
    resolver = LatentDiffusion(upscaler, "area", "cpu", update="paper", eta=0.0)
    with pytest.raises(ValueError, match="eta goes from 0 to 1"):
        LatentDiffusion(upscaler, "area", "cpu", update="paper", eta=1.5)
    with pytest.raises(ValueError, match="noise levels go from 0 to 999"):
        LatentDiffusion(upscaler, "area", "cpu", noise_level=1000)
    state = resolver.begin(photo, 4, 0)
    with pytest.raises(ValueError, match="noise that an estimate found"):
        resolver.advance(photo, state, picture(64, 64))
    image, state = resolver.estimate(photo, state)
    following = float(upscaler.alphas[666])
    moved = resolver.advance(photo, state, image)["latents"]
    expected = math.sqrt(following) * resolver.encode(image) + math.sqrt(1 - following) * state["noise"]
    assert torch.allclose(moved, expected, atol=1e-6)


def test_latents_are_denoised_in_tiles(upscaler: Upscaler, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Size] = []
    hook = upscaler.unet.register_forward_hook(lambda _m, args, _o: seen.append(args[0].shape))
    decoded: list[torch.Size] = []
    monkeypatch.setitem(latent_diffusion.VAE_TILE, "cpu", 64)
    other = upscaler.vae.decoder.register_forward_hook(lambda _m, args, _o: decoded.append(args[0].shape))
    try:
        resolver = LatentDiffusion(upscaler, "area", "cpu")
        photo = picture(16, 16)
        state = resolver.begin(photo, 4, 0)
        clean, _ = resolver.denoised(photo, state)
        assert [tuple(shape) for shape in seen] == [(1, 7, 16, 16)]
        # one tile is exactly the U-Net's answer
        beside = noised(
            2 * photo - 1, latent_diffusion._noise(photo.shape, 0, "photo", 0), float(upscaler.photo_alphas[20])
        )
        output = upscaler.unet(
            torch.cat([state["latents"], beside], 1),
            999,
            encoder_hidden_states=upscaler.prompt[None],
            class_labels=torch.tensor([20]),
        ).sample
        assert torch.equal(clean, estimates(state["latents"], output, float(upscaler.alphas[-1]), "v_prediction")[0])
        seen.clear()
        photo = picture(30, 45)
        image, _ = resolver.estimate(photo, resolver.begin(photo, 4, 0))
        assert image.shape == (1, 3, 120, 180)
        assert {tuple(shape) for shape in seen} == {(1, 7, 16, 16)} and len(seen) == 15
        assert len(decoded) > 1 and all(max(shape[-2:]) <= 16 for shape in decoded)
    finally:
        hook.remove()
        other.remove()


def test_tiles_of_a_denoiser_that_sees_single_values_leave_no_trace() -> None:
    own = alphas()
    upscaler = gaussian_upscaler(0.2, 0.5, own)
    photo = picture(40, 72)
    whole = LatentDiffusion(upscaler, "area", "cpu")
    state = whole.begin(photo, 4, 0)
    expected, _ = whole.denoised(photo, state)
    upscaler.unet.config.sample_size = 16
    assert torch.allclose(LatentDiffusion(upscaler, "area", "cpu").denoised(photo, state)[0], expected, atol=1e-5)


def test_resolvers_leave_nothing_on_the_wrong_device(small: Small, tmp_path: Path) -> None:
    """On a GPU, networks whose makers say so compute in half precision, and states stay single."""
    photo, render = picture(16, 16), picture(64, 64, 1)
    torch.save(esrgan().state_dict(), tmp_path / "x4.pth")
    used: set[torch.dtype] = set()

    def record(module: nn.Module, arguments: Any) -> None:
        if isinstance(module, nn.Conv2d):
            used.add(arguments[0].dtype)

    hook = nn.modules.module.register_module_forward_pre_hook(record)
    try:
        with pretend_cuda():
            network = small.to("cuda")
            half, single = torch.float16, torch.float32
            resolvers: list[tuple[SuperResolver, set[torch.dtype]]] = [
                (SingleStep(network, 4, "area", "cuda", takes_renders=True), {single}),
                (SingleStep(network, 4, "area", "cuda", takes_renders=False), {single}),
                (open_super_resolver(str(tmp_path / "x4.pth"), 4, "area", "cuda"), {half}),
                # the U-Net in half, the VAE as it says that half precision overflows
                (LatentDiffusion(small_upscaler(), "area", "cuda", update="posterior"), {half, single}),
                (LatentDiffusion(small_upscaler(), "area", "cuda", update="paper"), {half, single}),
            ]
            for resolver, expected in resolvers:
                used.clear()
                on_device = photo.to("cuda")
                state = resolver.begin(on_device, 2, 0)
                image, state = resolver.estimate(on_device, state)
                assert image.device.type == "cuda" and image.dtype == torch.float32
                state = resolver.advance(on_device, state, render.to("cuda"))
                assert resolver.estimate(on_device, state)[0].shape == (1, 3, 64, 64)
                assert all(value.device.type == "cpu" for value in state.values())
                assert used == expected
    finally:
        hook.remove()


# what is opened


def esrgan(blocks: int = 1, channels: int = 4, scale: int = 4, colors: int = 3) -> nn.Module:
    """ESRGAN at a small width, with random weights."""
    from spandrel.architectures.ESRGAN import ESRGAN

    torch.manual_seed(1)
    return ESRGAN(in_nc=colors, out_nc=colors, num_filters=channels, num_blocks=blocks, scale=scale)


def swin_ir() -> nn.Module:
    from spandrel.architectures.SwinIR import SwinIR

    torch.manual_seed(1)
    options: dict[str, Any] = {"depths": [2], "num_heads": [2], "embed_dim": 8, "window_size": 8, "mlp_ratio": 2}
    return SwinIR(upscale=4, upsampler="pixelshuffledirect", **options)


def hat() -> nn.Module:
    from spandrel.architectures.HAT import HAT

    torch.manual_seed(1)
    return HAT(upscale=4, depths=(2,), num_heads=(2,), embed_dim=16, window_size=16, squeeze_factor=8, num_feat=64)


def compact() -> nn.Module:
    from spandrel.architectures.Compact import Compact

    torch.manual_seed(1)
    return Compact(num_feat=8, num_conv=2, upscale=4)


def opened(path: Path | str, factor: int = 4) -> SuperResolver:
    return open_super_resolver(str(path), factor, "area", "cpu")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("make", [esrgan, swin_ir, hat, compact])
def test_a_file_that_spandrel_reads(tmp_path: Path, make: Callable[[], nn.Module], suffix: str) -> None:
    from safetensors.torch import save_file

    network, photo, path = make().eval(), picture(16, 32), tmp_path / f"x4{suffix}"
    if suffix == ".pth":
        torch.save({"params_ema": network.state_dict()}, path)
    else:
        save_file(network.state_dict(), path)
    resolver = opened(path)
    image, state = resolver.estimate(photo, resolver.begin(photo, 2, 0))
    made = network(photo).clamp(0, 1).detach()
    assert torch.allclose(state["made"].float(), made, atol=1e-3)
    assert torch.allclose(image, agreeing(made, photo, 4), atol=1e-3)
    odd = picture(9, 21)
    assert resolver.estimate(odd, resolver.begin(odd, 2, 0))[0].shape == (1, 3, 36, 84)


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / "evil.pth"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (trace,)

    path.write_bytes(pickle.dumps(Evil(), protocol=2))
    pickle.loads(path.read_bytes())  # it does bite
    assert trace.exists()
    trace.unlink()
    with pytest.raises(InputError, match="would be run as code"):
        opened(path)
    torch.save({"params": Evil()}, path)
    with pytest.raises(InputError, match="would be run as code"):
        opened(path)
    assert not trace.exists()


def wrong_files(folder: Path) -> list[tuple[Path | str, str]]:
    from safetensors.torch import save_file

    def saved(name: str, tensors: dict[str, Tensor]) -> Path:
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / name)
        return folder / name

    (folder / "program.pt").write_bytes(b"x")
    (folder / "damaged.safetensors").write_bytes(b"x" * 100)
    (folder / "damaged.pth").write_bytes(b"x" * 100)
    (folder / "empty").mkdir()
    (folder / "half" / "unet").mkdir(parents=True)
    torch.save([torch.zeros(1)], folder / "list.pth")
    whole = esrgan().state_dict()
    parts = {name: value for name, value in whole.items() if "RDB2" not in name}
    layers = {f"model.{2 * i}.weight": torch.zeros(8 if i < 7 else 3, 3 if i == 0 else 8, 3, 3) for i in range(8)}
    layers |= {f"model.{2 * i}.bias": torch.zeros(8 if i < 7 else 3) for i in range(8)}
    return [
        (saved("x2.safetensors", esrgan(scale=2).state_dict()), "2 times larger, not 4"),
        (saved("denoiser.safetensors", layers), "makes no image larger"),
        (saved("gray.safetensors", esrgan(colors=1).state_dict()), "not RGB"),
        (saved("other.safetensors", {"a": torch.zeros(1)}), "no network that spandrel knows"),
        (saved("parts.safetensors", parts), "damaged or not whole"),
        (folder / "damaged.safetensors", "damaged or not whole"),
        (folder / "damaged.pth", "is damaged or not whole"),
        (folder / "list.pth", "no network's weights"),
        (folder / "program.pt", "not a file of weights"),
        (folder / "empty", "neither config.json"),
        (folder / "half", "no folder vae"),
        (folder / "x3.safetensors", "did you mean x2.safetensors"),
        ("bundeld", "did you mean bundled"),
    ]


def test_what_cannot_be_opened_says_so(tmp_path: Path) -> None:
    for name, message in wrong_files(tmp_path):
        with pytest.raises(InputError) as caught:
            opened(name)
        assert message in str(caught.value), str(caught.value)
        assert Path(str(name)).name in str(caught.value)
        assert str(caught.value).count("\n") == 0
    with pytest.raises(InputError, match="no update called ddim"):
        open_super_resolver("bundled", 4, "area", "cpu", update="ddim")  # type: ignore[arg-type]


def test_a_name_that_the_hub_cannot_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="neither in the Hugging Face cache nor reachable on the hub:"):
        opened("stabilityai/stable-diffusion-x4-upscaler")
    with pytest.raises(InputError, match="did you mean stabilityai/stable-diffusion-x4-upscaler"):
        opened("stabilityai/stable-difusion-x4-upscaler")


def test_the_bundled_super_resolver() -> None:
    pytest.importorskip("difixcli.priors.super_resolution.network")
    resolver, photo = opened("bundled"), picture(16, 20)
    image, state = resolver.estimate(photo, resolver.begin(photo, 2, 0))
    state = resolver.advance(photo, state, enlarged(photo, 4).clamp(0, 1))
    assert image.shape == resolver.estimate(photo, state)[0].shape == (1, 3, 64, 80)
    with pytest.raises(InputError, match="4 times larger, not 3"):
        opened("bundled", 3)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small latent upscaler in diffusers' layout."""
    from diffusers import DDIMScheduler, DDPMScheduler
    from safetensors.torch import load_file, save_file
    from transformers import CLIPTextConfig, CLIPTextModel

    folder = tmp_path_factory.mktemp("upscaler")
    upscaler = small_upscaler()
    upscaler.unet.save_pretrained(folder / "unet")
    upscaler.vae.save_pretrained(folder / "vae")
    DDIMScheduler(**SCHEDULE, prediction_type="v_prediction").save_pretrained(folder / "scheduler")
    path = folder / "scheduler" / "scheduler_config.json"  # as published: other schedulers' entries were left in it
    path.write_text(json.dumps({**json.loads(path.read_text()), "skip_prk_steps": True, "trained_betas": None}))
    # as published: the names that attention had in older releases
    path, held = folder / "vae" / "diffusion_pytorch_model.safetensors", {}
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for name, value in load_file(path).items():
        own = next((new for new in names if f"attentions.0.{new}." in name), "")
        held[name.replace(own, names[own]) if own else name] = value
    assert any("proj_attn" in name for name in held)
    save_file(held, path, metadata={"format": "pt"})
    DDPMScheduler(**SCHEDULE).save_pretrained(folder / "low_res_scheduler")
    clip = CLIPTextConfig(
        vocab_size=260,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=256,
        eos_token_id=257,
        max_position_embeddings=8,
    )
    CLIPTextModel(clip).save_pretrained(folder / "text_encoder")
    words = [*(chr(c) for c in range(33, 127)), *(f"{chr(c)}</w>" for c in range(33, 127))]
    vocabulary = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "vocab.json").write_text(json.dumps(vocabulary))
    (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 8, "pad_token": "<|endoftext|>"}
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_a_folder_in_diffusers_layout(published: Path, upscaler: Upscaler, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    resolver, photo = opened(published), picture(16, 16)
    assert capfd.readouterr() == ("", "")
    assert isinstance(resolver, LatentDiffusion)
    read = load_upscaler(published)
    assert read.prompt.shape == (8, 16) and not torch.equal(read.prompt, load_upscaler(published, "sharp").prompt)
    expected = LatentDiffusion(replace(upscaler, prompt=read.prompt), "area", "cpu")
    state = resolver.begin(photo, 4, 3)
    assert torch.equal(resolver.estimate(photo, state)[0], expected.estimate(photo, state)[0])
    with pytest.raises(InputError, match="4 times larger, not 2"):
        opened(published, 2)


def test_damaged_folders_say_so(published: Path, tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel
    from safetensors.torch import load_file, save_file

    def damaged(name: str, change: Callable[[Path], object], message: str) -> None:
        folder = tmp_path / name
        shutil.copytree(published, folder)
        change(folder)
        with pytest.raises(InputError, match=message):
            opened(folder)

    def configure(folder: Path, part: str, **values: Any) -> None:
        path = folder / part
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    damaged("a", lambda f: shutil.rmtree(f / "low_res_scheduler"), "no folder low_res_scheduler")
    damaged("b", lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"x"), "cannot be read")
    damaged(
        "c",
        lambda f: configure(f, "scheduler/scheduler_config.json", prediction_type="sample"),
        "upscalers predict epsilon or v_prediction",
    )

    def without(folder: Path, tensor: str) -> None:
        path = folder / "unet" / "diffusion_pytorch_model.safetensors"
        held = load_file(path)
        del held[tensor]
        save_file(held, path, metadata={"format": "pt"})

    damaged("lacking", lambda f: without(f, "conv_in.weight"), "lacks 1 tensors .such as conv_in.weight.")
    plain = UNet2DConditionModel(**{**SMALL_UNET, "in_channels": 4})
    damaged("plain", lambda f: plain.save_pretrained(f / "unet"), "holds a fixer, which --fixer takes")
    damaged("d", lambda f: configure(f, "vae/config.json", latent_channels=8), "cannot be read")


# the recipe


def ncnn_files(network: nn.Module) -> tuple[str, bytes]:
    """A network as ncnn writes it, in half precision."""
    lines, numbers = [], b""
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    for i, layer in enumerate(convolutions):
        weight = layer.weight.detach().half().numpy()
        counts = f"0={layer.out_channels} 1=3 4=1 5=1 6={weight.size}"
        lines.append(f"Convolution Conv_{i} 1 1 in{i} out{i} {counts} -23310=1,2.000000e-01")
        raw = weight.tobytes()
        numbers += struct.pack("<I", 0x01306B47) + raw + b"\0" * (-len(raw) % 4)
        numbers += layer.bias.detach().numpy().tobytes()  # type: ignore[union-attr]
    lines[-2:-2] = ["Interp Resize_1 1 1 a b 0=1 1=2.000000e+00 2=2.000000e+00"] * 2
    return "\n".join(["7767517", f"{len(lines)} 9", *lines, ""]), numbers


def test_the_recipe_for_real_esrgan(tmp_path: Path) -> None:
    network, photo = esrgan(blocks=2, channels=5).half().float(), picture(10, 14)
    param, numbers = ncnn_files(network)
    wheel, output = tmp_path / "a.whl", tmp_path / "real.safetensors"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("ncnn/models/realesrgan-x4plus.param", param)
        file.writestr("ncnn/models/realesrgan-x4plus.bin", numbers)
    subprocess.run([sys.executable, str(RECIPE), str(wheel), str(output)], check=True)
    resolver = opened(output)
    _, state = resolver.estimate(photo, resolver.begin(photo, 2, 0))
    assert torch.equal(state["made"], network(photo).detach().clamp(0, 1).half())
    other = subprocess.run(
        [sys.executable, str(RECIPE), str(wheel), str(output), "--model", "x"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert other.returncode == 1 and "holds no x.param" in other.stderr


def test_the_recipe_notices_what_it_cannot_read() -> None:
    spec = importlib.util.spec_from_file_location("real_esrgan", RECIPE)
    assert spec is not None and spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    param, numbers = ncnn_files(esrgan())
    assert all(np.isfinite(value).all() for value in recipe.real_esrgan(param, numbers).values())
    for files, message in (
        ((param, numbers + b"1234"), "layers need"),
        ((param, b"\1" + numbers[1:]), "not read here"),
        ((param.replace("1=2.000000e+00", "1=3.000000e+00"), numbers), "not this network's"),
        ((param[:-100], numbers), "not whole"),
    ):
        with pytest.raises(ValueError, match=message):
            recipe.real_esrgan(*files)


def test_a_large_image_shows_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beforehand, where it takes minutes, and after each tile; a small one shows neither."""
    monkeypatch.setattr("difixcli.console._EVERY", 0)
    monkeypatch.setattr("difixcli.cli.inputs._SLOW", 10**6)
    for name, size in (("large", (300, 270)), ("small", (40, 30))):
        Image.new("RGB", size, "gray").save(tmp_path / f"{name}.png")
    line = ("fix", tmp_path / "large.png", "--upscale", "4")
    shown = difix(*line).stderr
    assert "large.png will have 1 million pixels; an image of that size takes minutes" in shown
    tiled = [line for line in shown.splitlines() if "tile" in line]
    assert tiled == [f"enlarge: 0/1, and tile {done} of 4" for done in range(1, 5)]
    shown = difix("fix", tmp_path / "small.png", "--upscale", "4").stderr
    assert "enlarge: 1/1" in shown and "tile" not in shown and "million" not in shown
