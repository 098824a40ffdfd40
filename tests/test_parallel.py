"""Compiled loops on several threads: the same bits whatever their number; and the optimiser, which is torch's."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from commands import IMPORT_PATH

from difixcli.reconstruction.adam import CpuAdam, CpuOptimizers

STEPS_OF_TRAINING = """
import hashlib
import numba
import torch
from difixcli.reconstruction.adam import CpuAdam
from difixcli.reconstruction.rasteriser import rasterization
from difixcli.reconstruction.ssim import CpuSsim

torch.set_num_threads(1)

def bits(threads):
    numba.set_num_threads(threads)
    g = torch.Generator().manual_seed(0)
    count, cameras, width, height = 5000, 2, 93, 71
    means = (torch.rand(count, 3, generator=g) - 0.5) * 4 + torch.tensor([0.0, 0.0, 3.0])
    quats = torch.randn(count, 4, generator=g)
    scales = torch.exp(torch.randn(count, 3, generator=g) * 0.6 - 3.0)
    opacities = torch.rand(count, generator=g)
    colors = torch.randn(count, 16, 3, generator=g) * 0.3
    parameters = [tensor.requires_grad_() for tensor in (means, quats, scales, opacities, colors)]
    viewmats = torch.eye(4).repeat(cameras, 1, 1)
    viewmats[1, 0, 3] = 0.5
    viewmats.requires_grad_()
    Ks = torch.tensor([[70.0, 0.0, 46.0], [0.0, 70.0, 35.0], [0.0, 0.0, 1.0]]).repeat(cameras, 1, 1)
    truth = torch.rand(cameras, height, width, 3, generator=g)
    optimizer = CpuAdam(parameters, lr=1e-2, eps=1e-15)
    kept = []
    for packed in (False, True):
        image, alphas, meta = rasterization(
            *parameters, viewmats, Ks, width, height, sh_degree=3, packed=packed, absgrad=True, render_mode="RGB+ED"
        )
        color, depth = image[..., :3], image[..., 3]
        loss = CpuSsim()(color.permute(0, 3, 1, 2), truth.permute(0, 3, 1, 2))
        optimizer.zero_grad()
        (loss + depth.mean() + alphas.mean()).backward()
        optimizer.step()
        kept += [image, alphas, loss, meta["means2d"].absgrad, viewmats.grad]
        kept += [one for tensor in parameters for one in (tensor.grad, tensor, optimizer.state[tensor]["exp_avg_sq"])]
        kept = [tensor.detach().clone() for tensor in kept]
    assert len(meta["gaussian_ids"]) > 2000
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in kept)).hexdigest()

print(*(bits(threads) for threads in (1, 2, 3)))
"""


def test_one_two_and_three_threads_give_the_same_bits() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", STEPS_OF_TRAINING],
        env={**os.environ, "PYTHONPATH": IMPORT_PATH, "NUMBA_NUM_THREADS": "3"},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    one, two, three = done.stdout.split()
    assert one == two == three


def _parameters() -> list[torch.nn.Parameter]:
    """More values than one job has, a part of a larger tensor, a single number, and one that gets no gradient."""
    g = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(7000, 5, generator=g),
        torch.randn(40, 6, 3, generator=g)[:, 1:],
        torch.randn(1, generator=g),
    ]
    return [torch.nn.Parameter(tensor) for tensor in (*tensors, torch.zeros(3))]


def _step(parameters: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer, step: int) -> None:
    g = torch.Generator().manual_seed(step)
    for parameter in parameters[:3]:
        parameter.grad = torch.randn(parameter.shape, generator=g) * 10.0 ** (step - 3)
        parameter.grad[torch.rand(parameter.shape, generator=g) < 0.3] = 0
    optimizer.step()


@pytest.mark.parametrize("options", [{}, {"betas": (0.8, 0.99), "eps": 1e-15}, {"weight_decay": 0.1}])
def test_adam_is_torchs_adam_and_goes_on_where_its_state_ended(options: dict) -> None:
    ours, theirs = _parameters(), _parameters()
    own, other = CpuAdam(ours, lr=1e-2, **options), torch.optim.Adam(theirs, lr=1e-2, **options)
    for step in range(6):
        if step == 3:
            own, before = CpuAdam(ours, lr=1.0), own
            own.load_state_dict(before.state_dict())
        _step(ours, own, step)
        _step(theirs, other, step)
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        for name, value in other.state[expected].items():
            torch.testing.assert_close(own.state[found][name], value, rtol=1e-5, atol=1e-7)


def test_optimizers_of_several_groups_step_as_nerfstudios_do() -> None:
    from nerfstudio.engine.optimizers import AdamOptimizerConfig, Optimizers, RAdamOptimizerConfig
    from nerfstudio.engine.schedulers import ExponentialDecaySchedulerConfig

    def config() -> dict:
        decay = ExponentialDecaySchedulerConfig(lr_final=1e-4, max_steps=10)
        return {
            "a": {"optimizer": AdamOptimizerConfig(lr=1e-2), "scheduler": decay},
            "b": {"optimizer": AdamOptimizerConfig(lr=1e-3, max_norm=1.0), "scheduler": None},
            "c": {"optimizer": RAdamOptimizerConfig(lr=1e-2), "scheduler": None},
            "d": {"optimizer": AdamOptimizerConfig(lr=1e-2), "scheduler": None},  # gets no gradient
        }

    scaler = torch.amp.GradScaler("cpu", enabled=False)
    results = []
    for kind in (CpuOptimizers, Optimizers):
        parameters = _parameters()
        optimizers = kind(config(), dict(zip("abcd", ([one] for one in parameters), strict=True)))
        for step in range(1, 5):
            for parameter in parameters[:3]:
                parameter.grad = torch.full_like(parameter, 0.1 * step)
            optimizers.optimizer_scaler_step_some(scaler, ["a", "c", "d"] if step % 2 else ["a", "b", "c", "d"])
            optimizers.schedulers["a"].step()
        results.append(parameters)
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
