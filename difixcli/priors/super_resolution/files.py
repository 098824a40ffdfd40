"""The files on this machine that a super-resolver's name means."""

from __future__ import annotations

from pathlib import Path

BUNDLED = Path(__file__).parent / "bundled"


def resolver_files(name: str) -> list[Path]:
    """The files that decide what the super-resolver `name` makes, sorted; none of a name on the hub."""
    path = BUNDLED if name == "bundled" else Path(name).expanduser()
    if path.is_file():
        return [path]
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else []
