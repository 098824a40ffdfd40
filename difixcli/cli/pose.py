"""`difix pose`: photos or a video to a posed scene."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from difixcli import console
from difixcli.cli.options import ForceOption, JsonOption, OutputOption, SeedOption
from difixcli.cli.outputs import Made
from difixcli.cli.requests import Request, filling, working
from difixcli.errors import InputError
from difixcli.runs import check_folder, check_output


@dataclass(frozen=True)
class PoseRequest(Request):
    """What `difix pose` is asked for: each option of the line by its name, None where it is not given.

    `PoseRequest(Path("clip.mp4"), frames=80).run()` is `difix pose clip.mp4 --frames 80`.
    """

    source: Annotated[Path, typer.Argument(help="A folder of photos, or a video file.")]
    frames: Annotated[int, typer.Option(help="The most frames to take of a video.", min=3)] = 150
    seed: SeedOption = 0
    output: OutputOption = None
    force: ForceOption = False

    @property
    def folder(self) -> Path:
        """Where the scene is written."""
        from difixcli.scenes.unposed import posed_folder

        return (self.output or posed_folder(self.source)).expanduser().absolute()

    def _check(self) -> None:
        from difixcli.posing.pose import check_source
        from difixcli.scenes.unposed import left_out, other_photos, photo_folder

        check_folder(self.folder)  # first: a link to nothing has no place to be compared below
        source = self.source.expanduser().absolute()
        photos = photo_folder(source)
        if photos is not None and (line := left_out(photos)):
            console.warn(line)  # now: too few may be left by it
        if line := other_photos(source):
            console.warn(line)
        check_source(source)
        # photos that are read in place must not lie where the scene is going to be
        if self.folder.resolve() in ((photos or source).resolve(), source.resolve()):
            raise InputError(f"{self.folder} holds the photos themselves; choose another --output.")
        check_output(self.folder, "pose", self.force, {"source": source, "seed": self.seed})

    def run(self) -> Made:
        """Pose the photos or the video, unless that is done. Raises InputError as `validate` does, and for what turns
        out to be wrong later.
        """
        from difixcli.cli.posing import posed

        with working():
            self.validate()
            return posed(self)


@console.handled
@filling(PoseRequest)
def pose(request: PoseRequest, as_json: JsonOption = False) -> None:
    """Find where photos were taken from, and write them as a scene that every command takes."""
    console.finish(request.run().told(), as_json)
