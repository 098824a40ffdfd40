"""One trained nerfstudio method: create, train, render, save, load.

A run's folder is a normal nerfstudio run:

    config.yml                          for ns-eval, ns-viewer, ns-export; never read by us (its loader runs code)
    dataparser_transforms.json          the identity: the run's world is the normalised one
    nerfstudio_models/step-N.ckpt       the latest checkpoint
    scene/                              its photos as a pinhole nerfstudio data set in the normalised world
    reconstruction.json                 what it was created with; loading rebuilds the method from this
    seed_rays.npz                       with radiance fields on the cpu preset: what the seed points say about depth
"""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from difixcli.errors import InputError
from difixcli.reconstruction.dataset import write_dataset
from difixcli.reconstruction.methods import method_config
from difixcli.reconstruction.overrides import apply_overrides
from difixcli.reconstruction.presets import OWN_SETTINGS, SEED_GAUSSIANS, apply_preset, is_splat
from difixcli.reconstruction.surroundings import RandomState, no_perceptual_download, on_device, quiet
from difixcli.reconstruction.views import PseudoView, Render
from difixcli.runs import atomic, make_folder, read_json, write_json
from difixcli.scenes import nearest_cameras
from difixcli.scenes.scene import Camera, Scene
from difixcli.torchvision_cure import cure

_NOTHING = 0.05
"""Rays with less accumulated opacity than this have no depth."""

_SEED_RAYS = "seed_rays.npz"

_SAMPLER_COUNTERS = ("_step", "_steps_since_update", "_anneal")
"""What nerfacto's proposal sampler counts outside its parameters: when the proposal networks learn next."""


@dataclass(frozen=True)
class _Recipe:
    """What a reconstruction was created with: `reconstruction.json`."""

    method: str
    preset: str
    device: str
    iterations: int
    overrides: list[str]
    seed: int
    frames: list[str]
    train: list[int]
    cameras: list[list[list[float]]]  # camera-to-world of the training photos
    near: float | None  # where sampling along rays begins, known from the seed points


