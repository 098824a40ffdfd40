"""`difix finetune`: a fixer trained on pairs."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from difixcli import console
from difixcli.cli.inputs import files_read, fixer_input, pick_device
from difixcli.cli.options import RUNNING, Device, DeviceOption, ForceOption, JsonOption, OutputOption, SeedOption
from difixcli.cli.outputs import announce
from difixcli.errors import InputError
from difixcli.runs import Run, file_name, fingerprint

WHAT = "What is trained"
STEPS = "Steps"


@console.handled
def finetune(
    pairs: Annotated[
        list[str] | None,
        typer.Argument(help="Folders made by difix curate, data.json files, or addresses of tars (streamed)."),
    ] = None,
    base: Annotated[
        str, typer.Option(help="tiny, small or medium from scratch, or a fixer to go on from.")
    ] = "bundled",
    photos: Annotated[Path | None, typer.Option(help="Folder of any photos, to make synthetic pairs from.")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Read tars one after another, for very large sets.")] = False,
    train: Annotated[
        str | None, typer.Option(help="What trains: all, unet, decoder or skips.", rich_help_panel=WHAT)
    ] = None,
    lora_rank: Annotated[
        int | None,
        typer.Option(help="Rank of the decoder's adapters (SD-Turbo: 4).", min=1, rich_help_panel=WHAT),
    ] = None,
    perceptual_weight: Annotated[
        float | None, typer.Option(help="Weight of the perceptual loss.", min=0, rich_help_panel=WHAT)
    ] = None,
    gram_weight: Annotated[
        float | None, typer.Option(help="Weight of the Gram loss.", min=0, rich_help_panel=WHAT)
    ] = None,
    iterations: Annotated[
        int | None, typer.Option(help="Training steps (default 10000).", min=1, rich_help_panel=STEPS)
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Samples a step and process.", min=1, rich_help_panel=STEPS)] = None,
    accumulate: Annotated[
        int | None, typer.Option(help="Batches added up for a step.", min=1, rich_help_panel=STEPS)
    ] = None,
    crop: Annotated[
        int | None, typer.Option(help="Pixels of the random square crops.", min=16, rich_help_panel=STEPS)
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
    seed: SeedOption = 0,
    device: DeviceOption = Device.auto,
    output: OutputOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a fixer on pairs; on several GPUs and machines with accelerate launch -m difixcli finetune …"""
    from difixcli.training import TrainingOptions, processes
    from difixcli.training import finetune as train_fixer
    from difixcli.training.options import FREE, parsed_options
    from difixcli.training.pairs import pair_files
    from difixcli.training.streaming import is_remote

    if not pairs and photos is None:
        raise InputError("Nothing to train on; name folders made by difix curate, or --photos.")
    if photos is not None and not photos.is_dir():
        raise InputError(f"There is no folder {photos}; --photos wants a folder of JPEG or PNG photos.")
    on, _ = pick_device(device)
    sources = [pair if is_remote(pair) else str(Path(pair).expanduser().absolute()) for pair in pairs or []]
    options: dict[str, Any] = {
        "iterations": iterations,
        "batch": batch,
        "accumulate": accumulate,
        "crop": crop,
        "train": train,
        "lora_rank": lora_rank,
        "learning_rate": learning_rate,
        "warm_up": warm_up,
        "perceptual_weight": perceptual_weight,
        "gram_weight": gram_weight,
        "ema": ema,
        "patience": patience,
        "dtype": dtype,
        "gradient_checkpointing": gradient_checkpointing,
    }
    other = parsed_options(settings or [])
    for name in other:
        if name in options or name == "seed":
            raise InputError(f"{name} has an option of its own; write --{name.replace('_', '-')} instead of --set.")
    chosen = {name: value for name, value in options.items() if value is not None} | other | {"seed": seed}
    arguments = {"pairs": sources, "base": base, "photos": photos, "stream": stream}
    arguments |= {name: value for name, value in chosen.items() if name not in FREE}
    local = [Path(source) for source in sources if not is_remote(source)]
    inputs = {str(source): fingerprint(pair_files(source)) for source in local} | fixer_input(base, "base")
    if photos is not None:
        inputs["photos"] = fingerprint([path for path in photos.rglob("*") if path.is_file()])
    names = [source.name if source.is_dir() else source.parent.name for source in local[:3]]
    folder = output or Path("outputs") / "fixers" / "-".join([file_name(base), *(names or ["photos"])])
    reads = [*local, *([photos] if photos else []), *files_read(base)]
    process = processes.join(on)
    main = process.is_main_process
    run = Run.open(folder, "finetune", arguments, inputs, force, reads=reads) if main else None
    process.wait_for_everyone()  # the first process alone holds the run; the others work into its folder
    total = chosen.get("iterations", TrainingOptions().iterations)
    told = {"photos": photos, "device": on, "processes": process.num_processes}
    if run is not None:
        announce(run, base=base, pairs=sources, **told)
    with console.progress("train", total) if main else contextlib.nullcontext() as update:
        results = train_fixer(
            sources,
            base,
            folder,
            photos=photos,
            stream=stream,
            device=on,
            progress=update,
            report=_training_news,
            **chosen,
        )
    process.destroy_process_group()
    if run is None:
        return
    run.finish(results)
    if results["skipped"]:
        console.warn(f"{len(results['skipped'])} pairs could not be read and were skipped; log.jsonl says why.")
    tables = []
    if results["validation"]:
        tables.append(console.figures_table(f"validation, best of step {results['best_step']}", results["validation"]))
    console.say(f"Use it with --fixer {run.folder}")
    console.finish({"results": results, "output": str(run.folder)}, as_json, *tables)


def _training_news(record: Mapping[str, Any]) -> None:
    """What of a training's log is worth a line at the terminal."""
    if record["event"] == "start":
        counts, options = record["pairs"], record["options"]
        what = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        loss = options["perceptual"] if options["perceptual_weight"] else "no perceptual loss"
        console.say(f"{what}; crops of {record['crop']} pixels; {options['pixel']} and {loss}; {options['dtype']}")
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
            f"st-LPIPS {record['st_lpips']:.4f} ({record['st_lpips_gain']:+.4f})" + (", best" if record["best"] else "")
        )
    elif record["event"] == "skipped":
        console.warn(f"{record['pair']} is skipped: {record['reason']}")
