"""The training loss of Difix3D+ (arXiv 2503.01774, eq. 4 and its supplement): pixels + perceptual + Gram."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from difixcli.errors import InputError
from difixcli.evaluation.perceptual import Lpips, StLpips, shared_network
from difixcli.training.options import Perceptual, gram_network

PerceptualNetwork = Lpips | StLpips

# relu1_2, relu2_2, relu3_3, relu4_3, relu5_3
GRAM_WEIGHTS = (1 / 2.6, 1 / 4.8, 1 / 3.7, 1 / 5.6, 10 / 1.5)


def gram_distance(features: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """(B,) style distances between two lists of five feature maps (B, C, H, W), fine to coarse.

    Per layer the mean over (C, C) of the squared difference of G = F·Fᵀ (F: C × H·W), divided by C·H·W and weighted
    with `GRAM_WEIGHTS`, on which Difix3D+ and FILM (Reda et al., ECCV 2022) agree.
    """
    total = torch.zeros(features[0].shape[0], dtype=torch.float32, device=features[0].device)
    for weight, one, other in zip(GRAM_WEIGHTS, features, others, strict=True):
        size = one[0].numel()
        total = total + weight / size * (_gram(one) - _gram(other)).square().mean(dim=(1, 2))
    return total


def _gram(features: Tensor) -> Tensor:
    # in float32 always: sums over all positions leave half precision's range
    flat = features.float().flatten(2)
    return flat @ flat.transpose(1, 2)


class FixerLoss(nn.Module):
    """Pixel distance + perceptual distance + Gram distance from a given step on.

    With x, y in [0, 1] and x' = 2x - 1 the release's loss of one view is

        mean((x' - y')²) + LPIPS(x', y') + w · Σ_l w_l · mean((G_l(x) - G_l(y))²) / (C_l·H_l·W_l),

    LPIPS over the whole view, the Gram term over one random window of 400 × 400; over several views it is their mean.

    Args:
        pixel: "l2" as the paper, or "l1".
        perceptual: which network measures the perceptual distance. Where it is a VGG-16 the Gram term looks through it
            too, else through st-LPIPS' VGG-16.
        perceptual_weight, gram_weight: factors of the two terms; 0 leaves the network unbuilt.
        gram_start: the first step with the Gram term; the release switches it on after 2,000.
        window, gram_window: the perceptual term and the Gram term see one random window of so many pixels a step, the
            same where the sizes are the same (0: everything; `gram_window` None: as `window`).
        signed_pixels: pixels are compared in [-1, 1], as in the release: the squares are four times those of [0, 1].
        clamp_output: the output is clamped to [0, 1] first, as in the release; what lies beyond has no gradient.
        network: the perceptual network itself, for callers that have it.
    """

    def __init__(
        self,
        pixel: Literal["l1", "l2"] = "l2",
        perceptual: Perceptual = "st-lpips-alex",
        perceptual_weight: float = 1.0,
        gram_weight: float = 0.5,
        gram_start: int = 2000,
        window: int = 0,
        device: str = "cpu",
        *,
        gram_window: int | None = None,
        signed_pixels: bool = False,
        clamp_output: bool = False,
        network: PerceptualNetwork | None = None,
    ) -> None:
        super().__init__()
        if pixel not in ("l1", "l2"):
            raise InputError(f"There is no pixel loss {pixel!r}; use l1 or l2.")
        self.pixel, self.perceptual = pixel, perceptual
        self.perceptual_weight, self.gram_weight, self.gram_start = perceptual_weight, gram_weight, gram_start
        self.window, self.gram_window = window, window if gram_window is None else gram_window
        self.signed_pixels, self.clamp_output = signed_pixels, clamp_output
        if network is None and perceptual_weight > 0:
            network = perceptual_network(perceptual, device)
        vgg = None
        if gram_weight > 0:
            vgg = network if network is not None and network.net == "vgg" else None
            vgg = vgg or perceptual_network(gram_network(perceptual), device)
        # in a tuple, so that the shared networks are no part of this module's parameters
        self._networks = (network if perceptual_weight > 0 else None, vgg)

    def forward(self, output: Tensor, target: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch (B, 3, H, W) in [0, 1] at a training step, and its terms by name (weights included)."""
        output = output.float()
        if self.clamp_output:
            output = output.clamp(0, 1)
        difference = (output - target) * (2 if self.signed_pixels else 1)
        parts = {"pixel": difference.abs().mean() if self.pixel == "l1" else difference.square().mean()}
        distance, vgg = self._networks
        shown: tuple[list[Tensor], list[Tensor]] | None = (
            None  # features of output and target, for both terms where they agree
        )
        if distance is not None:
            shown = _features(distance, *_cut(output, target, step, self.window))
            parts["perceptual"] = self.perceptual_weight * distance.between(*shown).mean()
        if vgg is not None and step >= self.gram_start:
            if shown is None or vgg is not distance or self.gram_window != self.window:
                shown = _features(vgg, *_cut(output, target, step, self.gram_window))
            parts["gram"] = self.gram_weight * gram_distance(*shown).mean()
        return torch.stack(list(parts.values())).sum(), {name: value.detach() for name, value in parts.items()}


def _features(network: PerceptualNetwork, output: Tensor, target: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    with torch.no_grad():
        wanted = network.features(target)
    return network.features(output), wanted


def _cut(output: Tensor, target: Tensor, step: int, window: int) -> tuple[Tensor, Tensor]:
    """The step's window of both; chosen by the step alone, so that a resumed run sees the same."""
    height, width = output.shape[-2:]
    if window == 0 or window >= max(height, width):
        return output, target
    generator = torch.Generator().manual_seed(step)
    high, wide = min(window, height), min(window, width)
    top = int(torch.randint(height - high + 1, (), generator=generator))
    left = int(torch.randint(width - wide + 1, (), generator=generator))
    rows, columns = slice(top, top + high), slice(left, left + wide)
    return output[..., rows, columns], target[..., rows, columns]


def charbonnier(made: Tensor, truths: Tensor, counts: Tensor) -> Tensor:
    """Mean of √(difference² + 0.01²) of pictures (B, 3, H, W) where pixels count: `counts` (B, 1, H, W) in [0, 1]."""
    distance = ((made.float() - truths).square() + 1e-4).sqrt()
    return (distance * counts).sum() / (3 * counts.sum()).clamp_min(1)


def perceptual_network(name: str, device: str) -> PerceptualNetwork:
    """The frozen network of that name; InputError for another name, and where its weights are absent."""
    if name == "lpips-vgg":
        return shared_network("lpips", "vgg", device)
    if name in ("st-lpips-alex", "st-lpips-vgg"):
        return shared_network("st_lpips", "alex" if name.endswith("alex") else "vgg", device)
    raise InputError(f"There is no perceptual loss {name!r}; use lpips-vgg, st-lpips-alex or st-lpips-vgg.")
