"""What --points may name; nothing that takes long to import is needed to tell."""

from __future__ import annotations

import zipfile
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
    if path.suffix.lower() == ".npz":
        check_zip(path)


def check_zip(path: Path) -> None:
    """Raises InputError for an .npz that is no zip file, which numpy would take for a pickle."""
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is no .npz of point maps, or is cut off; write it again with numpy's savez.")
