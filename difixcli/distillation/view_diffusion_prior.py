"""SparseFusion's proposals (Zhou and Tulsiani, CVPR 2023, arXiv 2212.00792): views that are likely under diffusion.

    min_θ E_{π,t}[w_t · ‖x₀ − x̂₀‖² + 0.1 · perceptual(x₀, x̂₀)]

x₀ is the field's render at a camera π drawn around the photos, x̂₀ what comes of it after it is noised to a random level
t, uniform in (0, 0.99), and denoised in several steps without gradient, given the photos. w_t = 1 − ᾱ_t multiplies the
pixels' term alone, as in the release. In the first third of the rounds x̂₀ is EFT's own picture with w = 1 and no
perceptual term: EFT blurs.

Score distillation (`sds`) is the same loss with x̂₀ predicted in one step: with ε̂ of x_t = √ᾱ x₀ + √(1 − ᾱ) ε its
gradient (1 − ᾱ)(ε̂ − ε) is √(ᾱ(1 − ᾱ)) (x₀ − x̂₀), so that is its weight.

Other than in the paper, what is compared as a distance is the pixel term of the method (for splats 0.8 L1 + 0.2 D-SSIM,
for rays the squared error), and one x̂₀ may serve several steps that draw its view.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from difixcli.distillation.prior import Context, Proposal, Round, View
from difixcli.distillation.seeking import bootstrapped, highest_level
from difixcli.novel_views import shown as at_size
from difixcli.novel_views import view_seed
from difixcli.reconstruction import Wanted
from difixcli.scenes.scene import Camera

_PERCEPTUAL = "perceptual"
_LOWEST = 1e-3  # of the levels: none at all would leave the render as it is


class ViewDiffusionPrior:
    """Proposes EFT's pictures first, then for each step that draws a view what diffusion makes of its render.

    Noise follows from the run's seed, the step and the view, so that a stopped run goes on as it would have. An x̂₀ that
    serves further steps is part of the state.
    """

    def __init__(self, context: Context) -> None:
        assert context.novel_views is not None and context.seeking is not None
        self._novel, self._seeking = context.novel_views, context.seeking
        self._seed, self._terms = context.seed, dict(context.terms)
        self._highest = 0.0
        self._cameras: dict[str, list[float]] = {}
        self._made: dict[
            str, dict[str, Any]
        ] = {}  # by view, an x̂₀ in eight bits, its weight, and draws it still serves

    def propose(self, shown: Round) -> Iterator[Proposal | None]:
        seeks = self._seeking.seek != "mean" and shown.number > bootstrapped(shown.rounds)
        self._highest = highest_level(self._seeking, shown.number, shown.rounds)
        self._made = {}
        self._cameras = {view.name: _numbers(view.camera) for view in shown.views}
        for view in shown.views:
            yield self._sought(shown, view) if seeks else self._bootstrap(shown, view)

    def refresh(self, name: str, render: Callable[[], np.ndarray]) -> Wanted:
        camera = _camera(self._cameras[name])
        # global random numbers follow from seed and step; the view's name tells apart what one step draws
        seed = view_seed(int(torch.randint(2**31, ())), name)
        if name not in self._made or not self._made[name]["left"]:
            self._make(name, camera, render(), seed)
        made = self._made[name]
        made["left"] -= 1
        picture = made["picture"].numpy().astype(np.float32) / 255
        return Wanted(at_size(picture, camera), None, weighted(self._terms, made["weight"]))

    def state(self) -> dict[str, Any]:
        return {
            "highest": self._highest,
            "cameras": {name: list(numbers) for name, numbers in self._cameras.items()},
            "made": {name: dict(made) for name, made in self._made.items()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        self._highest = state["highest"]
        self._cameras = {name: list(numbers) for name, numbers in state["cameras"].items()}
        self._made = {name: dict(made) for name, made in state["made"].items()}

    def _bootstrap(self, shown: Round, view: View) -> Proposal:
        picture, render = self._novel.epipolar(view.camera), shown.render(view).color
        return Proposal(
            picture,
            terms=bootstrap_terms(self._terms),
            figures={"change": float(np.abs(picture - render).mean())},
            pictures={"render": render},
        )

    def _sought(self, shown: Round, view: View) -> Proposal:
        """The first x̂₀ of a view in a round is made before it, which is what its picture shows."""
        render = shown.render(view).color
        self._make(view.name, view.camera, render, view_seed(self._seed, f"{view.name}:{shown.number}"))
        made = self._made[view.name]
        image = at_size(made["picture"].numpy().astype(np.float32) / 255, view.camera)
        figures = {
            "change": float(np.abs(image - render).mean()),
            "noise_level": made["level"],
            "mode_weight": made["weight"],
        }
        terms = self._terms
        return Proposal(image, terms=terms, fresh=True, figures=figures, pictures={"render": render})

    def _make(self, name: str, camera: Camera, render: np.ndarray, seed: int) -> None:
        rng = np.random.default_rng(seed)
        level = _LOWEST + (self._highest - _LOWEST) * float(rng.random())
        noise = int(rng.integers(2**31))
        picture, alpha = self._novel.denoised(camera, render, level, noise, self._seeking.steps)
        self._made[name] = {
            # in eight bits at once, so that what a checkpoint holds is what was trained on
            "picture": torch.from_numpy((picture * 255 + 0.5).astype(np.uint8)),
            "weight": mode_weight(self._seeking.seek, alpha),
            "level": level,
            "left": self._seeking.reuse,
        }


def mode_weight(seek: str, alpha: float) -> float:
    """w of a picture that was noised to ᾱ: 1 − ᾱ, or score distillation's √(ᾱ(1 − ᾱ))."""
    return math.sqrt(alpha * (1 - alpha)) if seek == "sds" else 1 - alpha


def weighted(terms: Mapping[str, float], weight: float) -> dict[str, float]:
    """Loss terms with w_t on those that compare pixels."""
    return {name: value if _is_perceptual(name) else value * weight for name, value in terms.items()}


def bootstrap_terms(terms: Mapping[str, float]) -> dict[str, float]:
    """Of the loss terms those that compare pixels; all of them where none does."""
    return {name: value for name, value in terms.items() if not _is_perceptual(name)} or dict(terms)


def _is_perceptual(name: str) -> bool:
    return name.partition(":")[0] == _PERCEPTUAL


def _numbers(camera: Camera) -> list[float]:
    lens = [camera.fx, camera.fy, camera.cx, camera.cy, float(camera.width), float(camera.height)]
    return [*lens, *camera.camera_to_world.ravel().tolist()]


def _camera(numbers: list[float]) -> Camera:
    fx, fy, cx, cy, width, height, *pose = numbers
    return Camera(np.array(pose).reshape(4, 4), fx, fy, cx, cy, int(width), int(height))
