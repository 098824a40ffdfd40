"""Pixels in, pixels out: the fixer as the rest of the project knows it."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from difixcli.errors import unknown
from difixcli.fixer.network import FixerConfig, FixerNetwork, small_config
from difixcli.fixer.weights import load_network, save_network

SMALL_SIZES = ("tiny", "small", "medium")


class Fixer:
    """A network with its weights, on a device. `network` is the differentiable part, for training."""

    def __init__(self, network: FixerNetwork) -> None:
        self.network = network.eval()

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> Fixer:
        """Loads weights by name or from a path.

        `bundled` is the small fixer that comes with the package. A path is a folder (ours, or the published diffusers
        layout) or a `.pkl` of the release's trainer. Anything else of the form OWNER/NAME comes from the Hugging Face
        hub or its cache. Raises InputError for what is none of these or holds damaged weights.
        """
        return cls(load_network(name_or_path).to(device=device, dtype=dtype))

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes config.json and model.safetensors (with the prompt's embedding) to a folder, made if missing."""
        return save_network(self.network, Path(folder))

    @property
    def config(self) -> FixerConfig:
        return self.network.config

    @property
    def licence(self) -> str:
        """Terms of the weights, one sentence or a licence's name, to be shown to whoever uses them."""
        return self.config.licence

    @property
    def device(self) -> torch.device:
        return self.network.prompt.device

    @property
    def dtype(self) -> torch.dtype:
        return self.network.prompt.dtype

    @torch.no_grad()
    def __call__(
        self,
        images: Tensor,
        references: Tensor | None = None,
        opacity: Tensor | None = None,
        visibility: Tensor | None = None,
    ) -> Tensor:
        """The clean views of degraded renders, of the same shape, device and dtype, in [0, 1].

        Args:
            images: (B, 3, H, W) in [0, 1], any size.
            references: (B, V, 3, H, W) in [0, 1], raw or aligned as `config.references` says, or None.
            opacity: (B, 1, H, W) the renders' accumulated opacity in [0, 1], or None for full.
            visibility: (B, V, 1, H, W) in [0, 1], where aligned references are believable, or None for everywhere.

        Raises ValueError when the shapes do not belong together.
        """
        _check_shapes(images, references, opacity, visibility)
        size = images.shape[-2:]
        inputs = [self._prepared(x) for x in (images, references, opacity, visibility)]
        fixed = self.network(*inputs)
        return fixed[..., : size[0], : size[1]].clamp(0, 1).to(images)

    def _prepared(self, values: Tensor | None) -> Tensor | None:
        """On the network's device, padded below and to the right to what the network takes."""
        if values is None:
            return None
        values = values.to(device=self.device, dtype=self.dtype)
        height, width = values.shape[-2:]
        multiple = self.config.multiple
        padding = (0, -width % multiple, 0, -height % multiple)
        if not any(padding):
            return values
        # a mirror cannot show more than there is
        mode = "reflect" if padding[1] < width and padding[3] < height else "replicate"
        flat = values.reshape(-1, *values.shape[-3:])
        if flat.shape[0] == 0:
            return values.new_zeros((*values.shape[:-2], height + padding[3], width + padding[1]))
        return F.pad(flat, padding, mode=mode).reshape(*values.shape[:-2], height + padding[3], width + padding[1])


def new_small_fixer(size: str = "small", seed: int = 0) -> Fixer:
    """A small fixer for aligned references with random weights, to be trained from scratch (`SMALL_SIZES`)."""
    if size not in SMALL_SIZES:
        raise unknown("small fixer", size, SMALL_SIZES)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Fixer(FixerNetwork(small_config(size)))


def _check_shapes(images: Tensor, references: Tensor | None, opacity: Tensor | None, visibility: Tensor | None) -> None:
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be (B, 3, H, W), not {tuple(images.shape)}")
    batch, _, height, width = images.shape
    if references is not None and (
        references.ndim != 5 or (references.shape[0], *references.shape[2:]) != (batch, 3, height, width)
    ):
        raise ValueError(f"references must be (B, V, 3, H, W) like the images, not {tuple(references.shape)}")
    if opacity is not None and opacity.shape != (batch, 1, height, width):
        raise ValueError(f"opacity must be (B, 1, H, W) like the images, not {tuple(opacity.shape)}")
    if visibility is not None:
        views = 0 if references is None else references.shape[1]
        if visibility.shape != (batch, views, 1, height, width):
            raise ValueError(f"visibility must be (B, V, 1, H, W) like the references, not {tuple(visibility.shape)}")
