"""3DSR's super-resolver: latent diffusion whose clean estimate goes through the scene at every step.

The networks are those of diffusers' StableDiffusionUpscalePipeline, whose U-Net sees the photo, a little noised, beside
the noisy latents; one latent stands for the pixels that one of the photo's pixels becomes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from difixcli.errors import InputError, out_of_memory
from difixcli.fixer.weights import prompt_embedding
from difixcli.images import Operator, agreeing, enlarged
from difixcli.priors.super_resolution.enlargement import Update
from difixcli.priors.super_resolution.resolver import State, TileDone, check_render, untold
from difixcli.priors.super_resolution.schedule import (
    PREDICTIONS,
    Prediction,
    estimates,
    noised,
    paper_move,
    posterior_move,
    spaced_timesteps,
)
from difixcli.priors.super_resolution.tiles import Tile, blended, cut, gaussian
from difixcli.priors.super_resolution.wavelet import with_colors_of
from difixcli.torchvision_cure import cure

NOISE_LEVEL = 20  # of the noise put on the photo; what diffusers' pipeline has by default
# Pixels a side of the tiles in which large images are encoded and decoded: the release's on a GPU.
VAE_TILE = {"cpu": 512, "cuda": 1280}
_PARTS = ("unet", "vae", "scheduler", "low_res_scheduler", "text_encoder", "tokenizer")


@dataclass(frozen=True, eq=False)
class Upscaler:
    """The networks and schedules of a latent upscaler, frozen, float32 on the CPU as they are read."""

    # Any: diffusers' classes, whose attributes have no types
    unet: Any
    """UNet2DConditionModel"""
    vae: Any
    """AutoencoderKL"""
    prompt: Tensor
    """(L, D) the text encoder's last hidden state for the prompt."""
    alphas: Tensor
    """(T,) float64 ᾱ of the latents' noise by timestep."""
    photo_alphas: Tensor
    """(N,) float64 ᾱ of the photo's noise by noise level."""
    prediction: Prediction

    @property
    def factor(self) -> int:
        """How much larger an image is than its latents, and so than the photo."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)


def load_upscaler(folder: Path, prompt: str = "") -> Upscaler:
    """The latent upscaler in a folder of diffusers' layout; no code comes with it, and its text encoder is not kept.

    Raises InputError for a folder that is not one, or has damaged parts.
    """
    cure()
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

    for part in _PARTS:
        if not (folder / part).is_dir():
            raise InputError(
                f"{folder} has no folder {part}: it is not a latent upscaler; give one in the layout of "
                "stabilityai/stable-diffusion-x4-upscaler."
            )

    def read(kind: Any, part: str, **options: Any) -> Any:
        try:
            return kind.from_pretrained(folder / part, local_files_only=True, **options)
        except Exception as error:  # diffusers and safetensors raise whatever their parsers do
            if out_of_memory(error):
                raise
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{folder / part} cannot be read ({reason}); fetch it again.") from error

    schedule, photo_schedule = read(DDPMScheduler, "scheduler"), read(DDPMScheduler, "low_res_scheduler")
    prediction = schedule.config.prediction_type
    if prediction not in PREDICTIONS:
        raise InputError(
            f"{folder / 'scheduler'} says prediction_type={prediction!r}; upscalers predict {' or '.join(PREDICTIONS)}."
        )

    def network(kind: Any, part: str) -> Any:
        options = {"use_safetensors": True, "torch_dtype": torch.float32, "output_loading_info": True}
        model, found = read(kind, part, **options)
        if missing := sorted(found["missing_keys"]):  # diffusers would leave them random
            raise InputError(f"{folder / part} lacks {len(missing)} tensors (such as {missing[0]}); fetch it again.")
        return model.eval().requires_grad_(False)

    unet, vae = network(UNet2DConditionModel, "unet"), network(AutoencoderKL, "vae")
    wanted = vae.config.latent_channels + 3
    if unet.config.in_channels != wanted:
        raise InputError(
            f"The U-Net in {folder} takes {unet.config.in_channels} channels, but a latent upscaler's takes {wanted} "
            "(noisy latents and the photo); this is another kind of diffusion model."
        )
    return Upscaler(
        unet=unet,
        vae=vae,
        prompt=prompt_embedding(folder, prompt),
        alphas=schedule.alphas_cumprod.double(),
        photo_alphas=photo_schedule.alphas_cumprod.double(),
        prediction=prediction,
    )


class LatentDiffusion:
    """A super-resolver of as many denoising steps as there are rounds; see `SuperResolver`. It takes the upscaler over,
    to its device and precision.

    Per photo it keeps `latents` x_t (1, C, h, w), `round` from 1, `rounds`, `seed` and, for the paper's update, the
    network's `noise` ε̂ (1, C, h, w). Sides are padded for the U-Net. The U-Net sees tiles of the size it was trained
    at, half of a tile shared by neighbours, and its outputs are blended (the release's: 64 latents, 32 shared).
    Networks are in half precision on a GPU, a VAE only if its configuration allows it.

    `update`: "posterior", the release's sample of DDPM's posterior given the render, or "paper", which keeps the
    network's noise, with σ `eta` (0 to 1) times DDPM's.
    """

    def __init__(
        self,
        upscaler: Upscaler,
        operator: Operator,
        device: str,
        *,
        update: Update = "posterior",
        eta: float = 1.0,
        noise_level: int = NOISE_LEVEL,
    ) -> None:
        self.factor, self.device, self.steps_alone, self.takes_renders = upscaler.factor, device, True, False
        self.made_once = frozenset[str]()
        self.tile_done: TileDone = untold
        self._upscaler, self._operator, self._update, self._eta = upscaler, operator, update, eta
        if not 0 <= eta <= 1:
            raise ValueError(f"eta goes from 0 to 1, not {eta}")
        if not 0 <= noise_level < len(upscaler.photo_alphas):
            raise ValueError(f"noise levels go from 0 to {len(upscaler.photo_alphas) - 1}, not {noise_level}")
        self._noise_level = noise_level
        upscaler.unet.to(device)
        upscaler.vae.to(device)
        self._dtype = torch.float32
        if torch.device(device).type == "cuda":
            self._dtype = torch.float16
            upscaler.unet.half()
            if not upscaler.vae.config.force_upcast:
                upscaler.vae.half()
        tile = VAE_TILE.get(torch.device(device).type, VAE_TILE["cpu"])
        upscaler.vae.enable_tiling()
        upscaler.vae.tile_sample_min_size, upscaler.vae.tile_latent_min_size = tile, tile // self.factor
        self._prompt = upscaler.prompt[None].to(device, self._dtype)
        self._multiple = 2 ** (len(upscaler.unet.config.block_out_channels) - 1)
        side = upscaler.unet.config.sample_size or 64
        side = side if isinstance(side, int) else min(side)
        self._tile = max(side // (2 * self._multiple), 1) * 2 * self._multiple

    def begin(self, photo: Tensor, rounds: int, seed: int) -> State:
        """x_T = √ᾱ_T·E(enlarged photo) + √(1 − ᾱ_T)·noise."""
        latents = self.encode(enlarged(photo, self.factor).clamp(0, 1))
        alpha = float(self._upscaler.alphas[-1])
        start = noised(latents, _noise(latents.shape, seed, "move", 0).to(latents), alpha)
        numbers = {"round": 1, "rounds": rounds, "seed": seed}
        return {"latents": start.cpu(), **{name: torch.tensor(value) for name, value in numbers.items()}}

    def estimate(self, photo: Tensor, state: State) -> tuple[Tensor, State]:
        """The decoded clean estimate, with the colours of the enlarged photo, whose reduction is the photo."""
        clean, state = self.denoised(photo, state)
        image = self.decode(clean)[..., : photo.shape[-2] * self.factor, : photo.shape[-1] * self.factor]
        if not bool(torch.isfinite(image).all()):
            raise InputError("The upscaler's images hold values that are not numbers; give undamaged weights.")
        image = with_colors_of(image, enlarged(photo, self.factor))
        return agreeing(image, photo, self.factor, self._operator), state

    def advance(self, photo: Tensor, state: State, render: Tensor) -> State:
        """The next, less noisy latents, made with the render's; after the last round they are the render's own."""
        check_render(photo, render, self.factor)
        return self.moved(state, self.encode(render))

    @torch.no_grad()
    def denoised(self, photo: Tensor, state: State) -> tuple[Tensor, State]:
        """Clean latents x̂₀ (1, C, h, w) at the state's step, on the device, and the state, with the noise ε̂ that the
        paper's update needs.
        """
        timestep, alpha, _ = self._step(state)
        x = state["latents"].to(self.device)
        beside = self._padded(2 * photo - 1, self._multiple)
        noise = _noise(beside.shape, int(state["seed"]), "photo", 0).to(beside)
        beside = noised(beside, noise, float(self._upscaler.photo_alphas[self._noise_level]))
        clean, predicted = estimates(x, self._output(x, beside, timestep), alpha, self._upscaler.prediction)
        return clean, {**state, "noise": predicted.cpu()} if self._update == "paper" else state

    def moved(self, state: State, clean: Tensor) -> State:
        """The state of the next step, from the clean latents ẍ₀ (1, C, h, w) that the scene has made of x̂₀."""
        _, alpha, following = self._step(state)
        x, number = state["latents"].to(clean), int(state["round"])
        noise = _noise(clean.shape, int(state["seed"]), "move", number).to(clean)
        if self._update == "posterior":
            latents = posterior_move(x, clean, noise, alpha, following)
        elif "noise" not in state:
            raise ValueError("the paper's update needs the noise that an estimate found")
        else:
            latents = paper_move(clean, state["noise"].to(clean), noise, alpha, following, self._eta)
        rest = {name: value for name, value in state.items() if name != "noise"}
        return {**rest, "latents": latents.cpu(), "round": state["round"] + 1}

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Latents (B, C, h, w), float32, of large images (B, 3, H, W) in [0, 1]: the posterior's mode, scaled."""
        vae = self._upscaler.vae
        images = self._padded(2 * images - 1, self._multiple * self.factor).to(vae.dtype)
        return vae.encode(images).latent_dist.mode().float() * vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 3, h · factor, w · factor), float32, of latents; their padding is left, and nothing is clamped."""
        vae = self._upscaler.vae
        return vae.decode((latents / vae.config.scaling_factor).to(vae.dtype)).sample.float() / 2 + 0.5

    def _step(self, state: State) -> tuple[int, float, float]:
        """The timestep of the state's round, its ᾱ, and that of the next round, or 1 after the last."""
        number, rounds = int(state["round"]), int(state["rounds"])
        if number > rounds:
            raise ValueError(f"there is no round {number} of {rounds}")
        alphas = self._upscaler.alphas
        steps = spaced_timesteps(rounds, len(alphas))
        following = float(alphas[steps[number]]) if number < rounds else 1.0
        return steps[number - 1], float(alphas[steps[number - 1]]), following

    def _output(self, x: Tensor, beside: Tensor, timestep: int) -> Tensor:
        """The U-Net's output (1, C, h, w), float32, for noisy latents beside the noised photo."""
        level = torch.tensor([self._noise_level], device=self.device)

        def made(tile: Tile) -> Tensor:
            seen = torch.cat([tile.of(x), tile.of(beside)], dim=1).to(self._dtype)
            output = self._upscaler.unet(seen, timestep, encoder_hidden_states=self._prompt, class_labels=level)
            return output.sample.float()

        height, width = x.shape[-2:]
        tiles = cut(height, width, self._tile, self._tile // 2, self._multiple)
        return blended(tiles, made, height, width, gaussian, told=self.tile_done)

    @staticmethod
    def _padded(images: Tensor, multiple: int) -> Tensor:
        height, width = images.shape[-2:]
        return functional.pad(images, (0, -width % multiple, 0, -height % multiple), mode="replicate")


def _noise(shape: torch.Size, seed: int, purpose: str, number: int) -> Tensor:
    """Standard normal noise, the same on every device, of one of the seed's independent streams."""
    key = (("photo", "move").index(purpose), number)
    stream = np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)
    return torch.randn(shape, generator=torch.Generator().manual_seed(int(stream[0]) >> 1))
