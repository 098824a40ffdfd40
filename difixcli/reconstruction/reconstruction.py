"""One trained nerfstudio method: create, train, render, save, load.

A run's folder is a normal nerfstudio run:

    config.yml                          for ns-eval, ns-viewer, ns-export; never read by us (its loader runs code)
    dataparser_transforms.json          the identity: the data set is in the model's world
    nerfstudio_models/step-N.ckpt       the latest checkpoint
    scene/                              its photos as a pinhole nerfstudio data set in the model's world, which is the
                                        scene's normalised one unless a field was begun from another run
    reconstruction.json                 what it was created with; loading rebuilds the method from this
    seed_rays.npz                       with radiance fields on the cpu preset: what the seed points say about depth
"""

from __future__ import annotations

import copy
import dataclasses
import gc
import random
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from difixcli.errors import InputError
from difixcli.reconstruction.checkpoints import latest_checkpoint, read_checkpoint, write_checkpoint
from difixcli.reconstruction.configuration import (
    Recipe,
    check_device,
    configure,
    heeds_seed_depth,
    measure_extent,
    own_settings,
    reads_depth,
    seeded,
)
from difixcli.reconstruction.dataset import write_dataset
from difixcli.reconstruction.presets import SEED_GAUSSIANS, is_splat
from difixcli.reconstruction.surroundings import RandomState, no_perceptual_download, on_device, quiet
from difixcli.reconstruction.views import PseudoView, Render, as_render
from difixcli.runs import atomic, make_folder, read_json, write_json
from difixcli.scenes import nearest_cameras
from difixcli.scenes.poses import apply_similarity, transform_points
from difixcli.scenes.scene import Camera, Scene

_SEED_RAYS = "seed_rays.npz"

_PLACEHOLDERS = np.eye(4, 3, dtype=np.float32), np.zeros((4, 3), np.uint8)
"""Gaussians for a splat method to begin with whose own are about to be loaded."""

_SAMPLER_COUNTERS = ("_step", "_steps_since_update", "_anneal")
"""What nerfacto's proposal sampler counts outside its parameters: when the proposal networks learn next."""


@dataclass(frozen=True, eq=False)
class Origin:
    """A trained model that a reconstruction begins from.

    `settings` are fields of the method's configuration that describe it, `world` is the (4, 4) similarity from the
    scene's normalised world into its own, `box` half the side of the cube its field ends at (None: it does not).
    `state` is its state dict; how what was learned photo by photo is taken over, `Reconstruction.adopt` says.
    """

    settings: dict[str, Any]
    world: np.ndarray
    box: float | None
    state: dict[str, Tensor]


