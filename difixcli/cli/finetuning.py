"""What `difix finetune` does once a request is valid: each network's training, and what is told of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from difixcli import console
from difixcli.cli.inputs import files_read, fixer_input, pick_device, scene_inputs, scene_spec
from difixcli.cli.outputs import announce
from difixcli.errors import InputError
from difixcli.runs import Run, file_name, fingerprint
from difixcli.wording import counted

if TYPE_CHECKING:
    from difixcli.cli.finetune import FinetuneRequest
    from difixcli.console import FiguresTable
    from difixcli.scenes import Scene


@dataclass(frozen=True)
class Trained:
    """What came of a training: its folder, its results, and the validation's figures by row and figure under a title.

    `pushed` is where the hub has it, if it was asked to; `failed` says of scenes that were left out why.
    """

    output: Path
    results: dict[str, Any]
    title: str
    figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    pushed: str | None = None
    failed: Mapping[str, str] = field(default_factory=dict)

    def told(self) -> dict[str, Any]:
        """What --json says."""
        told = {"results": self.results, "output": str(self.output)}
        return told if self.pushed is None else {**told, "pushed": self.pushed}

    def tables(self) -> list[FiguresTable]:
        """The figures, for people."""
        return [console.figures_table(self.title, self.figures)] if self.figures else []


def trained(request: FinetuneRequest) -> Trained | None:
    """Do what is asked for by a request that is valid; None in other processes than the first of a launch."""
    from difixcli.cli.finetune import Task

    on, _ = pick_device(request.device)
    train = {
        Task.fixer: _train_fixer,
        Task.super_resolution: _train_super_resolver,
        Task.view_diffusion: _train_view_diffusion,
        Task.video: _train_video,
    }
    return train[request.task](request, on)


def _train_fixer(request: FinetuneRequest, on: str) -> Trained | None:
    from difixcli.training import TrainingOptions, processes
    from difixcli.training import finetune as train_fixer
    from difixcli.training.card import push
    from difixcli.training.options import FREE
    from difixcli.training.sources import is_remote, pair_files
    from difixcli.training.trackers import check_trackers

    base, photos, chosen, track = request.base, request.photos, request.chosen(), request.track or []
    check_trackers(track)
    sources = [pair if is_remote(pair) else str(Path(pair).expanduser().absolute()) for pair in request.pairs or []]
    arguments: dict[str, Any] = {"pairs": sources, "base": base, "photos": photos, "stream": request.stream}
    arguments |= {name: value for name, value in chosen.items() if name not in FREE}
    local = [Path(source) for source in sources if not is_remote(source)]

    def inputs() -> dict[str, str]:
        held = {str(source): fingerprint(pair_files(source), content=False) for source in local}
        return held | fixer_input(base, "base") | _photos_input(photos)

    names = [source.name if source.is_dir() else source.parent.name for source in local[:3]]
    folder = request.output or Path("outputs") / "fixers" / "-".join([file_name(base), *(names or ["photos"])])
    reads = [*local, *([photos] if photos else []), *files_read(base)]
    process = processes.join(on)
    main = process.is_main_process
    run = Run.open(folder, "finetune", arguments, inputs(), request.force, reads=reads) if main else None
    processes.wait()  # the first process alone holds the run; the others work into its folder
    total = chosen.get("iterations", TrainingOptions().iterations)
    if run is not None:
        announce(run, base=base, pairs=sources, photos=photos, device=on, processes=process.num_processes)

    def report(record: Mapping[str, Any]) -> None:
        if run is not None and record["event"] == "start":  # what was decided for all processes
            decided = {"perceptual": record["options"]["perceptual"], "judge": record["judge"]}
            run.save(results={**decided, "options": record["options"]})
        _training_news(record)

    with console.progress("train", total) if main else contextlib.nullcontext() as update:
        results = train_fixer(
            sources,
            base,
            folder,
            photos=photos,
            stream=request.stream,
            device=on,
            progress=update,
            report=report,
            track=track,
            **chosen,
        )
    process.destroy_process_group()
    if run is None:
        return None
    run.finish(results)
    if results["skipped"]:
        console.warn(f"{counted(len(results['skipped']), 'pair')} skipped that could not be read; log.jsonl says why.")
    console.say(f"Use it with --fixer {run.folder}")
    pushed = None
    if request.push_to_hub is not None:
        pushed = push(run.folder, request.push_to_hub)
        console.say(f"Pushed: {pushed}")
    title = f"validation, best of step {results['best_step']}"
    return Trained(run.folder, results, title, results["validation"] or {}, pushed)


def _train_super_resolver(request: FinetuneRequest, on: str) -> Trained:
    from difixcli.priors.super_resolution.files import resolver_files
    from difixcli.training import SuperResolutionOptions, processes, train_super_resolver
    from difixcli.training.options import SUPER_RESOLUTION_FREE
    from difixcli.training.sources import is_super_resolution_run
    from difixcli.training.super_resolution_runs import run_files

    base, photos, chosen, scenes = request.base, request.photos, request.chosen(), request.pairs or []
    if processes.join(on).num_processes > 1:
        raise InputError("Super-resolvers train in one process; leave accelerate launch out.")
    runs = [Path(spec).expanduser().absolute() for spec in scenes if is_super_resolution_run(Path(spec).expanduser())]
    named = [scene for scene in scenes if Path(scene).expanduser().absolute() not in runs]
    loaded, failed = _training_scenes(named, request.max_failed)
    arguments: dict[str, Any] = {"task": request.task.value, "base": base, "photos": photos}
    arguments["scenes"] = [scene_spec(scene) for scene in scenes]
    arguments |= {name: value for name, value in chosen.items() if name not in SUPER_RESOLUTION_FREE}
    held = resolver_files(base)
    inputs = scene_inputs(*loaded) | _photos_input(photos)
    inputs |= {f"run {folder}": fingerprint(run_files(folder)) for folder in runs}
    if held:
        inputs["base"] = fingerprint(held)
    names = [scene.name for scene in loaded[:3]] or ["photos"]
    folder = request.output or Path("outputs") / "super-resolvers" / "-".join([file_name(base), *names])
    frames = [frame.image_path for scene in loaded for frame in scene.frames]
    reads = [*held, *frames, *runs, *([photos] if photos else [])]
    run = Run.open(folder, "finetune", arguments, inputs, request.force, reads=reads)
    announce(run, base=base, scenes=[scene.name for scene in loaded], photos=photos, device=on)
    total = chosen.get("iterations", SuperResolutionOptions().iterations)
    with console.progress("train", total) as update:
        results = train_super_resolver(
            loaded,
            base,
            run.folder,
            photos=photos,
            runs=runs,
            device=on,
            progress=update,
            report=_super_resolution_news,
            **chosen,
        )
    said = f"The weights are in {run.folder}"
    return _finished(run, results, said, f"validation, best of step {results['best_step']}", failed)


def _train_view_diffusion(request: FinetuneRequest, on: str) -> Trained:
    from difixcli.priors.view_diffusion.files import view_diffusion_files
    from difixcli.training import ViewDiffusionOptions, processes, train_view_diffusion
    from difixcli.training.options import VIEW_DIFFUSION_FREE, VIEW_DIFFUSION_NETWORKS
    from difixcli.training.view_diffusion_samples import check_views

    base, photos, chosen, scenes = request.base, request.photos, request.chosen(), request.pairs or []
    if processes.join(on).num_processes > 1:
        raise InputError("View-conditioned diffusion trains in one process; leave accelerate launch out.")
    defaults = ViewDiffusionOptions()
    canvas = chosen.get("canvas", defaults.canvas)
    loaded, failed = _training_scenes(scenes, request.max_failed, canvas, check_views)
    arguments: dict[str, Any] = {"task": request.task.value, "base": base, "photos": photos}
    arguments["scenes"] = [scene_spec(scene) for scene in scenes]
    arguments |= {name: value for name, value in chosen.items() if name not in VIEW_DIFFUSION_FREE}
    held = view_diffusion_files(base)
    inputs = scene_inputs(*loaded) | _photos_input(photos)
    if held:
        inputs["base"] = fingerprint(held)
    names = [scene.name for scene in loaded[:3]]
    folder = request.output or Path("outputs") / "view-diffusion" / "-".join([file_name(base), *names])
    frames = [frame.image_path for scene in loaded for frame in scene.frames]
    reads = [*held, *frames, *([photos] if photos else [])]
    run = Run.open(folder, "finetune", arguments, inputs, request.force, reads=reads)
    announce(run, base=base, scenes=[scene.name for scene in loaded], photos=photos, device=on)
    total = sum(chosen.get(name, getattr(defaults, name)) for name in VIEW_DIFFUSION_NETWORKS)
    with console.progress("train", total) as update:
        results = train_view_diffusion(
            loaded,
            base,
            run.folder,
            photos=photos,
            device=on,
            progress=update,
            report=_view_diffusion_news,
            **chosen,
        )
    return _finished(run, results, f"The weights are in {run.folder}", "views that were not trained on", failed)


def _train_video(request: FinetuneRequest, on: str) -> Trained:
    from difixcli.priors.video.files import film_files
    from difixcli.training import VideoOptions, processes, train_video
    from difixcli.training.options import VIDEO_FREE
    from difixcli.training.sources import pair_files

    base, chosen = request.base, request.chosen()
    if processes.join(on).num_processes > 1:
        raise InputError("Video models train in one process; leave accelerate launch out.")
    sources = [Path(source).expanduser().absolute() for source in request.pairs or []]
    arguments: dict[str, Any] = {"task": request.task.value, "pairs": sources, "base": base}
    arguments |= {name: value for name, value in chosen.items() if name not in VIDEO_FREE}
    inputs = {str(source): fingerprint(pair_files(source), content=False) for source in sources}
    held = sorted({*film_files(base), *files_read(base)})
    if held:
        inputs["base"] = fingerprint(held)
    names = [source.name if source.is_dir() else source.parent.name for source in sources[:3]]
    folder = request.output or Path("outputs") / "video" / "-".join([file_name(base), *names])
    run = Run.open(folder, "finetune", arguments, inputs, request.force, reads=[*sources, *held])
    announce(run, base=base, clips=sources, device=on)
    defaults = VideoOptions()
    total = sum(chosen.get(name, getattr(defaults, name)) for name in ("structure_iterations", "iterations"))
    with console.progress("train", total) as update:
        results = train_video(sources, base, run.folder, device=on, progress=update, report=_video_news, **chosen)
    return _finished(run, results, f"Use it with --video {run.folder}", "pictures between photos not trained on")


def _finished(
    run: Run, results: dict[str, Any], said: str, title: str, failed: Mapping[str, str] | None = None
) -> Trained:
    """A training in one process is done: its record, with the scenes that were left out, and a word on its weights."""
    results = {**results, "failed": dict(failed)} if failed else results
    run.finish(results)
    console.say(said)
    measured = {name: row for name, row in results["validation"].items() if "psnr" in row}  # the photos are the truth
    return Trained(run.folder, results, title, measured, failed=failed or {})


def _training_scenes(
    specs: Sequence[str],
    max_failed: int | None,
    size: int | None = None,
    check: Callable[[Scene], None] = lambda scene: None,
) -> tuple[list[Scene], dict[str, str]]:
    """Scenes to train on, with what is odd about them said; of those that cannot be used, why, which is said too.

    They cannot where they cannot be read, or where `check` raises InputError. Raises InputError where none can be used,
    or more than `max_failed` cannot.
    """
    from difixcli.scenes import load_scene

    loaded: list[Scene] = []
    failed: dict[str, str] = {}
    for spec in specs:
        try:
            scene = load_scene(spec, size)
            check(scene)
        except InputError as error:
            if not max_failed:
                raise
            failed[scene_spec(spec)] = str(error)
            console.warn(f"{spec}: failed: {error}")
            continue
        for warning in scene.warnings:
            console.warn(warning)
        loaded.append(scene)
    if failed and (not loaded or len(failed) > (max_failed or 0)):
        raise InputError(
            f"{len(failed)} of {counted(len(specs), 'scene')} cannot be used; mend them"
            + (", or let more fail with --max-failed." if loaded else ".")
        )
    return loaded, failed


def _photos_input(photos: Path | None) -> dict[str, str]:
    """The fingerprint of a folder of photos."""
    return {} if photos is None else {"photos": fingerprint([path for path in photos.rglob("*") if path.is_file()])}


def _super_resolution_news(record: Mapping[str, Any]) -> None:
    """What of a super-resolver's log is worth a line at the terminal."""
    if record["event"] == "start":
        counts, options = record["photos"], record["options"]
        loss = options["perceptual"] if options["perceptual_weight"] else "no perceptual loss"
        console.say(
            f"{counted(counts['folder'], 'photo')} of the folder, {counts['scenes']} of scenes, "
            f"{counted(counts['views'], 'view')} of runs, "
            f"{counts['test']} for validation; "
            f"x{record['factor']}; crops of {options['crop']} pixels; l1 and {loss}"
        )
        if record["dropped"]:
            name, why = next(iter(record["dropped"].items()))
            console.warn(f"{len(record['dropped'])} cannot be used; log.jsonl says why. {name}: {why}")
    elif record["event"] == "validation":
        parts = [
            f"{name} PSNR {record[f'{row}_psnr']:.2f}, st-LPIPS {record[f'{row}_st_lpips']:.4f}"
            for row, name in (("alone", "photo alone"), ("beside_render", "beside a render"))
        ]
        console.say(f"step {record['step']}: {'; '.join(parts)}" + (", best" if record["best"] else ""))


