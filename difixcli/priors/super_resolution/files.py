"""The files on this machine that a super-resolver's name means."""

from __future__ import annotations

from pathlib import Path

BUNDLED = Path(__file__).parent / "bundled"


def resolver_files(name: str | Path) -> list[Path]:
    """The files that decide what the super-resolver `name` makes, sorted; none of a name that means none here."""
    path = BUNDLED if str(name) == "bundled" else Path(name).expanduser()
    if path.is_file():
        return [path]
    if (path / "config.json").is_file():  # a network of ours, beside which its training may have left more
        return [file for file in (path / "config.json", path / "model.safetensors") if file.is_file()]
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else []
