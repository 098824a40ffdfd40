"""A further phase of training, after a complete one: learning rates raised again, densification open again."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch.optim.lr_scheduler import LambdaLR

_NEVER = 10**9


@dataclass(frozen=True)
class Further:
    """The phase of `iterations` after the schedule's iteration `begun`.

    Learning rates begin it at `raised` of the values that training began with (or at what the method's own schedule
    ends with, where that is more), and go down to that end again, by the same factor in every iteration.
    """

    begun: int
    iterations: int
    raised: float


def schedule(further: Further, optimizers: Any, rates: dict[str, float], length: int) -> None:
    """Give nerfstudio's optimisers the schedulers of the phase.

    `rates` are the first learning rates by parameter group, `length` the iterations of the schedule before it.
    """
    for name, optimizer in optimizers.optimizers.items():
        first = rates[name]
        last = first * _end(optimizers.schedulers.get(name), length)
        raised = max(last, further.raised * first)
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"] = first
        factor = partial(_factor, high=raised / first, low=last / first, iterations=further.iterations)
        optimizers.schedulers[name] = LambdaLR(optimizer, factor)


def densify(further: Further, model: Any, length: int) -> None:
    """Let a splat model that is densified by one of gsplat's strategies add and remove Gaussians for the same part of
    the phase as of the training before it, whose schedule has `length` iterations, without resetting opacities: that
    takes as long to recover from as a short phase has.
    """
    strategy = getattr(model, "strategy", None)
    if strategy is None or not hasattr(strategy, "refine_stop_iter"):
        return
    part = min(strategy.refine_stop_iter / length, 1.0)
    strategy.refine_stop_iter = further.begun + round(part * further.iterations)
    if hasattr(strategy, "reset_every"):
        strategy.reset_every, strategy.pause_refine_after_reset = _NEVER, 0


def _end(scheduler: Any, length: int) -> float:
    """The factor of the first rate that a method's schedule ends with."""
    if scheduler is None:
        return 1.0
    if isinstance(scheduler, LambdaLR):
        return float(scheduler.lr_lambdas[0](length))
    return float(scheduler.get_last_lr()[0] / scheduler.base_lrs[0])


def _factor(step: int, high: float, low: float, iterations: int) -> float:
    """Of the first rate, after so many iterations of the phase."""
    if low <= 0:
        return high * max(0.0, 1 - step / iterations)
    return float(high * (low / high) ** min(step / iterations, 1.0))
