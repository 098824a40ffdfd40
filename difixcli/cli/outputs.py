"""Where commands write by default, and what they say before they begin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from difixcli import console
from difixcli.runs import Run, read_json

DISTILLED_OR_ENHANCED = (
    "distilled is the 3D model as it renders: the same thing from every side, for viewers and exports; "
    "enhanced is the same renders, each fixed once more: cleaner one by one, for pictures and films."
)
"""Which of the two rows to prefer, for tables that hold both."""


@dataclass(frozen=True)
class Made:
    """What came of images: the folder that they, or the scene of them, were written to and what is told of them, and
    the folder that a fixer was exported to; None for what was not asked for.
    """

    output: Path | None = None
    results: dict[str, Any] = field(default_factory=dict)
    exported: Path | None = None

    def told(self) -> dict[str, Any]:
        """What --json says."""
        said = {} if self.output is None else {"results": self.results, "output": str(self.output)}
        return said if self.exported is None else {**said, "exported": str(self.exported)}


def tell_frames(what: str, folder: Path, results: Mapping[str, Any]) -> None:
    """Say how many images were written, and how long each took of those that were not there."""
    pace = results["seconds_per_frame"]
    console.say(f"{what} in {folder}: {results['frames']}" + (f", {pace:.2f} s each" if pace else ""))


def tell_bad(results: Mapping[str, Any]) -> None:
    """Warn of fixes that are broken."""
    if bad := results["bad"]:
        console.warn(
            f"{len(bad)} of {results['frames']} fixes look broken (false colours, collapsed, noise or moved): "
            f"{', '.join(bad[:5])}{', …' if len(bad) > 5 else ''}. Look at them before you use them."
        )


def announce(run: Run, **facts: Any) -> None:
    """Print what is about to happen, defaults included."""
    console.say(f"Output: {run.folder}" + (" (going on with an earlier run)" if run.resumed else ""))
    for name, value in facts.items():
        if value:
            console.say(f"{name}: {', '.join(map(str, value)) if isinstance(value, list) else value}")


def folder_beside(source: Path, what: str) -> Path:
    """SOURCE_WHAT beside the source; beside the run of difix that the source is a part of, lest it become one too."""
    source = source.absolute()
    runs = [folder for folder in source.parents if _is_record(folder / "run.json")]
    if not runs:
        return source.with_name(f"{source.stem}_{what}")
    part = source.relative_to(runs[-1]).with_suffix("")
    return runs[-1].with_name(f"{'-'.join([runs[-1].name, *part.parts])}_{what}")


def beside_others(folder: Path, command: str, arguments: Mapping[str, Any]) -> Path:
    """Where a command writes by default: into the folder, or where that holds a run of another command or of other
    arguments, into the first of FOLDER-2, FOLDER-3 and so on that does not."""
    path, number = folder, 1
    while _is_record(path / "run.json") and not Run.asked_for(path, command, arguments):
        number += 1
        path = folder.with_name(f"{folder.name}-{number}")
    return path


def _is_record(path: Path) -> bool:
    held = read_json(path) if path.is_file() else None
    return isinstance(held, dict) and "command" in held
