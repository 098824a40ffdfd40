"""gsplat's densification with an upper bound on the number of Gaussians."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from gsplat.strategy import DefaultStrategy, MCMCStrategy


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


def bound(model: Any, max_gaussians: int) -> None:
    """Let a model that is densified by one of gsplat's strategies never grow beyond so many Gaussians."""
    strategy = getattr(model, "strategy", None)
    if isinstance(strategy, MCMCStrategy):
        strategy.cap_max = min(strategy.cap_max, max_gaussians)
    elif type(strategy) is DefaultStrategy:  # what derives from it may grow in a way of its own
        model.strategy = BoundedStrategy.like(strategy, max_gaussians)
