"""`difix enhance`: final renders, videos and camera paths of runs through the fixer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from difixcli import console
from difixcli.cli.inputs import (
    check_fixer,
    files_read,
    fixer_input,
    open_fixer,
    open_scene,
    photo_count,
    photos_of,
    photos_told,
    pick_device,
    scene_inputs,
    tell_loading,
)
from difixcli.cli.options import (
    BatchOption,
    CompileOption,
    ConfidenceOption,
    Device,
    DeviceOption,
    FixerOption,
    ForceOption,
    JsonOption,
    OutputOption,
    Precision,
    PrecisionOption,
    ReferenceOption,
    ReferencesOption,
    SeedOption,
    SizeOption,
    TileOption,
)
from difixcli.cli.outputs import announce, beside_others, folder_beside
from difixcli.cli.several import over_scenes
from difixcli.errors import InputError
from difixcli.runs import Run, fingerprint, run_record
from difixcli.shapes import check_shape
from difixcli.wording import counted

if TYPE_CHECKING:
    from difixcli.enhancement import Film
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


@dataclass(frozen=True)
class _Fixing:
    """How frames are fixed, as it was given."""

    fixer: str
    tile: int | None
    batch: int | None
    confidence: bool
    dtype: Precision
    compiled: bool
    seed: int

    def given(self) -> str | None:
        """The first option of fixers that stands on the line."""
        given = {
            "--fixer": self.fixer != "bundled",
            "--tile": self.tile is not None,
            "--confidence": self.confidence,
            "--dtype": self.dtype is not Precision.auto,
            "--compile": self.compiled,
        }
        return next((option for option, there in given.items() if there), None)

    def open(self, device: str) -> Fixer:
        return open_fixer(self.fixer, device, self.dtype, self.compiled, self.tile)

    def arguments(self, network: Fixer | None) -> dict[str, Any]:
        """What of it decides how frames come out, for a run's record."""
        told = {"fixer": self.fixer, "tile": self.tile, "confidence": self.confidence, "compiled": self.compiled}
        return {**told, "dtype": None if network is None else str(network.dtype)}