def _view_diffusion_news(record: Mapping[str, Any]) -> None:
    """What of view-conditioned diffusion's log is worth a line at the terminal."""
    if record["event"] == "start":
        counts, options = record["photos"], record["options"]
        console.say(
            f"{counted(counts['views'], 'view')} of {counted(counts['scenes'], 'scene')}, "
            f"{counted(counts['folder'], 'other photo')}; {counted(counts['held'], 'view')} for validation; "
            f"{options['dtype']}"
        )
        if not counts["held"]:
            console.warn("No scene has eight photos, so nothing is validated.")
    elif record["event"] == "validation":
        names = ("nearest", "warped", "eft", "vldm", "vae")
        told = [
            f"{name} PSNR {record[f'{name}_psnr']:.2f}, st-LPIPS {record[f'{name}_st_lpips']:.4f}"
            for name in names
            if f"{name}_psnr" in record
        ]
        console.say(f"{record['network']} done: {'; '.join(told)}")
    elif record["event"] in ("epipolar", "vae", "diffusion") and record["step"] % 500 == 0:
        console.say(f"{record['event']} step {record['step']}: loss {record['loss']:.4f}, {record['seconds']:.0f} s")


def _video_news(record: Mapping[str, Any]) -> None:
    """What of a video model's log is worth a line at the terminal."""
    if record["event"] == "start":
        counts = record["clips"]
        console.say(f"{counts['train']} clips to train on, {counts['test']} for validation")
        if record["dropped"]:
            name, why = next(iter(record["dropped"].items()))
            console.warn(f"{len(record['dropped'])} cannot be used; log.jsonl says why. {name}: {why}")
        if not counts["test"]:
            console.warn(
                "There are no clips for testing, so nothing is validated and the last weights are kept; difix curate "
                "--test-scene NAME sets a scene's clips aside."
            )
    elif record["event"] == "validation":
        console.say(
            f"step {record['step']}: PSNR {record['psnr']:.2f}, st-LPIPS {record['st_lpips']:.4f}, warped difference "
            f"{record['warped_difference']:.4f}, {record['gain']:+.2f} dB against frame by frame"
            + (", best" if record["best"] else "")
        )
    elif record["event"] in ("structure", "film") and record["step"] % 200 == 1:
        console.say(f"{record['event']} step {record['step']}: loss {record['loss']:.4f}, {record['seconds']:.0f} s")


