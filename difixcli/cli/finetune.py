"""`difix finetune`: a fixer trained on pairs, a super-resolver on photos, view-conditioned diffusion on scenes, a video
model on clips."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from difixcli import console
from difixcli.cli.inputs import (
    check_fixer,
    files_read,
    fixer_input,
    pick_device,
    scene_inputs,
    scene_spec,
    tell_loading,
)
from difixcli.cli.options import RUNNING, Device, DeviceOption, ForceOption, JsonOption, OutputOption, SeedOption
from difixcli.cli.outputs import announce
from difixcli.errors import InputError
from difixcli.runs import Run, file_name, fingerprint
from difixcli.wording import counted

if TYPE_CHECKING:
    from difixcli.scenes import Scene

WHAT = "What is trained"
STEPS = "Steps"
_OF_FIXERS = (
    "track",
    "push_to_hub",
    "stream",
    "train",
    "lora_rank",
    "gram_weight",
    "accumulate",
    "gradient_checkpointing",
)
# options that mean nothing to other tasks
_STRANGE = {
    "super-resolution": (*_OF_FIXERS, "dtype"),
    "view-diffusion": (*_OF_FIXERS, "crop", "patience"),
    "video": (*_OF_FIXERS, "crop", "patience", "dtype"),
}


class Task(str, Enum):
    fixer = "fixer"
    super_resolution = "super-resolution"
    view_diffusion = "view-diffusion"
    video = "video"


@console.handled
def finetune(
    pairs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Folders made by difix curate, data.json files, or addresses of tars (streamed); "
            "for super-resolution, scenes, and runs of difix distill --prior super-resolution --reduce N; "
            "for view-diffusion, scenes; for video, what difix curate --strategy clips made."
        ),
    ] = None,
    task: Annotated[
        Task,
        typer.Option(
            help="fixer; super-resolution, which learns from photos; view-diffusion, from scenes; video, from clips."
        ),
    ] = Task.fixer,
    base: Annotated[
        str,
        typer.Option(
            help="tiny, small or medium from scratch (for other tasks, scratch), or the weights to go on from; "
            "for video, a video model or a fixer."
        ),
    ] = "bundled",
    photos: Annotated[Path | None, typer.Option(help="Folder of any photos, to make samples from.")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Read tars one after another, for very large sets.")] = False,
    train: Annotated[
        str | None, typer.Option(help="What trains: all, unet, decoder or skips.", rich_help_panel=WHAT)
    ] = None,
    lora_rank: Annotated[
        int | None,
        typer.Option(help="Rank of the decoder's adapters (SD-Turbo: 4).", min=1, rich_help_panel=WHAT),
    ] = None,
    perceptual: Annotated[
        str | None,
        typer.Option(
            help="The loss's network: lpips-vgg (default for SD-Turbo's layout), st-lpips-vgg or st-lpips-alex.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    perceptual_weight: Annotated[
        float | None, typer.Option(help="Weight of the perceptual loss.", min=0, rich_help_panel=WHAT)
    ] = None,
    gram_weight: Annotated[
        float | None, typer.Option(help="Weight of the Gram loss.", min=0, rich_help_panel=WHAT)
    ] = None,
    iterations: Annotated[
        int | None,
        typer.Option(
            help="Training steps (default 10000; super-resolution 3000; view-diffusion 6000, of each network; "
            "video 1500, after those of the structure's attention).",
            min=1,
            rich_help_panel=STEPS,
        ),
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Samples a step and process.", min=1, rich_help_panel=STEPS)] = None,
    accumulate: Annotated[
        int | None, typer.Option(help="Batches added up for a step.", min=1, rich_help_panel=STEPS)
    ] = None,
    crop: Annotated[
        int | None,
        typer.Option(
            help="Pixels of the random square crops (SD-Turbo's layout: whole frames).", min=16, rich_help_panel=STEPS
        ),
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.", rich_help_panel=STEPS)] = None,
    warm_up: Annotated[
        int | None, typer.Option(help="Steps until the learning rate's peak.", min=0, rich_help_panel=STEPS)
    ] = None,
    ema: Annotated[
        float | None, typer.Option(help="Decay of the weights' running average; 0 for none.", rich_help_panel=STEPS)
    ] = None,
    patience: Annotated[
        int | None, typer.Option(help="Validations without a better one, then stop.", min=1, rich_help_panel=STEPS)
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other training option, as validate_every=200.", rich_help_panel=STEPS),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="fp32, bf16 or fp16 (default bf16 on a GPU at full width).", rich_help_panel=RUNNING),
    ] = None,
    gradient_checkpointing: Annotated[
        bool | None,
        typer.Option("--gradient-checkpointing", help="Less memory, a third slower.", rich_help_panel=RUNNING),
    ] = None,
    track: Annotated[
        list[str] | None,
        typer.Option(help="Also log to wandb, comet_ml, mlflow, …; TensorBoard always.", rich_help_panel=RUNNING),
    ] = None,
    push_to_hub: Annotated[
        str | None,
        typer.Option(
            metavar="OWNER/NAME", help="Upload the fixer and its model card at the end.", rich_help_panel=RUNNING
        ),
    ] = None,
    seed: SeedOption = 0,
    device: DeviceOption = Device.auto,
    output: OutputOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a fixer on pairs, a super-resolver on photos, view-conditioned diffusion on scenes, or video on clips.

    Fixers train on several GPUs and machines with accelerate launch -m difixcli finetune …
    """
    if task is Task.fixer:
        check_fixer(base)  # before what takes long is imported
    if not pairs and photos is None:
        what = "folders made by difix curate" if task in (Task.fixer, Task.video) else "scenes"
        raise InputError(f"Nothing to train on; name {what}, or --photos.")
    if photos is not None and not photos.is_dir():
        raise InputError(f"There is no folder {photos}; --photos wants a folder of JPEG or PNG photos.")
    tell_loading()
    from difixcli.training.options import (
        SuperResolutionOptions,
        TrainingOptions,
        VideoOptions,
        ViewDiffusionOptions,
        parsed_options,
    )

    on, _ = pick_device(device)
    options: dict[str, Any] = {
        "iterations": iterations,
        "batch": batch,
        "accumulate": accumulate,
        "crop": crop,
        "train": train,
        "lora_rank": lora_rank,
        "learning_rate": learning_rate,
        "warm_up": warm_up,
        "perceptual": perceptual,
        "perceptual_weight": perceptual_weight,
        "gram_weight": gram_weight,
        "ema": ema,
        "patience": patience,
        "dtype": dtype,
        "gradient_checkpointing": gradient_checkpointing,
    }
    given = options | {"stream": stream or None, "track": track or None, "push_to_hub": push_to_hub}
    for name in _STRANGE.get(task.value, ()):
        if given[name] is not None:
            whose = "fixers" if name in _OF_FIXERS else "other tasks"
            raise InputError(f"--{name.replace('_', '-')} is for {whose}; leave it out with --task {task.value}.")
    kinds: dict[Task, type] = {
        Task.fixer: TrainingOptions,
        Task.super_resolution: SuperResolutionOptions,
        Task.view_diffusion: ViewDiffusionOptions,
        Task.video: VideoOptions,
    }
    other = parsed_options(settings or [], kinds[task])
    for name in other:
        if name in options or name == "seed":
            raise InputError(f"{name} has an option of its own; write --{name.replace('_', '-')} instead of --set.")
    chosen = {name: value for name, value in options.items() if value is not None} | other | {"seed": seed}
    if task is Task.fixer:
        _train_fixer(pairs or [], base, photos, stream, on, track or [], push_to_hub, chosen, output, force, as_json)
    elif task is Task.super_resolution:
        _train_super_resolver(pairs or [], base, photos, on, chosen, output, force, as_json)
    elif task is Task.view_diffusion:
        _train_view_diffusion(pairs or [], base, photos, on, chosen, output, force, as_json)
    else:
        _train_video(pairs or [], base, photos, on, chosen, output, force, as_json)


