"""`difix sample`: procedural posed scenes, written to a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from difixcli import console
from difixcli.cli.options import ForceOption, JsonOption, SeedOption
from difixcli.errors import InputError
from difixcli.runs import make_folder

_MOST_SIZE = 4096  # pixels; all photos of a scene are in memory at once


@console.handled
def sample(
    name: Annotated[str, typer.Argument(help="room, street, table or interior.")],
    folder: Annotated[Path, typer.Argument(help="Where to write the scene; made if missing.")],
    size: Annotated[
        int | None, typer.Option(help="Long side of the photos, in pixels (default 320).", min=16, max=_MOST_SIZE)
    ] = None,
    seed: SeedOption = 0,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a procedural posed scene with true images at every pose.

    room and street are two places; table (things seen from arcs around them) and interior (a room walked through) are
    other places with every --seed.
    """
    from difixcli.samples.sample import check_sample, write_sample
    from difixcli.scenes import load_scene

    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; choose another folder.")
    if folder.exists() and any(folder.iterdir()) and not force:
        raise InputError(f"{folder} is not empty; choose another folder, or write over it with --force.")
    check_sample(name)
    make_folder(folder)
    console.say(f"Painting {name}; this takes a minute.")
    write_sample(name, folder, seed, size)
    scene = load_scene(str(folder))
    console.say(f"Wrote {len(scene.frames)} posed images to {folder}.")
    console.finish({"frames": len(scene.frames), "folder": str(folder)}, as_json)
