"""Compiling what a method runs on a CPU before it is needed: in a progress bar it would look like a slow start.

Numba keeps what it has compiled on disk, so that this happens once on a machine (see `compiled`).
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from numba.core import event

from difixcli.compiled import kept_on_disk
from difixcli.reconstruction.methods import has_gaussians, method_config


def compile_ahead(method: str, device: str, say: Callable[[str], None]) -> None:
    """Run each of our compiled functions that `method` (a name in nerfstudio's registry) needs on `device` once.

    `say` is given one line before the first of them is compiled, and nothing where all are on disk already.
    """
    if device != "cpu":
        return
    config = method_config(method)
    if has_gaussians(config):
        with _told(say, "rasteriser"):
            _splats()
    elif hasattr(config.pipeline.model, "log2_hashmap_size"):
        with _told(say, "hash encoding"):
            _hash_encoding()


def _told(say: Callable[[str], None], what: str) -> Any:
    class Told(event.Listener):
        def __init__(self) -> None:
            self.said = False

        def on_start(self, event: event.Event) -> None:
            if not self.said:
                self.said = True
                often = "once" if kept_on_disk() else "in every process (NUMBA_CACHE_DIR can name a place to keep it)"
                say(f"Compiling the {what} for this machine, {often}; this takes half a minute.")

        def on_end(self, event: event.Event) -> None:
            pass

    # numba tells of what it really compiles, not of what it finds on disk
    return event.install_listener("numba:compile", Told())


def _splats() -> None:
    """One Gaussian in an image of 16×16, forwards and backwards, as splatfacto trains it."""
    from difixcli.reconstruction.adam import CpuAdam
    from difixcli.reconstruction.rasteriser import rasterization
    from difixcli.reconstruction.ssim import CpuSsim

    means = torch.tensor([[0.0, 0.0, 1.0]], requires_grad=True)
    image, _, meta = rasterization(
        means,
        torch.tensor([[1.0, 0.0, 0.0, 0.0]], requires_grad=True),
        torch.full((1, 3), 0.1, requires_grad=True),
        torch.full((1,), 0.5, requires_grad=True),
        torch.zeros((1, 16, 3), requires_grad=True),
        torch.eye(4)[None],
        torch.tensor([[[16.0, 0.0, 8.0], [0.0, 16.0, 8.0], [0.0, 0.0, 1.0]]]),
        16,
        16,
        sh_degree=3,
        packed=False,
        render_mode="RGB+ED",
        absgrad=True,
    )
    meta["means2d"].retain_grad()
    color = image[..., :3].permute(0, 3, 1, 2)
    CpuSsim()(color, torch.zeros_like(color)).backward()
    CpuAdam([means]).step()


def _hash_encoding() -> None:
    from difixcli.reconstruction.adam import CpuAdam
    from difixcli.reconstruction.hash_encoding import encode

    table = torch.zeros((2 * 16, 2), requires_grad=True)
    encoding: Any = SimpleNamespace(hash_table=table, scalings=torch.tensor([1.0, 2.0]), hash_table_size=16)
    encode(encoding, torch.full((1, 3), 0.5, requires_grad=True)).sum().backward()
    CpuAdam([table]).step()
