"""A start from published weights: Stable Diffusion's autoencoder and U-Net, in a folder or on the hub."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import nn

from difixcli.errors import InputError, out_of_memory
from difixcli.fixer.weights import prompt_embedding
from difixcli.priors.view_diffusion.denoising import NoiseSchedule
from difixcli.priors.view_diffusion.epipolar import EpipolarConfig
from difixcli.priors.view_diffusion.model import ViewDiffusion, ViewDiffusionConfig
from difixcli.runs import read_json
from difixcli.torchvision_cure import cure

_HUB_FILES = [
    "*/config.json",
    "*/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
    "tokenizer/*",
    "scheduler/scheduler_config.json",
]
_SCHEDULE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")


def from_published(name: str | Path, size: int, epipolar: EpipolarConfig, seed: int = 0) -> ViewDiffusion:
    """Networks to be trained whose autoencoder, U-Net, schedule and embedding of the empty prompt are those of a
    text-to-image model, such as stabilityai/sd-turbo; what takes the photos is new, and the U-Net does not heed y yet.

    `size` is the long side in pixels that it is going to be trained at. Raises InputError for a model that is not
    there, is damaged, or is of another kind.
    """
    cure()
    from diffusers import AutoencoderKL, UNet2DConditionModel

    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = download(str(name))
    for part in ("unet", "vae", "scheduler", "text_encoder", "tokenizer"):
        if not (folder / part).is_dir():
            raise InputError(f"{folder} has no folder {part}; give a text-to-image model in diffusers' layout.")

    def read(kind: Any, part: str) -> Any:
        try:
            model, found = kind.from_pretrained(
                folder / part,
                local_files_only=True,
                use_safetensors=True,
                torch_dtype=torch.float32,
                output_loading_info=True,
            )
        except Exception as error:  # diffusers and safetensors raise whatever their parsers do
            if out_of_memory(error):
                raise
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{folder / part} cannot be read ({reason}); fetch it again.") from error
        if missing := sorted(found["missing_keys"]):  # diffusers would leave them random
            raise InputError(f"{folder / part} lacks {len(missing)} tensors (such as {missing[0]}); fetch it again.")
        return model

    unet, vae = read(UNet2DConditionModel, "unet"), read(AutoencoderKL, "vae")
    latents = vae.config.latent_channels
    if (unet.config.in_channels, unet.config.out_channels) != (latents, latents):
        raise InputError(
            f"The U-Net in {folder} takes {unet.config.in_channels} channels and gives {unet.config.out_channels}, not "
            f"the {latents} of its latents; give a plain text-to-image model."
        )
    prompt = prompt_embedding(folder, "").detach()
    config = ViewDiffusionConfig(
        unet=_arguments(unet, {"in_channels", "out_channels"}),
        vae=_arguments(vae, set()),
        epipolar=epipolar,
        schedule=_schedule(folder / "scheduler" / "scheduler_config.json"),
        prompt_tokens=len(prompt),
        size=size,
        licence=f"that of {name}",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ViewDiffusion(config)
    with torch.no_grad():
        model.prompt.copy_(prompt)
        model.vae.load_state_dict(vae.state_dict())
        weights = unet.state_dict()
        first: nn.Conv2d = model.unet.conv_in
        wide = torch.zeros_like(first.weight)
        wide[:, :latents] = weights["conv_in.weight"]
        model.unet.load_state_dict({**weights, "conv_in.weight": wide})
    return model


def _arguments(module: Any, without: set[str]) -> dict[str, Any]:
    """What a network of diffusers was made with, and what JSON can hold."""
    known = set(inspect.signature(type(module).__init__).parameters) - {"self"} - without
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in module.config.items() if key in known
    }


def _schedule(path: Path) -> NoiseSchedule:
    values = read_json(path)
    return NoiseSchedule(**{name: values[name] for name in _SCHEDULE if name in values})


def download(name: str) -> Path:
    """A hub repository's files, from the cache or the network."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except Exception as error:  # the hub's client raises errors of several libraries for a missing network
        raise InputError(
            f"The model '{name}' is neither in the Hugging Face cache nor reachable on the hub: check the name and the "
            f"network, or give a local folder ({type(error).__name__})."
        ) from error
