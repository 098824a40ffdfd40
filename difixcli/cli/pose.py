"""`difix pose`: photos or a video to a posed scene."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from difixcli import console
from difixcli.cli.options import ForceOption, JsonOption, OutputOption, SeedOption
from difixcli.cli.outputs import announce
from difixcli.errors import InputError
from difixcli.runs import Run, check_folder
from difixcli.wording import counted

FRAMES = 150
"""The most frames that are taken of a video."""


@console.handled
def pose(
    source: Annotated[Path, typer.Argument(help="A folder of photos, or a video file.")],
    frames: Annotated[int, typer.Option(help="The most frames to take of a video.", min=3)] = FRAMES,
    seed: SeedOption = 0,
    output: OutputOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Find where photos were taken from, and write them as a scene that every command takes."""
    from difixcli.scenes.unposed import posed_folder

    folder = (output or posed_folder(source)).expanduser().absolute()
    check_folder(folder)
    results = posed(source, folder, frames, seed, force)
    console.finish({"results": results, "output": str(folder)}, as_json)


def posed(source: Path, folder: Path, frames: int = FRAMES, seed: int = 0, force: bool = False) -> dict[str, Any]:
    """Pose photos or a video into a folder, unless that is done, and say what came of it; the run's results."""
    from difixcli.posing import pose as find_poses
    from difixcli.posing import pose_inputs
    from difixcli.posing.pose import check_source
    from difixcli.scenes.other_tools import poses_of_another_tool
    from difixcli.scenes.unposed import is_video, left_out, photo_folder

    source = source.expanduser().absolute()
    if (photos := photo_folder(source)) is not None and (line := left_out(photos)):
        console.warn(line)
    inputs = pose_inputs(source)
    check_source(source)
    if source.is_dir() and (other := poses_of_another_tool(source)) is not None:
        console.warn(f"Poses are found anew: {other}, to keep them.")
    arguments: dict[str, Any] = {"source": source, "seed": seed}
    if is_video(source):
        arguments["frames"] = frames
    # photos that are read in place must not lie where the scene is going to be
    reads = [photos or source]
    if folder.expanduser().resolve() in (reads[0].resolve(), source.resolve()):
        raise InputError(f"{folder} holds the photos themselves; choose another --output.")
    run = Run.open(folder, "pose", arguments, inputs, force, reads=reads)
    announce(run)
    if run.done:
        results = run.record["results"]
    else:
        results = find_poses(source, run, frames, seed, console.progress, console.say)
        run.finish(results)
    _tell(results, run)
    return dict(results)


def _tell(results: dict[str, Any], run: Run) -> None:
    """What was placed, how well, and what was not."""
    for name, why in results["not_placed"].items():
        console.warn(f"{name} was not placed: {why}")
    if not results["sensible"]:
        console.warn(
            f"The model is doubtful (focal length {results['focal']:.0f} px for {results['width']} px of width, median "
            f"parallax {results['parallax']:.1f}°): look at {run.folder / 'poses.png'} before you use it."
        )
    console.say(
        f"Placed {results['placed']} of {counted(results['photos'], 'photo')} in {run.record['seconds']:.0f} s: "
        f"focal length {results['focal']:.1f} px at {results['width']}×{results['height']}, {results['points']} "
        f"points, reprojection error {results['reprojection_error']:.2f} px."
    )
    console.say(f"The scene is in {run.folder}; poses.png shows its cameras.")
