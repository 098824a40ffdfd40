"""`difix export`: a reconstruction as a .ply file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from difixcli import console
from difixcli.cli.inputs import pick_device, tell_loading
from difixcli.cli.options import Device, JsonOption
from difixcli.cli.requests import Request, filling, working
from difixcli.errors import InputError, unknown
from difixcli.runs import check_folder, make_folder
from difixcli.wording import counted


@dataclass(frozen=True)
class Exported:
    """What was written: how many Gaussians, None for a point cloud, without those `left_out`, which are not finite."""

    output: Path
    gaussians: int | None
    left_out: int
    world: str

    def told(self) -> dict[str, Any]:
        """What --json says."""
        return vars(self) | {"output": str(self.output)}


@dataclass(frozen=True)
class ExportRequest(Request):
    """What `difix export` is asked for: each option of the line by its name.

    `ExportRequest(Path("run"), Path("scene.ply")).run()` is `difix export run -o scene.ply`.
    """

    source: Annotated[
        Path, typer.Argument(metavar="run", help="The folder of a reconstruction, such as difix distill leaves.")
    ]
    output: Annotated[Path, typer.Option("--output", "-o", help="The .ply to write.")]
    world: Annotated[
        str,
        typer.Option(
            help="scene: the world of the poses in the scene's file; normalised: the run's, centred and of size 1."
        ),
    ] = "scene"
    force: Annotated[bool, typer.Option("--force", help="Replace a file of that name.")] = False

    @property
    def file(self) -> Path:
        """What is written."""
        return self.output.expanduser().absolute()

    def _check(self) -> None:
        if not (self.source / "reconstruction.json").is_file():
            raise InputError(f"{self.source} holds no reconstruction; name the folder of a run of difix distill.")
        if self.file.suffix.lower() != ".ply" or self.file.is_dir():
            raise InputError(f"{self.file} is no name of a .ply file; give one with --output.")
        if self.file.exists() and not self.force:
            raise InputError(f"{self.file} is already there; choose another --output, or replace it with --force.")
        check_folder(self.file.parent)
        from difixcli.reconstruction.run_files import check_start
        from difixcli.scenes.scene import WORLDS

        if self.world not in WORLDS:
            raise unknown("world", self.world, WORLDS)
        check_start(self.source, None)

    def run(self) -> Exported:
        """Write the file. Raises InputError as `validate` does, and for what turns out to be wrong later."""
        with working():
            self.validate()
            on, _ = pick_device(Device.auto)
            tell_loading("nerfstudio")
            from difixcli.reconstruction import Reconstruction
            from difixcli.reconstruction.gaussians import not_finite

            # on the device it was trained on, unless that is not here
            reconstruction = Reconstruction.load(self.source, device=None if on == "cuda" else on)
            make_folder(self.file.parent)
            reconstruction.export(self.file, self.world)
            count, left_out = reconstruction.gaussians, reconstruction.left_out
            if count is not None and left_out:
                console.warn(not_finite(left_out, count, str(self.source)))
                count -= left_out
            what = "a point cloud" if count is None else counted(count, "Gaussian")
            world = "own" if self.world == "scene" else "normalised"
            console.say(f"Wrote {what} to {self.file}, in the scene's {world} world.")
            return Exported(self.file, count, left_out, self.world)


@console.handled
@filling(ExportRequest)
def export(request: ExportRequest, as_json: JsonOption = False) -> None:
    """Write a run's Gaussians, or the surfaces of another method as coloured points, as a PLY file."""
    console.finish(request.run().told(), as_json)
