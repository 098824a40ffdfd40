"""The bundled super-resolver's network: a residual regression that looks at a photo and, where there is one, a render.

It works at the photo's resolution (Shi et al., CVPR 2016, for the last step; Lim et al., CVPRW 2017, for blocks
without normalisation), so that a photo of 250 pixels takes seconds on one CPU thread. With photo L, its bicubic
enlargement B, render R and the network's two outputs g and w

    H = B + shuffle(g) + shuffle(w)·(R − B),    (g, w) = network(L, unshuffle(R − B), flag),

where R − B is zero and the flag is 0 without a render. What a scene trained on the enlargements of many photos shows
of a view can be truer than what one photo can say, or wrong; w says for every pixel how much of it is taken.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from difixcli.errors import InputError
from difixcli.images import enlarged
from difixcli.model_folders import FORMATS, check_kind
from difixcli.priors.super_resolution.files import BUNDLED, check_own
from difixcli.runs import read_json
from difixcli.shapes import built
from difixcli.tensor_files import read_weights, write_network

FORMAT = FORMATS["super-resolver"]
_BRANCH_SCALE = 0.1  # of a block's branch at the start, as EDSR scales its residuals


@dataclass(frozen=True)
class SuperResolutionConfig:
    """Everything about the network but its numbers; stored as config.json beside them."""

    factor: int = 4
    """How much larger its images are than the photos."""
    channels: int = 64
    blocks: int = 12
    """Residual blocks of two 3×3 convolutions each."""
    licence: str = "Apache-2.0"
    """Terms of the weights, to be shown when they are loaded."""

    def __post_init__(self) -> None:
        for name, least in (("factor", 2), ("channels", 1), ("blocks", 1)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise InputError(f"A super-resolution network's {name} is a whole number from {least}, not {value!r}.")


class _Block(nn.Module):
    """x + conv(relu(conv(x))), (B, C, h, w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        with torch.no_grad():
            self.second.weight.mul_(_BRANCH_SCALE)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(functional.relu(self.first(x)))


class SuperResolutionNetwork(nn.Module):
    """Photos made larger by a factor, helped by renders of the same views where there are some.

    A new network gives the bicubic enlargement: its last layers are zero.
    """

    def __init__(self, config: SuperResolutionConfig | None = None) -> None:
        super().__init__()
        self.config = config or SuperResolutionConfig()
        channels, area = self.config.channels, self.config.factor**2
        self.head = nn.Conv2d(3 + 3 * area + 1, channels, 3, padding=1)
        self.blocks = nn.Sequential(*(_Block(channels) for _ in range(self.config.blocks)))
        self.join = nn.Conv2d(channels, channels, 3, padding=1)
        self.tail = nn.Conv2d(channels, 3 * area, 3, padding=1)
        self.gate = nn.Conv2d(channels, area, 3, padding=1)
        for layer in (self.tail, self.gate):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    @property
    def factor(self) -> int:
        return self.config.factor

    @property
    def licence(self) -> str:
        return self.config.licence

    def forward(self, photos: Tensor, renders: Tensor | None = None, shown: Tensor | None = None) -> Tensor:
        """Large images (B, 3, h · factor, w · factor), not clamped, of photos (B, 3, h, w) in [0, 1].

        Args:
            renders: (B, 3, h · factor, w · factor) in [0, 1], the same views as a scene shows them, or None.
            shown: (B,) 1 where a sample has a render and 0 where its render is to be left out; None for 1 everywhere.

        Raises InputError for renders of another size.
        """
        batch, _, height, width = photos.shape
        large = enlarged(photos, self.factor)
        if renders is None:
            differs = None
            extra = photos.new_zeros(batch, 3 * self.factor**2 + 1, height, width)
        else:
            if renders.shape != large.shape:
                wanted, given = (f"{s[-1]}×{s[-2]}" for s in (large.shape, renders.shape))
                raise InputError(f"A render of {given} pixels does not fit its photo, which becomes {wanted}.")
            flag = (photos.new_ones(batch) if shown is None else shown.to(photos))[:, None, None, None]
            differs = (renders - large) * flag
            extra = torch.cat(
                [functional.pixel_unshuffle(differs, self.factor), flag.expand(batch, 1, height, width)], dim=1
            )
        features = self.head(torch.cat([photos, extra], dim=1))
        features = functional.relu(features + self.join(self.blocks(features)))
        large = large + functional.pixel_shuffle(self.tail(features), self.factor)
        if differs is None:
            return large
        return large + functional.pixel_shuffle(self.gate(features), self.factor) * differs

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path) -> SuperResolutionNetwork:
        """The network `bundled`, or the one in a folder that `save_pretrained` wrote; float32, on the CPU, to be used.

        Raises InputError for a folder that holds none, or a damaged one.
        """
        check_own(name_or_path)
        folder = BUNDLED if str(name_or_path) == "bundled" else Path(name_or_path).expanduser()
        source = folder / "model.safetensors"
        network = cls._configured(folder / "config.json")
        tensors = read_weights(source)
        try:
            network.load_state_dict(tensors)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{source} does not fit the configuration beside it ({reason}).") from error
        return network.eval()

    @classmethod
    def _configured(cls, path: Path) -> SuperResolutionNetwork:
        values: Any = read_json(path)
        if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
            check_kind(path.parent, "super-resolver")
            raise InputError(f"{path} is not a super-resolver's configuration; give a folder this program wrote.")
        return cls(built(SuperResolutionConfig, values, path, "update difixcli"))

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes config.json and model.safetensors, each whole or not at all; returns the folder, made if missing."""
        values = {"format": FORMAT, **dataclasses.asdict(self.config)}
        return write_network(self, values, Path(folder), "The super-resolver")
