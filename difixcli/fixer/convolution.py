"""3×3 convolutions at a third of their time on CPUs: Winograd's algorithm, from the NNPACK that torch carries.

oneDNN, torch's default, convolves directly where the CPU has no AVX-512, and three quarters of a fixer's time are
3×3 convolutions. Only float32 inference takes this way; training and GPUs keep torch's own choice.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Below this many channels the transforms cost more than they save.
_FEWEST_CHANNELS = 96


class FastConv2d(nn.Conv2d):
    """`torch.nn.Conv2d` with the same weights and, to rounding (1e-4 of the output's scale), the same output."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or not _takes(input):
            return super()._conv_forward(input, weight, bias)
        # one by one: its algorithm for batches is another, slower one
        done = [torch._nnpack_spatial_convolution(x[None].contiguous(), weight, bias, [1, 1]) for x in input]
        return done[0] if len(done) == 1 else torch.cat(done)


class SinglePlaneConv2d(nn.Conv2d):
    """`torch.nn.Conv2d` to one channel, with the same weights and, to rounding, the same output: what each of its nine
    places gives by a product of matrices, then summed up. oneDNN computes a whole block of channels for the one.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or not _on_cpu(input):
            return super()._conv_forward(input, weight, bias)
        places = weight[0].flatten(1).flip(1).T @ input.flatten(2)  # `fold` puts a plane where the last place reads
        summed = F.fold(places, input.shape[-2:], 3, padding=1)
        return summed if bias is None else summed.add_(bias)


def use_fast_convolutions(network: nn.Module) -> None:
    """Turn the plain 3×3 convolutions of a network into `FastConv2d`, and those to one channel into
    `SinglePlaneConv2d`, in place; weights and names stay.
    """
    for module in network.modules():
        if type(module) is nn.Conv2d and _is_plain(module):
            if module.out_channels == 1:
                module.__class__ = SinglePlaneConv2d
            elif min(module.in_channels, module.out_channels) >= _FEWEST_CHANNELS:
                module.__class__ = FastConv2d


def _is_plain(layer: nn.Conv2d) -> bool:
    shape = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode)
    return shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")


def _takes(input: Tensor) -> bool:
    return _on_cpu(input) and _available()


def _on_cpu(input: Tensor) -> bool:
    return input.device.type == "cpu" and input.dtype == torch.float32 and input.ndim == 4


def _available() -> bool:
    return hasattr(torch, "_nnpack_spatial_convolution") and torch.backends.nnpack.is_available()
