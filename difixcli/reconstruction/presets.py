"""How long and how large a method trains: `cpu` for minutes on a laptop, `gpu` for nerfstudio's own sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from difixcli.errors import InputError, unknown
from difixcli.reconstruction.methods import has_gaussians, is_splat, method_config
from difixcli.reconstruction.overrides import OWN_SETTINGS

if TYPE_CHECKING:
    from nerfstudio.engine.trainer import TrainerConfig

PRESETS = ("cpu", "gpu")
_PIXELS_A_GAUSSIAN = 32
_MOST_ON_A_CPU = 50_000

SEED_GAUSSIANS = {"cpu": 10_000, "gpu": 100_000}
_CPU_RAYS = 512

PRESET_FIELDS = frozenset(
    {
        # schedules
        "warmup_length",
        "refine_every",
        "resolution_schedule",
        "num_downscales",
        "reset_alpha_every",
        "sh_degree_interval",
        "stop_screen_size_at",
        "stop_split_at",
        "upsampling_iters",
        "proposal_warmup",
        "proposal_weights_anneal_max_num_iters",
        # the machine
        "eval_num_rays_per_chunk",
        "implementation",
        # per-photo corrections
        "camera_optimizer",
    }
)
"""Fields of a model's configuration that are the preset's to decide also where training begins from another run."""


@dataclass(frozen=True)
class Extent:
    """Where a scene is: distances (normalised units) before and beyond which no camera sees anything, if known."""

    near: float
    far: float | None


def most_gaussians(preset: str, pixels: int) -> int:
    """The upper bound for splats where nobody gives one, for photos of so many pixels together.

    On a CPU one Gaussian for 32 pixels, within bounds: many photos gain by more of them (see recipes/bench/RESULTS.md).
    """
    bound = int(OWN_SETTINGS[preset]["max_gaussians"])
    return min(max(bound, pixels // _PIXELS_A_GAUSSIAN), _MOST_ON_A_CPU) if preset == "cpu" else bound


def default_iterations(method: str, preset: str) -> int:
    """How many iterations train `method` when nobody says: the preset's usual schedule.

    Raises InputError for an unknown preset or method.
    """
    _check(preset)
    config = method_config(method)
    if preset == "gpu":
        return 30_000
    return 3_000 if has_gaussians(config) else 1_000


def has_bounded_field(config: TrainerConfig) -> bool:
    """Whether a method's field ends at the scene's box instead of contracting all that lies outside into it."""
    return not has_gaussians(config) and getattr(config.pipeline.model, "disable_scene_contraction", True)


def apply_preset(
    config: TrainerConfig, preset: str, iterations: int, device: str, extent: Extent | None, photos: int
) -> None:
    """Adapt a registered configuration in place to the preset, to a schedule of `iterations` in all and to the number
    of photos that train.

    Both presets train from posed photos in an already normalised world, and without per-photo camera corrections and
    appearance embeddings, which Difix3D switches off too: they would let photos disagree with the views that are
    rendered from them. Everything that is scheduled (learning rates, densification, resolution, annealing) is
    stretched or shrunk to `iterations`. With the scene's `extent` rays are sampled where there is something: methods
    come with the distances of the scenes they were first shown on.

    Raises InputError for an unknown preset and for methods that need CUDA on a CPU.
    """
    from nerfstudio.models.instant_ngp import InstantNGPModelConfig
    from nerfstudio.models.nerfacto import NerfactoModelConfig

    _check(preset)
    model = config.pipeline.model
    if device == "cpu" and isinstance(model, InstantNGPModelConfig):
        raise InputError(f"The method {config.method_name} needs CUDA; choose nerfacto or splatfacto on a CPU.")
    ratio = iterations / config.max_num_iterations if config.max_num_iterations < 1_000_000 else iterations / 30_000
    if (optimizer := getattr(model, "camera_optimizer", None)) is not None and hasattr(optimizer, "mode"):
        optimizer.mode = "off"
    if extent is not None and has_bounded_field(config) and isinstance(model.collider_params, dict):
        model.collider_params = {
            "near_plane": extent.near,
            "far_plane": extent.far or model.collider_params["far_plane"],
        }
    if device == "cpu":
        config.mixed_precision = False
        if hasattr(model, "implementation"):
            model.implementation = "torch"
    if preset == "cpu":
        for name in ("train_num_rays_per_batch", "eval_num_rays_per_batch"):
            if hasattr(config.pipeline.datamanager, name):
                setattr(config.pipeline.datamanager, name, _CPU_RAYS)
        model.eval_num_rays_per_chunk = min(model.eval_num_rays_per_chunk, 8192)
    for entry in config.optimizers.values():
        _scale_schedule(entry["scheduler"], ratio, iterations if preset == "cpu" else None)
    if isinstance(model, NerfactoModelConfig):
        _nerfacto(config, model, preset, iterations, ratio, extent)
    if is_splat(config):
        _splatfacto(config, model, preset, iterations, ratio, photos)


def _check(preset: str) -> None:
    if preset not in PRESETS:
        raise unknown("preset", preset, PRESETS)


def _scale_schedule(scheduler: Any, ratio: float, whole: int | None) -> None:
    """Shrink a learning-rate schedule by `ratio`, or let it end exactly after `whole` iterations."""
    if scheduler is None:
        return
    for name in ("warmup_steps", "warm_up_end"):
        if hasattr(scheduler, name):
            setattr(scheduler, name, round(getattr(scheduler, name) * ratio))
    if hasattr(scheduler, "milestones"):
        scheduler.milestones = tuple(max(1, round(step * ratio)) for step in scheduler.milestones)
    elif hasattr(scheduler, "max_steps"):
        scheduler.max_steps = max(2, round(scheduler.max_steps * ratio) if whole is None else whole)


def _nerfacto(
    config: TrainerConfig, model: Any, preset: str, iterations: int, ratio: float, extent: Extent | None
) -> None:
    model.use_appearance_embedding = False
    model.proposal_warmup = max(1, round(model.proposal_warmup * ratio))
    model.proposal_weights_anneal_max_num_iters = max(1, round(model.proposal_weights_anneal_max_num_iters * ratio))
    if preset == "gpu":
        return
    if extent is not None:
        model.near_plane = max(model.near_plane, extent.near)
    model.num_levels, model.log2_hashmap_size, model.max_res = 8, 15, 512
    model.hidden_dim = model.hidden_dim_color = 32
    model.num_nerf_samples_per_ray = 24
    model.num_proposal_iterations, model.num_proposal_samples_per_ray = 1, (48,)
    model.proposal_net_args_list = [
        {"hidden_dim": 16, "log2_hashmap_size": 14, "num_levels": 5, "max_res": 128, "use_linear": False}
    ]
    # Annealing over a thirtieth of a short training would be over before the proposal network knows anything.
    model.proposal_weights_anneal_max_num_iters = max(1, iterations // 4)
    for group in ("fields", "proposal_networks"):
        if (scheduler := config.optimizers.get(group, {}).get("scheduler")) is not None:
            scheduler.lr_final = 1e-3


def _splatfacto(config: TrainerConfig, model: Any, preset: str, iterations: int, ratio: float, photos: int) -> None:
    model.background_color = "black"  # a random one teaches nothing where a few photos fill the frame
    if preset == "gpu":
        for name in ("warmup_length", "resolution_schedule", "sh_degree_interval", "stop_screen_size_at"):
            setattr(model, name, max(1, round(getattr(model, name) * ratio)))
        model.stop_split_at = round(model.stop_split_at * ratio)
        model.refine_every = max(20, round(model.refine_every * min(ratio, 1.0)))
        # after a reset none is added until every photo was drawn: at least as long again is for adding them
        pause = photos + model.refine_every
        model.reset_alpha_every = max(model.reset_alpha_every, math.ceil(2 * pause / model.refine_every))
        return
    model.num_downscales = 0
    model.warmup_length = iterations // 10
    model.refine_every = max(10, iterations // 20)
    model.stop_split_at = iterations * 17 // 20
    model.stop_screen_size_at = 0
    # Opacity resets take hundreds of iterations to recover from; a short training cannot afford one.
    model.reset_alpha_every = iterations // model.refine_every + 1
    model.sh_degree_interval = max(1, iterations // 6)
    model.cull_alpha_thresh = 0.05
    # Thirty thousand small steps become a few larger ones.
    for group, factor in {"means": 4.0, "scales": 2.0, "quats": 2.0, "features_dc": 2.0, "features_rest": 2.0}.items():
        entry = config.optimizers[group]
        entry["optimizer"].lr *= factor
        if entry["scheduler"] is not None:
            entry["scheduler"].lr_final *= factor
