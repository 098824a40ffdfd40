"""Finds the video model that a name means, and says what is wrong with one that cannot be used."""

from __future__ import annotations

from pathlib import Path

import torch

from difixcli.errors import InputError, unknown
from difixcli.fixer.weights import looks_like_hub_name
from difixcli.model_folders import beside, check_kind
from difixcli.priors.video.files import is_ours
from difixcli.priors.video.span import VideoModel

WAN = "Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers"
SVD = "stabilityai/stable-video-diffusion-img2vid-xt"


def open_video_model(name: str | Path, *, device: str = "cpu", dtype: torch.dtype | None = None) -> VideoModel:
    """The video model that a name means, on a device, its networks frozen.

    Without a `dtype` a published model has on a GPU the half precision that it was published for, as fixers that are
    shown raw photos have, and everything else single precision: a blend of pixels needs their eight bits, and more.

    `bundled`; a folder that `difix finetune --task video` wrote; a published model in diffusers' layout (see
    `published`): its folder, or its name on the Hugging Face hub, from the cache or the network. Raises InputError for
    what is none of these, is damaged, or is not told the last photo.
    """
    from difixcli.priors.video.film import FixerFilm
    from difixcli.priors.video.published import open_published

    path = Path(name).expanduser()
    if str(name) == "bundled" or (path.is_dir() and is_ours(path)):
        return FixerFilm.from_pretrained(name, device, dtype or torch.float32)
    if path.is_dir():
        if (path / "model_index.json").is_file():
            check_kind(path, "video")
            return open_published(path, str(name), device, dtype)
        check_kind(path, "video")
        raise InputError(
            f"{path} is not a video model: it has neither the config.json that difix finetune --task video writes nor "
            "the model_index.json of a published one."
        )
    if looks_like_hub_name(str(name)):
        return open_published(None, str(name), device, dtype)
    raise unknown(
        "video model",
        str(name),
        ["bundled", WAN, SVD, *beside(path, "video")],
        "Give bundled, a folder that difix finetune --task video wrote, or a published model's folder or name on the "
        "Hugging Face hub.",
    )
