"""The files on this machine that a view-conditioned diffusion model's name means."""

from __future__ import annotations

from pathlib import Path

BUNDLED = Path(__file__).parent / "bundled"


def view_diffusion_files(name: str | Path) -> list[Path]:
    """The files that decide what the model `name` makes, sorted; none of a name that means none here."""
    folder = BUNDLED if str(name) == "bundled" else Path(name).expanduser()
    return [file for file in (folder / "config.json", folder / "model.safetensors") if file.is_file()]