class Reconstruction:
    """A nerfstudio method being trained on some of a scene's photos.

    Made by `create` or `load`. Everything is in the scene's normalised world. Training draws from random generators of
    its own, so what happens between two calls changes nothing, and the same seed gives the same result on the same
    machine (on CUDA as far as the method's kernels are deterministic).
    """

    def __init__(self, recipe: _Recipe, folder: Path, seeds: tuple[np.ndarray, np.ndarray] | None) -> None:
        self.folder = folder
        self.step = 0
        self._recipe = recipe
        self._pseudo: Any = None
        self._mixer: Any = None
        self._pseudo_order: dict[str, Any] | None = None  # of the views that a loaded run was training on
        self._share = 0.0
        self._random = RandomState(recipe.seed)
        self._config = _configure(recipe, folder)
        self._model_class: type = self._config.pipeline.model._target
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
    ) -> Reconstruction:
        """Set up a new run of `method` in `folder`, trained on the frames `train` of the scene.

        `preset` is `cpu` or `gpu`, `device` `cpu` or `cuda`. `iterations` is the length of the whole schedule, to which
        learning rates and densification are fitted; training may stop short of it or go beyond. `overrides` are
        settings `a.b.c=value` of the method's configuration, and of our own: `max_gaussians=N` bounds splats, and
        `seed_depth_mult=F` weighs what seed points say about depth in nerfacto's loss (0: not at all).

        Raises InputError for an unknown method, preset or setting, no training frames, fewer than one iteration, a
        folder that cannot be written, and CUDA where there is none.
        """
        if not train:
            raise InputError("No frame is left to train on; choose another --split.")
        if iterations < 1:
            raise InputError(f"{iterations} iterations train nothing; ask for at least 1.")
        train = sorted(train)
        recipe = _Recipe(
            method=method,
            preset=preset,
            device=device,
            iterations=iterations,
            overrides=list(overrides),
            seed=seed,
            frames=[frame.name for frame in scene.frames],
            train=train,
            near=_nearest_surface([scene.frames[i].camera for i in train], scene.points),
            cameras=[scene.frames[i].camera.camera_to_world.tolist() for i in train],
        )
        folder = Path(folder).expanduser().absolute()
        config = _configure(recipe, folder)  # its errors come before anything is written
        _check_device(device, config)
        make_folder(folder)
        write_dataset(scene, train, folder / "scene")
        seeds = None
        if is_splat(config):
            from difixcli.reconstruction.seeding import seed_gaussians

            count = min(SEED_GAUSSIANS[preset], _own_settings(recipe)["max_gaussians"])
            seeds = seed_gaussians(scene, train, count, seed)
        if _heeds_seed_depth(config, recipe) and len(scene.points):
            from difixcli.reconstruction.seed_depth import SeedRays

            SeedRays.of(scene, train).save(folder / _SEED_RAYS)
        made = cls(recipe, folder, seeds)
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

        With `scene`, it is checked to be the one the run was made from, and with `train` (indices of frames) the split
        to be the one it trains on: trained on, its test views would be photos it has seen. Raises InputError if the
        folder holds no reconstruction, its checkpoint is damaged, scene or split are others, or the device is absent
        or none that the method's networks run on.
        """
        folder = Path(folder).expanduser().absolute()
        held = read_json(folder / "reconstruction.json")
        try:
            recipe = _Recipe(**held)
        except TypeError:
            raise InputError(f"{folder / 'reconstruction.json'} was written by another version; train again.") from None
        if scene is not None and [frame.name for frame in scene.frames] != recipe.frames:
            raise InputError(f"{folder} was made from other photos than those of {scene.root}; name its own scene.")
        if train is not None and sorted(train) != recipe.train:
            raise InputError(f"{folder} trains on other photos than this split says; restore the split or train anew.")
        recipe = replace(recipe, device=device or recipe.device)
        _check_device(recipe.device, _configure(recipe, folder))
        checkpoint = latest_checkpoint(folder)
        try:
            state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
            raise InputError(f"The checkpoint {checkpoint} cannot be read ({error}); train again.") from None
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
        if recipe.device == held["device"]:
            loaded._describe()  # the folder may have been moved or copied since
        return loaded

    @property
    def method(self) -> str:
        """The method's name in nerfstudio's registry."""
        return self._recipe.method

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
                self._iterate(self.step)
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
                outputs = self._model.get_outputs_for_camera(nerfstudio_cameras([camera]).to(self._torch_device))
                render = _render(outputs, camera, self._renders_rays)
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
                views,
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
        needs no trust.
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
            "step": max(self.step - 1, 0),
            "pipeline": self._pipeline.state_dict(),
            "optimizers": {name: one.state_dict() for name, one in self._optimizers.optimizers.items()},
            "schedulers": {name: one.state_dict() for name, one in self._optimizers.schedulers.items()},
            "scalers": self._scaler.state_dict(),
            "difix": extra,
        }
        target = self.folder / self._config.relative_model_dir / f"step-{state['step']:09d}.ckpt"
        target.parent.mkdir(parents=True, exist_ok=True)
        # Not beside the checkpoints: nerfstudio reads a step number from every name there.
        temporary = self.folder / f".{target.name}.{os.getpid()}.part"
        try:
            with temporary.open("wb") as file:  # given a path, torch hides that a disk is full
                torch.save(_plain(state), file)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        for other in target.parent.glob("step-*.ckpt"):
            if other != target:
                other.unlink()
        return target

    def export(self, path: Path) -> Path:
        """Write a splat method's Gaussians as the PLY file that splat viewers read, and return its path.

        Raises InputError for methods without Gaussians.
        """
        if not is_splat(self._config):
            raise InputError(f"{self.method} has no Gaussians to export; use ns-export for meshes and point clouds.")
        from difixcli.reconstruction.export import write_gaussians

        return write_gaussians(self._model, Path(path))

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

        manager = self._pipeline.datamanager
        manager.train_dataparser_outputs.save_dataparser_transform(self.folder / "dataparser_transforms.json")
        with atomic(self.folder / "config.yml") as temporary:
            temporary.write_text(yaml.dump(self._config), encoding="utf-8")

    def _build(self, seeds: tuple[np.ndarray, np.ndarray] | None) -> None:
        from difixcli.reconstruction.pseudo_views import weigh_targets

        self._torch_device = "cuda:0" if self._recipe.device == "cuda" else "cpu"
        amp = self._recipe.device == "cuda" and self._config.mixed_precision
        self._autocast = amp
        # Any: nerfstudio's annotations still ask for the scaler's older, deprecated class.
        self._scaler: Any = torch.amp.GradScaler(self._recipe.device, enabled=amp or self._config.use_grad_scaler)
        with _seeded(self._config.pipeline.datamanager.dataparser, seeds):
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
        if _heeds_seed_depth(self._config, self._recipe) and (self.folder / _SEED_RAYS).is_file():
            from difixcli.reconstruction.seed_depth import SeedRayMixer, SeedRays, heed_seed_depth

            rays = SeedRays.load(self.folder / _SEED_RAYS)
            if len(rays.pixels):
                factor = _own_settings(self._recipe)["seed_depth_mult"]
                self._mixer = SeedRayMixer(rays, manager.train_ray_generator)
                self._model.get_loss_dict = heed_seed_depth(self._model.get_loss_dict, factor)
        if is_splat(self._config):
            from difixcli.reconstruction.bounded_strategy import BoundedStrategy
            from difixcli.reconstruction.ssim import CpuSsim

            bound = _own_settings(self._recipe)["max_gaussians"]
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


def _configure(recipe: _Recipe, folder: Path) -> Any:
    """The method's configuration for this run."""
    cure()
    config: Any = method_config(recipe.method)
    with quiet():
        apply_preset(config, recipe.preset, recipe.iterations, recipe.device, recipe.near)
        settings = [override for override in recipe.overrides if override.partition("=")[0] not in OWN_SETTINGS["cpu"]]
        apply_overrides(config, settings, recipe.method)
        _use_dataset(config, folder / "scene")
    _own_settings(recipe)
    config.machine.device_type = recipe.device
    config.machine.seed = recipe.seed
    config.max_num_iterations = recipe.iterations
    config.data = folder / "scene"
    # nerfstudio puts a run at OUTPUT/EXPERIMENT/METHOD/TIME; ours may stand anywhere, then the path is given whole.
    if folder.parent.name == config.method_name:
        config.output_dir = folder.parents[2] if len(folder.parents) > 2 else folder.parent
        config.experiment_name, config.timestamp = folder.parents[1].name, folder.name
    else:
        config.output_dir, config.experiment_name, config.timestamp = folder.parent, folder.name, "viewer"
        config.relative_model_dir = folder / "nerfstudio_models"
    return config


