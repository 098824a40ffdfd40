"""From noise to clean latents in several steps, by diffusers' schedulers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from difixcli.errors import unknown
from difixcli.torchvision_cure import cure

Sampler = Literal["ddim", "plms"]
SAMPLERS = get_args(Sampler)


@dataclass(frozen=True)
class NoiseSchedule:
    """How noise grows with the time step, and what the network predicts; as diffusers' schedulers name it."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.02
    """Stable Diffusion's is 0.012; with 0.02 the last step has ᾱ = 0.0002 and nothing of the picture is left."""
    beta_schedule: str = "scaled_linear"
    prediction_type: str = "v_prediction"

    def scheduler(self, sampler: Sampler) -> Any:
        """diffusers' scheduler: DDIM without added noise, or PNDM with its linear multistep part alone (PLMS)."""
        cure()
        from diffusers import DDIMScheduler, PNDMScheduler

        if sampler not in SAMPLERS:
            raise unknown("sampler", sampler, SAMPLERS)
        options = {**self.__dict__, "set_alpha_to_one": True, "steps_offset": 0}
        if sampler == "ddim":
            return DDIMScheduler(**options, clip_sample=False)
        return PNDMScheduler(**options, skip_prk_steps=True)

    def alphas(self) -> Tensor:
        """(T,) float64 ᾱ by time step."""
        betas: Tensor = self.scheduler("ddim").betas.double()
        return torch.cumprod(1 - betas, dim=0)

    def timestep(self, level: float) -> int:
        """The time step that is the share `level` of the schedule's length."""
        return min(max(round(level * self.num_train_timesteps), 0), self.num_train_timesteps - 1)


def descent(start: int, length: int, steps: int) -> list[int]:
    """Time steps from `start` down, so far apart as `steps` of them make a schedule of `length`; the move from the
    last goes to no noise.
    """
    return list(range(start, -1, -max(1, length // max(1, min(steps, length)))))


def denoised(
    noisy: Tensor,
    start: int,
    predict: Callable[[Tensor, int], Tensor],
    schedule: NoiseSchedule,
    steps: int,
    sampler: Sampler,
) -> Tensor:
    """Clean latents from `noisy` ones at time step `start`.

    Args:
        noisy: (B, C, h, w).
        predict: the network's output for latents at a time step, in the schedule's prediction type.
        steps: how many a whole schedule would have; from `start` there are as many as its share of it.
    """
    scheduler = schedule.scheduler(sampler)
    length = schedule.num_train_timesteps
    times = descent(start, length, steps)
    # a scheduler derives how far to move from the number of steps; whole numbers alone divide without a rest
    scheduler.set_timesteps(length // max(1, length // max(1, min(steps, length))))
    if sampler == "plms" and len(times) > 1:
        times = [times[0], times[1], *times[1:]]  # its first move is made twice, the second time with what it found
    scheduler.timesteps = torch.from_numpy(np.array(times))
    latents = noisy * scheduler.init_noise_sigma
    for time in times:
        output = predict(latents, time)
        latents = scheduler.step(output, time, latents, return_dict=False)[0]
    return latents
