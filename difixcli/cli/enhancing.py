"""`difix enhance`: frames and videos of unknown pose with photos beside them, and the views of distilled runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from difixcli import console
from difixcli.cli.checking import options_end
from difixcli.cli.inputs import (
    files_read,
    fixer_input,
    open_fixer,
    open_scene,
    photo_count,
    photos_named,
    photos_told,
    pick_device,
    scene_inputs,
    tell_loading,
)
from difixcli.cli.options import Device
from difixcli.cli.outputs import Made, announce, beside_others, folder_beside, tell_bad, tell_frames
from difixcli.errors import InputError
from difixcli.runs import Run, fingerprint, run_record
from difixcli.shapes import check_shape
from difixcli.wording import counted

if TYPE_CHECKING:
    from difixcli.cli.enhance import EnhanceRequest
    from difixcli.fixer import Fixer

_DISTILLED = {
    "scene": str,
    "size": (None, int),
    "preset": str,
    "split": str,
    "seed": int,
    "targets?": [str],
    "references?": (None, int),
    "trust?": (None, str),
    "enlargement?": (None, dict),
}
"""The shape of what a distillation was asked for, as far as its frames depend on it."""
_ALIKE = 0.02  # share of a figure of steadiness by which another one is no other


def distilled_as(source: Path) -> dict[str, Any]:
    """What the distillation in a folder was asked for; InputError where it is no run of difix distill, or broken."""
    if not (source / "run.json").is_file() and (source.absolute().parent / "run.json").is_file():
        raise InputError(f"{source} is a part of the run {source.absolute().parent}; name that run.")
    record = run_record(source)
    if record is None or record["command"] != "distill":
        raise InputError(f"{source / 'run.json'} is not of a run of difix distill; name one.")
    held: dict[str, Any] = record["arguments"]
    check_shape(held, _DISTILLED, source / "run.json")
    return held


def _has_learned(source: Path) -> bool:
    """Whether a round of a distillation's is in its model."""
    rounds = (run_record(source) or {}).get("rounds")
    return isinstance(rounds, dict) and bool(rounds.get("accepted"))


def enhanced_images(request: EnhanceRequest) -> Made:
    """Fix images, or the frames of a video, of unknown pose."""
    from difixcli.enhancement import check_images, enhance_images
    from difixcli.evaluation.pictures import image_files
    from difixcli.frames.pipeline import FrameOptions

    options_end()
    source, film = request.source, request.film
    photos = photos_named(request.reference)
    folder = request.output or folder_beside(source, "enhanced")
    for warning in check_images(source, folder, photos, request.size, film):
        console.warn(warning)
    on, _ = pick_device(request.device)
    network = _opened(request, on)
    count = photo_count(request.references, network)
    fill_seed = request.seed if network.config.fill_unseen else None
    options = FrameOptions(False, request.confidence, fill_seed, request.batch)
    # videos are made anew of the same frames
    arguments = {**request.arguments, "dtype": str(network.dtype), "references": photos, "count": count}
    arguments["fill_seed"] = options.fill_seed
    files = [source] if source.is_file() else image_files(source)
    # by content: renders made anew often have the names and sizes of those before
    inputs = {"source": fingerprint(files), "references": fingerprint(photos), **fixer_input(request.fixer)}
    if request.output is None:
        folder = beside_others(folder, "enhance", arguments)
    reads = [source, *photos, *files_read(request.fixer)]
    run = Run.open(folder, "enhance", arguments, inputs, request.force, reads=reads)
    announce(run, references=photos_told(photos, count))
    results = enhance_images(source, run.folder, network, photos, request.size, film, count, console.progress, options)
    run.finish(results)
    if results["cut_short"]:
        console.warn(f"{source} {results['cut_short']}.")
    return _told(run.folder, results)