def _training_news(record: Mapping[str, Any]) -> None:
    """What of a training's log is worth a line at the terminal."""
    if record["event"] == "start":
        counts, options = record["pairs"], record["options"]
        what = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        loss = options["perceptual"] if options["perceptual_weight"] else "no perceptual loss"
        size = f"crops of {record['crop']} pixels"
        if not options["crop"]:
            size = f"whole frames at {options['frame_width']}×{options['frame_height']}"
        console.say(f"{what}; {size}; {options['pixel']} and {loss}; {options['dtype']}")
        if not options["crop"] and 0 < 2 * record["side"] <= min(options["frame_width"], options["frame_height"]):
            console.warn(
                f"The pairs are small ({counted(record['side'], 'pixel')} at their shorter side) and their frames are "
                "enlarged, at the cost of large ones; --crop N trains on squares of N of their own pixels."
            )
        if record["crop"] < options["crop"]:
            console.warn(
                f"The pairs are smaller than the crops of {options['crop']} pixels that were asked for: crops of "
                f"{record['crop']} are trained on."
            )
        if record["dropped"]:
            name, why = next(iter(record["dropped"].items()))
            console.warn(f"{len(record['dropped'])} cannot be used; log.jsonl says why. {name}: {why}")
        if not (counts["test"] or counts["photos"]):
            console.warn(
                "There are no pairs for testing, so nothing is validated and the last weights are kept, whether they "
                "are the best or not; difix curate --test-scene NAME sets a scene's pairs aside."
            )
        if counts["photos"] and not record["unseen"]:
            console.warn(
                "There is one photo, which is trained on and validated on alike, so the figures say little; give "
                "--photos two or more."
            )
    elif record["event"] == "validation":
        console.say(
            f"step {record['step']}: PSNR {record['psnr']:.2f} ({record['psnr_gain']:+.2f}), "
            f"SSIM {record['ssim']:.4f} ({record['ssim_gain']:+.4f}), "
            + _judged(record)
            + (", best" if record["best"] else "")
        )
    elif record["event"] == "skipped":
        console.warn(f"{record['pair']} is skipped: {record['reason']}")


def _judged(record: Mapping[str, Any]) -> str:
    """The judge's figure of a validation, and how much it has gained."""
    key = "st_lpips" if "st_lpips" in record else "st_lpips_alex"
    name = "st-LPIPS" if key == "st_lpips" else "st-LPIPS (Alex)"
    return f"{name} {record[key]:.4f} ({record[f'{key}_gain']:+.4f})"
