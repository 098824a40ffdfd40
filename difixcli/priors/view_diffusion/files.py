"""The files on this machine that a view-conditioned diffusion model's name means."""

from __future__ import annotations

from pathlib import Path

from difixcli.errors import InputError
from difixcli.model_folders import check_kind, looks_like_hub_name, no_model

BUNDLED = Path(__file__).parent / "bundled"


def view_diffusion_files(name: str | Path) -> list[Path]:
    """The files that decide what the model `name` makes, sorted; none of a name that means none here."""
    folder = BUNDLED if str(name) == "bundled" else Path(name).expanduser()
    return [file for file in (folder / "config.json", folder / "model.safetensors") if file.is_file()]


def is_published(name: str | Path) -> bool:
    """Whether a name means a text-to-image model in diffusers' layout: a folder with a U-Net, or one on the hub."""
    folder = Path(name).expanduser()
    return (folder / "unet").is_dir() or (not folder.exists() and looks_like_hub_name(str(name)))


def check_view_diffusion(name: str | Path) -> None:
    """Raises InputError for a name that means no view-conditioned diffusion model here."""
    if len(view_diffusion_files(name)) == 2:
        check_kind(Path(name).expanduser(), "view-diffusion")
        return
    if str(name) == "bundled":
        raise InputError(
            "No trained view-conditioned diffusion model comes with this version; train one with difix finetune SCENES "
            "--task view-diffusion --base scratch, and name its folder with --view-diffusion."
        )
    folder = Path(name).expanduser()
    if not folder.exists():
        raise no_model(str(name), "view-diffusion")
    check_kind(folder, "view-diffusion")
    raise InputError(
        f"{folder} holds no view-conditioned diffusion model (config.json and model.safetensors); "
        "name a folder that difix finetune --task view-diffusion wrote."
    )
