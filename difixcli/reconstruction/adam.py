"""Adam on a CPU: all parameters of a model in one compiled pass, with as many threads as there are.

torch's own makes seven passes over memory for each parameter, and one call for each of a splat method's six.
"""

# numba's types are not Python's: what the compiler checks here, a Python type checker cannot.
# mypy: ignore-errors

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np
import torch
from nerfstudio.engine.optimizers import Optimizers
from numba import prange
from torch import Tensor

from difixcli.compiled import compiled
from difixcli.reconstruction.parallel import LOOPS_ONLY, floats_at, jobs_taken, one_at_a_time, take, workers

F = np.float32
_JOB = 16_384
"""Values that are updated at once: their moments and gradients fit a core's own cache."""


class CpuAdam(torch.optim.Adam):
    """torch's Adam (Kingma and Ba 2015) with torch's state and state dict, for parameters in main memory.

    Parameters that it is given are made contiguous: splatfacto's first coefficients are a part of a larger tensor.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        for parameter in self.param_groups[-1]["params"]:
            parameter.data = parameter.data.contiguous()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient; a `closure` is evaluated first, as torch does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        step_together([self])
        return loss


class CpuOptimizers(Optimizers):
    """nerfstudio's optimisers of a model in main memory; those that are torch's Adam step together as `CpuAdam`."""

    def __init__(self, config: dict[str, Any], param_groups: dict[str, list[Tensor]]) -> None:
        super().__init__({name: _on_cpu(entry) for name, entry in config.items()}, param_groups)

    def optimizer_scaler_step_some(self, grad_scaler: Any, param_groups: list[str]) -> None:
        """What nerfstudio's method does: a step of the named groups that have gradients."""
        together = []
        if not grad_scaler.is_enabled():
            for name in param_groups:
                if type(self.optimizers[name]) is CpuAdam and self.config[name]["optimizer"].max_norm is None:
                    together.append(name)
        super().optimizer_scaler_step_some(grad_scaler, [name for name in param_groups if name not in together])
        step_together([self.optimizers[name] for name in together])


def _on_cpu(entry: dict[str, Any]) -> dict[str, Any]:
    if entry["optimizer"]._target is not torch.optim.Adam:
        return entry
    return {**entry, "optimizer": dataclasses.replace(entry["optimizer"], _target=CpuAdam)}


@torch.no_grad()
def step_together(optimizers: Sequence[CpuAdam]) -> None:
    """One update of every parameter that has a gradient, of all these optimisers.

    Optimisers with an option beyond learning rate, betas and eps, or with a parameter that is not contiguous float32 in
    main memory, are stepped by torch.
    """
    tensors, numbers = [], []
    for optimizer in optimizers:
        if not all(_is_plain(group) for group in optimizer.param_groups):
            torch.optim.Adam.step(optimizer)
            continue
        optimizer._opt_called = True  # what torch's schedulers look for
        for group in optimizer.param_groups:
            first, second = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = optimizer.state[parameter]
                if not state:
                    state["step"] = torch.tensor(0.0)
                    state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                    state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                state["step"] += 1
                step = float(state["step"])
                # gradients may come in any layout; the others are ours
                tensors.append((parameter, parameter.grad.contiguous(), state["exp_avg"], state["exp_avg_sq"]))
                correction = math.sqrt(1 - second**step)
                size = group["lr"] / (1 - first**step)
                numbers.append((1 - first, second, 1 - second, correction, group["eps"], size))
    if not tensors:
        return
    addresses = np.array([[tensor.data_ptr() for tensor in four] for four in tensors], np.int64)
    counts = np.array([four[0].numel() for four in tensors], np.int64)
    with one_at_a_time:
        _update(workers(), jobs_taken(1), addresses, counts, np.array(numbers, F))


def _is_plain(group: dict[str, Any]) -> bool:
    options = ("weight_decay", "amsgrad", "maximize", "capturable", "differentiable")
    return not any(group[option] for option in options) and all(
        one.dtype == torch.float32
        and one.device.type == "cpu"
        and one.is_contiguous()
        and (one.grad is None or one.grad.layout == torch.strided)
        for one in group["params"]
    )


@compiled(parallel=LOOPS_ONLY, fastmath={"contract"}, error_model="numpy")
def _update(
    threads,
    taken,
    addresses,  # [T, 4] of parameters, gradients, first and second moments, each dense float32
    counts,  # [T] values of each
    numbers,  # [T, 6] float32: 1 - beta1, beta2, 1 - beta2, sqrt(1 - beta2^t), eps, lr / (1 - beta1^t)
):
    for _ in prange(threads):
        tensor, before = 0, 0
        job = take(taken, 0)
        while True:
            while tensor < counts.shape[0] and job >= before + (counts[tensor] + _JOB - 1) // _JOB:
                before += (counts[tensor] + _JOB - 1) // _JOB
                tensor += 1
            if tensor == counts.shape[0]:
                break
            start = (job - before) * _JOB
            count = min(_JOB, counts[tensor] - start)
            parameter = numba.carray(floats_at(addresses[tensor, 0] + 4 * start), count)
            gradient = numba.carray(floats_at(addresses[tensor, 1] + 4 * start), count)
            mean = numba.carray(floats_at(addresses[tensor, 2] + 4 * start), count)
            square = numba.carray(floats_at(addresses[tensor, 3] + 4 * start), count)
            new_1, old_2, new_2, correction, eps, size = numbers[tensor]
            for i in range(count):
                g = gradient[i]
                m = mean[i] + new_1 * (g - mean[i])
                v = square[i] * old_2 + new_2 * (g * g)
                mean[i] = m
                square[i] = v
                parameter[i] -= size * (m / (math.sqrt(v) / correction + eps))
            job = take(taken, 0)
