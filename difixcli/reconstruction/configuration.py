"""What a reconstruction was created with, and the nerfstudio configuration that follows from it."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from difixcli.errors import InputError, unknown
from difixcli.reconstruction.methods import has_gaussians, method_config
from difixcli.reconstruction.overrides import OWN_SETTINGS, apply_overrides, read_own_settings
from difixcli.reconstruction.patches import quiet, read_in_process
from difixcli.reconstruction.presets import PRESETS, Extent, apply_preset, has_bounded_field, most_gaussians
from difixcli.scenes.scene import Frame
from difixcli.torchvision_cure import cure

DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Recipe:
    """What a reconstruction was created with: `reconstruction.json`."""

    method: str
    preset: str
    device: str
    iterations: int
    overrides: list[str]
    seed: int
    frames: list[str]
    train: list[int]
    cameras: list[list[list[float]]]  # camera-to-world of the training photos, in the scene's normalised world
    near: float | None  # where sampling along rays begins, known from the seed points
    far: float | None = None  # where it may end, known likewise
    # What it was begun from, if from another model (see `start.py`):
    settings: dict[str, Any] = field(default_factory=dict)  # fields of the configuration that describe that model
    world: list[list[float]] | None = None  # (4, 4) similarity from the scene's normalised world into the model's own
    box: float | None = None  # half the side of the cube that the model's field ends at
    begun: int = 0  # iterations of the schedule that count as done
    # (4, 4) similarity from the world of the poses in the scene's file into the scene's normalised one; None: a run of
    # a version that did not keep it
    source_to_world: list[list[float]] | None = None
    pixels: int = 0  # of all training photos together
    # [how many of the scene's seed points two training photos saw, how many it has]; None: who saw them is not known
    seed_points: list[int] | None = None

    @property
    def model_from_scene(self) -> np.ndarray:
        """The (4, 4) similarity from the scene's normalised world into the model's."""
        return np.eye(4) if self.world is None else np.array(self.world)


def configure(recipe: Recipe, folder: Path) -> Any:
    """The method's configuration for a run in `folder`. Raises InputError for what `Reconstruction.create` says."""
    cure()
    config: Any = method_config(recipe.method)
    extent = None if recipe.near is None else Extent(recipe.near, recipe.far)
    with quiet():
        apply_preset(config, recipe.preset, recipe.begun + recipe.iterations, recipe.device, extent, len(recipe.train))
        for path, value in recipe.settings.items():
            _assign(config, path, value)
        if hasattr(config.pipeline.datamanager, "train_cameras_sampling_seed"):
            # whole images are drawn by a generator of their own, rays by the global ones
            config.pipeline.datamanager.train_cameras_sampling_seed = recipe.seed % 2**32
        _apply_nerfstudios(config, recipe.overrides, recipe.method)
        _use_dataset(config, folder / "scene", recipe.box or recipe.far)
    own_settings(recipe)
    config.machine.device_type = recipe.device
    config.machine.seed = recipe.seed
    config.max_num_iterations = recipe.begun + recipe.iterations
    config.data = folder / "scene"
    # nerfstudio puts a run at OUTPUT/EXPERIMENT/METHOD/TIME; ours may stand anywhere, then the path is given whole.
    if folder.parent.name == config.method_name:
        config.output_dir = folder.parents[2] if len(folder.parents) > 2 else folder.parent
        config.experiment_name, config.timestamp = folder.parents[1].name, folder.name
    else:
        config.output_dir, config.experiment_name, config.timestamp = folder.parent, folder.name, "viewer"
        config.relative_model_dir = folder / "nerfstudio_models"
    return config


def _assign(config: Any, path: str, value: Any) -> None:
    """Set a field from its value as JSON has it."""
    *parents, name = path.split(".")
    for parent in parents:
        config = getattr(config, parent)
    current = getattr(config, name)
    if isinstance(current, tuple) and isinstance(value, list):
        value = tuple(value)
    setattr(config, name, value)


def _use_dataset(config: Any, data: Path, box: float | None) -> None:
    """Let the method read the run's own data set as it stands, in this process.

    Photos stay where the method's datamanager keeps them: `images_on_gpu` changes a list that all of nerfstudio's
    data sets share, so it can be asked for once in a process only, and it needs a GPU that holds every photo.
    """
    from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

    manager = config.pipeline.datamanager
    manager.dataparser = NerfstudioDataParserConfig(
        data=data,
        downscale_factor=1,
        orientation_method="none",
        center_method="none",
        auto_scale_poses=False,
        load_3D_points=False,
        depth_unit_scale_factor=1.0,
        # the cube that cameras span, unless a field ends at it
        scene_scale=max(1.0, box) if box is not None and has_bounded_field(config) else 1.0,
    )
    manager.data = data
    read_in_process(manager)