def _use_dataset(config: Any, data: Path) -> None:
    """Let the method read the run's own data set as it stands, in this process.

    Photos stay where the method's datamanager keeps them: `images_on_gpu` changes a list that all of nerfstudio's
    data sets share, so it can be asked for once in a process only, and it needs a GPU that holds every photo.
    """
    from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager
    from nerfstudio.data.datamanagers.parallel_datamanager import ParallelDataManager
    from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

    manager = config.pipeline.datamanager
    manager.dataparser = NerfstudioDataParserConfig(
        data=data,
        downscale_factor=1,
        orientation_method="none",
        center_method="none",
        auto_scale_poses=False,
        load_3D_points=False,
    )
    manager.data = data
    target = manager._target
    if getattr(target, "__origin__", target) is ParallelDataManager:
        datasets = getattr(target, "__args__", ())
        # Worker processes draw their own random numbers; in this process the seed decides.
        in_process: Any = VanillaDataManager
        manager._target = in_process[datasets] if datasets else in_process


@contextmanager
def _seeded(parser_config: Any, seeds: tuple[np.ndarray, np.ndarray] | None) -> Iterator[None]:
    """Inside the block the parser also gives out seed points, which splatfacto looks for in the metadata."""
    if seeds is None:
        yield
        return
    original = parser_config._target
    points, colors = (torch.from_numpy(array) for array in seeds)

    class _WithSeeds(original):  # type: ignore[misc, valid-type]
        def _generate_dataparser_outputs(self, split: str = "train", **kwargs: Any) -> Any:
            outputs = super()._generate_dataparser_outputs(split, **kwargs)
            outputs.metadata["points3D_xyz"] = points
            outputs.metadata["points3D_rgb"] = colors
            return outputs

    parser_config._target = _WithSeeds
    try:
        yield
    finally:
        parser_config._target = original


