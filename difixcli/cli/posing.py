"""What `difix pose` does once a request is valid: the scene, and what is told of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from difixcli import console
from difixcli.cli.outputs import Made, announce
from difixcli.runs import Run
from difixcli.wording import counted

if TYPE_CHECKING:
    from difixcli.cli.pose import PoseRequest


def posed(request: PoseRequest) -> Made:
    """Pose photos or a video into a folder, unless that is done, and say what came of it."""
    from difixcli.posing import pose, pose_inputs
    from difixcli.scenes.other_tools import poses_of_another_tool
    from difixcli.scenes.unposed import is_video, photo_folder

    source = request.source.expanduser().absolute()
    if source.is_dir() and (other := poses_of_another_tool(source)) is not None:
        console.warn(f"Poses are found anew: {other}, to keep them.")
    arguments: dict[str, Any] = {"source": source, "seed": request.seed}
    if is_video(source):
        arguments["frames"] = request.frames
    reads = [photo_folder(source) or source]
    run = Run.open(request.folder, "pose", arguments, pose_inputs(source), request.force, reads=reads)
    announce(run)
    if run.done:
        results = run.record["results"]
    else:
        results = pose(source, run, request.frames, request.seed, console.progress, console.say)
        run.finish(results)
    _tell(results, run)
    return Made(run.folder, dict(results))


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
