"""A bound on how many Gaussians there are, whatever strategy a method brings."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gsplat.strategy import DefaultStrategy, MCMCStrategy
from gsplat.strategy.base import Strategy
from gsplat.strategy.ops import duplicate
from nerfstudio.models.splatfacto import SplatfactoModel

from difixcli.reconstruction import Reconstruction
from difixcli.reconstruction.bounded_strategy import bound_strategy
from difixcli.reconstruction.methods import method_config
from difixcli.scenes import load_scene
from difixcli.scenes.scene import Scene


@dataclasses.dataclass
class Doubling(DefaultStrategy):
    """A plug-in's: at every step all Gaussians are doubled beside what gsplat's own rule does."""

    tint: float = 0.25
    doubled: int = 0
    updated: int = 0

    def _update_state(self, *args: Any, **kwargs: Any) -> None:
        super()._update_state(*args, **kwargs)
        self.updated += 1

    def step_post_backward(self, params: Any, optimizers: Any, state: Any, *args: Any, **kwargs: Any) -> None:
        super().step_post_backward(params, optimizers, state, *args, **kwargs)
        duplicate(params, optimizers, state, torch.ones(len(params["means"]), dtype=torch.bool))
        self.doubled += 1


@dataclasses.dataclass
class Unmeasured(DefaultStrategy):
    """A plug-in's that knows no gradients: it doubles all Gaussians where gsplat's would look at them."""

    def initialize_state(self, scene_scale: float = 1.0) -> dict[str, Any]:
        return {}

    def _grow_gs(self, params: Any, optimizers: Any, state: Any, step: int) -> tuple[int, int]:
        duplicate(params, optimizers, state, torch.ones(len(params["means"]), dtype=torch.bool))
        return len(params["means"]) // 2, 0

    def step_post_backward(self, params: Any, optimizers: Any, state: Any, step: int, *_: Any, **__: Any) -> None:
        self._grow_gs(params, optimizers, state, step)


@dataclasses.dataclass
class Constant(Strategy):
    """Neither of gsplat's kinds: it adds one Gaussian at every step."""

    def initialize_state(self) -> dict[str, Any]:
        return {}

    def step_post_backward(self, params: Any, optimizers: Any, state: Any, *_: Any, **__: Any) -> None:
        mask = torch.zeros(len(params["means"]), dtype=torch.bool)
        mask[0] = True
        duplicate(params, optimizers, state, mask)


class OwnSplats(SplatfactoModel):
    """Splatfacto with another strategy."""

    strategy_class: type = Doubling

    def populate_modules(self) -> None:
        super().populate_modules()
        if self.strategy_class is Constant:
            self.strategy = Constant()
            self.strategy.absgrad = False  # splatfacto asks for it
            self.strategy_state = self.strategy.initialize_state()
        else:
            shared = {field.name: getattr(self.strategy, field.name) for field in dataclasses.fields(DefaultStrategy)}
            self.strategy = self.strategy_class(**shared, tint=0.75)


class ConstantSplats(OwnSplats):
    strategy_class = Constant


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, type]]:
    """Two methods as an installed plug-in would add them to nerfstudio's registry."""
    from nerfstudio.configs.method_configs import all_methods

    models = {"test-doubling": OwnSplats, "test-constant": ConstantSplats}
    for name, model in models.items():
        config = copy.deepcopy(method_config("splatfacto"))
        config.method_name, config.pipeline.model._target = name, model
        monkeypatch.setitem(all_methods, name, config)
    yield models


@pytest.fixture(scope="module")
def scene(shared_scenes: Path) -> Scene:
    scene = load_scene(shared_scenes / "fountain_p11", size=32)
    return dataclasses.replace(scene, points=scene.points[:60], colors=scene.colors[:60], tracks=None)


def create(scene: Scene, folder: Path, method: str) -> Reconstruction:
    return Reconstruction.create(
        scene,
        [0, 2, 4, 6],
        method=method,
        folder=folder,
        preset="cpu",
        device="cpu",
        iterations=100,
        overrides=["max_gaussians=300", "pipeline.model.warmup_length=3", "pipeline.model.refine_every=10"],
    )


def test_a_plugins_strategy_is_kept_and_bounded(registered: dict[str, type], scene: Scene, tmp_path: Path) -> None:
    made = create(scene, tmp_path / "run", "test-doubling")
    strategy = made._trainer.model.strategy
    assert isinstance(strategy, Doubling) and strategy.tint == 0.75 and strategy.refine_every == 10
    assert not made.warnings
    counts = []
    for _ in range(8):
        made.train(2)
        counts.append(made.gaussians)
    assert strategy.doubled == strategy.updated == 16 and max(counts) == 300 and counts[0] > 100
    assert len(made._trainer._optimizers.optimizers["means"].param_groups[0]["params"][0]) == counts[-1]
    made.save()
    made.train(3)
    again = Reconstruction.load(tmp_path / "run", scene)
    again.train(3)
    camera = scene.frames[1].camera
    assert (again.render(camera).color == made.render(camera).color).all()


def test_the_least_opaque_are_cut_back() -> None:
    values = {"means": torch.rand(40, 3), "opacities": torch.linspace(-3, 3, 40)}
    params = torch.nn.ParameterDict({name: torch.nn.Parameter(value) for name, value in values.items()})
    optimizers = {name: torch.optim.Adam([param]) for name, param in params.items()}
    for param in params.values():
        param.grad = torch.ones_like(param)
    for optimizer in optimizers.values():
        optimizer.step()
    strategy = Unmeasured()
    assert bound_strategy(strategy, 60) and isinstance(strategy, Unmeasured)
    most = params["opacities"].detach().repeat(2).sort().values[-60:]
    strategy.step_post_backward(params, optimizers, strategy.initialize_state(), 1)
    assert torch.equal(params["opacities"].detach().sort().values, most)
    strategy.step_post_backward(params, optimizers, strategy.initialize_state(), 2)
    assert len(params["means"]) == 60


def test_the_markov_chain_is_bounded_by_its_own_cap() -> None:
    strategy = MCMCStrategy(cap_max=5000, noise_lr=3.0, verbose=True)
    assert bound_strategy(strategy, 700) and type(strategy) is MCMCStrategy
    assert (strategy.cap_max, strategy.noise_lr, strategy.verbose) == (700, 3.0, False)
    assert bound_strategy(strategy, 900) and strategy.cap_max == 700


def test_what_cannot_be_bounded_is_left_alone_and_said(
    registered: dict[str, type], scene: Scene, tmp_path: Path
) -> None:
    made = create(scene, tmp_path / "run", "test-constant")
    assert type(made._trainer.model.strategy) is Constant
    [warning] = made.warnings
    assert "max_gaussians=300" in warning and "Constant" in warning and "\n" not in warning
    begun = made.gaussians
    made.train(3)
    assert made.gaussians == begun + 3
