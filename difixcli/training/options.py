"""How to train: the paper's recipe, and ours for small networks, fixers and super-resolvers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeVar, get_args, get_type_hints

from difixcli.errors import InputError, unknown

Perceptual = Literal["lpips-vgg", "st-lpips-alex", "st-lpips-vgg"]
Precision = Literal["fp32", "bf16", "fp16"]
Parts = Literal["all", "unet", "decoder", "skips"]

_AT_LEAST_ONE = (
    "iterations", "batch", "accumulate", "frame_height", "frame_width", "validate_every", "validation_pairs",
    "checkpoint_every", "log_every", "signs_every", "validation_photos", "canvas", "size", "width", "depths",
    "latent_channels", "unet_width", "diffusion_window", "pictures", "repeats", "validation_views", "validation_clips",
)  # fmt: skip
_ZERO_IS_ALL = {"crop": "TrainingOptions", "window": "TrainingOptions SuperResolutionOptions"}
"""Options that may be 0 there, for everything, and must be at least 1 elsewhere."""
FREE = ("batch", "accumulate", "workers", "gradient_checkpointing", "cache_mib")
"""Options that change how a step is computed, but not what: a training may go on with others."""
SUPER_RESOLUTION_FREE = ("cache_mib",)
"""The same of a super-resolver's training."""
VIEW_DIFFUSION_FREE = ("seconds", "checkpoint_every")
"""The same of view-conditioned diffusion's."""
VIDEO_FREE = ("seconds", "checkpoint_every", "cache_mib")
"""The same of a video model's."""

VIEW_DIFFUSION_NETWORKS = ("epipolar_iterations", "vae_iterations", "diffusion_iterations")
"""How long each of view-conditioned diffusion's networks trains; 0 of one leaves it as it is."""

SCRATCH = "scratch"
"""The base of networks with random weights, where it is not a fixer that trains."""
OF_NEW_RESOLVERS = ("factor", "channels", "blocks")
OF_NEW_VIEW_DIFFUSION = ("size", "width", "depths", "latent_channels", "unet_width")
OF_NEW_AROUND_PUBLISHED = ("latent_channels", "unet_width")
"""Options that other networks than new ones have decided: of these a published text-to-image model has two."""

_SHARES = (
    "photo_share", "drop_references", "fewer_references", "ema", "improved_share", "misled_share", "render_share",
    "bicubic_share", "drop_condition", "epipolar_share", "drop_structure",
)  # fmt: skip


@dataclass(frozen=True)
class CommonOptions:
    """How every network trains; each kind has its own numbers."""

    learning_rate: float = 1e-3
    warm_up: int = 100
    """Steps over which the learning rate rises from zero."""
    weight_decay: float = 1e-2
    clip: float = 1.0
    """Largest norm of the gradient."""
    ema: float = 0.998
    """Decay of the running average of the weights, which is what is validated and kept; 0 keeps the weights."""
    perceptual: Perceptual = "st-lpips-alex"
    perceptual_weight: float = 0.1
    checkpoint_every: int = 500
    log_every: int = 50
    seed: int = 0


@dataclass(frozen=True)
class StagedOptions(CommonOptions):
    """How networks train that do so in stages."""

    seconds: float = 0.0
    """Time for all stages, shared out among them; their iterations end earlier if need be. 0 for no limit."""


