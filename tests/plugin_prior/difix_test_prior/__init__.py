"""Priors that another package brings: what `difix distill --prior` promises them is tried with these."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from difixcli.distillation.prior import Context, Proposal, Round
from difixcli.reconstruction import Wanted


class Drift:
    """Keeps an image of every view between rounds, and proposes anew for each step: halfway from the render to it.

    It draws on all that a round shows: renders with depth and opacity, the model of photos alone, and aligned photos.
    """

    def __init__(self, context: Context) -> None:
        self._random = torch.Generator().manual_seed(context.seed)
        self._images: dict[str, torch.Tensor] = {}

    def propose(self, shown: Round) -> Iterator[Proposal | None]:
        for view in shown.views:
            render, first = shown.render(view), shown.render_photos_only(view)
            beside = shown.beside(view, 2)
            assert render.depth.shape == render.accumulation.shape == beside.visibility.shape[1:]
            seen = beside.visibility.max(axis=0)
            noise = 0.02 * torch.randn(render.color.shape, generator=self._random).numpy()
            image = np.clip(0.5 * (render.color + first.color) + noise, 0, 1).astype(np.float32)
            held = self._images.get(view.name, torch.from_numpy(image))
            self._images[view.name] = 0.5 * (held + torch.from_numpy(image))
            figures = {"rounds_held": float(shown.number), "seen": float(seen.mean())}
            terms = {"l2": 1.0, "low_resolution:2": 0.5}
            yield Proposal(image, np.maximum(seen, 0.1).astype(np.float32), terms, fresh=True, figures=figures)

    def refresh(self, name: str, render: Callable[[], np.ndarray]) -> Wanted:
        return Wanted(0.5 * (render() + self._images[name].numpy()))

    def state(self) -> dict[str, Any]:
        return {"images": dict(self._images), "random": self._random.get_state()}

    def restore(self, state: dict[str, Any]) -> None:
        self._images = dict(state["images"])
        self._random.set_state(state["random"])


class Negative:
    """Proposes every render's negative, which no photo confirms; in the second round only where `context` is asked."""

    def __init__(self, context: Context) -> None:
        self._sound = context.references  # so many rounds propose what is there already

    def propose(self, shown: Round) -> Iterator[Proposal | None]:
        for view in shown.views:
            render = shown.render_photos_only(view).color
            yield Proposal(render if shown.number <= (self._sound or 0) else 1 - render)

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass


class Nothing(Negative):
    """Keeps what there is, which is nothing."""

    def propose(self, shown: Round) -> Iterator[Proposal | None]:
        for _ in shown.views:
            yield None


class Absent:
    """Is no prior."""

    def __init__(self, context: Context) -> None:
        pass
