"""Our video model's networks: a fixer's, and what makes its pictures of a way one film.

To the fixer (`difixcli.fixer`), which cleans each picture's render beside both photos, come

- a second cross-attention in every spatial block, to tokens of the point cloud (see `structure`);
- an attention across the pictures after every spatial block: with h the block's output at a place of the latents and
  e(s) the harmonics of a picture's place s on the way, h ← h + tanh(b)·Attn(LN(h) + W·e), over all pictures at once;
- weights of each picture's own fix and of its neighbours' fixes, brought into its view through depth, one set a
  frequency band: x̂_t ← x̂_t + tanh(g)·(Σ_k w_k·band(x̂_{t→k}) − x̂_t).

All gates begin at zero: what is filmed then is what the fixer makes frame by frame, bit for bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difixcli.errors import InputError
from difixcli.fixer.blending import BANDS, log_mask, split_bands
from difixcli.fixer.network import FixerNetwork, attend
from difixcli.priors.video.structure import StructureAttention, StructureConfig, StructureEncoder, harmonics

NEIGHBOURS = (-2, -1, 1, 2)
"""Which pictures, counted from each one, are brought into its view."""
_OCTAVES = 4  # of a picture's place on the way
# How readily an untrained network takes each band from a neighbour (log odds), finest first: tone flickers, and detail
# that has been moved is less sharp.
_BAND_PRIORS = (-4.0, -1.5, 0.0)


@dataclass(frozen=True)
class FilmConfig:
    """Everything about the layers around a fixer but their numbers; stored as config.json beside them."""

    structure: StructureConfig = field(default_factory=StructureConfig)
    window: int = 16
    """Pictures that are made together; longer ways are made in windows."""
    shared: int = 4
    """Pictures that neighbouring windows share."""
    hidden_channels: int = 16
    """Width of what weighs neighbouring pictures."""
    fixer: str | None = "bundled"
    """Name of the fixer whose weights are not beside the layers' own: the bundled one, or one on a hub."""
    fixer_digest: str = ""
    """Of that fixer's weights, which the layers were trained around."""
    licence: str = "Apache-2.0"
    """Terms of the layers' weights, to be shown when they are loaded."""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class _Told:
    """What the layers know while the fixer's network runs: S films of `frames` pictures each."""

    frames: int
    places: Tensor  # (S, frames) in [0, 1]
    tokens: Tensor | None  # (S, M, width)


class TemporalAttention(nn.Module):
    """Attention across the pictures of a film, at one place of the latents."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(channels)
        self.place = nn.Linear(2 * _OCTAVES + 1, channels)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels, bias=False) for _ in range(3))
        self.to_out = nn.Linear(channels, channels)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, hidden: Tensor, places: Tensor) -> Tensor:
        """What is added to hidden states (S, T, N, C) of pictures at `places` (S, T) in [0, 1]."""
        told = torch.cat([places[..., None], harmonics(places[..., None], _OCTAVES)], dim=-1)
        known = self.norm(hidden) + self.place(told.to(hidden))[:, :, None]
        known = known.transpose(1, 2).flatten(0, 1)  # (S·N, T, C)
        mixed = self.to_out(attend(self.heads, self.to_q(known), self.to_k(known), self.to_v(known)))
        return torch.tanh(self.gate) * mixed.unflatten(0, (len(hidden), -1)).transpose(1, 2)


class NeighbourBlend(nn.Module):
    """Weights of a picture and of its neighbours as they look in its view; one small head for every neighbour."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        # picture, neighbour, their difference, the render's difference from the picture; visibility and opacity
        self.seen = nn.Conv2d(4 * 3 + 2, hidden, 3, padding=1)
        self.mix = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.score = nn.Conv2d(hidden, BANDS, 1, bias=False)
        self.prior = nn.Parameter(torch.tensor(_BAND_PRIORS))
        self.gate = nn.Parameter(torch.zeros(()))
        with torch.no_grad():
            self.score.weight.mul_(0.3)

    def forward(self, pictures: Tensor, renders: Tensor, opacity: Tensor, near: Tensor, visibility: Tensor) -> Tensor:
        """Pictures (B, 3, H, W), of renders (B, 3, H, W) with opacity (B, 1, H, W), beside their neighbours brought
        into their views, near (B, K, 3, H, W), visible in [0, 1] where `visibility` (B, K, 1, H, W) says → the same
        shape as the pictures.
        """
        count = near.shape[1]
        if not count:
            return pictures
        own = pictures[:, None].expand_as(near)
        filled = own + visibility * (near - own)  # no mask's edge may be a picture's edge
        beside = torch.cat([(renders - pictures).abs(), opacity], dim=1)[:, None].expand(-1, count, -1, -1, -1)
        seen = torch.cat([own, filled, (filled - own).abs(), beside, visibility], dim=2).flatten(0, 1)
        score = self.score(F.silu(self.mix(F.silu(self.seen(seen))))).unflatten(0, (-1, count))
        score = torch.cat([torch.zeros_like(score[:, :1]), score + self.prior[:, None, None]], dim=1)
        shown = torch.cat([torch.ones_like(visibility[:, :1]), visibility], dim=1)
        weights = torch.softmax(score + log_mask(shown), dim=1)
        views = torch.cat([pictures[:, None], filled], dim=1)
        blended = torch.zeros_like(pictures)
        for band, values in enumerate(split_bands(views)):
            blended = blended + (weights[:, :, band : band + 1] * values).sum(1)
        return pictures + torch.tanh(self.gate) * (blended - pictures)