@dataclass(frozen=True)
class TrainingOptions(CommonOptions):
    """How to train. `for_published` is the release's recipe, `for_small` what trains a small network from scratch."""

    iterations: int = 10_000
    batch: int = 1
    """Samples a round, in each process."""
    accumulate: int = 1
    """Rounds whose gradients are added up for a step."""
    crop: int = 512
    """Pixels of the random square crops; 0 for whole frames."""
    frame_height: int = 576
    frame_width: int = 1024
    """Pixels that whole frames are stretched to, as the release does."""
    supervise: Literal["render", "all"] = "render"
    """Whether the loss is of the render's view alone, or of all views, a reference's target being itself."""
    train: Parts = "all"
    """Which parts train: of a network with adapters `all` are U-Net, adapters and skips."""
    latents: Literal["mode", "sample"] = "mode"
    """Of networks that take photos as they are: the encoder's mode, or draws from its Gaussian, the same at the same
    step."""
    references: Literal["base", "geometry"] = "base"
    """How references are wanted: as the base wants them, or, of a base that takes photos as they are or has random
    weights, looked up by depth and cameras."""
    lora_rank: int = 0
    """Rank of the adapters; 0 for what the base has."""
    gradient_checkpointing: bool = False
    """Compute activations again for the gradient instead of keeping them: a third slower, a fraction of the memory."""
    dtype: Precision = "fp32"
    """What forward passes compute in; weights and losses are float32."""
    learning_rate: float = 2e-5
    warm_up: int = 500
    schedule: Literal["constant", "cosine"] = "constant"
    ema: float = 0.999
    pixel: Literal["l1", "l2"] = "l2"
    signed_pixels: bool = False
    """Whether pixels are compared in [-1, 1], where squares are four times those of [0, 1]."""
    clamp_output: bool = False
    """Whether the output is clamped to what pixels can be before the loss; what lies beyond then has no gradient."""
    perceptual_weight: float = 1.0
    gram_weight: float = 0.5
    gram_start: int = 2000
    window: int = 400
    """Pixels of the window the perceptual term sees; 0 for everything."""
    gram_window: int = 400
    """The same of the Gram term."""
    photo_share: float = 0.5
    """Share of the samples made from photos, where photos are given beside pairs."""
    drop_references: float = 0.1
    """Share of the steps without references, so that one network serves with and without."""
    fewer_references: float = 0.4
    """Share of the other steps with a random number of the references, so that it serves with many and few."""
    flips: bool = True
    """Horizontal flips of half of the samples, all of a pair's images alike."""
    strong_augmentation: bool = False
    """Vertical flips, transposition, permuted channels and tones."""
    reference_tone: float = 0.0
    """Typical difference of the references' exposure from the photo's (natural logarithm), in half of the samples."""
    improved_share: float = 0.0
    """Share of the samples whose render is moved towards its photo, half of these all the way: to be left alone."""
    misled_share: float = 0.0
    """Share of the samples beside references that show something else."""
    idempotence_weight: float = 0.0
    """Factor of a term, in every fourth step, for what a second pass changes of the output."""
    validate_every: int = 500
    validation_pairs: int = 12
    patience: int = 0
    """Stop after so many validations in a row without a better one; 0 never."""
    signs_every: int = 200
    """Steps between looks at the signs of collapse."""
    workers: int = 0
    """Processes (for streams threads) that prepare batches; on a GPU they keep it busy."""
    cache_mib: int = 512
    """Memory for decoded pairs, and as much again for photos, in all workers of a process together; small sets are
    decoded only once."""

    @classmethod
    def for_published(cls, device: str = "cpu") -> TrainingOptions:
        """For networks of the published layout (adapters on the decoder, raw references): what the release trains with.

        Where it differs from the paper (arXiv 2503.01774): the Gram term weighs 1 instead of 0.5.
        """
        cuda = device.startswith("cuda")
        return cls(
            crop=0,
            supervise="all",
            signed_pixels=True,
            clamp_output=True,
            perceptual="lpips-vgg",
            window=0,
            gram_weight=1.0,
            drop_references=0.0,
            fewer_references=0.0,
            flips=False,
            latents="sample",
            ema=0.0,
            dtype="bf16" if cuda else "fp32",
            workers=4 if cuda else 0,
        )

    @classmethod
    def for_small(cls, device: str = "cpu") -> TrainingOptions:
        """For our small networks with aligned references.

        No Gram term: it costs more than the rest of a step together, and without a download its VGG-16 features are
        those of the figure results are judged by.
        """
        return cls(
            batch=4,
            crop=128,
            learning_rate=4e-4,
            warm_up=200,
            schedule="cosine",
            pixel="l1",
            perceptual_weight=0.2,
            gram_weight=0.0,
            window=64,
            gram_window=64,
            strong_augmentation=True,
            reference_tone=0.15,
            improved_share=0.2,
            misled_share=0.05,
            idempotence_weight=1.0,
            workers=4 if device.startswith("cuda") else 0,
        )


@dataclass(frozen=True)
class SuperResolutionOptions(CommonOptions):
    """How to train a super-resolver on photos; the defaults take about 40 minutes on one CPU core."""

    factor: int = 4
    """How much larger than the photos; like `channels` and `blocks` for networks from scratch only."""
    channels: int = 64
    blocks: int = 12
    iterations: int = 3000
    batch: int = 4
    crop: int = 128
    """Pixels of the random square crops, large."""
    learning_rate: float = 4e-4
    schedule: Literal["constant", "cosine"] = "cosine"
    weight_decay: float = 1e-4
    perceptual_weight: float = 0.04
    """A larger one sharpens more: with 0.1 held-out photos were 0.2 dB worse than bicubic's after 700 steps."""
    window: int = 64
    """Pixels of the window the perceptual term sees; 0 for everything."""
    agree_rounds: int = 1
    """Rounds of back-projection between the network and the loss; what is served has five."""
    photo_share: float = 0.5
    """Share of the samples from the folder of photos, where there are scenes beside it."""
    render_share: float = 0.5
    """Share of the samples beside a simulated render."""
    run_share: float = 0.6
    """Share of the samples that are views of super-resolution's runs, where there are some; a fifth without render."""
    bicubic_share: float = 0.15
    """Share of the steps whose photos are made small by `bicubic`; the others' by `area`."""
    validate_every: int = 500
    validation_photos: int = 20
    patience: int = 0
    """Stop after so many validations in a row without a better one; 0 never."""
    cache_mib: int = 512
    """Memory for decoded photos of the folder."""