class Reconstruction:
    """A nerfstudio method being trained on some of a scene's photos.

    Made by `create`, `load` or `start_from`. Everything that goes in and comes out is in the scene's normalised world.
    Training draws from random generators of
    its own, so what happens between two calls changes nothing, and the same seed gives the same result on the same
    machine (on CUDA as far as the method's kernels are deterministic).
    """

    def __init__(self, recipe: Recipe, folder: Path, seeds: tuple[np.ndarray, np.ndarray] | None) -> None:
        self.folder = folder
        self.step = 0
        self.warnings: list[str] = []
        self._described = False
        self._to_model = recipe.model_from_scene
        self._scale = float(np.cbrt(np.linalg.det(self._to_model[:3, :3])))
        self._recipe = recipe
        self._pseudo: Any = None
        self._mixer: Any = None
        self._pseudo_order: dict[str, Any] | None = None  # of the views that a loaded run was training on
        self._share = 0.0
        self._random = RandomState(recipe.seed)
        self._config = configure(recipe, folder)
        self._model_class: type = self._config.pipeline.model._target
        if seeds is None and is_splat(self._config):
            seeds = _PLACEHOLDERS
        with self._working(), quiet(), no_perceptual_download(self._model_class):
            self._build(seeds)

    @classmethod
    def create(
        cls,
        scene: Scene,
        train: Sequence[int],
        *,
        method: str,
        folder: Path,
        preset: str,
        device: str,
        iterations: int,
        overrides: Sequence[str] = (),
        seed: int = 0,
        origin: Origin | None = None,
        unseen: Collection[int] = (),
    ) -> Reconstruction:
        """Set up a new run of `method` in `folder`, trained on the frames `train` of the scene.

        `preset` is `cpu` or `gpu`, `device` `cpu` or `cuda`. `iterations` is the length of the whole schedule, to which
        learning rates and densification are fitted; training may stop short of it or go beyond. `overrides` are
        settings `a.b.c=value` of the method's configuration, and of our own: `max_gaussians=N` bounds splats, and
        `seed_depth_mult=F` weighs what seed points say about depth in nerfacto's loss (0: not at all).

        With an `origin` the model is that one, in the world it was trained in, and its training counts as the first
        half of a schedule of twice the `iterations`: no warm-up, no coarse beginning, learning rates half way down.

        `unseen` are training frames that are going to be held back (`hold_back`): splats do not begin with their
        colours.

        Raises InputError for an unknown method, preset or setting, no training frames, fewer than one iteration, a
        folder that cannot be written, CUDA where there is none, and an origin that the method cannot take up.
        """
        if not train:
            raise InputError("No frame is left to train on; choose another --split.")
        if iterations < 1:
            raise InputError(f"{iterations} iterations train nothing; ask for at least 1.")
        train = sorted(train)
        recipe = Recipe(
            method=method,
            preset=preset,
            device=device,
            iterations=iterations,
            overrides=list(overrides),
            seed=seed,
            frames=[frame.name for frame in scene.frames],
            train=train,
            cameras=[scene.frames[i].camera.camera_to_world.tolist() for i in train],
            near=None,
        )
        if origin is not None:
            recipe = replace(
                recipe, settings=origin.settings, world=origin.world.tolist(), box=origin.box, begun=iterations
            )
            scene = _moved(scene, origin.world)
        extent = measure_extent([scene.frames[i].camera for i in train], scene.points)
        if extent is not None:
            recipe = replace(recipe, near=extent.near, far=extent.far)
        folder = Path(folder).expanduser().absolute()
        config = configure(recipe, folder)  # its errors come before anything is written
        check_device(device, config)
        make_folder(folder)
        write_dataset(scene, train, folder / "scene", depths=reads_depth(config))
        seeds = None
        if origin is None and is_splat(config):
            from difixcli.reconstruction.seeding import seed_gaussians

            count = min(SEED_GAUSSIANS[preset], own_settings(recipe)["max_gaussians"])
            seeds = seed_gaussians(scene, [i for i in train if i not in unseen], count, seed)
        if heeds_seed_depth(config, recipe) and len(scene.points):
            from difixcli.reconstruction.seed_depth import SeedRays

            SeedRays.of(scene, train).save(folder / _SEED_RAYS)
        made = cls(recipe, folder, seeds)
        if origin is not None:
            made.adopt(origin.state)
        made._describe()
        write_json(folder / "reconstruction.json", asdict(recipe))
        return made

    @classmethod
    def load(
        cls,
        folder: Path,
        scene: Scene | None = None,
        train: Sequence[int] | None = None,
        device: str | None = None,
    ) -> Reconstruction:
        """Take up a saved run where its last checkpoint left it, on `device` or else the one it was trained on.

        Nothing is written. With `scene`, it is checked to be the one the run was made from, and with `train` (indices
        of frames) the split to be the one it trains on: trained on, its test views would be photos it has seen. Raises
        InputError if the folder holds no reconstruction, its checkpoint is damaged, scene or split are others, or the
        device is absent or none that the method's networks run on.
        """
        folder = Path(folder).expanduser().absolute()
        held = read_json(folder / "reconstruction.json")
        try:
            recipe = Recipe(**held)
        except TypeError:
            raise InputError(f"{folder / 'reconstruction.json'} was written by another version; train again.") from None
        if scene is not None and [frame.name for frame in scene.frames] != recipe.frames:
            raise InputError(f"{folder} was made from other photos than those of {scene.root}; name its own scene.")
        if train is not None and sorted(train) != recipe.train:
            raise InputError(f"{folder} trains on other photos than this split says; restore the split or train anew.")
        recipe = replace(recipe, device=device or recipe.device)
        check_device(recipe.device, configure(recipe, folder))
        checkpoint = latest_checkpoint(folder)
        state = read_checkpoint(checkpoint)
        loaded = cls(recipe, folder, None)
        try:
            loaded._restore(state)
        except KeyError as error:
            raise InputError(f"{checkpoint} was written by another version (it has no {error}); train again.") from None
        except RuntimeError as error:
            if recipe.device == held["device"]:
                raise
            raise InputError(
                f"{folder} was trained on {held['device']} with networks that {recipe.device} does not have; "
                f"use --device {held['device']}."
            ) from error
        return loaded

    def go_back(self) -> None:
        """Be again what the folder's latest checkpoint holds, as if loaded anew.

        The model in memory is given up first: two of them may be more than there is room for.
        """
        recipe, folder = self._recipe, self.folder
        vars(self).clear()
        gc.collect()  # methods and their callbacks hold on to each other
        if recipe.device == "cuda":
            torch.cuda.empty_cache()
        Reconstruction.__init__(self, recipe, folder, None)
        self._restore(read_checkpoint(latest_checkpoint(folder)))

    @property
    def method(self) -> str:
        """The method's name in nerfstudio's registry."""
        return self._recipe.method

    @property
    def device(self) -> str:
        """Where it is trained and rendered, `cpu` or `cuda`."""
        return self._recipe.device

    @property
    def train_frames(self) -> list[int]:
        """Indices, among the scene's frames, of the photos it trains on; sorted."""
        return list(self._recipe.train)

    @property
    def gaussians(self) -> int | None:
        """How many Gaussians a splat method has at the moment; None for others."""
        return len(self._model.means) if is_splat(self._config) else None

    def train(self, iterations: int, progress: Callable[[int], None] | None = None) -> None:
        """Train for so many further iterations; `progress` is called with how many of them are done."""
        with self._working():
            self._pipeline.train()
            for done in range(1, iterations + 1):
                self._iterate(self._recipe.begun + self.step)
                self.step += 1
                if progress is not None:
                    progress(done)

    def render(self, camera: Camera) -> Render:
        """Render one view."""
        return next(self.render_all([camera]))

    def render_all(self, cameras: Sequence[Camera]) -> Iterator[Render]:
        """Render views one after another; only one is held at a time. Training goes on as if none had been."""
        from difixcli.reconstruction.pseudo_views import nerfstudio_cameras

        for camera in cameras:
            with self._undisturbed(), self._working(), torch.no_grad():
                self._pipeline.eval()
                inside = nerfstudio_cameras([self._in_model(camera)])
                outputs = self._model.get_outputs_for_camera(inside.to(self._torch_device))
                render = as_render(outputs, camera, self._renders_rays, self._scale)
            yield render

    def set_pseudo_views(self, views: Sequence[PseudoView], share: float) -> None:
        """Replace the pseudo-views by `views` (none: train on photos alone).

        `share` says how much they count. A method that trains on whole images draws a pseudo-view with this
        probability, decided by seed and step, and else a photo. A method that trains on rays gets this many of them
        for each ray of a photo, in every batch.
        Given the same views again right after a `load`, training goes on with them exactly as it would have.
        Raises InputError for an image or weight that is missing or of another size than its camera, a share outside
        [0, 1], or an index that is none of the scene's frames.
        """
        if not 0 <= share <= 1:
            raise InputError(f"The share {share} of pseudo-views is not between 0 and 1.")
        for view in views:
            for file in (view.image, view.weight):
                if file is not None:
                    _check_size(file, view.camera)
            if not 0 <= view.nearest < len(self._recipe.frames):
                raise InputError(f"A pseudo-view names frame {view.nearest} of {len(self._recipe.frames)} as nearest.")
        order, self._pseudo_order = self._pseudo_order, None
        self._pseudo, self._share = None, share
        if not views or not share:
            return
        from difixcli.reconstruction.pseudo_views import PseudoViewSource

        with self._undisturbed(), self._working(), quiet():
            self._pseudo = PseudoViewSource(
                [replace(view, camera=self._in_model(view.camera)) for view in views],
                [self._photo_for(view) for view in views],
                share,
                self._config.pipeline.datamanager,
                self._pipeline.datamanager,
                self._torch_device,
                order,
            )

    def hold_back(self, frames: Sequence[int]) -> None:
        """Draw none of these training photos (indices of the scene's frames) from now on; none of them: draw all.

        Which photos are held back is not saved: say it again right after a `load`, and training goes on exactly as it
        would have. Raises InputError where none would be left, or the method draws photos in a way of its own.
        """
        held = {self._recipe.train.index(frame) for frame in frames}
        if len(held) == len(self._recipe.train):
            raise InputError("Every training photo would be held back; leave two at least.")
        from difixcli.reconstruction.held_back import draw_without

        with self._undisturbed(), self._working(), quiet():
            if not draw_without(self._pipeline.datamanager, held):
                raise InputError(f"{self.method} draws photos in a way of its own; use --holdout 0 with it.")
        if self._mixer is not None:
            self._mixer.leave_out(held)

    def save(self) -> Path:
        """Write a checkpoint, whole or not at all, remove older ones, and return its path.

        It is nerfstudio's checkpoint (its `step` is the last finished iteration's number, counted from 0) with what
        exact continuation needs under `difix`. It holds nothing but tensors and plain values, so that loading it
        needs no trust. What nerfstudio's own tools open the run by is written, too, where the folder was moved or
        copied since.
        """
        from difixcli.reconstruction.pseudo_views import order_of

        extra: dict[str, Any] = {"iterations": self.step, "random": self._random.state_dict()}
        extra["sampler"] = self._sampler_counters()
        extra["photo_order"] = order_of(self._pipeline.datamanager)
        if self._pseudo is not None:
            extra["pseudo_order"] = self._pseudo.state
        if hasattr(self._model, "strategy_state"):
            extra["strategy"] = self._model.strategy_state
        state = {
            "step": max(self._recipe.begun + self.step - 1, 0),
            "pipeline": self._pipeline.state_dict(),
            "optimizers": {name: one.state_dict() for name, one in self._optimizers.optimizers.items()},
            "schedulers": {name: one.state_dict() for name, one in self._optimizers.schedulers.items()},
            "scalers": self._scaler.state_dict(),
            "difix": extra,
        }
        if not self._described:
            self._describe()
        target = self.folder / self._config.relative_model_dir / f"step-{state['step']:09d}.ckpt"
        write_checkpoint(state, target, self.folder)
        return target

    def export(self, path: Path) -> Path:
        """Write the model as a PLY file in the scene's normalised world, and return its path.

        Splats are written as the Gaussians that splat viewers read; of other methods the surfaces that the training
        photos' cameras see are written as coloured points.
        """
        if is_splat(self._config):
            from difixcli.reconstruction.gaussians import Gaussians

            Gaussians.of_model(self._model).write(Path(path))
            return Path(path)
        from difixcli.reconstruction.export import write_point_cloud

        cameras = [self._out_of_model(camera) for camera in self._photo_cameras()]
        return write_point_cloud(self.render_all(cameras), cameras, Path(path))

    def adopt(self, state: dict[str, Tensor]) -> None:
        """Take over another model's parameters; optimisers begin anew, at the place of the schedule that is reached.

        Of parameters that the other model learned photo by photo (appearance embeddings, bilateral grids) every photo
        gets the mean: its photos are not ours. What only training or its figures need is left out. Raises InputError
        where the parameters do not fit the method.
        """
        with self._working(), quiet():
            self._model.update_to_step(self._recipe.begun)
            wanted = self._model.state_dict()
            fitted = _fitted(state, wanted, len(self._recipe.train))
            self._model.load_state_dict(fitted, strict=True)
            if hasattr(self._model, "step"):
                self._model.step = self._recipe.begun
            self._pipeline.to(self._torch_device)
            self._optimize()
            for scheduler in self._optimizers.schedulers.values():
                for _ in range(self._recipe.begun):
                    scheduler.step()

    def _working(self) -> ExitStack:
        """The surroundings in which the method's code runs."""
        stack = ExitStack()
        stack.enter_context(on_device(self._recipe.device, self._model_class))
        stack.enter_context(self._random.active())
        return stack

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """What the block does to random numbers and counters is undone at its end."""
        counters, numbers = self._sampler_counters(), self._random.state_dict()
        try:
            yield
        finally:
            self._set_sampler_counters(counters)
            self._random.load_state_dict(numbers)

    def _sampler_counters(self) -> dict[str, Any]:
        sampler = getattr(self._model, "proposal_sampler", None)
        return {name: getattr(sampler, name) for name in _SAMPLER_COUNTERS if hasattr(sampler, name)}

    def _set_sampler_counters(self, counters: dict[str, Any]) -> None:
        for name, value in counters.items():
            setattr(self._model.proposal_sampler, name, value)

    def _describe(self) -> None:
        """Write what nerfstudio's own tools open the run by."""
        import yaml

        from difixcli.reconstruction.opening import openable

        manager = self._pipeline.datamanager
        manager.train_dataparser_outputs.save_dataparser_transform(self.folder / "dataparser_transforms.json")
        config = openable(self._config) if self._recipe.device == "cpu" else copy.copy(self._config)
        config.pipeline = _as_written(config.pipeline)
        # ns-viewer keeps its log here, and makes no folder for it
        self._config.get_base_dir().mkdir(parents=True, exist_ok=True)
        with atomic(self.folder / "config.yml") as temporary:
            temporary.write_text(yaml.dump(config), encoding="utf-8")
        self._described = True

    def _build(self, seeds: tuple[np.ndarray, np.ndarray] | None) -> None:
        from difixcli.reconstruction.pseudo_views import weigh_targets

        self._torch_device = "cuda:0" if self._recipe.device == "cuda" else "cpu"
        amp = self._recipe.device == "cuda" and self._config.mixed_precision
        self._autocast = amp
        # Any: nerfstudio's annotations still ask for the scaler's older, deprecated class.
        self._scaler: Any = torch.amp.GradScaler(self._recipe.device, enabled=amp or self._config.use_grad_scaler)
        with seeded(self._config.pipeline.datamanager.dataparser, seeds):
            # "inference" loads no image by itself: held-out photos are not our training's business.
            self._pipeline = self._config.pipeline.setup(
                device=self._torch_device, test_mode="inference", grad_scaler=self._scaler
            )
        manager = self._pipeline.datamanager
        manager.setup_train()
        if hasattr(manager, "cached_train"):
            _ = manager.cached_train  # loads the photos now, while nerfstudio's progress bars are silent
        self._photos_next = manager.next_train
        manager.next_train = self._next_train
        self._model = self._pipeline.model
        self._model.get_loss_dict = weigh_targets(self._model.get_loss_dict)
        if heeds_seed_depth(self._config, self._recipe) and (self.folder / _SEED_RAYS).is_file():
            from difixcli.reconstruction.seed_depth import SeedRayMixer, SeedRays, heed_seed_depth

            rays = SeedRays.load(self.folder / _SEED_RAYS)
            if len(rays.pixels):
                factor = own_settings(self._recipe)["seed_depth_mult"]
                self._mixer = SeedRayMixer(rays, manager.train_ray_generator)
                self._model.get_loss_dict = heed_seed_depth(self._model.get_loss_dict, factor)
        if is_splat(self._config):
            from difixcli.reconstruction.bounded_strategy import BoundedStrategy
            from difixcli.reconstruction.ssim import CpuSsim

            bound = own_settings(self._recipe)["max_gaussians"]
            self._model.strategy = BoundedStrategy.like(self._model.strategy, bound)
            if self._recipe.device == "cpu":
                self._model.ssim = CpuSsim()
        self._optimize()

    def _optimize(self) -> None:
        """Optimisers for the parameters that the model has now, and the callbacks that hold on to them."""
        from nerfstudio.engine.callbacks import TrainingCallbackAttributes
        from nerfstudio.engine.optimizers import Optimizers

        self._optimizers = Optimizers(dict(self._config.optimizers), self._pipeline.get_param_groups())
        self._callbacks = self._pipeline.get_training_callbacks(
            TrainingCallbackAttributes(
                optimizers=self._optimizers, grad_scaler=self._scaler, pipeline=self._pipeline, trainer=None
            )
        )

    def _in_model(self, camera: Camera) -> Camera:
        """A camera of the scene's normalised world in the model's."""
        return camera.moved(apply_similarity(self._to_model, camera.camera_to_world))

    def _out_of_model(self, camera: Camera) -> Camera:
        return camera.moved(apply_similarity(np.linalg.inv(self._to_model), camera.camera_to_world))

    def _photo_cameras(self) -> list[Camera]:
        """The training photos' cameras, in the model's world."""
        from difixcli.reconstruction.pseudo_views import own_cameras

        return own_cameras(self._pipeline.datamanager.train_dataset.cameras)

    @property
    def _renders_rays(self) -> bool:
        """Whether the model is rendered ray by ray (depth along the ray) rather than as an image (z-depth)."""
        from nerfstudio.models.base_model import Model

        return type(self._model).get_outputs_for_camera is Model.get_outputs_for_camera

    def _next_train(self, step: int) -> tuple[Any, dict[str, Any]]:
        """The batch of a step; where whole images are drawn, seed and step alone decide which kind it is."""
        if self._pseudo is not None and not self._pseudo.draws_rays:
            draw = random.Random(f"{self._recipe.seed}:{step}").random()
            if draw < self._share:
                return self._pseudo.next_train(step)
        source, batch = self._photos_next(step)
        if self._mixer is not None:
            source, batch = self._mixer.mix(batch)
        if self._pseudo is not None and self._pseudo.draws_rays:
            source, batch = self._pseudo.beside(step, source, batch)
        return source, batch

    def _iterate(self, step: int) -> None:
        """One training iteration, as nerfstudio's trainer does it."""
        from nerfstudio.engine.callbacks import TrainingCallbackLocation

        for callback in self._callbacks:
            callback.run_callback_at_location(step, location=TrainingCallbackLocation.BEFORE_TRAIN_ITERATION)
        every = {group: self._config.gradient_accumulation_steps.get(group, 1) for group in self._optimizers.parameters}
        self._optimizers.zero_grad_some([group for group, count in every.items() if step % count == 0])
        with torch.autocast(self._recipe.device, enabled=self._autocast):
            _, losses, _ = self._pipeline.get_train_loss_dict(step=step)
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

    def _restore(self, state: dict[str, Any]) -> None:
        from difixcli.reconstruction.pseudo_views import restore_order

        extra = state["difix"]
        with self._working(), quiet():
            self._pipeline.load_pipeline(state["pipeline"], state["step"])
            # splatfacto replaces its parameters on loading: optimisers made before would go on with the old ones.
            self._optimize()
            self._optimizers.load_optimizers(state["optimizers"])
            self._optimizers.load_schedulers(state["schedulers"])
            if state["scalers"]:  # empty where the run trained without one
                self._scaler.load_state_dict(state["scalers"])
        self.step = extra["iterations"]
        if hasattr(self._model, "step"):
            self._model.step = state["step"]
        restore_order(self._pipeline.datamanager, extra["photo_order"])
        self._pseudo_order = extra.get("pseudo_order")
        if "strategy" in extra:
            self._model.strategy_state = {
                key: value.to(self._torch_device) if isinstance(value, Tensor) else value
                for key, value in extra["strategy"].items()
            }
        self._set_sampler_counters(extra["sampler"])
        self._random.load_state_dict(extra["random"])

    def _photo_for(self, view: PseudoView) -> int:
        """The position, among the training photos, of the photo a pseudo-view borrows its id from."""
        if view.nearest in self._recipe.train:
            return self._recipe.train.index(view.nearest)
        photos = [view.camera.moved(np.array(pose)) for pose in self._recipe.cameras]
        return nearest_cameras(view.camera, photos, 1)[0]


