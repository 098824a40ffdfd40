"""gsplat's densification with an upper bound on the number of Gaussians."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from gsplat.strategy import DefaultStrategy


@dataclass
class BoundedStrategy(DefaultStrategy):
    """`DefaultStrategy` that never grows beyond `max_gaussians`.

    Where more Gaussians qualify than there is room for, those with the largest image-plane gradients are taken.
    """

    max_gaussians: int = 1_000_000

    @classmethod
    def like(cls, strategy: DefaultStrategy, max_gaussians: int) -> BoundedStrategy:
        """The same strategy, bounded and without its messages."""
        values = {field.name: getattr(strategy, field.name) for field in fields(DefaultStrategy)}
        return cls(**{**values, "verbose": False}, max_gaussians=max_gaussians)

    @torch.no_grad()
    def _update_state(self, params: Any, state: dict[str, Any], info: dict[str, Any], packed: bool = False) -> None:
        """As gsplat's. Where one camera has drawn all Gaussians side by side, no list of the visible ones is made."""
        radii = info["radii"]
        if packed or radii.shape != (1, len(params["means"])):
            super()._update_state(params, state, info, packed=packed)
            return
        means2d = info[self.key_for_gradient]
        x, y = (means2d.absgrad if self.absgrad else means2d.grad)[0].unbind(dim=-1)
        scale = info["n_cameras"] / 2.0
        seen = radii[0] > 0
        length = torch.hypot(x * (info["width"] * scale), y * (info["height"] * scale)).mul_(seen)
        widest = float(max(info["width"], info["height"]))
        found = {"grad2d": length, "count": seen.float(), "radii": radii[0].clamp_min(0) / widest}
        if self.refine_scale2d_stop_iter <= 0:
            del found["radii"]
        for key, values in found.items():
            if state[key] is None:
                state[key] = values
            elif key == "radii":
                torch.maximum(state[key], values, out=state[key])
            else:
                state[key] += values

    @torch.no_grad()
    def _grow_gs(self, params: Any, optimizers: Any, state: dict[str, Any], step: int) -> tuple[int, int]:
        room = self.max_gaussians - len(params["means"])
        if room <= 0:
            return 0, 0
        gradient = state["grad2d"] / state["count"].clamp_min(1)
        wanted = gradient > self.grow_grad2d
        if step < self.refine_scale2d_stop_iter:
            too_wide = state["radii"] > self.grow_scale2d
            gradient = torch.where(too_wide, gradient + gradient.max(), gradient)
            wanted |= too_wide
        if int(wanted.sum()) > room:
            chosen = torch.zeros_like(wanted)
            chosen[torch.topk(torch.where(wanted, gradient, -1.0), room).indices] = True
            refused = wanted & ~chosen
            state["grad2d"][refused] = 0
            if step < self.refine_scale2d_stop_iter:
                state["radii"][refused] = state["radii"][refused].clamp_max(self.grow_scale2d)
        return super()._grow_gs(params, optimizers, state, step)
