"""What --points may name; nothing that takes long to import is needed to tell."""

from __future__ import annotations

from pathlib import Path

from difixcli.errors import InputError

AUTO = "auto"


def check_points(name: str) -> None:
    """Raises InputError for a point file that is missing or of no kind that is read."""
    if name == AUTO:
        return
    path = Path(name).expanduser()
    if path.suffix.lower() not in (".npz", ".ply"):
        raise InputError(f"--points {name} is neither auto nor a file that ends with .npz or .ply; name one of these.")
    if not path.is_file():
        raise InputError(f"There is no point file {path}; check its name, or use --points auto.")
