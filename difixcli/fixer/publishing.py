"""A fixer in the layout that Difix is published in: diffusers folders, the VAE wrapped by PEFT.

What the release's code loads, and `Fixer.from_pretrained` with the same tensors, bit for bit.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from difixcli.errors import InputError
from difixcli.fixer.network import FixerConfig, FixerNetwork
from difixcli.fixer.weights import PROMPT, download, prompt_embedding
from difixcli.model_folders import SD_TURBO, looks_like_hub_name
from difixcli.runs import atomic, run_record

_MOST_BASES = 16  # of a fixer trained from a fixer trained from …


def text_encoder_of(name_or_path: str | Path) -> Path:
    """The folder whose text encoder a fixer's constant prompt was embedded by, in diffusers' layout.

    That is a published folder itself or the one a trainer's file lies in; of a fixer trained here its base's, which the
    training's record names; else SD-Turbo's, from the hub. Raises InputError where it is not to be had.
    """
    name = str(name_or_path)
    for _ in range(_MOST_BASES):
        path = Path(name).expanduser()
        if path.suffix == ".pkl":
            path = path.parent
        if (path / "text_encoder").is_dir():
            return path
        if not path.exists() and looks_like_hub_name(name):
            return download(name)
        record = run_record(path) if path.is_dir() else None
        base = None if record is None else record["arguments"].get("base")
        if not isinstance(base, str):
            break
        name = base
    return download(SD_TURBO)


def check_publishable(config: FixerConfig) -> None:
    """Raises InputError for a network that this layout has no place for."""
    if config.references != "raw" or not config.lora_rank:
        raise InputError(
            "Only networks of SD-Turbo's architecture with adapters have a published layout; leave out --layout "
            "(and --merge-lora)."
        )
    usual = FixerConfig(config.unet, config.vae)
    for name in ("reference_attention", "fill_unseen", "timestep"):
        if getattr(config, name) != getattr(usual, name):
            raise InputError(
                f"The published layout has no place for {name}={getattr(config, name)}, and whoever loaded it would "
                "get other pixels; leave out --layout."
            )


@torch.no_grad()
def save_published(network: FixerNetwork, folder: Path, encoder: Path) -> Path:
    """Write a network as `unet/ vae/ text_encoder/ tokenizer/ scheduler/ model_index.json`, the last when all is whole.

    `encoder` is the folder of `text_encoder_of`. Raises InputError for a network without a published layout, a text
    encoder that gives another prompt than the network was trained with, and where the folder cannot be written.
    """
    import diffusers
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    config = network.config
    check_publishable(config)
    prompt = prompt_embedding(encoder, PROMPT)
    if prompt.shape != network.prompt.shape or not torch.allclose(
        prompt.to(network.prompt.dtype), network.prompt.cpu(), atol=1e-3
    ):
        raise InputError(
            f"The text encoder in {encoder} embeds the prompt otherwise than this fixer was trained with; put the "
            "folder of its base where the training's run.json names it."
        )
    made_by = {"_diffusers_version": diffusers.__version__}
    skips: dict[str, Any] = {
        "gamma": config.skip_scale or 1.0,
        "ignore_skip": not config.skip_scale,
        "lora_rank": config.lora_rank,
    }
    # the last two are ours: how many references it was trained with, and the terms of the weights
    skips |= {"views": config.views, "licence": config.licence}
    schedule: dict[str, Any] = {
        "num_train_timesteps": 1000,
        "beta_start": config.beta_start,
        "beta_end": config.beta_end,
    }
    schedule |= {"beta_schedule": "scaled_linear", "prediction_type": "epsilon", "clip_sample": False}
    schedule |= {"steps_offset": 1, "timestep_spacing": "trailing"}
    values: dict[str, dict[str, Any]] = {
        "vae/config.json": {"_class_name": "AutoencoderKL", **made_by, **config.vae, **skips},
        "unet/config.json": {"_class_name": "UNet2DConditionModel", **made_by, **config.unet},
        "scheduler/scheduler_config.json": {"_class_name": "DDPMScheduler", **made_by, **schedule},
    }
    classes = {"scheduler": ["diffusers", "DDPMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"]}
    classes |= {"tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"]}
    classes |= {"vae": ["diffusers", "AutoencoderKL"]}
    try:
        for part in ("vae", "unet"):
            with atomic(folder / part / "diffusion_pytorch_model.safetensors") as temporary:
                save_file(_tensors(network, part), temporary, metadata={"format": "pt"})
        for part in ("text_encoder", "tokenizer"):
            shutil.rmtree(folder / part, ignore_errors=True)
            shutil.copytree(encoder / part, folder / part, ignore=shutil.ignore_patterns("*.bin", ".*"))
        for name, value in values.items():
            _write(folder / name, value)
        _write(folder / "model_index.json", {"_class_name": "DifixPipeline", **made_by, **classes})
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(
            f"The fixer cannot be written to {folder} ({reason}); make room on the disk or choose another folder."
        ) from error
    return folder


def _tensors(network: FixerNetwork, part: str) -> dict[str, Tensor]:
    """The U-Net's or the VAE's, by the names that its file has."""
    begins = f"{part}."
    return {
        name.removeprefix(begins): value.detach().cpu().contiguous()
        for name, value in network.state_dict().items()
        if name.startswith(begins)
    }


def _write(path: Path, value: dict[str, Any]) -> None:
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
