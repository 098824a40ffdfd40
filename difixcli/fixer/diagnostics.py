"""Signs that a fixer in training has collapsed: activations that grow without bound, references that do nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from difixcli.fixer.network import FixerNetwork


@dataclass(frozen=True)
class CollapseSigns:
    """`unet_std`: standard deviation of the U-Net's innermost activations (healthy below 50). `reference_change`:
    mean absolute change of the output when the references are swapped for others (healthy above 1e-4; 0 without
    references). `output_change`: mean absolute difference of output and input, 0 for a network that does nothing.
    """

    unet_std: float
    reference_change: float
    output_change: float


@torch.no_grad()
def collapse_signs(
    network: FixerNetwork,
    images: Tensor,
    references: Tensor | None = None,
    opacity: Tensor | None = None,
    visibility: Tensor | None = None,
    noise: Tensor | None = None,
    correspondence: Tensor | None = None,
) -> CollapseSigns:
    """Measures the signs on one batch, given as `FixerNetwork.forward` takes it.

    References are swapped with the next sample's; of a single sample they are mirrored.
    """
    stds: list[float] = []
    hook = network.unet.mid_block.register_forward_hook(
        lambda module, inputs, output: stds.append(float(output.float().std()))
    )
    try:
        output = network(images, references, opacity, visibility, noise, correspondence)
    finally:
        hook.remove()
    change = 0.0
    if references is not None and references.shape[1]:
        swapped = references.roll(1, 0) if references.shape[0] > 1 else references.flip(-1)
        changed = network(images, swapped, opacity, visibility, noise, correspondence)
        change = float((changed - output).abs().mean())
    return CollapseSigns(stds[0], change, float((output - images).abs().mean()))
