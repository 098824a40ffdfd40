"""What is fetched beforehand, so that everything runs with the network off afterwards.

Weights of the Hugging Face hub go to its cache, LPIPS' backbones and FID's Inception to torch hub's.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from difixcli.errors import InputError, unknown
from difixcli.model_folders import GEOQUERY, HUB_NAMES, SD_TURBO, SVD, WAN, X4_UPSCALER, Kind, looks_like_hub_name
from difixcli.torchvision_cure import cure

NETWORKS = ("lpips-vgg", "lpips-alex", "inception")
"""What comes from elsewhere than the Hugging Face hub, by the names that it is asked for by."""


def fetch(name: str, kind: Kind = "fixer") -> Path:
    """Fetch one of `NETWORKS`, or a model OWNER/NAME of the hub of that kind; where it lies, the cache as a rule.

    What is there already is not fetched again. Raises InputError for an unknown name, and where it cannot be fetched.
    """
    from difixcli.fixer.weights import base_of, download
    from difixcli.priors.super_resolution import opening
    from difixcli.priors.video.published import download as download_video_model
    from difixcli.priors.view_diffusion import published

    check_download(name)
    if name in NETWORKS:
        return _fetch_network(name)
    if kind == "super-resolver" or name == X4_UPSCALER:
        return opening.download(name)
    if kind == "view-diffusion":
        return published.download(name)
    if kind == "video" or name in (WAN, SVD):
        return download_video_model(name)
    found = download(name)
    if name == GEOQUERY:
        base_of(found / "checkpoint.pkl")  # which needs the rest of SD-Turbo
    return found


def check_download(name: str) -> None:
    """Raises InputError for a name that is neither of `NETWORKS` nor, by its form, one of the hub's."""
    if name not in NETWORKS and not looks_like_hub_name(name):
        raise unknown(
            "download",
            name,
            [*NETWORKS, *(model for models in HUB_NAMES.values() for model in models)],
            "Name these, OWNER/NAME on the hub, or a whole line of difix.",
        )


def _fetch_network(name: str) -> Path:
    import torch

    from difixcli.evaluation.fid import INCEPTION, inception

    folder = Path(torch.hub.get_dir()) / "checkpoints"
    source = _address(name)
    path = folder / (INCEPTION if name == "inception" else source.rpartition("/")[2])
    if path.is_file():
        return path
    # torchvision's files have the beginning of their SHA-256 in their names
    begins = None if name == "inception" else path.stem.rpartition("-")[2]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(source, str(path), hash_prefix=begins, progress=False)
    except (OSError, RuntimeError) as error:  # no network, no room; a hash that is another
        reason = " ".join(str(getattr(error, "reason", None) or error).split())[:120]
        raise InputError(
            f"{name} cannot be fetched from {source} ({reason}); check the network, or put the file into {folder}."
        ) from error
    if name == "inception":
        try:
            inception(path)
        except InputError:
            path.unlink()
            raise
    return path


def _address(name: str) -> str:
    """Where a network's file is, as the library says that was made with it."""
    cure()
    if name == "inception":
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

        return str(URL_INCEPTION_V3)
    from torchvision import models

    weights = models.VGG16_Weights if name == "lpips-vgg" else models.AlexNet_Weights
    return str(weights.IMAGENET1K_V1.url)


def needs_of_training(base: str, folder: Path | None, perceptual: str | None) -> Iterable[str]:
    """Which networks a fixer's training needs beside its base, whose files lie in `folder` where it is of the hub."""
    path = folder or Path(base).expanduser()
    if path.suffix == ".pkl" and not (path.parent / "vae").is_dir():
        yield SD_TURBO
    published = path.suffix == ".pkl" or (path / "unet").is_dir()
    if perceptual == "lpips-vgg" or (published and perceptual is None):
        yield "lpips-vgg"