def reads_depth(config: Any) -> bool:
    """Whether the method's photos come with depth maps (nerfstudio's `DepthDataset`).

    Where there are none that data set guesses them with a network that it downloads.
    """
    from nerfstudio.data.datasets.depth_dataset import DepthDataset

    target = config.pipeline.datamanager._target
    origin = typing.get_origin(target) or target
    declared = [*typing.get_args(target)]
    for base in getattr(origin, "__mro__", ()):
        for generic in getattr(base, "__orig_bases__", ()):
            declared += typing.get_args(generic)
    return any(isinstance(kind, type) and issubclass(kind, DepthDataset) for kind in declared)


def check_settings(method: str, overrides: Sequence[str]) -> None:
    """Raises InputError for a method that cannot train here, and for settings of nerfstudio's that it has with no
    preset; what only a scene can tell is not looked at.
    """
    cure()
    faults = []
    for preset in PRESETS:
        config: Any = method_config(method)
        with quiet():  # neither the length nor the number of photos changes which fields there are
            apply_preset(config, preset, 1000, "cuda", None, 10)
        try:
            _apply_nerfstudios(config, overrides, method)
        except InputError as fault:
            faults.append(fault)
        else:
            return
    raise faults[0]


def _apply_nerfstudios(config: Any, overrides: Sequence[str], method: str) -> None:
    """Set what is nerfstudio's of the overrides."""
    settings = [override for override in overrides if override.partition("=")[0] not in OWN_SETTINGS["cpu"]]
    apply_overrides(config, settings, method)


def own_settings(recipe: Recipe) -> dict[str, Any]:
    """The settings that are ours rather than nerfstudio's, with what the overrides say."""
    values: dict[str, Any] = dict(OWN_SETTINGS[recipe.preset])
    values["max_gaussians"] = most_gaussians(recipe.preset, recipe.pixels)
    return values | read_own_settings(recipe.overrides, recipe.preset)


def heeds_seed_depth(config: Any, recipe: Recipe) -> bool:
    """Whether our own loss tells the method what seed points say; those that read depth maps learn it from these."""
    from nerfstudio.models.nerfacto import NerfactoModelConfig

    learns = isinstance(config.pipeline.model, NerfactoModelConfig) and not reads_depth(config)
    return learns and own_settings(recipe)["seed_depth_mult"] > 0


def measure_extent(frames: Sequence[Frame], points: np.ndarray) -> Extent | None:
    """How near and far the seed points (N, 3) are that the frames' cameras see, with some room. Where they see none,
    what the scene's file says of the frames; None where that is nothing."""
    depths = []
    for camera in (frame.camera for frame in frames):
        x, y, depth = camera.project(points)
        across = np.abs(x - camera.cx) < max(camera.cx, camera.width - camera.cx)
        upright = np.abs(y - camera.cy) < max(camera.cy, camera.height - camera.cy)
        depths.append(depth[(depth > 0) & across & upright])
    seen = np.concatenate(depths)
    if not len(seen):
        told = [frame.depths for frame in frames if frame.depths is not None]
        return Extent(0.9 * min(near for near, _ in told), max(far for _, far in told)) if told else None
    return Extent(float(np.percentile(seen, 1) / 2), float(np.percentile(seen, 99) * 1.5))


def check_device(device: str, config: Any) -> None:
    """InputError where the device is absent, or the method cannot run on it."""
    if device not in DEVICES:
        raise unknown("device", device, DEVICES)
    if device == "cpu":
        return
    if not torch.cuda.is_available():
        raise InputError("CUDA was asked for but torch finds no CUDA device; use --device cpu.")
    if has_gaussians(config) and not _gsplat_is_compiled():
        raise InputError(
            "gsplat has no compiled CUDA kernels here, which splats need; install the CUDA toolkit (nvcc) or a gsplat "
            "wheel built for this torch, or use --device cpu."
        )


def _gsplat_is_compiled() -> bool:
    """Whether gsplat's kernels are there; the first call may compile them, for minutes."""
    with quiet():
        try:
            from gsplat.cuda._backend import _C
        except Exception:  # whatever a compiler, a linker or a broken toolkit brings forth
            return False
    return _C is not None
