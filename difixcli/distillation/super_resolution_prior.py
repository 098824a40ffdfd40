"""3DSR's proposals: each photo at a denoising step of a super-resolver, after the scene has had its say."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from difixcli.distillation.prior import Context, Proposal, Round, View
from difixcli.evaluation.metrics import psnr
from difixcli.images import as_pixels, as_planes, enlarged, reduced
from difixcli.priors.super_resolution.resolver import State
from difixcli.runs import atomic, make_folder
from difixcli.scenes import load_mask, load_photo

MADE = "made"
"""The folder, in a run's, of what a super-resolver makes once of each photo, while there are rounds."""
IDENTICAL = 100.0
"""dB that stand for the infinite PSNR of identical images, so that there is a mean."""


def photos_alone(terms: Mapping[str, float]) -> dict[str, float]:
    """Of the loss terms of large views those that compare with the small photo, none of what is proposed."""
    return {name: weight for name, weight in terms.items() if name.startswith("low_resolution:") and weight > 0}


class SuperResolutionPrior:
    """Chen et al., ICCV 2025 (arXiv 2508.04090), for the super-resolver of the context.

    The views are the training photos' own, larger. In the first round each photo's state begins; in every later one
    the scene's render takes the place of the super-resolver's last estimate in it. What is trained on is the estimate
    at the state's step, and what keeps the scene honest the photo itself, at its own size. A super-resolver that looks
    at renders waits for one that is worth it: in the first round the large views are compared with the photos alone.
    """

    def __init__(self, context: Context) -> None:
        assert context.resolver is not None and context.scratch is not None
        self._resolver, self._scene = context.resolver, context.scene
        self._folder = context.scratch / MADE
        self._operator, self._seed, self._terms = context.operator, context.seed, dict(context.terms)
        self._states: dict[str, State] = {}

    def propose(self, shown: Round) -> Iterator[Proposal | None]:
        for view in shown.views:
            yield self._propose(shown, view)

    def state(self) -> dict[str, Any]:
        return {"states": {name: dict(state) for name, state in self._states.items()}}

    def restore(self, state: dict[str, Any]) -> None:
        self._states = {name: dict(one) for name, one in state["states"].items()}

    @torch.no_grad()
    def _propose(self, shown: Round, view: View) -> Proposal:
        resolver, frame = self._resolver, self._scene.frames[view.nearest]
        pixels = load_photo(frame)
        photo = as_planes(pixels, resolver.device)
        render = as_planes(shown.render(view).color, resolver.device)
        terms = self._terms
        if shown.number == 1:
            state = resolver.begin(photo, shown.rounds, self._seed ^ zlib.crc32(os.fsencode(view.name)))
        else:
            state = resolver.advance(photo, self._state_of(view.name), render)
        if shown.number == 1 and shown.rounds > 1 and resolver.takes_renders and (alone := photos_alone(terms)):
            terms, estimate = alone, enlarged(photo, resolver.factor)
        else:
            estimate, state = resolver.estimate(photo, state)
        self._keep(view.name, state)
        image = as_pixels(estimate)
        small = reduced(render, resolver.factor, self._operator)
        mask = load_mask(frame)
        figures = {
            "low_resolution_psnr": min(psnr(as_pixels(small), pixels, mask), IDENTICAL),
            "change": float((estimate - render).abs().mean()),
            "detail": float((estimate - enlarged(photo, resolver.factor)).abs().mean()),
        }
        weight = None
        if mask is not None:
            weight = np.kron(mask, np.ones((resolver.factor, resolver.factor), bool)).astype(np.float32)
        return Proposal(image, weight, terms, photo=pixels, figures=figures, pictures={"render": as_pixels(render)})

    # What a resolver makes once of each photo is a large image, too much to hold for many in memory and checkpoints

    def _state_of(self, name: str) -> State:
        """A view's state, with what of it lies on disk."""
        state = dict(self._states[name])
        for part in self._resolver.made_once - state.keys():
            if (file := self._file(name, part)).is_file():
                state[part] = torch.from_numpy(np.load(file, allow_pickle=False))
        return state

    def _keep(self, name: str, state: State) -> None:
        for part in self._resolver.made_once & state.keys():
            if not (file := self._file(name, part)).is_file():
                make_folder(self._folder)
                with atomic(file) as temporary, temporary.open("wb") as opened:
                    np.save(opened, state[part].numpy())
        self._states[name] = {part: value for part, value in state.items() if part not in self._resolver.made_once}

    def _file(self, name: str, part: str) -> Path:
        return self._folder / f"{name}.{part}.npy"