@dataclass(frozen=True)
class ViewDiffusionOptions(StagedOptions):
    """How to train view-conditioned diffusion: three networks, one after another."""

    canvas: int = 128
    """Pixels of the photos' long side; they train at this down to three quarters of it."""
    size: int = 96
    """Pixels of the long side that the model is for; like the four after it for networks from scratch only."""
    width: int = 32
    """Of the epipolar transformer's tokens."""
    depths: int = 32
    latent_channels: int = 8
    unet_width: int = 64
    """Of the U-Net's first level."""
    epipolar_iterations: int = 6000
    vae_iterations: int = 3000
    diffusion_iterations: int = 6000
    epipolar_share: float = 0.5
    """Of the seconds; the autoencoder's and the U-Net's follow from it."""
    batch: int = 16
    """Views a step of the epipolar transformer; `pictures` of the autoencoder."""
    window: int = 48
    """Pixels of the views' random square windows."""
    diffusion_window: int = 96
    """The same for the autoencoder and the U-Net; what reaches beyond a photo does not count."""
    pictures: int = 32
    repeats: int = 4
    """Times that a view is used in a step of the U-Net, each time with other noise."""
    vae_learning_rate: float = 5e-4
    diffusion_learning_rate: float = 5e-4
    depth_weight: float = 0.05
    """Of the seed points' depths in the epipolar transformer's loss."""
    kl_weight: float = 1e-5
    """Of the latents' distance from a standard normal distribution in the autoencoder's loss."""
    drop_condition: float = 0.1
    """Share of the U-Net's samples without a condition."""
    photo_share: float = 0.5
    """Share of the autoencoder's pictures from the folder of photos, where there is one."""
    dtype: Precision = "fp32"
    validation_views: int = 16
    checkpoint_every: int = 1000


@dataclass(frozen=True)
class VideoOptions(StagedOptions):
    """How to train a video model's layers around a fixer, in ReconX's two stages: first the structure's attention,
    then, beside it, the attention across pictures, the weights of neighbours and the fixer's own spatial layers.
    """

    structure_iterations: int = 500
    """Steps of the first stage."""
    iterations: int = 1500
    """Steps of the second stage."""
    batch: int = 2
    """Clips a step, one after the other."""
    window: int = 16
    """Pictures of a clip at a time, and of the windows in which the model makes long ways."""
    gate_learning_rate: float = 1e-2
    """Of the gates, which begin at zero and let nothing else learn until they have moved."""
    spatial_learning_rate: float = 1e-5
    """Of the fixer's U-Net, in the second stage; 0 leaves the fixer as it is."""
    warm_up: int = 50
    ema: float = 0.99
    steadiness_weight: float = 0.5
    """Of how much the change from picture to picture differs from the photos'."""
    drop_structure: float = 0.1
    """Share of the steps without a point cloud, so that one network serves with and without."""
    validate_every: int = 250
    validation_clips: int = 12
    checkpoint_every: int = 250
    log_every: int = 20
    cache_mib: int = 2048
    """Memory for decoded clips."""


Options = TypeVar("Options", bound=CommonOptions)


