"""A fixer that costs a tenth of the bundled one."""

from __future__ import annotations

from dataclasses import replace

import torch

from difixcli.fixer import Fixer, FixerNetwork
from difixcli.fixer.network import small_config


def smallest_fixer(seed: int = 0) -> Fixer:
    """Random weights; it takes aligned references, as the bundled one does."""
    config = small_config("tiny")
    unet = {**config.unet, "in_channels": 4, "out_channels": 4, "block_out_channels": [16, 16]}
    vae = {**config.vae, "latent_channels": 4, "block_out_channels": [8, 8]}
    for kind in ("down", "up"):
        vae[f"{kind}_block_types"] = vae[f"{kind}_block_types"][:2]
    unet["attention_head_dim"] = [1, 1]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Fixer(FixerNetwork(replace(config, unet=unet, vae=vae, hidden_channels=8)))