def enhanced_run(request: EnhanceRequest) -> Made:
    """Render a distilled run along its test views or a camera path and fix every frame with its photos."""
    source, film, held = request.source, request.film, distilled_as(request.source)
    on, _ = pick_device(request.device)

    from difixcli.cli.super_resolution import large_scene, resolver_cleaner
    from difixcli.enhancement.runs import by_fixer, enhance_run, path_fingerprint, views
    from difixcli.reconstruction import latest_checkpoint
    from difixcli.scenes import make_split, make_trajectory
    from difixcli.scenes.trajectories import path_world_note

    asked = held.get("enlargement")
    scene = open_scene(held["scene"], held["size"], held["preset"])
    if asked is not None:
        scene = large_scene(scene, asked)
    trajectory = request.trajectory
    if trajectory is None and "test" not in (aims := held.get("targets", ["test"])):
        trajectory = aims[0]  # the views that the run was made for
        if more := aims[1:]:
            console.say(f"Of the run's targets this is {trajectory}; for others write --trajectory {more[0]}.")
    split = make_split(scene, held["split"], need_test=trajectory is None)
    path = None if trajectory is None else make_trajectory(scene, split.train, trajectory)
    if trajectory is not None and (note := path_world_note(trajectory)):
        console.say(note)
    cameras = views(scene, split, path, film)[1]
    network, taught = None, _has_learned(source)
    if asked is not None:
        cleaner, read_by_it = resolver_cleaner(asked, on, held["seed"])
    else:
        network = _opened(request, on)
        trust = held.get("trust", "supported")
        cleaner = by_fixer(network, scene, split, held.get("references"), trust, taught, request.confidence)
        read_by_it = fixer_input(request.fixer)
    # a run that has trained on since makes other frames
    checkpoint = latest_checkpoint(source)
    inputs = {**scene_inputs(scene), "checkpoint": fingerprint([checkpoint]), **read_by_it}
    inputs["views"] = path_fingerprint(cameras)
    # not the run's folder itself: its part that is written to by default is not read
    reads = [checkpoint, source / "run.json", source / "scene", *files_read(request.fixer, scene)]
    # videos are made anew of the same frames
    arguments = {
        **request.arguments,
        "trajectory": trajectory,
        "dtype": None if network is None else str(network.dtype),
    }
    arguments |= {"references": held.get("references"), "trust": held.get("trust"), "enlargement": asked}
    arguments["taught"] = taught
    part = "-".join(["enhanced", *([path.name] if path else []), *(["steady"] if film.steady else [])])
    folder = request.output or beside_others(source / part, "enhance", arguments)
    run = Run.open(folder, "enhance", arguments, inputs, request.force, reads=reads)
    along = f"{trajectory}, {counted(len(path.cameras), 'frame')}" if path else "test views"
    announce(run, scene=scene.name, trajectory=along)
    # where it was trained, unless that is not here or another place is asked for
    where = None if request.device is Device.auto and on == "cuda" else on
    tell_loading("nerfstudio")
    results = enhance_run(
        source, run.folder, cleaner, scene, split, console.progress, path, film, where, request.confidence
    )
    run.finish(results)
    return _told(run.folder, results)


def _opened(request: EnhanceRequest, device: str) -> Fixer:
    return open_fixer(request.fixer, device, request.dtype, request.compiled, request.tile)


def _told(folder: Path, results: dict[str, Any]) -> Made:
    """Say what was written."""
    tell_frames("Images", folder, results)
    tell_bad(results)
    for name in ("video", "side_by_side", "split_screen"):
        if results[name]:
            console.say(f"{results[name]}: {results['fps']:g} frames a second")
    for sentence in results.get("said", ()):
        console.say(sentence)
    if steadiness := results["steadiness"]:
        before, after = steadiness["input"], steadiness["output"]
        console.say(
            "Mean colour difference of each frame from the one before it, moved along by optical flow (0: perfectly "
            f"steady): {before:.4f} before the fixes, {after:.4f} after: {_verdict(before, after)}"
        )
    return Made(folder, results)


def _verdict(before: float, after: float) -> str:
    """What two figures of steadiness say of the fixes."""
    if abs(after - before) <= _ALIKE * before:
        return "about as steady."
    return "steadier." if after < before else "less steady. What a fix adds of detail counts as a difference, too."
