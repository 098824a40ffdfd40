"""Finds the video model that a name means, and says what is wrong with one that cannot be used."""

from __future__ import annotations

from pathlib import Path

import torch

from difixcli.model_folders import check_kind, looks_like_hub_name, no_model, no_video_model
from difixcli.priors.video.files import is_ours
from difixcli.priors.video.span import VideoModel


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
    if path.exists():
        check_kind(path, "video")
        if (path / "model_index.json").is_file():
            return open_published(path, str(name), device, dtype)
        raise no_video_model(path)
    if looks_like_hub_name(str(name)):
        return open_published(None, str(name), device, dtype)
    raise no_model(str(name), "video")
