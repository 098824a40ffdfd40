"""A nerfstudio method's pipeline, its optimisers, and one training iteration after another.

What nerfstudio's own trainer does, with pseudo-views beside photos, exact continuation, and random numbers of its
own. Everything here is in the model's world; it knows no scene and no folder.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from difixcli.reconstruction.adoption import fitted
from difixcli.reconstruction.configuration import Recipe, own_settings
from difixcli.reconstruction.further import Further, densify, schedule
from difixcli.reconstruction.methods import has_gaussians, is_splat
from difixcli.reconstruction.objective import final_color, install
from difixcli.reconstruction.patches import NoMetric, no_perceptual_download, on_device, quiet, seeded
from difixcli.reconstruction.seed_depth import SeedRayMixer, SeedRays, seed_depth_loss
from difixcli.reconstruction.surroundings import RandomState
from difixcli.reconstruction.views import PseudoView
from difixcli.scenes.scene import Camera

_PLACEHOLDERS = np.eye(4, 3, dtype=np.float32), np.zeros((4, 3), np.uint8)
"""Gaussians for a splat method to begin with whose own are about to be loaded."""

_ALONE = threading.RLock()
"""Held while a method's code runs, of whichever reconstruction: others render in threads ahead."""

_SAMPLER_COUNTERS = ("_step", "_steps_since_update", "_anneal")
"""What nerfacto's proposal sampler counts outside its parameters: when the proposal networks learn next."""


