"""The files on this machine that a view-conditioned diffusion model's name means."""

from __future__ import annotations

from pathlib import Path

from difixcli.errors import InputError

BUNDLED = Path(__file__).parent / "bundled"


def view_diffusion_files(name: str | Path) -> list[Path]:
    """The files that decide what the model `name` makes, sorted; none of a name that means none here."""
    folder = BUNDLED if str(name) == "bundled" else Path(name).expanduser()
    return [file for file in (folder / "config.json", folder / "model.safetensors") if file.is_file()]


def check_view_diffusion(name: str | Path) -> None:
    """Raises InputError for a name that means no view-conditioned diffusion model here."""
    if len(view_diffusion_files(name)) == 2:
        return
    if str(name) == "bundled":
        raise InputError(
            "No trained view-conditioned diffusion model comes with this version; train one with difix finetune SCENES "
            "--task view-diffusion --base scratch, and name its folder with --view-diffusion."
        )
    raise InputError(
        f"{Path(name).expanduser()} holds no view-conditioned diffusion model (config.json and model.safetensors); "
        "name a folder that difix finetune --task view-diffusion wrote."
    )