class FilmNetwork(nn.Module):
    """A fixer's network, with the layers that make films of its pictures around it.

    The layers are at work within `told` alone; outside of it the fixer's network is what it was. Adds hooks to the
    network it is given, which is `fixer` from then on.
    """

    def __init__(self, fixer: FixerNetwork, config: FilmConfig) -> None:
        super().__init__()
        from diffusers.models.attention import BasicTransformerBlock

        self.config, self.fixer = config, fixer
        blocks = [module for module in fixer.unet.modules() if isinstance(module, BasicTransformerBlock)]
        self.encoder = StructureEncoder(config.structure)
        self.structure = nn.ModuleList(
            StructureAttention(config.structure.width, block.attn2.to_q.out_features) for block in blocks
        )
        self.temporal = nn.ModuleList(
            TemporalAttention(block.attn1.to_q.in_features, block.attn1.heads) for block in blocks
        )
        self.neighbours = NeighbourBlend(config.hidden_channels)
        self._told: _Told | None = None
        for i, block in enumerate(blocks):
            block.attn2.register_forward_hook(self._structured(i))
            block.register_forward_hook(self._across(i))

    def new_layers(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters that are not the fixer's, with their names."""
        return ((name, value) for name, value in self.named_parameters() if not name.startswith("fixer."))

    def tokens(self, points: Tensor, colors: Tensor) -> Tensor | None:
        """(1, M, width) of a cloud (N, 3) in [-1, 1] with colours (N, 3) in [0, 1]; None of one without points."""
        return self.encoder(points, colors)[None] if len(points) else None

    @contextlib.contextmanager
    def told(self, places: Tensor, tokens: Tensor | None) -> Iterator[None]:
        """While the fixer's network is given the pictures of S films, S·T of them, one film's after the other's.

        `places` (S, T) are the pictures' places on their ways, from 0 for the first photo's to 1 for the last one's;
        `tokens` (S, M, width) the films' structure, or None for none.
        """
        self._told = _Told(places.shape[1], places, tokens)
        try:
            yield
        finally:
            self._told = None

    @contextlib.contextmanager
    def shut(self) -> Iterator[None]:
        """All gates at zero for a while: what is filmed is what the fixer makes frame by frame."""
        gates = [value for name, value in self.new_layers() if name.endswith("gate")]
        kept = [float(gate.detach()) for gate in gates]
        try:
            with torch.no_grad():
                for gate in gates:
                    gate.zero_()
            yield
        finally:
            with torch.no_grad():
                for gate, value in zip(gates, kept, strict=True):
                    gate.fill_(value)

    def _structured(self, i: int):  # type: ignore[no-untyped-def]
        def hook(attention: Any, given: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if self._told is None or self._told.tokens is None:
                return None
            self._views(given[0])
            return output + self.structure[i](attention, given[0], self._told.tokens)

        return hook

    def _across(self, i: int):  # type: ignore[no-untyped-def]
        def hook(block: Any, given: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if self._told is None or self._told.frames == 1:
                return None
            views = output.unflatten(0, (-1, self._told.frames, self._views(output)))
            # references are photos: they do not flicker
            moved = views[:, :, 0] + self.temporal[i](views[:, :, 0], self._told.places)
            return torch.cat([moved[:, :, None], views[:, :, 1:]], dim=2).flatten(0, 2)

        return hook

    def _views(self, hidden: Tensor) -> int:
        """How many views of each picture hidden states (S·T·V, N, C) have."""
        assert self._told is not None
        pictures = self._told.places.numel()
        if len(hidden) % pictures:
            raise InputError(
                f"The memory is too small to make {pictures} pictures together; make them smaller, or film fewer."
            )
        return len(hidden) // pictures


def film_state(network: FilmNetwork, but: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's tensors by name, without those of the fixer that are the same in `but`, a fixer's."""
    state = network.state_dict()
    same = {f"fixer.{name}" for name, value in but.items() if torch.equal(state[f"fixer.{name}"].cpu(), value)}
    return {name: value for name, value in state.items() if name not in same}
