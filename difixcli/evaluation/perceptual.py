"""Perceptual distances that need no download: st-LPIPS from its package, LPIPS only where its weights are cached.

Shift-tolerant LPIPS: Ghildyal & Liu, ECCV 2022 (arXiv 2207.13686). LPIPS: Zhang et al., CVPR 2018
(arXiv 1801.03924). They are different networks with different numbers, so each keeps its own name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difixcli.errors import InputError
from difixcli.images import as_planes
from difixcli.tensor_files import read_pickled
from difixcli.torchvision_cure import cure

Net = Literal["vgg", "alex"]

# the deepest layer pads by reflection, which needs a few pixels to reflect; below this the networks refuse to run
_SMALLEST = 32
# where torchvision would put the backbone if LPIPS were allowed to download it
_LPIPS_BACKBONES = {"vgg": "vgg16-397923af.pth", "alex": "alexnet-owt-7be5be79.pth"}
# Pixels of an image that are in a network at once, at 2 to 4 kB each. What larger images give differs from what they
# would give whole by some 1e-7 of it.
_BAND = 2**17
_FEWEST_ROWS = 16  # of a band, however wide the image is; the networks' deepest layer has one of so many


class _Distance(nn.Module):
    """The LPIPS family's shared arithmetic over a frozen backbone that returns five feature maps."""

    def __init__(self, scaling: nn.Module, backbone: nn.Module, heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.scaling, self.backbone, self.heads = scaling, backbone, nn.ModuleList(heads)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> _Distance:
        """Stays in evaluation mode: the heads' dropout would make the distance random."""
        return super().train(False)

    def features(self, images: Tensor) -> list[Tensor]:
        """Feature maps of images (B, 3, H, W) in [0, 1], five of them from fine to coarse.

        For `vgg` these are VGG-16's relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3, (B, C, h, w) with C = 64, 128,
        256, 512, 512. Images smaller than 32 pixels are continued with their edge pixels first.
        """
        return list(self.backbone(self.scaling(2 * _continued(images) - 1)))

    def between(self, features: Sequence[Tensor], others: Sequence[Tensor], weights: Tensor | None = None) -> Tensor:
        """(B,) distances between two results of `features`, for callers that use the features for more.

        With `weights` (B, 1, H, W) of the images' pixels every layer's map is multiplied by them, averaged to its size.
        """
        total = torch.zeros(features[0].shape[0], dtype=features[0].dtype, device=features[0].device)
        for one, other, head in zip(features, others, self.heads, strict=True):
            difference = (_unit(one) - _unit(other)) ** 2
            apart = head(difference)
            if weights is not None:
                apart = apart * F.adaptive_avg_pool2d(_continued(weights), apart.shape[-2:])
            total = total + apart.mean(dim=(1, 2, 3))
        return total

    @torch.no_grad()
    def distances(self, truth: np.ndarray, images: Sequence[np.ndarray]) -> list[float]:
        """Distances of images from their truth, all (H, W, 3) in [0, 1], in 600 MB whatever their size.

        Images of up to 2^17 pixels go through the network whole. Of larger ones it is given bands of rows from the top
        to the bottom, each of its layers holding the few rows that it needs again; the result is that of the whole
        image but for the order in which numbers are added.
        """
        device = str(next(self.parameters()).device)
        height, width = truth.shape[:2]
        if height * width <= _BAND:
            features = self.features(as_planes(truth, device))
            return [float(self.between(self.features(as_planes(one, device)), features)) for one in images]
        below, beside = max(_SMALLEST - height, 0), max(_SMALLEST - width, 0)
        if below or beside:
            truth, *images = (np.pad(x, ((0, below), (0, beside), (0, 0)), mode="edge") for x in (truth, *images))
            height, width = truth.shape[:2]
        rows = max(_BAND // width, _FEWEST_ROWS)
        true, passes = self._by_rows(), [self._by_rows() for _ in images]
        sums = torch.zeros(len(images), len(self.heads), dtype=torch.float64)
        cells = torch.zeros(len(self.heads), dtype=torch.float64)
        for top in range(0, height, rows):
            band, last = slice(top, top + rows), top + rows >= height
            wanted = [None if one is None else _unit(one) for one in true(as_planes(truth[band], device), last)]
            for layer, other in enumerate(wanted):
                cells[layer] += 0 if other is None else other[0, 0].numel()
            for image, through, total in zip(images, passes, sums, strict=True):
                made = through(as_planes(image[band], device), last)
                for layer, (one, other, head) in enumerate(zip(made, wanted, self.heads, strict=True)):
                    if one is not None and other is not None:  # of one band all images complete the same rows
                        total[layer] += head(_unit(one).sub_(other).square_()).sum(dtype=torch.float64).cpu()
        return [float(total) for total in (sums / cells).sum(dim=1)]

    def _by_rows(self) -> _ByRows:
        return _ByRows(self.scaling, [getattr(self.backbone, f"slice{i}") for i in range(1, len(self.heads) + 1)])

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """(B,) distances, 0 for identical images, between two batches (B, 3, H, W) in [0, 1]; differentiable."""
        return self.between(self.features(images), self.features(others))


class _ByRows:
    """A backbone's five feature maps of one image that it is given in bands of rows, from the top."""

    def __init__(self, scaling: nn.Module, slices: Iterable[Iterable[nn.Module]]) -> None:
        self.scaling, self.slices = scaling, [[_layer_by_rows(layer) for layer in one] for one in slices]

    def __call__(self, band: Tensor, last: bool) -> Iterator[Tensor | None]:
        """The rows of each of the maps that a band (1, 3, h, W) in [0, 1] completes, or None; `last` says that no band
        comes after it.
        """
        rows: Tensor | None = self.scaling(2 * band - 1)
        for one in self.slices:
            for layer in one:
                rows = layer(rows, last)
            yield rows


class _LayerByRows:
    """A layer with a window that is given its rows in parts: it holds those that the windows to come reach back to.

    `run` does the layer's work without padding above and below, `mode` and `padding` are how and by how many rows it
    pads.
    """

    def __init__(self, run: Callable[[Tensor], Tensor], window: int, stride: int, padding: int, mode: str) -> None:
        self.run, self.window, self.stride, self.padding, self.mode = run, window, stride, padding, mode
        self.held: Tensor | None = None
        self.begun = False

    def __call__(self, rows: Tensor | None, last: bool) -> Tensor | None:
        if rows is not None:
            self.held = rows if self.held is None else torch.cat([self.held, rows], dim=2)
        del rows
        if self.held is None or (not self.begun and not last and self.held.shape[2] <= self.padding):
            return None  # too few to be mirrored at the top
        if not self.begun:
            self.held, self.begun = self._padded(self.held, self.padding, 0), True
        if last:
            self.held = self._padded(self.held, 0, self.padding)
        count = (self.held.shape[2] - self.window) // self.stride + 1
        if not last:  # what is mirrored at the bottom, should these be the last rows, has to stay
            count = min(count, (self.held.shape[2] - self.padding - 1) // self.stride)
        if count <= 0:
            return None
        made = self.run(self.held[:, :, : (count - 1) * self.stride + self.window])
        self.held = None if last else self.held[:, :, count * self.stride :].clone()  # lets go of the others
        return made

    def _padded(self, rows: Tensor, above: int, below: int) -> Tensor:
        return F.pad(rows, (0, 0, above, below), mode=self.mode) if above or below else rows


def _layer_by_rows(layer: Any) -> Callable[[Tensor | None, bool], Tensor | None]:
    """A layer of the networks, which have these kinds and no other."""
    if isinstance(layer, nn.ReLU):
        return lambda rows, last: None if rows is None else layer(rows)
    if isinstance(layer, nn.Conv2d):
        above, across = (int(padding) for padding in layer.padding)

        def convolved(rows: Tensor) -> Tensor:
            return F.conv2d(rows, layer.weight, layer.bias, layer.stride, (0, across))

        return _LayerByRows(convolved, layer.kernel_size[0], layer.stride[0], above, "constant")
    if isinstance(layer, nn.MaxPool2d):  # square and of no padding in all the networks
        window, stride = (int(side) for side in (layer.kernel_size, layer.stride))  # type: ignore[arg-type]
        return _LayerByRows(layer, window, stride, 0, "constant")
    left, right, above, _ = layer.pad.padding  # a mirrored blur of stlpips-pytorch

    def blurred(rows: Tensor) -> Tensor:
        rows = F.pad(rows, (left, right, 0, 0), mode="reflect")
        return F.conv2d(rows, layer.filt, stride=layer.stride, groups=rows.shape[1])

    return _LayerByRows(blurred, layer.filt_size, layer.stride, above, "reflect")


class StLpips(_Distance):
    """Shift-tolerant LPIPS with the weights its package carries; never downloads."""

    def __init__(self, net: Net = "vgg") -> None:
        _known(net)
        cure()
        from stlpips_pytorch import stlpips

        # On the meta device no memory is taken and no random numbers are drawn for layers that are replaced at once:
        # the VGG's constructor would otherwise initialise a classifier of 120 M weights only to drop it.
        with torch.device("meta"):
            shell = stlpips.LPIPS(net=net, variant="shift_tolerant", pretrained=False, verbose=False)
        weights = Path(stlpips.__file__).parent / "weights" / "vST0.0" / f"{net}_shift_tolerant.pth"
        if not weights.is_file():
            raise InputError(f"{weights} is missing; reinstall the package stlpips-pytorch.")
        state = read_pickled(weights, "reinstall the package stlpips-pytorch")
        # the package registers its heads twice, as lin0..4 and as lins.0..4; the file has the first
        state |= {f"lins.{key[3:]}": value for key, value in state.items() if key.startswith("lin")}
        shell.load_state_dict(state, strict=True, assign=True)
        super().__init__(shell.scaling_layer, shell.net, list(shell.lins))
        self.net = net


class Lpips(_Distance):
    """LPIPS with its true weights, where they are cached: its number is never computed with others.

    `network` is the package's own `lpips.LPIPS` of that kind, for a caller that has one, with the weights it has.
    """

    def __init__(self, net: Net = "alex", network: nn.Module | None = None) -> None:
        _known(net)
        shell: Any = _trained_lpips(net) if network is None else network
        super().__init__(shell.scaling_layer, shell.net, [shell.lin0, shell.lin1, shell.lin2, shell.lin3, shell.lin4])
        self.net = net


def _trained_lpips(net: Net) -> nn.Module:
    backbone = _lpips_backbone(net)
    if not backbone.is_file():
        raise InputError(
            f"LPIPS ({net}) needs torchvision's backbone in {backbone}; fetch it with difix download lpips-{net}, or "
            "use st-LPIPS, whose weights are installed."
        )
    cure()
    import lpips

    # torch hub unpickles whatever the file holds; refuse here what is more than tensors
    read_pickled(backbone, "replace it, or use st-LPIPS", mapped=True)
    try:
        return lpips.LPIPS(net=net, pretrained=True, verbose=False)
    except (RuntimeError, KeyError, AttributeError, TypeError):
        raise InputError(f"{backbone} holds another network; replace it, or use st-LPIPS.") from None


def lpips_available(net: Net = "alex") -> bool:
    """Whether LPIPS can be computed without a download: its backbone lies in torch hub's cache."""
    return _lpips_backbone(_known(net)).is_file()


@lru_cache(maxsize=4)
def shared_network(kind: Literal["st_lpips", "lpips"], net: Net, device: str = "cpu") -> StLpips | Lpips:
    """One network for all who measure with it: building one costs a second and up to 60 MB."""
    return (StLpips(net) if kind == "st_lpips" else Lpips(net)).to(device)


def _lpips_backbone(net: Net) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / _LPIPS_BACKBONES[net]


def _known(net: Net) -> Net:
    if net not in _LPIPS_BACKBONES:
        raise InputError(f"There is no perceptual network {net!r}; use vgg or alex.")
    return net


def _continued(images: Tensor) -> Tensor:
    """Images (B, C, H, W) of at least 32 pixels a side, continued with their edge pixels."""
    height, width = images.shape[-2:]
    padding = (0, max(_SMALLEST - width, 0), 0, max(_SMALLEST - height, 0))
    return F.pad(images, padding, mode="replicate") if any(padding) else images


def _unit(features: Tensor) -> Tensor:
    """Each pixel's feature vector at length one; where it is all zero the gradient is zero and not NaN."""
    length = (features**2).sum(dim=1, keepdim=True).clamp_min(1e-20).sqrt()
    return features / (length + 1e-10)