def _check_size(file: Path, camera: Camera) -> None:
    """InputError for an image file that is missing, broken or of another size than its camera."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            size = image.size
    except (OSError, UnidentifiedImageError):
        raise InputError(f"The pseudo-view {file} cannot be read as an image; run distill with --force.") from None
    if size != (camera.width, camera.height):
        raise InputError(
            f"The pseudo-view {file} is {size[0]}×{size[1]}, not of its camera's size {camera.width}×{camera.height}."
        )


def _as_written(config: Any) -> Any:
    """A copy of a configuration with plain values where nerfstudio's managers have left tensors in it: their YAML
    form would be code.
    """
    changed = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, Tensor):
            changed[field.name] = value.tolist()
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            changed[field.name] = _as_written(value)
    written = copy.copy(config)
    for name, value in changed.items():
        setattr(written, name, value)
    return written


def _moved(scene: Scene, world: np.ndarray) -> Scene:
    """The scene after a (4, 4) similarity of its world."""
    frames = [
        replace(frame, camera=frame.camera.moved(apply_similarity(world, frame.camera.camera_to_world)))
        for frame in scene.frames
    ]
    return replace(scene, frames=frames, points=transform_points(world, scene.points))


_PER_PHOTO = ("camera_optimizer.", "bil_grids.")
_APPEARANCE = "embedding_appearance."
_NOT_LEARNED = ("device_indicator_param", "lpips.", "psnr.", "ssim.")


def _fitted(state: dict[str, Tensor], wanted: dict[str, Tensor], photos: int) -> dict[str, Tensor]:
    """The entries of `state` that a model with the entries `wanted` takes; InputError where they are others."""
    fitted = {}
    for key, own in wanted.items():
        found = state.get(key)
        if found is None and key.startswith((*_PER_PHOTO, *_NOT_LEARNED)):
            fitted[key] = own
            continue
        by_photo = key.startswith(_PER_PHOTO) or _APPEARANCE in key
        if found is not None and (found.shape != own.shape or by_photo):
            alike = own.ndim > 0 and found.shape[1:] == own.shape[1:]
            if alike and len(own) == photos and not key.startswith("gauss_params."):
                found = found.float().mean(dim=0, keepdim=True).to(found.dtype).expand(own.shape).clone()
            elif found.shape != own.shape and (not alike or not key.startswith("gauss_params.")):
                found = None
        if found is None:
            raise InputError(
                f"The checkpoint does not fit its method ({key} is missing or of another size): it was trained with "
                "other networks (such as tiny-cuda-nn's, which only a GPU has) or with another version."
            )
        fitted[key] = found
    for key in state.keys() - wanted.keys():
        if not key.startswith((*_PER_PHOTO, *_NOT_LEARNED)):
            raise InputError(f"The checkpoint has {key}, which its method has no place for; train anew.")
    return fitted
