"""SparseFusion's system: epipolar features of a view, and a latent diffusion model that takes them.

    y = head(EFT(photos, cameras, query)),    x ~ D(p(z | y)),

with the classes of Stable Diffusion's VAE and U-Net at any size; y stands beside the noisy latents as further channels
of the U-Net's input, together with the latents of EFT's own picture.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difixcli.errors import InputError
from difixcli.priors.view_diffusion.denoising import NoiseSchedule, Sampler, denoised
from difixcli.priors.view_diffusion.epipolar import EpipolarConfig, EpipolarRender, EpipolarTransformer
from difixcli.priors.view_diffusion.files import BUNDLED, check_view_diffusion
from difixcli.priors.view_diffusion.views import InputViews, Pinhole, inverse
from difixcli.runs import read_json
from difixcli.shapes import built
from difixcli.tensor_files import read_weights, write_network
from difixcli.torchvision_cure import cure

FORMAT = "difixcli-view-diffusion-1"


@dataclass(frozen=True)
class ViewDiffusionConfig:
    """Everything about the networks but their numbers; stored as config.json beside them."""

    unet: dict[str, Any]
    """Keyword arguments of diffusers' UNet2DConditionModel, but for its channels."""
    vae: dict[str, Any]
    """Keyword arguments of diffusers' AutoencoderKL."""
    epipolar: EpipolarConfig = field(default_factory=EpipolarConfig)
    schedule: NoiseSchedule = field(default_factory=NoiseSchedule)
    condition_channels: int = 32
    """Of y, beside the latents of EFT's picture."""
    prompt_tokens: int = 1
    """Length of the constant prompt's embedding, which is learned."""
    size: int = 96
    """Pixels of the long side that it was trained at."""
    licence: str = "Apache-2.0"
    """Terms of the weights, to be shown when they are loaded."""

    @property
    def factor(self) -> int:
        """How many pixels one latent is wide."""
        return 2 ** (len(self.vae["block_out_channels"]) - 1)

    @property
    def multiple(self) -> int:
        """Pixels that the sides of what the U-Net sees divide by; pictures are padded."""
        return self.factor * 2 ** (len(self.unet["block_out_channels"]) - 1)


@dataclass(frozen=True, eq=False)
class Condition:
    """What the photos say of a view."""

    picture: Tensor
    """(3, H, W) in [0, 1]: EFT's own picture of it."""
    features: Tensor
    """(C, h, w) y, at the resolution of the padded latents; the last channels are the picture's latents."""
    height: int
    width: int


