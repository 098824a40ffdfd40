"""Finds the super-resolver that a name means, and says what is wrong with one that cannot be used."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from difixcli.errors import InputError, near, out_of_memory, unknown
from difixcli.images import Operator
from difixcli.model_folders import X4_UPSCALER, looks_like_hub_name
from difixcli.priors.super_resolution.enlargement import UPDATES, Update
from difixcli.priors.super_resolution.files import check_resolver, no_resolver
from difixcli.priors.super_resolution.latent_diffusion import LatentDiffusion, load_upscaler
from difixcli.priors.super_resolution.resolver import SuperResolver
from difixcli.priors.super_resolution.single_step import SingleStep
from difixcli.tensor_files import read_pickled, read_safetensors
from difixcli.torchvision_cure import cure

_HUB_FILES = [
    "model_index.json",
    "*/config.json",
    "*/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
    "tokenizer/*",
    "*scheduler/scheduler_config.json",
]


def open_super_resolver(
    name: str, factor: int, operator: Operator, device: str, *, update: Update = "posterior"
) -> SuperResolver:
    """The super-resolver that a name means, on a device, its weights frozen.

    `bundled`; a file of a network that the library spandrel knows (ESRGAN, SwinIR, HAT, …); a folder of ours, or of a
    latent upscaler in diffusers' layout; a latent upscaler's name on the Hugging Face hub, from its cache or the
    network. `operator` made the photos smaller; `update` is the latent upscaler's (see `LatentDiffusion`).
    Raises InputError for what is none of these, is damaged, or makes images of another size than `factor` times the
    photos'.
    """
    if update not in UPDATES:
        raise unknown("update", update, UPDATES)
    path = Path(name).expanduser()
    if name == "bundled" or (path / "config.json").is_file():
        return _own(name if name == "bundled" else str(path), factor, operator, device)
    check_resolver(name)
    if path.is_file():
        return _file(path, factor, operator, device)
    if path.is_dir():
        return _latent(path, name, factor, operator, device, update)
    if looks_like_hub_name(name):
        return _latent(download(name), name, factor, operator, device, update)
    raise no_resolver(name)


def _own(name: str, factor: int, operator: Operator, device: str) -> SuperResolver:
    from difixcli.priors.super_resolution.network import SuperResolutionNetwork

    network = SuperResolutionNetwork.from_pretrained(name)
    _check_factor(name, network.factor, factor)
    network.eval().requires_grad_(False).to(device)
    return SingleStep(network, factor, operator, device, takes_renders=True)


def _file(path: Path, factor: int, operator: Operator, device: str) -> SuperResolver:
    """A network that spandrel knows, in half precision on a GPU where it bears that."""
    cure()  # spandrel imports torchvision
    from spandrel import ImageModelDescriptor, ModelLoader, UnsupportedModelError, canonicalize_state_dict

    tensors = _tensors(path)
    try:
        model = ModelLoader().load_from_state_dict(canonicalize_state_dict(tensors))
    except UnsupportedModelError as error:
        raise InputError(
            f"{path} holds no network that spandrel knows; give one of ESRGAN, SwinIR, HAT or another of its kinds."
        ) from error
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        if out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} is damaged or not whole ({reason}); fetch it again.") from error
    kind = model.architecture.name
    if not isinstance(model, ImageModelDescriptor) or model.purpose != "SR" or model.scale == 1:
        does = "is for faces alone" if model.purpose == "FaceSR" else "makes no image larger"
        raise InputError(f"{path} holds a network ({kind}) that {does}; give a super-resolver, such as bundled.")
    if (model.input_channels, model.output_channels) != (3, 3):
        raise InputError(f"{path} holds a network ({kind}) for images that are not RGB; give one for colour photos.")
    _check_factor(str(path), model.scale, factor)
    dtype = torch.float16 if torch.device(device).type == "cuda" and model.supports_half else torch.float32
    model.to(device, dtype).eval()
    model.model.requires_grad_(False)

    def network(photos: Tensor, renders: Tensor | None) -> Tensor:
        return model(photos.to(dtype)).float()

    return SingleStep(network, factor, operator, device, takes_renders=False)


def _tensors(path: Path) -> dict:
    """What a file of weights holds; nothing in it is run."""
    if path.suffix.lower() == ".safetensors":
        return read_safetensors(path, "fetch it again")
    tensors = read_pickled(path, "fetch it again")
    if not isinstance(tensors, dict):
        raise InputError(f"{path} holds no network's weights; give the file of a super-resolver.")
    return tensors


def _latent(folder: Path, name: str, factor: int, operator: Operator, device: str, update: Update) -> SuperResolver:
    upscaler = load_upscaler(folder)
    _check_factor(name, upscaler.factor, factor)
    return LatentDiffusion(upscaler, operator, device, update=update)


def download(name: str) -> Path:
    """A hub repository's files, from the cache or the network."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except Exception as error:  # the hub's client raises errors of several libraries for a missing network
        close = near(name, [X4_UPSCALER]) if name != X4_UPSCALER else []
        suggestion = f" (did you mean {close[0]}?)" if close else ""
        raise InputError(
            f"The super-resolver '{name}' is neither in the Hugging Face cache nor reachable on the hub{suggestion}: "
            "check the name and the network, or give bundled, a file or a local folder "
            f"({type(error).__name__})."
        ) from error


def _check_factor(name: str, own: int, wanted: int) -> None:
    if own != wanted:
        raise InputError(
            f"The super-resolver {name} makes images {own} times larger, not {wanted}; ask for that, or name another."
        )