@console.handled
@over_scenes("source", None)
def enhance(
    source: Annotated[Path, typer.Argument(help="A folder of frames, a video, or a run of difix distill.")],
    trajectory: Annotated[
        str | None,
        typer.Option(
            help="A run's camera path: spiral, orbit or interpolate (:N frames), shift:2m or shift:0.1, or PATH.json "
            "of nerfstudio's viewer; its test views by default."
        ),
    ] = None,
    steady: Annotated[
        bool, typer.Option("--steady", help="Average the fixes of consecutive frames along their motion.")
    ] = False,
    side_by_side: Annotated[
        bool, typer.Option("--side-by-side", help="Also a video of before and after beside each other.")
    ] = False,
    split_screen: Annotated[
        bool, typer.Option("--split-screen", help="Also a video of before and after with a moving divider.")
    ] = False,
    fps: Annotated[
        float | None,
        typer.Option(help="Frames a second of the videos; by default the source's, 24 of a folder.", min=0.1, max=1000),
    ] = None,
    reference: ReferenceOption = None,
    references: ReferencesOption = None,
    fixer: FixerOption = "bundled",
    size: SizeOption = None,
    tile: TileOption = None,
    batch: BatchOption = None,
    confidence: ConfidenceOption = False,
    dtype: PrecisionOption = Precision.auto,
    compiled: CompileOption = False,
    seed: SeedOption = 0,
    device: DeviceOption = Device.auto,
    output: OutputOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Clean final renders, and write them as frames and a video."""
    check_fixer(fixer)
    from difixcli.enhancement import Film

    film = Film(fps, side_by_side, split_screen, steady)
    fixing = _Fixing(fixer, tile, batch, confidence, dtype, compiled, seed)
    if (source / "reconstruction.json").is_file():
        of_images = {"--reference": reference, "--references": references, "--size": size, "--batch": batch}
        for option, given in {**of_images, "--seed": seed or None}.items():
            if given is not None:
                raise InputError(
                    f"{source} is a run: its references are its own photos, and its size is the one it was trained at; "
                    f"leave out {option}."
                )
        _enhance_run(source, trajectory, film, fixing, device, output, force, as_json)
        return
    if trajectory is not None:
        raise InputError(
            f"{source} is no run of difix distill, so there is nothing to render along a path; name a run, or leave "
            "out --trajectory."
        )
    if references is not None and not reference:
        raise InputError("--references says how many photos count; name them with --reference.")
    _enhance_images(source, reference, references, film, fixing, size, device, output, force, as_json)


def _enhance_images(
    source: Path,
    reference: list[Path] | None,
    references: int | None,
    film: Film,
    fixing: _Fixing,
    size: int | None,
    device: Device,
    output: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Fix images, or the frames of a video, of unknown pose."""
    from difixcli.enhancement import check_images, enhance_images
    from difixcli.evaluation.pictures import image_files
    from difixcli.frames.pipeline import FrameOptions

    if not source.exists():
        raise InputError(f"There is no image, folder or video {source}; check its name.")
    on, _ = pick_device(device)
    photos = [photo for path in reference or [] for photo in photos_of(path)]
    folder = output or folder_beside(source, "enhanced")
    for warning in check_images(source, folder, photos, size, film):
        console.warn(warning)
    network = fixing.open(on)
    count = photo_count(references, network)
    options = FrameOptions(False, fixing.confidence, fixing.seed if network.config.fill_unseen else None, fixing.batch)
    arguments = {"source": source.absolute(), "references": photos, "size": size, **fixing.arguments(network)}
    arguments |= {"steady": film.steady, "count": count}  # videos are made anew of the same frames
    arguments |= {"fill_seed": options.fill_seed}
    files = [source] if source.is_file() else image_files(source)
    # by content: renders made anew often have the names and sizes of those before
    inputs = {"source": fingerprint(files), "references": fingerprint(photos)}
    inputs |= fixer_input(fixing.fixer)
    if output is None:
        folder = beside_others(folder, "enhance", arguments)
    run = Run.open(folder, "enhance", arguments, inputs, force, reads=[source, *photos, *files_read(fixing.fixer)])
    announce(run, references=photos_told(photos, count))
    results = enhance_images(source, run.folder, network, photos, size, film, count, console.progress, options)
    run.finish(results)
    if results["frames"] < 0.9 * results["announced"] - 1:
        console.warn(
            f"{source} says it has {counted(results['announced'], 'frame')}, but only {results['frames']} can be read."
        )
    _finish_frames(results, run.folder, as_json)


def _enhance_run(
    source: Path,
    trajectory: str | None,
    film: Film,
    fixing: _Fixing,
    device: Device,
    output: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Render a distilled run along its test views or a camera path and fix every frame with its photos."""
    from difixcli.scenes.trajectories import check_trajectory

    if trajectory is not None:  # before what takes long is imported
        check_trajectory(trajectory)
    if not (source / "run.json").is_file() and (source.absolute().parent / "run.json").is_file():
        raise InputError(f"{source} is a part of the run {source.absolute().parent}; name that run.")
    record = run_record(source)
    if record is None or record["command"] != "distill":
        raise InputError(f"{source / 'run.json'} is not of a run of difix distill; name one.")
    held = record["arguments"]
    check_shape(held, _DISTILLED, source / "run.json")
    asked = held.get("enlargement")
    if asked is not None and (option := fixing.given()):
        raise InputError(f"{source} is larger than its photos: its super-resolver enhances it; leave {option} out.")
    on, _ = pick_device(device)

    from difixcli.cli.super_resolution import large_scene, resolver_cleaner
    from difixcli.enhancement.runs import by_fixer, enhance_run, path_fingerprint, views
    from difixcli.reconstruction import latest_checkpoint
    from difixcli.scenes import make_split, make_trajectory
    from difixcli.scenes.trajectories import path_world_note

    scene = open_scene(held["scene"], held["size"], held["preset"])
    if asked is not None:
        scene = large_scene(scene, asked)
    if trajectory is None and "test" not in (aims := held.get("targets", ["test"])):
        trajectory = aims[0]  # the views that the run was made for
    split = make_split(scene, held["split"], need_test=trajectory is None)
    path = None if trajectory is None else make_trajectory(scene, split.train, trajectory)
    if trajectory is not None and (note := path_world_note(trajectory)):
        console.say(note)
    cameras = views(scene, split, path, film)[1]
    network = None
    if asked is not None:
        cleaner, read_by_it = resolver_cleaner(asked, on, held["seed"])
    else:
        references, trust = held.get("references"), held.get("trust", "supported")
        network = fixing.open(on)
        cleaner = by_fixer(network, scene, split, references, trust, fixing.confidence)
        read_by_it = fixer_input(fixing.fixer)
    # a run that has trained on since makes other frames
    checkpoint = latest_checkpoint(source)
    inputs = {**scene_inputs(scene), "checkpoint": fingerprint([checkpoint]), **read_by_it}
    inputs["views"] = path_fingerprint(cameras)
    # not the run's folder itself: its part that is written to by default is not read
    reads = [checkpoint, source / "run.json", source / "scene", *files_read(fixing.fixer, scene)]
    # videos are made anew of the same frames
    arguments = {"source": source.absolute(), "trajectory": trajectory, "steady": film.steady}
    arguments |= fixing.arguments(network)
    arguments |= {"references": held.get("references"), "trust": held.get("trust"), "enlargement": asked}
    part = "-".join(["enhanced", *([path.name] if path else []), *(["steady"] if film.steady else [])])
    folder = output or beside_others(source / part, "enhance", arguments)
    run = Run.open(folder, "enhance", arguments, inputs, force, reads=reads)
    announce(
        run,
        scene=scene.name,
        trajectory=f"{trajectory}, {counted(len(path.cameras), 'frame')}" if path else "test views",
    )
    # where it was trained, unless that is not here or another place is asked for
    where = None if device is Device.auto and on == "cuda" else on
    tell_loading("nerfstudio")
    results = enhance_run(
        source,
        run.folder,
        cleaner,
        scene,
        split,
        console.progress,
        path,
        film,
        where,
        fixing.confidence,
    )
    run.finish(results)
    _finish_frames(results, run.folder, as_json)


def _finish_frames(results: dict[str, Any], folder: Path, as_json: bool) -> None:
    """Print what `enhance` wrote."""
    pace = results["seconds_per_frame"]
    console.say(f"Images in {folder}: {results['frames']}" + (f", {pace:.2f} s each" if pace else ""))
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
    console.finish({"results": results, "output": str(folder)}, as_json)


def _verdict(before: float, after: float) -> str:
    """What two figures of steadiness say of the fixes."""
    if abs(after - before) <= _ALIKE * before:
        return "about as steady."
    return "steadier." if after < before else "less steady. What a fix adds of detail counts as a difference, too."
