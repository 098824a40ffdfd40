"""Super-resolvers of one step: a network makes the large image at once, and the scene's render is heard each round.

A network that takes a render is given it. One that knows photos alone makes S(L) once, and round k of K trains the
scene on the mean (1 − m)·S(L) + m·R of that and of the render R, m = (k − 1) / K: what the scene could not agree on is
in S(L) and not in R, so it fades. Either way the image's reduction is made to be the photo.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from difixcli.errors import InputError
from difixcli.images import Operator, agreeing
from difixcli.priors.super_resolution.resolver import State, TileDone, check_render, untold
from difixcli.priors.super_resolution.tiles import Tile, blended, cut, trapezoid

Network = Callable[[Tensor, Tensor | None], Tensor]
"""Photos (B, 3, h, w) and renders (B, 3, h · factor, w · factor) or None → images (B, 3, h · factor, w · factor)."""

# Photos are enlarged in tiles of so many pixels a side. Neighbours share OVERLAP of them; what lies within MARGIN of a
# tile's edge is not used, as the network saw too little around it there.
TILE = 256
OVERLAP = 64
MARGIN = 24
_MULTIPLE = 16  # where tiles begin: the windows of window attention stay the same


class SingleStep:
    """A super-resolver around a network with frozen weights; see `SuperResolver`. It uses no noise.

    `network` gets and gives float32 on `device`; `takes_renders` tells whether it looks at the render it is given.
    Photos larger than `tile` pixels are enlarged in tiles: networks that see no further than `MARGIN` pixels give the
    same image as at once.
    """

    def __init__(
        self, network: Network, factor: int, operator: Operator, device: str, *, takes_renders: bool, tile: int = TILE
    ) -> None:
        if tile % _MULTIPLE or tile <= OVERLAP:
            raise ValueError(f"tiles have a multiple of {_MULTIPLE} pixels and more than {OVERLAP}, not {tile}")
        self.factor, self.device, self.steps_alone, self.takes_renders = factor, device, False, takes_renders
        self.made_once = frozenset({"made"})
        self.tile_done: TileDone = untold
        self._network, self._operator, self._tile = network, operator, tile

    def begin(self, photo: Tensor, rounds: int, seed: int) -> State:
        """`round`, from 1, and `rounds`."""
        return {"round": torch.tensor(1), "rounds": torch.tensor(rounds)}

    @torch.no_grad()
    def estimate(self, photo: Tensor, state: State) -> tuple[Tensor, State]:
        """The network's image, which agrees with the photo; a network that takes no render is asked once (`made`).

        The render is not held any longer: the next one takes its place.
        """
        share = self._share(state)
        render = state["render"].to(photo) if "render" in state else None
        state = {name: value for name, value in state.items() if name != "render"}
        if self.takes_renders:
            return agreeing(self._enlarged(photo, render), photo, self.factor, self._operator), state
        if "made" not in state:
            made = self._enlarged(photo, None).clamp(0, 1)
            state = {**state, "made": _kept(made)}  # also now as it is kept: a run taken up again sees the same
        image = state["made"].to(photo)
        if render is not None:
            image = (1 - share) * image + share * render
        return agreeing(image, photo, self.factor, self._operator), state

    def advance(self, photo: Tensor, state: State, render: Tensor) -> State:
        """The next round, with the `render`."""
        check_render(photo, render, self.factor)
        return {**state, "round": state["round"] + 1, "render": _kept(render)}

    def _share(self, state: State) -> float:
        """m of the state's round."""
        number, rounds = int(state["round"]), int(state["rounds"])
        if number > rounds:
            raise ValueError(f"there is no round {number} of {rounds}")
        return (number - 1) / rounds

    def _enlarged(self, photo: Tensor, render: Tensor | None) -> Tensor:
        def made(tile: Tile) -> Tensor:
            shown = None if render is None else tile.of(render, self.factor)
            return self._network(tile.of(photo), shown)

        height, width = photo.shape[-2:]
        tiles = cut(height, width, self._tile, OVERLAP, _MULTIPLE)
        weigh = trapezoid(OVERLAP * self.factor, MARGIN * self.factor)
        image = blended(tiles, made, height, width, weigh, self.factor, told=self.tile_done)
        if not bool(torch.isfinite(image).all()):
            raise InputError("The super-resolver's images hold values that are not numbers; give undamaged weights.")
        return image


def _kept(image: Tensor) -> Tensor:
    """An image as the state holds it: in half precision, finer than the 8 bits of a file, since there is one or two of
    them for every photo.
    """
    return image.detach().to("cpu", torch.float16)
