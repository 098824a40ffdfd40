"""What a model's name may mean, and which kind a folder holds, told without reading weights: for suggestions, and for
what is named in place of another kind.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from difixcli.errors import InputError, unknown

Kind = Literal["fixer", "super-resolver", "view-diffusion", "video"]

FORMATS: dict[Kind, str] = {
    "fixer": "difixcli-fixer-1",
    "super-resolver": "difixcli-super-resolution-1",
    "view-diffusion": "difixcli-view-diffusion-1",
    "video": "difixcli-video-1",
}
"""What `format` says in the `config.json` of a folder of ours."""
NAMES: dict[Kind, str] = {
    "fixer": "a fixer",
    "super-resolver": "a super-resolver",
    "view-diffusion": "networks of view diffusion",
    "video": "a video model",
}
OPTIONS: dict[Kind, str] = {
    "fixer": "--fixer",
    "super-resolver": "--sr",
    "view-diffusion": "--view-diffusion",
    "video": "--video",
}
FIXER_PARTS = ("config.json", "model.safetensors", "bolder.safetensors")
"""What is in the folder of a fixer of ours."""
PUBLISHED_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler", "model_index.json")
"""What is in the folder of a fixer in the published layout; the last is written when all is whole."""
SMALL_SIZES = ("tiny", "small", "medium")
"""Fixers with random weights, to be trained from scratch."""
SD_TURBO = "stabilityai/sd-turbo"
GEOQUERY = "DIG-UESTC/GeoQuery"
X4_UPSCALER = "stabilityai/stable-diffusion-x4-upscaler"
WAN = "Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers"
SVD = "stabilityai/stable-video-diffusion-img2vid-xt"
HUB_NAMES: dict[Kind, tuple[str, ...]] = {
    "fixer": ("nvidia/difix", "nvidia/difix_ref", SD_TURBO, GEOQUERY),
    "super-resolver": (X4_UPSCALER,),
    "view-diffusion": (),
    "video": (WAN, SVD),
}
"""Published models that are worth suggesting."""
_GIVE: dict[Kind, str] = {
    "fixer": "Give bundled, the folder of a fixer, a .pkl of a release's trainer or a name on the Hugging Face hub.",
    "super-resolver": "Give bundled, a file that spandrel reads (.pth, .safetensors), the folder of a super-resolver "
    "or a name on the Hugging Face hub.",
    "view-diffusion": "Name a folder that difix finetune --task view-diffusion wrote.",
    "video": "Give bundled, a folder that difix finetune --task video wrote, or a published model's folder or name on "
    "the Hugging Face hub.",
}
_PUBLISHED: dict[str, Kind] = {
    "StableDiffusionUpscalePipeline": "super-resolver",
    "StableVideoDiffusionPipeline": "video",
    "WanImageToVideoPipeline": "video",
}


def kind_of(folder: Path) -> Kind | None:
    """The kind of model in a folder, ours or in a published layout; None for what is none, or cannot be read."""
    written = _values(folder / "config.json").get("format")
    for kind, name in FORMATS.items():
        if written == name:
            return kind
    pipeline = _values(folder / "model_index.json").get("_class_name")
    if isinstance(pipeline, str) and pipeline in _PUBLISHED:
        return _PUBLISHED[pipeline]
    # a fixer's U-Net makes latents of latents; others are given the photo beside them
    unet = _values(folder / "unet" / "config.json")
    alike = unet.get("in_channels") == unet.get("out_channels")
    return "fixer" if unet and alike and (folder / "vae" / "config.json").is_file() else None


def looks_like_hub_name(name: str) -> bool:
    """Whether a name that is no path here has the form OWNER/NAME."""
    parts = name.split("/")
    return len(parts) == 2 and all(parts) and not name.startswith((".", "~", "/")) and not Path(parts[0]).exists()


def no_model(name: str, kind: Kind, more: Iterable[str] = ()) -> InputError:
    """The error for a name that means no model of a kind; `more` are others that may have been meant."""
    what = "view-conditioned diffusion model" if kind == "view-diffusion" else NAMES[kind].removeprefix("a ")
    bundled = [] if kind == "view-diffusion" else ["bundled"]  # none comes with this version
    near_by = beside(Path(name).expanduser(), kind)
    return unknown(what, name, [*bundled, *HUB_NAMES[kind], *near_by, *more], _GIVE[kind])


def no_video_model(path: Path) -> InputError:
    """The error for a file or folder that holds no video model."""
    return InputError(
        f"{path} is not a video model: it has neither the config.json that difix finetune --task video writes nor the "
        "model_index.json of a published one."
    )


def beside(path: Path, kind: Kind) -> list[str]:
    """Names of the models of a kind in the folder where `path`, which is not there, was looked for, sorted."""
    try:
        return sorted(found.name for found in path.parent.iterdir() if kind_of(found) == kind)
    except OSError:
        return []


def check_kind(folder: Path, wanted: Kind) -> None:
    """Raises InputError for a folder that holds a model of another kind than the one that is wanted."""
    kind = kind_of(folder)
    if kind is not None and kind != wanted:
        raise InputError(
            f"{folder} holds {NAMES[kind]}, which {OPTIONS[kind]} takes, and not {NAMES[wanted]}; name one."
        )


def _values(file: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one for anything else."""
    try:
        values = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