class Trainer:
    """The method of a recipe, being trained on the photos of the data set that its configuration names.

    `config` is what `configure` made of the recipe. `seeds` are positions (N, 3) and colours (N, 3) for splats to
    begin with (None: they are about to be loaded, or the method has none), `rays` what seed points say about depth
    (None: nothing, or the method does not heed it).

    `warnings` are sentences about what was asked for and cannot be held.
    """

    def __init__(
        self,
        recipe: Recipe,
        config: Any,
        seeds: tuple[np.ndarray, np.ndarray] | None,
        rays: SeedRays | None,
    ) -> None:
        self.config = config
        self.warnings: list[str] = []
        self.step = 0  # iterations that it has done itself
        self._recipe = recipe
        self._pseudo: Any = None
        self._mixer: Any = None
        self.further: Further | None = None
        self._pseudo_order: dict[str, Any] | None = None  # of the views that a loaded run was training on
        self._random = RandomState(recipe.seed)
        self._model_class: type = config.pipeline.model._target
        self._photos_are_held = self._shuffled = False
        self._rays = rays if rays is not None and len(rays.pixels) else None
        if seeds is None and has_gaussians(config):
            seeds = _PLACEHOLDERS
        with self._working(), quiet(), no_perceptual_download(self._model_class):
            self._build(seeds)
        self._built = self._random.state_dict()

    @property
    def renders_rays(self) -> bool:
        """Whether the model is rendered ray by ray (depth along the ray) rather than as an image (z-depth)."""
        from nerfstudio.models.base_model import Model

        return type(self.model).get_outputs_for_camera is Model.get_outputs_for_camera

    def train(
        self,
        iterations: int,
        progress: Callable[[int], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> None:
        """Train for so many further iterations; `progress` is called with how many of them are done.

        It ends after one of them, too, when `stop` says so.
        """
        self._hold_photos()
        with self._working():
            self.pipeline.train()
            for done in range(1, iterations + 1):
                self._iterate(self._recipe.begun + self.step)
                self.step += 1
                if progress is not None:
                    progress(done)
                if stop is not None and stop():
                    return

    def begin_further(self, iterations: int, raised: float) -> None:
        """As `Reconstruction.begin_further_phase`."""
        self._enter(Further(self._recipe.begun + self.step, iterations, raised))

    def _enter(self, further: Further) -> None:
        self.further = further
        rates = {name: held["optimizer"].lr for name, held in self.config.optimizers.items()}
        length = self.config.max_num_iterations
        schedule(further, self._optimizers, rates, length)
        densify(further, self.model, length)

    def render(self, camera: Camera) -> dict[str, Any]:
        """The model's outputs (H, W, ·) at a camera. Training goes on as if nothing had been rendered."""
        from difixcli.reconstruction.pseudo_views import nerfstudio_cameras

        with self._undisturbed(), self._working(), torch.no_grad():
            self.pipeline.eval()
            outputs: dict[str, Any] = self.model.get_outputs_for_camera(
                nerfstudio_cameras([camera]).to(self._torch_device)
            )
        return outputs

    def photo_cameras(self) -> list[Camera]:
        """The training photos' cameras."""
        from difixcli.reconstruction.pseudo_views import own_cameras

        return own_cameras(self.pipeline.datamanager.train_dataset.cameras)

    def set_pseudo_views(self, views: Sequence[PseudoView], photos: Sequence[int], share: float) -> None:
        """Replace the pseudo-views by `views`, each of which borrows the id of the training photo at the position
        `photos` says; `share` is as in `Reconstruction.set_pseudo_views`.
        """
        # as after a load: the same views go on in their order, others begin anew
        held = None if self._pseudo is None else self._pseudo.state
        order, self._pseudo_order = self._pseudo_order or held, None
        self._pseudo = None
        if not views or not share:
            return
        self._hold_photos()
        from difixcli.reconstruction.pseudo_views import PseudoViewSource

        with self._undisturbed(), self._working(), quiet():
            self._pseudo = PseudoViewSource(
                views,
                photos,
                share,
                self.config,
                self.pipeline.datamanager,
                self._torch_device,
                self._recipe.seed,
                self._show,
                order,
            )

    def adopt(self, state: dict[str, Tensor]) -> None:
        """As `Reconstruction.adopt`."""
        with self._working(), quiet():
            self.model.update_to_step(self._recipe.begun)
            self.model.load_state_dict(
                fitted(state, self.model.state_dict(), len(self._recipe.train)),
                strict=True,
            )
            if hasattr(self.model, "step"):
                self.model.step = self._recipe.begun
            self.pipeline.to(self._torch_device)
            self._optimize()
            for scheduler in self._optimizers.schedulers.values():
                for _ in range(self._recipe.begun):
                    scheduler.step()

    def state(self) -> dict[str, Any]:
        """What `restore` takes: nerfstudio's checkpoint, with what exact continuation needs under `difix`.

        Its `step` is the last finished iteration's number, counted from 0.
        """
        from difixcli.reconstruction.pseudo_views import order_of

        extra: dict[str, Any] = {"iterations": self.step, "random": self._random.state_dict()}
        extra["sampler"] = self._sampler_counters()
        extra["photo_order"] = order_of(self.pipeline.datamanager)
        extra["shuffled"] = self._shuffled  # whether reading the photos has drawn its random numbers
        if self._pseudo is not None:
            extra["pseudo_order"] = self._pseudo.state
        if hasattr(self.model, "strategy_state"):
            extra["strategy"] = self.model.strategy_state
        if self.further is not None:
            extra["further"] = asdict(self.further)
        return {
            "step": max(self._recipe.begun + self.step - 1, 0),
            "pipeline": self.pipeline.state_dict(),
            "optimizers": {name: one.state_dict() for name, one in self._optimizers.optimizers.items()},
            "schedulers": {name: one.state_dict() for name, one in self._optimizers.schedulers.items()},
            "scalers": self._scaler.state_dict(),
            "difix": extra,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Be again what `state` told. Raises KeyError where it lacks something, RuntimeError where tensors are of
        other sizes than the model's.
        """
        from difixcli.reconstruction.pseudo_views import restore_order

        extra = state["difix"]
        with self._working(), quiet():
            self.pipeline.load_pipeline(state["pipeline"], state["step"])
            # splatfacto replaces its parameters on loading: optimisers made before would go on with the old ones.
            self._optimize()
            if "further" in extra:
                self._enter(Further(**extra["further"]))
            self._optimizers.load_optimizers(state["optimizers"])
            self._optimizers.load_schedulers(state["schedulers"])
            if state["scalers"]:  # empty where the run trained without one
                self._scaler.load_state_dict(state["scalers"])
        self.step = extra["iterations"]
        if hasattr(self.model, "step"):
            self.model.step = state["step"]
        restore_order(self.pipeline.datamanager, extra["photo_order"])
        self._pseudo_order = extra.get("pseudo_order")
        if "strategy" in extra:
            self.model.strategy_state = {
                key: value.to(self._torch_device) if isinstance(value, Tensor) else value
                for key, value in extra["strategy"].items()
            }
        self._set_sampler_counters(extra["sampler"])
        self._random.load_state_dict(extra["random"])
        self._shuffled = extra.get("shuffled", True)

    def next_train(self, step: int) -> tuple[Any, dict[str, Any]]:
        """The batch of a step: photos, pseudo-views, or rays of both."""
        if self._pseudo is not None and self._pseudo.takes(step):
            source, batch = self._pseudo.image(step)
            return source, batch
        source, batch = self._photos_next(step)
        if self._mixer is not None:
            source, batch = self._mixer.mix(batch)
        if self._pseudo is not None:
            source, batch = self._pseudo.beside(step, source, batch)
        return source, batch

    def _show(self, camera: Camera) -> np.ndarray:
        """What the model shows at a camera in the middle of training, (H, W, 3) float32 RGB in [0, 1]."""
        color = final_color(self.render(camera)).float().clamp(0, 1)
        self.pipeline.train()
        return color.reshape(camera.height, camera.width, 3).cpu().numpy()

    def _build(self, seeds: tuple[np.ndarray, np.ndarray] | None) -> None:
        self._torch_device = "cuda:0" if self._recipe.device == "cuda" else "cpu"
        amp = self._recipe.device == "cuda" and self.config.mixed_precision
        self._autocast = amp
        # Any: nerfstudio's annotations still ask for the scaler's older, deprecated class.
        self._scaler: Any = torch.amp.GradScaler(self._recipe.device, enabled=amp or self.config.use_grad_scaler)
        with seeded(self.config.pipeline.datamanager.dataparser, seeds):
            # "inference" loads no image by itself: held-out photos are not our training's business.
            self.pipeline = self.config.pipeline.setup(
                device=self._torch_device, test_mode="inference", grad_scaler=self._scaler
            )
        self.model = self.pipeline.model
        # the pipeline takes its batches from here
        self._photos_next, self.pipeline.datamanager.next_train = self.pipeline.datamanager.next_train, self.next_train
        extras = []
        if self._rays is not None:
            extras.append(partial(seed_depth_loss, factor=own_settings(self._recipe)["seed_depth_mult"]))
        install(self.model, extras)
        if has_gaussians(self.config):
            from difixcli.reconstruction.bounded_strategy import bound_strategy

            bound = own_settings(self._recipe)["max_gaussians"]
            strategy = getattr(self.model, "strategy", None)
            if not bound_strategy(strategy, bound):
                rule = "" if strategy is None else f" ({type(strategy).__name__})"
                self.warnings.append(
                    f"{self._recipe.method} adds Gaussians by a rule of its own{rule}, which max_gaussians={bound} "
                    "cannot bound; limit it by its own settings."
                )
        if is_splat(self.config) and self._recipe.device == "cpu":
            from difixcli.reconstruction.ssim import CpuSsim

            self.model.ssim = CpuSsim()
            self.model.psnr = NoMetric()  # of every training image; a fiftieth of the step
        self._optimize()

    def _hold_photos(self) -> None:
        """Read the photos when they are first needed, while nerfstudio's progress bars are silent: what only renders
        has no use for them.

        Where rays are drawn, nerfstudio shuffles the photos as it reads them: after a restart into the order that they
        had at first.
        """
        if self._photos_are_held:
            return
        with ExitStack() as stack:
            if self._shuffled:
                stack.enter_context(self._undisturbed())
                self._random.load_state_dict(self._built)
            stack.enter_context(self._working())
            stack.enter_context(quiet())
            manager = self.pipeline.datamanager
            manager.setup_train()
            if hasattr(manager, "cached_train"):
                _ = manager.cached_train
            if self._rays is not None:
                self._mixer = SeedRayMixer(self._rays, manager.train_ray_generator)
        self._photos_are_held = self._shuffled = True

    def _optimize(self) -> None:
        """Optimisers for the parameters that the model has now, and the callbacks that hold on to them."""
        from nerfstudio.engine.callbacks import TrainingCallbackAttributes
        from nerfstudio.engine.optimizers import Optimizers

        from difixcli.reconstruction.adam import CpuOptimizers

        kind = CpuOptimizers if self._recipe.device == "cpu" else Optimizers
        self._optimizers = kind(dict(self.config.optimizers), self.pipeline.get_param_groups())
        self._callbacks = self.pipeline.get_training_callbacks(
            TrainingCallbackAttributes(
                optimizers=self._optimizers, grad_scaler=self._scaler, pipeline=self.pipeline, trainer=None
            )
        )

    def _iterate(self, step: int) -> None:
        """One training iteration, as nerfstudio's trainer does it."""
        from nerfstudio.engine.callbacks import TrainingCallbackLocation

        for callback in self._callbacks:
            callback.run_callback_at_location(step, location=TrainingCallbackLocation.BEFORE_TRAIN_ITERATION)
        every = {group: self.config.gradient_accumulation_steps.get(group, 1) for group in self._optimizers.parameters}
        self._optimizers.zero_grad_some([group for group, count in every.items() if step % count == 0])
        with torch.autocast(self._recipe.device, enabled=self._autocast):
            _, losses, _ = self.pipeline.get_train_loss_dict(step=step)
            loss = torch.stack([torch.as_tensor(value, device=self._torch_device) for value in losses.values()]).sum()
        self._scaler.scale(loss).backward()
        due = [group for group, count in every.items() if step % count == count - 1]
        self._optimizers.optimizer_scaler_step_some(self._scaler, due)
        scale = self._scaler.get_scale()
        self._scaler.update()
        if scale <= self._scaler.get_scale():  # a lowered scale means that the step was skipped
            for scheduler in self._optimizers.schedulers.values():
                scheduler.step()
        for callback in self._callbacks:
            callback.run_callback_at_location(step, location=TrainingCallbackLocation.AFTER_TRAIN_ITERATION)

    def _working(self) -> ExitStack:
        """The surroundings in which the method's code runs, in one thread at a time: they are the whole process's."""
        stack = ExitStack()
        stack.enter_context(_ALONE)
        stack.enter_context(on_device(self._recipe.device, self._model_class))
        stack.enter_context(self._random.active())
        return stack

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """What the block does to random numbers and counters is undone at its end."""
        with _ALONE:
            counters, numbers = self._sampler_counters(), self._random.state_dict()
            try:
                yield
            finally:
                self._set_sampler_counters(counters)
                self._random.load_state_dict(numbers)

    def _sampler_counters(self) -> dict[str, Any]:
        sampler = getattr(self.model, "proposal_sampler", None)
        return {name: getattr(sampler, name) for name in _SAMPLER_COUNTERS if hasattr(sampler, name)}

    def _set_sampler_counters(self, counters: dict[str, Any]) -> None:
        for name, value in counters.items():
            setattr(self.model.proposal_sampler, name, value)
