"""gsplat's densification strategies with an upper bound on the number of Gaussians."""

from __future__ import annotations

from typing import Any

import torch
from gsplat.strategy import DefaultStrategy, MCMCStrategy
from gsplat.strategy.ops import remove


def bound_strategy(strategy: Any, max_gaussians: int) -> bool:
    """Let a model's densification strategy, in place, never add Gaussians beyond `max_gaussians`, and print nothing.

    gsplat's default strategy and what derives from it keep their parameters and all that they override: the object
    becomes one of a class made of `_Bounded` and its own. gsplat's Markov chain has a bound itself (`cap_max`), which
    becomes this one unless it is lower. Returns whether the strategy is of a kind that this knows; others are left
    as they are.
    """
    if isinstance(strategy, DefaultStrategy):
        kind = type(strategy)
        strategy.__class__ = type(f"Bounded{kind.__name__}", (_Bounded, kind), {})
        strategy.max_gaussians = max_gaussians
    elif isinstance(strategy, MCMCStrategy):
        strategy.cap_max = min(strategy.cap_max, max_gaussians)
    else:
        return False
    strategy.verbose = False
    return True


class _Bounded(DefaultStrategy):
    """Stands before a strategy's own class and bounds what that one does.

    Where more Gaussians qualify than there is room for, those with the largest image-plane gradients are taken. What a
    rule of the strategy's own adds beyond the bound is cut back at the end of its step, the least opaque first. A
    model that began with more than the bound keeps them, and gets none in addition.
    """

    max_gaussians: int

    def step_post_backward(self, params: Any, optimizers: Any, state: Any, *args: Any, **kwargs: Any) -> None:
        most = max(self.max_gaussians, len(params["means"]))
        super().step_post_backward(params, optimizers, state, *args, **kwargs)
        if (excess := len(params["means"]) - most) > 0:
            mask = torch.zeros(len(params["means"]), dtype=torch.bool, device=params["means"].device)
            mask[torch.topk(params["opacities"].detach().flatten(), excess, largest=False).indices] = True
            remove(params=params, optimizers=optimizers, state=state, mask=mask)

    @torch.no_grad()
    def _update_state(self, params: Any, state: dict[str, Any], info: dict[str, Any], packed: bool = False) -> None:
        """As the strategy's own; gsplat's, where one camera has drawn all Gaussians side by side, without a list of the
        visible ones.
        """
        radii, own = info["radii"], super()._update_state.__func__  # type: ignore[attr-defined]
        if own is not DefaultStrategy._update_state or packed or radii.shape != (1, len(params["means"])):
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
        if state.get("grad2d") is None or state.get("count") is None:  # the strategy measures something of its own
            return super()._grow_gs(params, optimizers, state, step)
        room = max(self.max_gaussians - len(params["means"]), 0)
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