def with_options(defaults: Options, options: Mapping[str, Any], device: str) -> Options:
    """The defaults with what was asked for; InputError for names and values that make no sense."""
    given = {name: value for name, value in options.items() if value is not None}
    kinds = get_type_hints(type(defaults))
    for name, value in given.items():
        if name not in kinds:
            raise unknown("training option", name, kinds)
        if (choices := get_args(kinds[name])) and value not in choices:
            raise unknown(f"value of the training option {name}", str(value), choices)
        if kinds[name] in (int, float) and not (isinstance(value, (int, float)) and math.isfinite(value)):
            raise InputError(f"The training option {name} must be a finite number, not {value!r}.")
    chosen = replace(defaults, **given)
    positive = {*_AT_LEAST_ONE, *(n for n, where in _ZERO_IS_ALL.items() if type(defaults).__name__ not in where)}
    for name in sorted(kinds.keys() & positive):
        if getattr(chosen, name) < 1:
            raise InputError(f"The training option {name} must be at least 1, not {getattr(chosen, name)}.")
    for name in kinds.keys() & set(_SHARES):
        if not 0 <= getattr(chosen, name) <= 1:
            raise InputError(f"{name} is a share between 0 and 1, not {getattr(chosen, name)}.")
    if chosen.ema == 1:
        raise InputError("With ema=1 the running average would never learn anything; 0.999 is a usual decay.")
    for field in fields(chosen):
        if kinds[field.name] in (int, float) and getattr(chosen, field.name) < 0:
            raise InputError(f"The training option {field.name} cannot be negative.")
    judge_of(chosen)
    if isinstance(chosen, TrainingOptions) and chosen.supervise == "all" and chosen.idempotence_weight > 0:
        raise InputError("idempotence_weight looks at the render's view alone; use it with --set supervise=render.")
    if chosen.clip == 0:
        raise InputError("The training option clip is the largest norm of the gradient; with 0 nothing would train.")
    if getattr(chosen, "dtype", "fp32") == "fp16" and not device.startswith("cuda"):
        raise InputError("Training in fp16 scales its losses, which needs a CUDA device; use --dtype bf16 or fp32.")
    return chosen


def judge_of(options: Options) -> str:
    """The perceptual figure that a training is judged by: of a network that does not train.

    Raises InputError where none is left.
    """
    trained: set[str] = set()
    if options.perceptual_weight > 0:
        trained.add(options.perceptual)
    if isinstance(options, TrainingOptions) and options.gram_weight > 0:
        trained.add(gram_network(options.perceptual))
    if "st-lpips-vgg" not in trained:
        return "st_lpips"
    if isinstance(options, TrainingOptions) and "st-lpips-alex" not in trained:
        return "st_lpips_alex"
    if isinstance(options, TrainingOptions):
        raise InputError(
            "With perceptual=st-lpips-alex and a Gram term, which looks through st-LPIPS' VGG-16, no network is left "
            "to judge by; use --perceptual st-lpips-vgg, which is then both, or --gram-weight 0."
        )
    raise InputError(
        "st-LPIPS on VGG-16 judges this training, so it cannot train too; use --perceptual st-lpips-alex or lpips-vgg."
    )


def check_of_new(base: str, names: Sequence[str], given: Mapping[str, Any]) -> None:
    """Raises InputError for an option among `names`, which are for new networks alone, beside the weights of a base."""
    for name in names if base != SCRATCH else ():
        if given.get(name) is not None:
            raise InputError(f"The training option {name} is the base's own; it is for --base {SCRATCH} alone.")


def check_photo_share(given: Mapping[str, Any], photos: bool, beside: bool | None = None) -> None:
    """Raises InputError for a share of photos where there are no photos; with `beside`, where there is nothing else
    that they are a share beside.
    """
    if given.get("photo_share") is None or (photos and beside is not False):
        return
    lacks = "; name a folder of them" if beside is None else " beside scenes; name both"
    raise InputError(f"The training option photo_share is the share of --photos{lacks}.")


def gram_network(perceptual: Perceptual) -> Perceptual:
    """The VGG-16 that the Gram term looks through beside a perceptual network."""
    return perceptual if perceptual.endswith("vgg") else "st-lpips-vgg"


def parsed_options(settings: list[str], of: type = TrainingOptions) -> dict[str, Any]:
    """Options of a kind from texts `name=value`; InputError for names and values that make no sense."""
    kinds = get_type_hints(of)
    found: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise InputError(f"--set {setting} has no value; write --set {name}=VALUE.")
        if name not in kinds:
            raise unknown("training option", name, kinds)
        kind = kinds[name]
        try:
            if kind is bool:
                found[name] = {"true": True, "false": False}[text.lower()]
            else:
                found[name] = text if get_args(kind) else kind(text)
        except (ValueError, KeyError):
            raise InputError(f"--set {setting}: {name} wants a value of type {kind.__name__}.") from None
    return found


def learning_rate(step: int, options: TrainingOptions | SuperResolutionOptions) -> float:
    """The learning rate at a step: a linear rise, then constant, or half a cosine down to 2 % at the end."""
    rise = min(1.0, (step + 1) / max(options.warm_up, 1))
    if options.schedule == "constant":
        return options.learning_rate * rise
    way = min(max(step - options.warm_up, 0) / max(options.iterations - options.warm_up, 1), 1.0)
    return options.learning_rate * rise * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * way)))