class ViewDiffusion(nn.Module):
    """EFT, y's head, VAE and U-Net."""

    def __init__(self, config: ViewDiffusionConfig) -> None:
        super().__init__()
        cure()
        from diffusers import AutoencoderKL, UNet2DConditionModel

        self.config = config
        self.epipolar = EpipolarTransformer(config.epipolar)
        self.head = _head(self.epipolar.feature_channels, config.condition_channels, config.factor)
        # Any: diffusers' modules are reached into, and a module's attributes have no types
        autoencoder: Any = AutoencoderKL
        self.vae: Any = autoencoder(**config.vae)
        latents = self.vae.config.latent_channels
        channels = {"in_channels": 2 * latents + config.condition_channels, "out_channels": latents}
        denoiser: Any = UNet2DConditionModel
        self.unet: Any = denoiser(**channels, **config.unet)
        self.prompt = nn.Parameter(0.02 * torch.randn(config.prompt_tokens, self.unet.config.cross_attention_dim))
        self.alphas = config.schedule.alphas()

    @property
    def size(self) -> int:
        """Pixels of the long side that it was trained at."""
        return self.config.size

    @property
    def licence(self) -> str:
        return self.config.licence

    @property
    def latent_scale(self) -> float:
        """What the autoencoder's latents are multiplied by to have unit variance."""
        return float(self.config.vae.get("scaling_factor", self.vae.config.scaling_factor))

    def set_latent_scale(self, scale: float) -> None:
        self.config = dataclasses.replace(self.config, vae={**self.config.vae, "scaling_factor": scale})

    @property
    def device(self) -> torch.device:
        return self.prompt.device

    @property
    def dtype(self) -> torch.dtype:
        return self.prompt.dtype

    @torch.no_grad()
    def condition(self, views: InputViews, query: Pinhole) -> Condition:
        """What the photos say of the query's view; on the networks' device, float32."""
        near, far = views.depth_range(query)
        views, query = views.to(self.device), query.to(self.device)
        masks = torch.ones_like(views.images[:, :1]) if views.masks is None else views.masks
        # 1. the world around the query in units of its nearest depth, in float64: worlds may be large and far away
        poses = inverse(query.pose.double()) @ views.poses.double()
        poses[:, :3, 3] /= near
        one = torch.ones(1, device=self.device)
        # 2. EFT
        render = self.epipolar(
            views.images[None].to(self.dtype),
            masks[None].to(self.dtype),
            views.intrinsics[None].float(),
            poses[None].float(),
            query.intrinsics[None].float(),
            torch.eye(4, device=self.device)[None],
            one,
            one * (far / near),
            query.height,
            query.width,
        )
        # 3. y
        features = self.condition_of(render)[0].float()
        return Condition(render.picture[0].clamp(0, 1), features, query.height, query.width)

    def condition_of(self, render: EpipolarRender) -> Tensor:
        """y (B, C, h, w) of EFT's render, padded to what the U-Net takes; its last channels, the latents of EFT's
        picture, have no gradient.
        """
        told = self.head(self.padded(render.features.to(self.dtype)))
        with torch.no_grad():
            own = self.encode(render.picture.detach().clamp(0, 1).to(self.dtype))
        return torch.cat([told, own.to(told)], dim=1)

    def encode(self, pictures: Tensor) -> Tensor:
        """Scaled latents (B, c, h, w), the mode of the encoder's Gaussian, of pictures (B, 3, H, W) in [0, 1], which
        are padded to what the U-Net takes.
        """
        moments = self.vae.quant_conv(self.vae.encoder(self.padded(pictures) * 2 - 1))
        mode: Tensor = moments.chunk(2, dim=1)[0]
        return mode * self.latent_scale

    def decode(self, latents: Tensor, height: int, width: int) -> Tensor:
        """Pictures (B, 3, height, width), not clamped to [0, 1], of scaled latents."""
        decoded: Tensor = self.vae.decoder(self.vae.post_quant_conv(latents / self.latent_scale))
        return (decoded[..., :height, :width] + 1) / 2

    def predict(self, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        """The U-Net's output (B, c, h, w), in the schedule's prediction type, for noisy latents (B, c, h, w) at
        time steps (B,) beside y (B, C, h, w).
        """
        prompt = self.prompt.expand(noisy.shape[0], -1, -1)
        output: Tensor = self.unet(torch.cat([noisy, condition], dim=1), timesteps, prompt, return_dict=False)[0]
        return output

    @torch.no_grad()
    def sample(self, condition: Condition, seed: int, steps: int = 25, sampler: Sampler = "ddim") -> Tensor:
        """A view (3, H, W) in [0, 1], drawn from p(x | y); what noise it begins with follows from the seed."""
        noise = self._noise(condition, seed)
        return self._descended(noise, len(self.alphas) - 1, condition, steps, sampler)

    @torch.no_grad()
    def denoise(
        self,
        picture: Tensor,
        condition: Condition,
        level: float,
        seed: int,
        sampler: Sampler = "plms",
        steps: int = 20,
    ) -> tuple[Tensor, float]:
        """What a view is likely to be of which `picture` (3, H, W) in [0, 1] is an estimate.

        Noised to the share `level`, in (0, 1), of the schedule's length, with noise that follows from the seed, and
        denoised in as many of `steps` as its share of them, rounded up, without gradient.

        Returns x̂₀ (3, H, W) in [0, 1] and ᾱ of the level.
        """
        if not 0 < level < 1:
            raise InputError(f"A noise level is a share between 0 and 1, not {level}.")
        size = (condition.height, condition.width)
        if picture.shape != (3, *size):
            wanted = f"{size[1]}×{size[0]}"
            raise InputError(f"A picture of {picture.shape[-1]}×{picture.shape[-2]} is not of the view's {wanted}.")
        start = self.config.schedule.timestep(level)
        alpha = float(self.alphas[start])
        clean = self.encode(picture[None].to(self.device, self.dtype)).float()
        noisy = math.sqrt(alpha) * clean + math.sqrt(1 - alpha) * self._noise(condition, seed)
        return self._descended(noisy, start, condition, steps, sampler), alpha

    def _descended(self, noisy: Tensor, start: int, condition: Condition, steps: int, sampler: Sampler) -> Tensor:
        told = condition.features[None].to(self.device, self.dtype)

        def predict(latents: Tensor, time: int) -> Tensor:
            times = torch.full((1,), time, device=self.device)
            return self.predict(latents.to(self.dtype), times, told).float()

        latents = denoised(noisy, start, predict, self.config.schedule, steps, sampler)
        return self.decode(latents.to(self.dtype), condition.height, condition.width)[0].float().clamp(0, 1)

    def _noise(self, condition: Condition, seed: int) -> Tensor:
        """Standard normal latents (1, c, h, w), the same on every device."""
        shape = (1, self.vae.config.latent_channels, *condition.features.shape[-2:])
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(self.device)

    def padded(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) with its last row and column repeated until the sides divide by `multiple`."""
        multiple = self.config.multiple
        return F.pad(images, (0, -images.shape[-1] % multiple, 0, -images.shape[-2] % multiple), mode="replicate")

    @classmethod
    def from_pretrained(
        cls, name: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> ViewDiffusion:
        """The model in a folder that `save_pretrained` wrote, to be used: frozen. `bundled` is none yet.

        Raises InputError for a folder that holds none, or a damaged one.
        """
        folder = BUNDLED if str(name) == "bundled" else Path(name).expanduser()
        source = folder / "model.safetensors"
        check_view_diffusion(name)
        model = cls(_configured(folder / "config.json"))
        tensors = read_weights(source)
        try:
            model.load_state_dict(tensors)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{source} does not fit the configuration beside it ({reason}).") from error
        return model.eval().requires_grad_(False).to(device, dtype)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes config.json and model.safetensors, each whole or not at all; returns the folder, made if missing."""
        values = {"format": FORMAT, **dataclasses.asdict(self.config)}
        return write_network(self, values, Path(folder), "The model")


def _head(incoming: int, outgoing: int, factor: int) -> nn.Sequential:
    """EFT's features (B, C, H, W) to y (B, c, H / factor, W / factor); factor is a power of 2."""
    width = max(outgoing, 32)
    layers: list[nn.Module] = [nn.Conv2d(incoming, width, 3, padding=1), nn.SiLU()]
    for _ in range(factor.bit_length() - 1):
        layers += [nn.Conv2d(width, width, 3, 2, padding=1), nn.SiLU()]
    return nn.Sequential(*layers, nn.Conv2d(width, outgoing, 3, padding=1))


def small_config(
    size: int = 96,
    vae_channels: tuple[int, ...] = (48, 80, 112),
    latent_channels: int = 8,
    unet_channels: tuple[int, ...] = (64, 128, 160),
    epipolar: EpipolarConfig | None = None,
    condition_channels: int = 32,
    schedule: NoiseSchedule | None = None,
) -> ViewDiffusionConfig:
    """The configuration of networks that are small enough to train from scratch."""
    groups = math.gcd(16, *vae_channels)
    vae = {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ["DownEncoderBlock2D"] * len(vae_channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(vae_channels),
        "block_out_channels": list(vae_channels),
        "layers_per_block": 1,
        "latent_channels": latent_channels,
        "norm_num_groups": groups,
        "mid_block_add_attention": False,
        "scaling_factor": 1.0,
    }
    unet = {
        "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * (len(unet_channels) - 1)],
        "up_block_types": [*["CrossAttnUpBlock2D"] * (len(unet_channels) - 1), "UpBlock2D"],
        "block_out_channels": list(unet_channels),
        "layers_per_block": 1,
        "attention_head_dim": [max(1, width // 32) for width in unet_channels],
        "cross_attention_dim": 32,
        "norm_num_groups": math.gcd(16, *unet_channels),
        "use_linear_projection": True,
    }
    return ViewDiffusionConfig(
        unet=unet,
        vae=vae,
        epipolar=epipolar or EpipolarConfig(),
        schedule=schedule or NoiseSchedule(),
        condition_channels=condition_channels,
        size=size,
    )


def new_small_view_diffusion(seed: int = 0, **shape: Any) -> ViewDiffusion:
    """Networks with random weights that follow from the seed; `shape` is that of `small_config`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ViewDiffusion(small_config(**shape))


def _configured(path: Path) -> ViewDiffusionConfig:
    values: Any = read_json(path)
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
        raise InputError(
            f"{path} is not a view-conditioned diffusion model's configuration; give a folder this program wrote."
        )
    parts: dict[str, type] = {"epipolar": EpipolarConfig, "schedule": NoiseSchedule}
    for name, kind in parts.items():
        if name in values:
            values[name] = built(kind, values[name], f"{name} in {path}", "update difixcli")
    return built(ViewDiffusionConfig, values, path, "update difixcli")
