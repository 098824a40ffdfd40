"""One trained nerfstudio method: create, train, render, save, load.

`trainer` trains it, `run_folder` says what stands in its folder, `adoption` takes over another model's parameters;
here they are put together, and the scene's normalised world and the model's are converted into each other.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from difixcli import interrupts
from difixcli.errors import DamagedError, InputError, unknown
from difixcli.reconstruction.adoption import Origin, moved
from difixcli.reconstruction.checkpoints import read_checkpoint
from difixcli.reconstruction.configuration import (
    Recipe,
    check_device,
    configure,
    heeds_seed_depth,
    measure_extent,
    own_settings,
    reads_depth,
)
from difixcli.reconstruction.dataset import write_dataset
from difixcli.reconstruction.methods import draws_images, has_gaussians, is_splat
from difixcli.reconstruction.objective import check_terms, find_term
from difixcli.reconstruction.presets import SEED_GAUSSIANS
from difixcli.reconstruction.run_folder import RunFolder
from difixcli.reconstruction.seed_depth import SeedRays
from difixcli.reconstruction.seeding import Seeding
from difixcli.reconstruction.terms import METHOD
from difixcli.reconstruction.trainer import Trainer
from difixcli.reconstruction.views import PseudoView, Render, as_render
from difixcli.runs import make_folder, open_image
from difixcli.scenes import nearest_cameras
from difixcli.scenes.poses import apply_similarity
from difixcli.scenes.scene import WORLDS, Camera, Scene
from difixcli.wording import counted

_FEW_POINTS = 100
SAVE_EVERY = 240.0
"""Seconds of training that a killed process loses at most, and a little: a million Gaussians are 0.7 GB to write."""


class Reconstruction:
    """A nerfstudio method being trained on some of a scene's photos.

    Made by `create`, `load` or `start_from`. Everything that goes in and comes out is in the scene's normalised world.
    Training draws from random generators of its own, so what happens between two calls changes nothing, and the same
    seed gives the same result on the same machine (on CUDA as far as the method's kernels are deterministic).

    `warnings` are sentences for whoever asked for it: what was asked for and cannot be held, or looks mistaken. `notes`
    are others: what its seed points are. Both are said by whoever creates it.
    """

    def __init__(self, recipe: Recipe, folder: RunFolder, seeds: tuple[np.ndarray, np.ndarray] | None) -> None:
        self._recipe = recipe
        self._run = folder
        self._to_model = recipe.model_from_scene
        self._scale = float(np.cbrt(np.linalg.det(self._to_model[:3, :3])))
        config = configure(recipe, folder.path)
        rays = folder.read_seed_rays() if heeds_seed_depth(config, recipe) else None
        self._trainer = Trainer(recipe, config, seeds, rays)
        self.warnings = list(self._trainer.warnings)
        self.notes: list[str] = []
        self.beside: dict[str, Any] = {}
        self.left_out = 0  # Gaussians that are not finite, of the last export

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
    ) -> Reconstruction:
        """Set up a new run of `method` in `folder`, trained on the frames `train` of the scene.

        `preset` is `cpu` or `gpu`, `device` `cpu` or `cuda`. `iterations` is the length of the whole schedule, to which
        learning rates and densification are fitted; training may stop short of it or go beyond. `overrides` are
        settings `a.b.c=value` of the method's configuration, and of our own: `max_gaussians=N` bounds splats, and
        `seed_depth_mult=F` weighs what seed points say about depth in nerfacto's loss (0: not at all).

        With an `origin` the model is that one, in the world it was trained in, and its training counts as the first
        half of a schedule of twice the `iterations`: no warm-up, no coarse beginning, learning rates half way down.

        Of the scene's seed points those are used that at least two of the training photos saw (`Scene.known_to`), which
        `notes` says; where it is not known who saw them, all of them, which `notes` says if photos are held out.

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
            source_to_world=scene.source_to_world.tolist(),
            pixels=sum(scene.frames[i].camera.width * scene.frames[i].camera.height for i in train),
        )
        if origin is not None:
            recipe = replace(
                recipe, settings=origin.settings, world=origin.world.tolist(), box=origin.box, begun=iterations
            )
            scene = moved(scene, origin.world)
        every, scene = len(scene.points), scene.known_to(train)
        if scene.tracks is not None:
            recipe = replace(recipe, seed_points=[len(scene.points), every])
        extent = measure_extent([scene.frames[i] for i in train], scene.points)
        if extent is not None:
            recipe = replace(recipe, near=extent.near, far=extent.far)
        run = RunFolder(folder)
        config = configure(recipe, run.path)  # its errors come before anything is written
        check_device(device, config)
        make_folder(run.path)
        uses_points = every > 0 and ((origin is None and has_gaussians(config)) or heeds_seed_depth(config, recipe))
        seeding = None
        rays: list[SeedRays] = []
        if origin is None and has_gaussians(config):
            count = min(SEED_GAUSSIANS[preset], own_settings(recipe)["max_gaussians"])
            seeding = Seeding(scene, train, count, seed)
        with_rays = heeds_seed_depth(config, recipe) and len(scene.points) > 0

        def look(index: int) -> None:
            """What is taken from a photo besides its pixels, while it is at hand."""
            if seeding is not None:
                seeding.add(index)
            if with_rays:
                rays.append(SeedRays.of_photo(scene, index, len(rays)))

        write_dataset(scene, train, run.data, depths=reads_depth(config), beside=look)
        seeds = None if seeding is None else seeding.result()
        if with_rays:
            run.write_seed_rays(SeedRays.joined(rays))
        made = cls(recipe, run, seeds)
        if uses_points:
            made._tell_of_points(every, None if scene.tracks is None else len(scene.points))
        if origin is not None:
            made.adopt(origin.state)
        run.describe(made._trainer.config, made._trainer.pipeline.datamanager)
        run.write_recipe(recipe)
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
        run = RunFolder(folder)
        held = run.read_recipe()
        if scene is not None and [frame.name for frame in scene.frames] != held.frames:
            raise InputError(f"{run.path} was made from other photos than those of {scene.root}; name its own scene.")
        if train is not None and sorted(train) != held.train:
            raise InputError(
                f"{run.path} trains on other photos than this split says; restore the split or train anew."
            )
        recipe = replace(held, device=device or held.device)
        check_device(recipe.device, configure(recipe, run.path))
        checkpoint = run.latest_checkpoint()
        state = read_checkpoint(checkpoint)
        loaded = cls(recipe, run, None)
        try:
            loaded._restore(state)
        except KeyError as error:
            raise DamagedError(
                f"{checkpoint} was written by another version (it has no {error}); train again."
            ) from None
        except RuntimeError as error:
            if recipe.device == held.device:
                raise
            raise InputError(
                f"{run.path} was trained on {held.device} with networks that {recipe.device} does not have; "
                f"use --device {held.device}."
            ) from error
        return loaded

    def go_back(self) -> None:
        """Be again what the folder's latest checkpoint holds, as if loaded anew.

        The model in memory is given up first: two of them may be more than there is room for.
        """
        recipe, run = self._recipe, RunFolder(self.folder)
        vars(self).clear()
        gc.collect()  # methods and their callbacks hold on to each other
        if recipe.device == "cuda":
            torch.cuda.empty_cache()
        Reconstruction.__init__(self, recipe, run, None)
        self._restore(run.read_state())

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self._run.path

    @property
    def step(self) -> int:
        """How many iterations it was trained for."""
        return self._trainer.step

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
        return len(self._trainer.model.gauss_params["means"]) if has_gaussians(self._trainer.config) else None

    def train(self, iterations: int, progress: Callable[[int], None] | None = None) -> None:
        """Train for so many further iterations; `progress` is called with how many of them are done."""
        self._trainer.train(iterations, progress)

    def train_to(
        self,
        step: int,
        progress: Callable[[int], None] | None = None,
        beside: Callable[[], Mapping[str, Any]] | None = None,
    ) -> float:
        """Train up to the iteration `step` and save, in between every few minutes; seconds that saving took.

        `progress` is called with how many of its iterations are done; `beside` gives what `save` keeps of it. When a
        signal asks for the end, it is saved after the iteration that is going on, and KeyboardInterrupt is raised.
        """
        first, saving = self.step, 0.0
        while self.step < step:
            before, due = self.step - first, time.monotonic() + SAVE_EVERY

            def advance(done: int, before: int = before) -> None:
                if progress is not None:
                    progress(before + done)

            def stop(due: float = due) -> bool:
                return interrupts.asked() or time.monotonic() >= due

            with interrupts.saving():
                self._trainer.train(step - self.step, advance, stop)
                begun = time.monotonic()
                self.save(None if beside is None else beside())
                saving += time.monotonic() - begun
        return saving

    @property
    def in_further_phase(self) -> bool:
        """Whether `begin_further_phase` was called, in this process or before the checkpoint that was loaded."""
        return self._trainer.further is not None

    def begin_further_phase(self, iterations: int, raised: float) -> None:
        """Let what follows be a phase of so many further iterations after a complete training.

        Learning rates are raised to `raised` (0..1) of their first values, unless the schedule ends with more, and
        brought down again to that end; splats are densified for the same part of the phase as of the training before
        it, and opacities no longer reset. A checkpoint tells the phase, too.
        Raises InputError for less than one iteration.
        """
        if iterations < 1:
            raise InputError(f"{iterations} further iterations train nothing; ask for at least 1.")
        self._trainer.begin_further(iterations, raised)

    def render(self, camera: Camera) -> Render:
        """Render one view."""
        return next(self.render_all([camera]))

    def render_all(self, cameras: Sequence[Camera]) -> Iterator[Render]:
        """Render views one after another; only one is held at a time. Training goes on as if none had been."""
        for camera in cameras:
            outputs = self._trainer.render(self._in_model(camera))
            yield as_render(outputs, camera, self._trainer.renders_rays, self._scale)

    def set_pseudo_views(self, views: Sequence[PseudoView], share: float) -> None:
        """Replace the pseudo-views by `views` (none: train on photos alone).

        `share` is how much of what is drawn in training comes from them, whatever the method draws: of images, one of
        them takes a photo's place with this probability, decided by seed and step; rays of theirs join the photos' of
        every batch, share / (1 - share) for each of these (see `pseudo_views` for when they come one by one).
        Given the same views again right after a `load`, training goes on with them exactly as it would have; that of
        views with `fresh` as far as these propose the same again.
        Raises InputError for an image or weight that is missing or of another size than its camera, an unknown term of
        the loss or one that a view is too small for, a share that is not in [0, 1) (1 is one, too, of images), or an
        index that is none of the scene's frames.
        """
        if not 0 <= share < 1 and not (share == 1 and draws_images(self._trainer.config)):
            raise InputError(f"The share {share} of pseudo-views must be at least 0 and below 1; photos need theirs.")
        for view in views:
            check_terms(view.terms, view.camera.height, view.camera.width)
            for file in (view.image, view.weight):
                if file is not None:
                    _check_size(file, view.camera)
            if view.photo is not None:
                _check_reduced(view.photo, view.camera, view.terms)
            if not 0 <= view.nearest < len(self._recipe.frames):
                raise InputError(f"A pseudo-view names frame {view.nearest} of {len(self._recipe.frames)} as nearest.")
        self._trainer.set_pseudo_views(
            [replace(view, camera=self._in_model(view.camera)) for view in views],
            [self._photo_for(view) for view in views],
            share,
        )

    def save(self, beside: Mapping[str, Any] | None = None) -> Path:
        """Write a checkpoint, whole or not at all, remove older ones, and return its path.

        `beside` (tensors, containers and plain values) is kept in it for whoever trains: after a `load` it is `beside`
        again.

        It is nerfstudio's checkpoint (its `step` is the last finished iteration's number, counted from 0) with what
        exact continuation needs under `difix`. It holds nothing but tensors and plain values, so that loading it
        needs no trust. What nerfstudio's own tools open the run by is written, too, where the folder was moved or
        copied since.
        """
        self.beside = dict(beside or {})
        state = {**self._trainer.state(), "beside": self.beside}
        return self._run.write_state(state, self._trainer.config, self._trainer.pipeline.datamanager)

    def export(self, path: Path, world: str = "scene") -> Path:
        """Write the model as a PLY file, and return its path.

        Splats are written as the Gaussians that splat viewers read; of other methods the surfaces that the training
        photos' cameras see are written as coloured points. `world` is "scene", the one of the poses in the scene's
        file (positions, sizes, rotations and the directions of colours are all turned into it), or "normalised".
        Gaussians that are not finite are left out, which `left_out` counts; antialiased ones are marked as such.
        Raises InputError for another word, and for "scene" where the run does not say which that was.
        """
        if world not in WORLDS:
            raise unknown("world", world, WORLDS)
        to_world = np.eye(4)
        if world == "scene":
            if self._recipe.source_to_world is None:
                raise InputError(
                    f"{self.folder} was trained by a version that did not keep the scene's own world; export it with "
                    "--world normalised, or train again."
                )
            to_world = np.linalg.inv(np.array(self._recipe.source_to_world))
        if is_splat(self._trainer.config):
            from difixcli.reconstruction.gaussians import Gaussians

            gaussians = Gaussians.of_model(self._trainer.model)
            from_model = to_world @ np.linalg.inv(self._to_model)
            if not np.array_equal(from_model, np.eye(4)):
                gaussians = gaussians.moved(from_model)
            self.left_out = gaussians.write(Path(path))
            return Path(path)
        from difixcli.reconstruction.export import write_point_cloud

        cameras = [self._out_of_model(camera) for camera in self._trainer.photo_cameras()]
        return write_point_cloud(self.render_all(cameras), cameras, to_world, Path(path))

    def adopt(self, state: dict[str, Tensor]) -> None:
        """Take over another model's parameters; optimisers begin anew, at the place of the schedule that is reached.

        Of parameters that the other model learned photo by photo (appearance embeddings, bilateral grids) every photo
        gets the mean: its photos are not ours. What only training or its figures need is left out. Raises InputError
        where the parameters do not fit the method.
        """
        self._trainer.adopt(state)

    def _tell_of_points(self, every: int, known: int | None) -> None:
        """`known` of `every` seed point are used, or (None) all, as it is not known who saw them."""
        if known is None:
            if len(self._recipe.train) < len(self._recipe.frames):
                self.notes.append(
                    "The scene does not say which photos saw its seed points: some may be known from photos that this "
                    "split holds out, which flatters their figures. A COLMAP model beside it would say it."
                )
            return
        photos = "two training photos" if len(set(self._recipe.train)) > 1 else "the training photo"
        if known < every:
            self.notes.append(f"{known:,} of {every:,} seed points were seen by {photos}; the others are left out.")
        if known < _FEW_POINTS:
            self.warnings.append(
                f"Only {counted(known, 'seed point was', 'seed points were')} seen by {photos}, which says little of "
                "where surfaces are."
            )

    def _restore(self, state: dict[str, Any]) -> None:
        self._trainer.restore(state)
        self.beside = state.get("beside", {})

    def _in_model(self, camera: Camera) -> Camera:
        """A camera of the scene's normalised world in the model's."""
        return camera.moved(apply_similarity(self._to_model, camera.camera_to_world))

    def _out_of_model(self, camera: Camera) -> Camera:
        return camera.moved(apply_similarity(np.linalg.inv(self._to_model), camera.camera_to_world))

    def _photo_for(self, view: PseudoView) -> int:
        """The position, among the training photos, of the photo a pseudo-view borrows its id from."""
        if view.nearest in self._recipe.train:
            return self._recipe.train.index(view.nearest)
        photos = [view.camera.moved(np.array(pose)) for pose in self._recipe.cameras]
        return nearest_cameras(view.camera, photos, 1)[0]


