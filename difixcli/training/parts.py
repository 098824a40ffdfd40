"""Which parts of a fixer train, the rank of its adapters, and the memory its gradient takes."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difixcli.errors import InputError
from difixcli.fixer import Fixer, FixerNetwork
from difixcli.fixer.geometry import begin_geometry
from difixcli.fixer.network import ADAPTER, LORA_ALPHA
from difixcli.fixer.weights import new_adapters
from difixcli.training.options import Parts


class AllViews(nn.Module):
    """A network with raw references whose every view is cleaned and decoded, references too, as the release trains."""

    def __init__(self, network: FixerNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        images: Tensor,
        references: Tensor | None = None,
        opacity: Tensor | None = None,
        visibility: Tensor | None = None,
        noise: Tensor | None = None,
        correspondence: Tensor | None = None,
        latent_noise: Tensor | None = None,
    ) -> Tensor:
        """The clean views (B, 1+V, 3, H, W) about [0, 1], the render's first; arguments as `FixerNetwork` takes them.

        The render's is what the network itself gives.
        """
        views = all_views(images, references)
        drawn = None if latent_noise is None else latent_noise.flatten(0, 1)
        latents, skips = self.network.encode_images(views.flatten(0, 1), drawn)
        if opacity is not None and noise is not None:  # where the render shows nothing
            seen = F.adaptive_max_pool2d(opacity, latents.shape[-2:])
            per_view = latents.unflatten(0, views.shape[:2])
            render = seen * per_view[:, 0] + (1 - seen) * noise
            latents = torch.cat([render[:, None], per_view[:, 1:]], dim=1).flatten(0, 1)
        places = self.network.places(latents, correspondence if references is not None else None)
        clean = self.network.denoise(latents, views.shape[1], places)
        return self.network.decode_images(clean, skips, views.flatten(0, 1)).unflatten(0, views.shape[:2])


def all_views(images: Tensor, references: Tensor | None) -> Tensor:
    """(B, 3, H, W) and (B, V, 3, H, W) → (B, 1+V, 3, H, W)."""
    return images[:, None] if references is None else torch.cat([images[:, None], references], dim=1)


def choose_parts(network: FixerNetwork, parts: Parts) -> list[str]:
    """Let only these parts train; the names of the parameters that do.

    `all`: what `FixerNetwork.trainable_parameters` names, which for networks with adapters are U-Net, adapters and
    skips. Of these, `unet`: the U-Net; `decoder`: everything of the decoder (adapters and skips, for small networks
    also the gates and the blending head); `skips`: the skip convolutions (and the gates). Skips that have no effect
    never train. Raises InputError when nothing would.
    """
    chosen = []
    for name, parameter in network.named_parameters():
        unet = name.startswith("unet.")
        skip = ".skip_conv_" in name or name.startswith("gates.")
        decoder = skip or name.startswith(("vae.decoder.", "vae.post_quant_conv.", "head."))
        wanted = {"all": True, "unet": unet, "decoder": decoder, "skips": skip}[parts]
        dead = ".skip_conv_" in name and not network.config.skip_scale
        parameter.requires_grad_(parameter.requires_grad and wanted and not dead)
        if parameter.requires_grad:
            chosen.append(name)
    if not chosen:
        raise InputError(f"Nothing of this network belongs to --train {parts}; train all, unet or decoder.")
    return chosen


def with_rank(fixer: Fixer, rank: int, seed: int) -> Fixer:
    """The same fixer with adapters of another rank, which give the same pixels.

    The scale of adapters is 8 / rank, so the old ones are rescaled; new directions start at nothing. All other tensors
    are shared with the fixer given. Raises InputError
    for a network without adapters, and when learned adapters would have to be cut.
    """
    network, old = fixer.network, fixer.config.lora_rank
    if rank in (0, old):
        return fixer
    if not old:
        raise InputError("--lora-rank is for networks with adapters (SD-Turbo's size); all of this one trains.")
    state = network.state_dict()
    with torch.device("meta"):  # its other tensors are those of the network given
        fresh = FixerNetwork(dataclasses.replace(network.config, lora_rank=rank))
    rescale = (LORA_ALPHA / old) / (LORA_ALPHA / rank)
    tensors = new_adapters({name: value.shape for name, value in fresh.state_dict().items()}, rank, seed)
    for name, value in tensors.items():
        learned = state[name]
        if f".lora_A.{ADAPTER}." in name:
            value[: min(rank, old)] = learned[:rank]
            continue
        if rank < old and bool(learned.any()):
            raise InputError(f"The base's adapters have learned with rank {old}; --lora-rank cannot be less.")
        value[:, : min(rank, old)] = rescale * learned[:, :rank]
    fresh.load_state_dict(state | tensors, assign=True)
    return Fixer(fresh)


def with_geometry(fixer: Fixer, seed: int) -> Fixer:
    """The same fixer, which now looks up its references by depth and cameras, at first with small weight.

    Its other tensors are shared with the fixer given; one that looks them up already is returned as it is. Raises
    InputError for a network with aligned references, which have their geometry in them.
    """
    network = fixer.network
    if fixer.config.references == "geometry":
        return fixer
    if not fixer.config.takes_photos:
        raise InputError(
            "--set references=geometry is for networks that take photos as they are (--base stabilityai/sd-turbo) or "
            "train from scratch (--base tiny); the references of this one are aligned already."
        )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        views = max(network.config.views, 1)
        fresh = FixerNetwork(dataclasses.replace(network.config, references="geometry", views=views))
    state = network.state_dict()
    new = {name: value for name, value in fresh.state_dict().items() if name not in state}
    fresh.load_state_dict(state | new, assign=True)
    begin_geometry(fresh.unet)
    return Fixer(fresh)


def recompute_activations(network: FixerNetwork) -> None:
    """Gradient checkpointing in every block of the U-Net and the VAE: the same gradients in less memory."""
    from diffusers.models.unets.unet_2d_blocks import DownEncoderBlock2D, UNetMidBlock2D, UpDecoderBlock2D
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

    network.unet.enable_gradient_checkpointing()
    blocks = (DownEncoderBlock2D, UpDecoderBlock2D, UNetMidBlock2D)
    apply_activation_checkpointing(network.vae, check_fn=lambda module: isinstance(module, blocks))
