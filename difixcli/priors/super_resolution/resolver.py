"""What a super-resolver is to the loop that trains a scene on what it makes.

The loop of 3DSR, for each photo L and each of `rounds` rounds: `estimate` gives the large image H that the scene is
trained on; the scene then shows the photo's place as R, and `advance` takes R up into the state that the next estimate
begins from. What lies between two calls is in the state alone, so that a stopped run goes on exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from difixcli.images import Operator, reduced

if TYPE_CHECKING:  # importing torch takes long
    from torch import Tensor

TileDone = Callable[[int, int], None]
"""Called after each of an image's tiles, with how many of how many are done."""
State = dict[str, "Tensor"]
"""What a super-resolver knows of one photo between two calls: tensors by name, on the CPU."""


@runtime_checkable
class SuperResolver(Protocol):
    """Makes photos larger by `factor`; its networks are frozen.

    Photos are (1, 3, h, w), large images and renders (1, 3, h · factor, w · factor), float32 in [0, 1], on `device`.
    `steps_alone` says whether an image without any scene, too, takes all rounds, each from the last one's estimate;
    `takes_renders` whether an estimate looks at the last render itself, so that it is worth waiting for the first.
    `made_once` names what of a state follows from the photo alone and is as large as its image, so that whoever holds
    many states can hold it elsewhere; an estimate makes it anew where it is missing. `tile_done` is called where an
    image has several tiles.
    """

    factor: int
    device: str
    steps_alone: bool
    takes_renders: bool
    made_once: frozenset[str]
    tile_done: TileDone

    def begin(self, photo: Tensor, rounds: int, seed: int) -> State:
        """The state before the first of `rounds` estimates; noise follows from `seed` alone."""

    def estimate(self, photo: Tensor, state: State) -> tuple[Tensor, State]:
        """The large image at the state's step, and the state with what was found on the way."""

    def advance(self, photo: Tensor, state: State, render: Tensor) -> State:
        """The state at the next step, which has taken up the scene's render of the photo's place."""


def from_render(resolver: SuperResolver, render: Tensor, operator: Operator, seed: int) -> Tensor:
    """A scene's large render (1, 3, H, W) super-resolved once from its own reduction, which the result agrees with.

    Of a super-resolver of several steps it begins in the middle of them, from the render.
    """
    photo = reduced(render, resolver.factor, operator).clamp(0, 1)
    state = resolver.begin(photo, 3, seed)
    if resolver.steps_alone:  # a move may need the noise that an estimate finds
        _, state = resolver.estimate(photo, state)
    return resolver.estimate(photo, resolver.advance(photo, state, render))[0]


def by_itself(resolver: SuperResolver, photo: Tensor, rounds: int, seed: int) -> Tensor:
    """A photo (1, 3, h, w) made larger without any scene: (1, 3, h · factor, w · factor) in [0, 1].

    Of a super-resolver of several steps each goes on from the last one's own estimate.
    """
    image, state = resolver.estimate(photo, resolver.begin(photo, rounds, seed))
    for _ in range(rounds - 1 if resolver.steps_alone else 0):
        image, state = resolver.estimate(photo, resolver.advance(photo, state, image))
    return image


def untold(done: int, total: int) -> None:
    """The `tile_done` of a super-resolver whose tiles nobody asked about."""


def check_render(photo: Tensor, render: Tensor, factor: int) -> None:
    """Raises ValueError for a render (1, 3, H, W) that has not `factor` times the pixels of the photo's sides."""
    height, width = (side * factor for side in photo.shape[-2:])
    if render.shape[-2:] != (height, width):
        raise ValueError(f"a render of this photo has {width}×{height} pixels, not {tuple(render.shape[:1:-1])}")
