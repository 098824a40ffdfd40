"""The training loss of Difix3D+ (arXiv 2503.01774, eq. 4 and its supplement): pixels + perceptual + 0.5 · Gram."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from difixcli.errors import InputError
from difixcli.evaluation.perceptual import lpips_available, shared_network

Perceptual = Literal["lpips-vgg", "st-lpips-alex", "st-lpips-vgg"]

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


def best_perceptual() -> Perceptual:
    """The paper's LPIPS (VGG-16) where its weights are cached, else st-LPIPS on AlexNet.

    st-LPIPS on VGG-16 is what results are judged by, so it is never chosen by itself.
    """
    return "lpips-vgg" if lpips_available("vgg") else "st-lpips-alex"


class FixerLoss(nn.Module):
    """Pixel distance + perceptual distance + Gram distance from a given step on.

    Args:
        pixel: "l2" as the paper, or "l1".
        perceptual: which network measures the perceptual distance (`best_perceptual`).
        perceptual_weight, gram_weight: factors of the two terms; 0 leaves the network unbuilt.
        gram_start: the first step with the Gram term; the release switches it on after 2,000.
        window: the perceptual and Gram terms see one random window of this many pixels a step (0: everything); the
            release does so with 400 pixels. They cost many times what a small fixer costs itself.
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
    ) -> None:
        super().__init__()
        if pixel not in ("l1", "l2"):
            raise InputError(f"There is no pixel loss {pixel!r}; use l1 or l2.")
        self.pixel, self.perceptual = pixel, perceptual
        self.perceptual_weight, self.gram_weight, self.gram_start = perceptual_weight, gram_weight, gram_start
        self.window = window
        # in a tuple, so that the shared networks are no part of this module's parameters
        self._networks = (
            _perceptual_network(perceptual, device) if perceptual_weight > 0 else None,
            # VGG-16 features that need no download
            shared_network("st_lpips", "vgg", device) if gram_weight > 0 else None,
        )

    def forward(self, output: Tensor, target: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch (B, 3, H, W) in [0, 1] at a training step, and its terms by name (weights included)."""
        difference = output.float() - target
        parts = {"pixel": difference.abs().mean() if self.pixel == "l1" else difference.square().mean()}
        distance, vgg = self._networks
        output, target = self._cut(output.float(), target, step)
        if distance is not None:
            with torch.no_grad():
                wanted = distance.features(target)
            parts["perceptual"] = self.perceptual_weight * distance.between(distance.features(output), wanted).mean()
        if vgg is not None and step >= self.gram_start:
            with torch.no_grad():
                wanted = vgg.features(target)
            parts["gram"] = self.gram_weight * gram_distance(vgg.features(output), wanted).mean()
        return torch.stack(list(parts.values())).sum(), {name: value.detach() for name, value in parts.items()}

    def _cut(self, output: Tensor, target: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The step's window of both; chosen by the step alone, so that a resumed run sees the same."""
        height, width = output.shape[-2:]
        if self.window == 0 or self.window >= max(height, width):
            return output, target
        generator = torch.Generator().manual_seed(step)
        high, wide = min(self.window, height), min(self.window, width)
        top = int(torch.randint(height - high + 1, (), generator=generator))
        left = int(torch.randint(width - wide + 1, (), generator=generator))
        rows, columns = slice(top, top + high), slice(left, left + wide)
        return output[..., rows, columns], target[..., rows, columns]


def _perceptual_network(name: str, device: str):  # type: ignore[no-untyped-def]
    if name == "lpips-vgg":
        return shared_network("lpips", "vgg", device)
    if name in ("st-lpips-alex", "st-lpips-vgg"):
        return shared_network("st_lpips", "alex" if name.endswith("alex") else "vgg", device)
    raise InputError(f"There is no perceptual loss {name!r}; use lpips-vgg, st-lpips-alex or st-lpips-vgg.")
