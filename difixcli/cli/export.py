"""`difix export`: a reconstruction as a .ply file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from difixcli import console
from difixcli.cli.inputs import pick_device, tell_loading
from difixcli.cli.options import Device, JsonOption
from difixcli.errors import InputError, unknown
from difixcli.runs import check_folder, make_folder
from difixcli.wording import counted


@console.handled
def export(
    run: Annotated[Path, typer.Argument(help="The folder of a reconstruction, such as difix distill leaves.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .ply to write.")],
    world: Annotated[
        str,
        typer.Option(
            help="scene: the world of the poses in the scene's file; normalised: the run's, centred and of size 1."
        ),
    ] = "scene",
    force: Annotated[bool, typer.Option("--force", help="Replace a file of that name.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a run's Gaussians, or the surfaces of another method as coloured points, as a PLY file."""
    from difixcli.reconstruction.run_files import check_start
    from difixcli.scenes.scene import WORLDS

    output = output.expanduser().absolute()
    if world not in WORLDS:
        raise unknown("world", world, WORLDS)
    if output.suffix.lower() != ".ply" or output.is_dir():
        raise InputError(f"{output} is no name of a .ply file; give one with --output.")
    if not (run / "reconstruction.json").is_file():
        raise InputError(f"{run} holds no reconstruction; name the folder of a run of difix distill.")
    if output.exists() and not force:
        raise InputError(f"{output} is already there; choose another --output, or replace it with --force.")
    check_start(run, None)
    check_folder(output.parent)
    on, _ = pick_device(Device.auto)
    tell_loading("nerfstudio")
    from difixcli.reconstruction import Reconstruction
    from difixcli.reconstruction.gaussians import not_finite

    # on the device it was trained on, unless that is not here
    reconstruction = Reconstruction.load(run, device=None if on == "cuda" else on)
    make_folder(output.parent)
    reconstruction.export(output, world)
    count = reconstruction.gaussians
    if count is not None and reconstruction.left_out:
        console.warn(not_finite(reconstruction.left_out, count, str(run)))
        count -= reconstruction.left_out
    what = "a point cloud" if count is None else counted(count, "Gaussian")
    console.say(f"Wrote {what} to {output}, in the scene's {'own' if world == 'scene' else 'normalised'} world.")
    told = {"output": str(output), "gaussians": count, "left_out": reconstruction.left_out, "world": world}
    console.finish(told, as_json)