def _own_settings(recipe: _Recipe) -> dict[str, Any]:
    """The settings that are ours rather than nerfstudio's, with what the overrides say."""
    values: dict[str, Any] = dict(OWN_SETTINGS[recipe.preset])
    for override in recipe.overrides:
        name, _, text = override.partition("=")
        if name in values:
            try:
                values[name] = type(values[name])(text)
            except ValueError:
                raise InputError(f"{name}={text} is not a number; write for example {name}={values[name]}.") from None
    if values["max_gaussians"] < 100:
        raise InputError(f"max_gaussians={values['max_gaussians']} is too few to show anything; give at least 100.")
    if values["seed_depth_mult"] < 0:
        raise InputError(f"seed_depth_mult={values['seed_depth_mult']} is negative; give 0 or more.")
    return values


def _heeds_seed_depth(config: Any, recipe: _Recipe) -> bool:
    from nerfstudio.models.nerfacto import NerfactoModelConfig

    return isinstance(config.pipeline.model, NerfactoModelConfig) and _own_settings(recipe)["seed_depth_mult"] > 0


def _nearest_surface(cameras: Sequence[Camera], points: np.ndarray) -> float | None:
    """Half the z-depth of the nearest seed points that the cameras see (their first percentile); None without any."""
    depths = []
    for camera in cameras:
        local = (points - camera.position) @ camera.camera_to_world[:3, :3]
        z = -local[:, 2]
        across = np.abs(local[:, 0]) * camera.fx < z * max(camera.cx, camera.width - camera.cx)
        upright = np.abs(local[:, 1]) * camera.fy < z * max(camera.cy, camera.height - camera.cy)
        depths.append(z[(z > 0) & across & upright])
    seen = np.concatenate(depths)
    return float(np.percentile(seen, 1) / 2) if len(seen) else None


def _check_device(device: str, config: Any) -> None:
    """InputError where the device is absent, or the method cannot run on it."""
    if device not in {"cpu", "cuda"}:
        raise InputError(f"There is no device {device}; choose cpu or cuda.")
    if device == "cpu":
        return
    if not torch.cuda.is_available():
        raise InputError("CUDA was asked for but torch finds no CUDA device; use --device cpu.")
    if is_splat(config) and not _gsplat_is_compiled():
        raise InputError(
            "gsplat has no compiled CUDA kernels here, which splats need; install the CUDA toolkit (nvcc) or a gsplat "
            "wheel built for this torch, or use --device cpu."
        )


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


def _gsplat_is_compiled() -> bool:
    """Whether gsplat's kernels are there; the first call may compile them, for minutes."""
    with quiet():
        try:
            from gsplat.cuda._backend import _C
        except Exception:  # whatever a compiler, a linker or a broken toolkit brings forth
            return False
    return _C is not None


def latest_checkpoint(folder: Path) -> Path:
    """The newest checkpoint of a run; InputError when it has none."""
    found = sorted((folder / "nerfstudio_models").glob("step-*.ckpt"))
    if not found:
        raise InputError(f"{folder} holds no checkpoint in nerfstudio_models; train it first.")
    return found[-1]


def _render(outputs: dict[str, Any], camera: Camera, along_ray: bool) -> Render:
    """A model's outputs (H, W, ·) as a Render."""

    def image(*names: str) -> np.ndarray:
        name = next(name for name in names if name in outputs)
        value = outputs[name].detach().float().cpu().numpy()
        return value.reshape(camera.height, camera.width, -1)

    color = np.clip(image("rgb", "rgb_fine"), 0, 1)
    accumulation = np.clip(image("accumulation", "accumulation_fine")[..., 0], 0, 1)
    depth = image("depth", "depth_fine", "expected_depth")[..., 0]
    if along_ray:
        x = (np.arange(camera.width, dtype=np.float32) + 0.5 - camera.cx) / camera.fx
        y = (np.arange(camera.height, dtype=np.float32) + 0.5 - camera.cy) / camera.fy
        depth = depth / np.sqrt(1 + x[None, :] ** 2 + y[:, None] ** 2)
    depth = np.where(accumulation > _NOTHING, np.nan_to_num(depth, posinf=0, neginf=0), 0)
    return Render(color.astype(np.float32), accumulation.astype(np.float32), depth.astype(np.float32))


def _plain(value: Any) -> Any:
    """The same value without NumPy: tensors, containers and Python's own numbers."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item) for item in value)
    return value