def _size(file: Path) -> tuple[int, int]:
    """Width and height of an image file; InputError where it is missing or broken."""
    with open_image(file) as image:
        return image.size


def _check_reduced(file: Path, camera: Camera, terms: Mapping[str, float]) -> None:
    """InputError for a low-resolution photo whose size is not its camera's divided by one whole number, or that terms
    which reduce would not meet.
    """
    width, height = _size(file)
    if camera.width % width or camera.height % height or camera.width // width != camera.height // height:
        raise InputError(
            f"The photo {file} is {width}×{height}, which is no whole part of its pseudo-view's {camera.width}×"
            f"{camera.height}."
        )
    for name, weight in terms.items():
        term = None if name == METHOD or not weight else find_term(name)
        if term is not None and term.reduces and term.block != camera.width // width:
            raise InputError(
                f"The loss term {name} does not meet the photo {file}, which is {camera.width // width} times smaller "
                "than its pseudo-view."
            )


def _check_size(file: Path, camera: Camera) -> None:
    """InputError for an image file that is missing, broken or of another size than its camera."""
    size = _size(file)
    if size != (camera.width, camera.height):
        raise InputError(
            f"The pseudo-view {file} is {size[0]}×{size[1]}, not of its camera's size {camera.width}×{camera.height}."
        )
