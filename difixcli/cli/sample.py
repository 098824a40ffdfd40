"""`difix sample`: procedural posed scenes, written to a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from difixcli import console
from difixcli.cli.options import ForceOption, JsonOption, SeedOption
from difixcli.cli.requests import Request, filling, working
from difixcli.errors import InputError
from difixcli.runs import check_folder, make_folder
from difixcli.samples.names import check_sample

_MOST_SIZE = 4096  # pixels


@dataclass(frozen=True)
class Painted:
    """A scene that was written, and how many images it has."""

    folder: Path
    frames: int

    def told(self) -> dict[str, Any]:
        """What --json says."""
        return {"frames": self.frames, "folder": str(self.folder)}


@dataclass(frozen=True)
class SampleRequest(Request):
    """What `difix sample` is asked for: each option of the line by its name, None where it is not given.

    `SampleRequest("room", Path("room")).run()` is `difix sample room room`.
    """

    name: Annotated[str, typer.Argument(help="room, street, table or interior.")]
    folder: Annotated[Path, typer.Argument(help="Where to write the scene; made if missing.")]
    size: Annotated[
        int | None, typer.Option(help="Long side of the photos, in pixels (default 320).", min=16, max=_MOST_SIZE)
    ] = None
    seed: SeedOption = 0
    force: ForceOption = False

    def _check(self) -> None:
        check_sample(self.name)
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"{self.folder} is a file; choose another folder.")
        if self.folder.exists() and any(self.folder.iterdir()) and not self.force:
            raise InputError(f"{self.folder} is not empty; choose another folder, or write over it with --force.")
        check_folder(self.folder)

    def run(self) -> Painted:
        """Write the scene. Raises InputError as `validate` does, and where it cannot be written."""
        with working():
            self.validate()
            from difixcli.samples.sample import write_sample
            from difixcli.samples.views import LONG_SIDE
            from difixcli.scenes import load_scene

            make_folder(self.folder)
            long = self.size is not None and self.size > LONG_SIDE
            console.say(f"Painting {self.name}; this takes {'minutes' if long else 'a minute'}.")
            write_sample(self.name, self.folder, self.seed, self.size, console.progress)
            frames = len(load_scene(str(self.folder)).frames)
            console.say(f"Wrote {frames} posed images to {self.folder}.")
            return Painted(self.folder, frames)


@console.handled
@filling(SampleRequest)
def sample(request: SampleRequest, as_json: JsonOption = False) -> None:
    """Write a procedural posed scene with true images at every pose.

    room and street are two places; table (things seen from arcs around them) and interior (a room walked through) are
    other places with every --seed.
    """
    console.finish(request.run().told(), as_json)