def _train_fixer(
    pairs: list[str],
    base: str,
    photos: Path | None,
    stream: bool,
    on: str,
    track: list[str],
    push_to_hub: str | None,
    chosen: Mapping[str, Any],
    output: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    from difixcli.fixer.weights import looks_like_hub_name
    from difixcli.training import TrainingOptions, processes
    from difixcli.training import finetune as train_fixer
    from difixcli.training.card import push
    from difixcli.training.options import FREE
    from difixcli.training.pairs import pair_files
    from difixcli.training.streaming import is_remote
    from difixcli.training.trackers import check_trackers

    if push_to_hub is not None and not looks_like_hub_name(push_to_hub):
        raise InputError(f"--push-to-hub {push_to_hub} is no name on the hub; write OWNER/NAME.")
    check_trackers(track)
    sources = [pair if is_remote(pair) else str(Path(pair).expanduser().absolute()) for pair in pairs]
    arguments = {"pairs": sources, "base": base, "photos": photos, "stream": stream}
    arguments |= {name: value for name, value in chosen.items() if name not in FREE}
    local = [Path(source) for source in sources if not is_remote(source)]

    def inputs() -> dict[str, str]:
        held = {str(source): fingerprint(pair_files(source), content=False) for source in local}
        return held | fixer_input(base, "base") | _photos_input(photos)

    names = [source.name if source.is_dir() else source.parent.name for source in local[:3]]
    folder = output or Path("outputs") / "fixers" / "-".join([file_name(base), *(names or ["photos"])])
    reads = [*local, *([photos] if photos else []), *files_read(base)]
    process = processes.join(on)
    main = process.is_main_process
    run = Run.open(folder, "finetune", arguments, inputs(), force, reads=reads) if main else None
    processes.wait()  # the first process alone holds the run; the others work into its folder
    total = chosen.get("iterations", TrainingOptions().iterations)
    told = {"photos": photos, "device": on, "processes": process.num_processes}
    if run is not None:
        announce(run, base=base, pairs=sources, **told)

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
            stream=stream,
            device=on,
            progress=update,
            report=report,
            track=track,
            **chosen,
        )
    process.destroy_process_group()
    if run is None:
        return
    run.finish(results)
    if results["skipped"]:
        console.warn(f"{counted(len(results['skipped']), 'pair')} skipped that could not be read; log.jsonl says why.")
    tables = []
    if results["validation"]:
        tables.append(console.figures_table(f"validation, best of step {results['best_step']}", results["validation"]))
    console.say(f"Use it with --fixer {run.folder}")
    told = {"results": results, "output": str(run.folder)}
    if push_to_hub is not None:
        told["pushed"] = push(run.folder, push_to_hub)
        console.say(f"Pushed: {told['pushed']}")
    console.finish(told, as_json, *tables)


