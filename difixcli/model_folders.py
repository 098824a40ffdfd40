"""What kind of model a folder holds, told by its JSON files alone: for suggestions, and for what is named in place of
another kind.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from difixcli.errors import InputError

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