def _train_super_resolver(
    scenes: list[str],
    base: str,
    photos: Path | None,
    on: str,
    chosen: Mapping[str, Any],
    output: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    from difixcli.priors.super_resolution.files import resolver_files
    from difixcli.training import SuperResolutionOptions, processes, train_super_resolver
    from difixcli.training.options import SUPER_RESOLUTION_FREE
    from difixcli.training.super_resolution_runs import is_super_resolution_run, run_files

    if processes.join(on).num_processes > 1:
        raise InputError("Super-resolvers train in one process; leave accelerate launch out.")
    runs = [Path(spec).expanduser().absolute() for spec in scenes if is_super_resolution_run(Path(spec).expanduser())]
    loaded = [_training_scene(scene) for scene in scenes if Path(scene).expanduser().absolute() not in runs]
    arguments: dict[str, Any] = {"task": Task.super_resolution.value, "base": base, "photos": photos}
    arguments["scenes"] = [scene_spec(scene) for scene in scenes]
    arguments |= {name: value for name, value in chosen.items() if name not in SUPER_RESOLUTION_FREE}
    held = resolver_files(base)
    inputs = scene_inputs(*loaded) | _photos_input(photos)
    inputs |= {f"run {folder}": fingerprint(run_files(folder)) for folder in runs}
    if held:
        inputs["base"] = fingerprint(held)
    names = [scene.name for scene in loaded[:3]] or ["photos"]
    folder = output or Path("outputs") / "super-resolvers" / "-".join([file_name(base), *names])
    frames = [frame.image_path for scene in loaded for frame in scene.frames]
    run = Run.open(
        folder, "finetune", arguments, inputs, force, reads=[*held, *frames, *runs, *([photos] if photos else [])]
    )
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
    _finish(run, results, said, f"validation, best of step {results['best_step']}", as_json)


def _train_view_diffusion(
    scenes: list[str],
    base: str,
    photos: Path | None,
    on: str,
    chosen: Mapping[str, Any],
    output: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    from difixcli.priors.view_diffusion.files import view_diffusion_files
    from difixcli.training import ViewDiffusionOptions, processes, train_view_diffusion
    from difixcli.training.options import VIEW_DIFFUSION_FREE

    if not scenes:
        raise InputError("View-conditioned diffusion learns from posed photos; name scenes beside --photos.")
    if processes.join(on).num_processes > 1:
        raise InputError("View-conditioned diffusion trains in one process; leave accelerate launch out.")
    options = dict(chosen)
    if (count := options.pop("iterations", None)) is not None:
        networks = ("epipolar_iterations", "vae_iterations", "diffusion_iterations")
        if twice := [name for name in networks if name in options]:
            raise InputError(f"--iterations is every network's; leave it out beside --set {twice[0]}.")
        options |= dict.fromkeys(networks, count)
    defaults = ViewDiffusionOptions()
    loaded = [_training_scene(scene, options.get("canvas", defaults.canvas)) for scene in scenes]
    arguments: dict[str, Any] = {"task": Task.view_diffusion.value, "base": base, "photos": photos}
    arguments["scenes"] = [scene_spec(scene) for scene in scenes]
    arguments |= {name: value for name, value in options.items() if name not in VIEW_DIFFUSION_FREE}
    held = view_diffusion_files(base)
    inputs = scene_inputs(*loaded) | _photos_input(photos)
    if held:
        inputs["base"] = fingerprint(held)
    names = [scene.name for scene in loaded[:3]]
    folder = output or Path("outputs") / "view-diffusion" / "-".join([file_name(base), *names])
    frames = [frame.image_path for scene in loaded for frame in scene.frames]
    run = Run.open(folder, "finetune", arguments, inputs, force, reads=[*held, *frames, *([photos] if photos else [])])
    announce(run, base=base, scenes=[scene.name for scene in loaded], photos=photos, device=on)
    networks = ("epipolar_iterations", "vae_iterations", "diffusion_iterations")
    total = sum(options.get(name, getattr(defaults, name)) for name in networks)
    with console.progress("train", total) as update:
        results = train_view_diffusion(
            loaded,
            base,
            run.folder,
            photos=photos,
            device=on,
            progress=update,
            report=_view_diffusion_news,
            **options,
        )
    _finish(run, results, f"The weights are in {run.folder}", "views that were not trained on", as_json)


def _train_video(
    clips: list[str],
    base: str,
    photos: Path | None,
    on: str,
    chosen: Mapping[str, Any],
    output: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    from difixcli.priors.video.files import film_files
    from difixcli.training import VideoOptions, processes, train_video
    from difixcli.training.options import VIDEO_FREE
    from difixcli.training.pairs import pair_files

    if photos is not None:
        raise InputError("--photos says nothing to video models, which learn from clips; leave it out.")
    if processes.join(on).num_processes > 1:
        raise InputError("Video models train in one process; leave accelerate launch out.")
    sources = [Path(source).expanduser().absolute() for source in clips]
    arguments: dict[str, Any] = {"task": Task.video.value, "pairs": sources, "base": base}
    arguments |= {name: value for name, value in chosen.items() if name not in VIDEO_FREE}
    inputs = {str(source): fingerprint(pair_files(source), content=False) for source in sources}
    held = sorted({*film_files(base), *files_read(base)})
    if held:
        inputs["base"] = fingerprint(held)
    names = [source.name if source.is_dir() else source.parent.name for source in sources[:3]]
    folder = output or Path("outputs") / "video" / "-".join([file_name(base), *names])
    run = Run.open(folder, "finetune", arguments, inputs, force, reads=[*sources, *held])
    announce(run, base=base, clips=sources, device=on)
    defaults = VideoOptions()
    total = sum(chosen.get(name, getattr(defaults, name)) for name in ("structure_iterations", "iterations"))
    with console.progress("train", total) as update:
        results = train_video(sources, base, run.folder, device=on, progress=update, report=_video_news, **chosen)
    _finish(run, results, f"Use it with --video {run.folder}", "pictures between photos not trained on", as_json)


def _finish(run: Run, results: Mapping[str, Any], said: str, title: str, as_json: bool) -> None:
    """A training in one process is done: its record, a word, and a table of its validation, if there was one."""
    run.finish(results)
    console.say(said)
    measured = {name: row for name, row in results["validation"].items() if "psnr" in row}  # the photos are the truth
    tables = [console.figures_table(title, measured)] if measured else []
    console.finish({"results": results, "output": str(run.folder)}, as_json, *tables)


def _training_scene(spec: str, size: int | None = None) -> Scene:
    """A scene to train on, with what is odd about it said."""
    from difixcli.scenes import load_scene

    scene = load_scene(spec, size)
    for warning in scene.warnings:
        console.warn(warning)
    return scene


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
