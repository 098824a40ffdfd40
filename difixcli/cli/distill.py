"""`difix distill`: fixed views back into the 3D model while it trains."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from difixcli import console
from difixcli.cli.inputs import (
    files_read,
    fixer_input,
    open_fixer,
    open_scene,
    pick_device,
    scene_inputs,
    scene_spec,
    size_of,
    split_input,
)
from difixcli.cli.options import (
    ITERATIONS,
    Device,
    DeviceOption,
    FixerOption,
    ForceOption,
    JsonOption,
    OutputOption,
    Preset,
    PresetOption,
    SceneArgument,
    SeedOption,
    SetOption,
    SizeOption,
    SplitOption,
)
from difixcli.cli.outputs import announce
from difixcli.errors import InputError, unknown
from difixcli.runs import Run, check_folder, file_name, find_run, fingerprint

ROUNDS = "Rounds of fixing"


@console.handled
def distill(
    scene: SceneArgument = ".",
    method: Annotated[
        str | None,
        typer.Option(help="Any nerfstudio method: nerfacto, splatfacto (the default; with --start the run's own)."),
    ] = None,
    split: SplitOption = None,
    targets: Annotated[
        list[str] | None,
        typer.Option(
            help="Views to improve: test (the split's, the default), spiral, orbit:60, shift:2m, shift:0.1, or "
            "PATH.json of nerfstudio's viewer; repeatable."
        ),
    ] = None,
    start: Annotated[
        Path | None, typer.Option(help="Go on from this: a nerfstudio run's folder, or a .ply of Gaussians.")
    ] = None,
    fixer: FixerOption = "bundled",
    iterations: Annotated[int | None, typer.Option(help=ITERATIONS, min=1)] = None,
    schedule: Annotated[
        str,
        typer.Option(
            help="progressive, one-shot (straight at the targets), or none (plain training).", rich_help_panel=ROUNDS
        ),
    ] = "progressive",
    rounds: Annotated[
        int | None,
        typer.Option(
            help="How often pseudo-views are fixed anew; 5 on a CPU, one per 4,000 steps on a GPU.",
            rich_help_panel=ROUNDS,
        ),
    ] = None,
    step: Annotated[
        float | None,
        typer.Option(
            help="How far pseudo-views move in a round, in normalised units (default 0.5).", rich_help_panel=ROUNDS
        ),
    ] = None,
    share: Annotated[
        float | None,
        typer.Option(
            help="Share of training drawn from pseudo-views; 0.3 for splats, 0.4 for rays.", rich_help_panel=ROUNDS
        ),
    ] = None,
    references: Annotated[
        int | None,
        typer.Option(help="Photos beside a render; as many as the fixer takes.", min=0, rich_help_panel=ROUNDS),
    ] = None,
    trust: Annotated[
        str,
        typer.Option(
            help="supported: a fix changes what references and render support; all: everything.", rich_help_panel=ROUNDS
        ),
    ] = "supported",
    drop_below: Annotated[
        float | None,
        typer.Option(
            help="A fix supported by less than this, 0 to 1, is not trained on (default 0.7).",
            min=0,
            max=1,
            rich_help_panel=ROUNDS,
        ),
    ] = None,
    holdout: Annotated[
        str | None,
        typer.Option(
            help="Photos held back to watch the rounds: a number or a share; 5 % where 20 or more train.",
            rich_help_panel=ROUNDS,
        ),
    ] = None,
    guard: Annotated[
        str | None,
        typer.Option(
            help="A round is rolled back if the watched photos fall by more dB than this (0.2 for photos held back, "
            "0.5 for those that train); off: never.",
            rich_help_panel=ROUNDS,
        ),
    ] = None,
    from_round: Annotated[
        int | None,
        typer.Option(help="Go back to the beginning of this round of the same run.", min=1, rich_help_panel=ROUNDS),
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Also train as long on photos alone.")] = False,
    size: SizeOption = None,
    seed: SeedOption = 0,
    preset: PresetOption = Preset.auto,
    device: DeviceOption = Device.auto,
    settings: SetOption = None,
    output: OutputOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a better 3D reconstruction: train, render, fix, train on the fixes, round by round."""
    from difixcli.distillation.confidence import support_wanted
    from difixcli.distillation.guard import check_guard
    from difixcli.distillation.schedule import check_schedule, make_schedule
    from difixcli.distillation.targets import check_targets
    from difixcli.scenes import DEFAULT_RULE, check_rule, check_scene, default_split_rule, make_split

    # what can be told without torch and nerfstudio is told before they are imported, which takes long
    aims = targets or ["test"]
    check_scene(scene)
    if start is not None and not start.exists():
        raise InputError(f"There is no {start} to start from; check its name.")
    if output is not None:
        check_folder(output)
    if split is not None:
        check_rule(split)
    check_targets(aims)
    check_schedule(schedule, rounds, step, share)
    check_guard(holdout, guard)
    support = support_wanted(trust, drop_below)
    if schedule == "none" and compare:
        raise InputError("--schedule none is plain training itself; leave out --compare.")
    if schedule == "none" and (holdout is not None or guard is not None):
        option = "--guard" if holdout is None else "--holdout"
        raise InputError(f"{option} says nothing to the schedule none, which has no round to watch; leave it out.")
    if schedule == "none" and (drop_below is not None or trust != "supported"):
        option = "--trust" if drop_below is None else "--drop-below"
        raise InputError(f"{option} says nothing to the schedule none, which trains on no fix; leave it out.")
    if start is not None and holdout is not None:
        raise InputError("--holdout says nothing with --start: what is taken up has seen every photo; leave it out.")
    on, sizes = pick_device(device, preset)
    loaded = open_scene(scene, size, sizes)
    rule = split or default_split_rule(loaded)
    if split is None and rule == DEFAULT_RULE and "test" not in aims:
        rule = "all"  # no photo has to be held out where none is aimed at
    chosen = make_split(loaded, rule, need_test="test" in aims)
    inputs = {**scene_inputs(loaded), **split_input(loaded, chosen), **fixer_input(fixer)}

    from difixcli.distillation.distill import Distillation, Settings
    from difixcli.distillation.rounds import Rounds
    from difixcli.reconstruction import default_iterations, draws_images, known_methods, method_config
    from difixcli.reconstruction.compilation import compile_ahead

    if method is None:
        method = "splatfacto"
        if start is not None and start.is_dir():
            from difixcli.reconstruction.start import method_of

            method = method_of(start)
    if method not in (methods := known_methods()):
        raise unknown("method", method, methods)
    steps = iterations or default_iterations(method, sizes)
    images = draws_images(method_config(method))
    planned = make_schedule(sizes, images, steps, rounds, schedule, step, share, started=start is not None)
    plan = Settings(
        method=method,
        preset=sizes,
        device=on,
        schedule=planned,
        seed=seed,
        compare=compare,
        overrides=settings or [],
        targets=aims,
        references=references,
        trust=trust,
        drop_below=support,
        holdout=holdout,
        guard=guard,
        start=None if start is None else str(start.expanduser().absolute()),
    )
    distillation = Distillation(loaded, chosen, plan)
    arguments = {**vars(plan), "schedule": vars(planned), "scene": scene_spec(scene), "size": size, "split": rule}
    arguments["fixer"] = fixer
    paths = [Path(aim).expanduser() for aim in aims if aim.lower().endswith(".json")]
    inputs |= {str(path): fingerprint([path], content=True) for path in paths}
    begun = _start_files(start)
    if start is not None:
        inputs["start"] = fingerprint(begun, content=True)
    folder = output
    if folder is None:
        parent = Path("outputs") / file_name(loaded.name) / method
        folder = None if force else find_run(parent, "distill", arguments, inputs)
        folder = folder or parent / time.strftime("%Y-%m-%d_%H%M%S")
    run = None if force else Run.held(folder, "distill", arguments, inputs)
    if from_round is not None:
        if run is None:
            raise InputError("--from-round goes back in a run of the very same line; there is none yet. Leave it out.")
        run = Run.open(folder, "distill", arguments, inputs)  # no other process may be at work in it
        rounds_made = Rounds(run.folder)
        rounds_made.check(from_round)
        run.save(state="running", results={}, rounds={})  # first: what a kill leaves of it is not done
        rounds_made.rewind(from_round)
    network = None
    if run is None or not run.done:  # what is done needs no fixer, which may be far away
        network = open_fixer(fixer, on)
        run = Run.open(folder, "distill", arguments, inputs, force, reads=[*files_read(fixer, loaded), *paths, *begun])
    watch = distillation.guard
    timetable, watched = f"{planned.start} iterations on photos, no fixes ({schedule})", None
    if planned.rounds:
        timetable = (
            f"{planned.start} iterations on photos, then {planned.rounds} rounds of {planned.every} ({schedule})"
        )
        timetable += f", {planned.share:.0%} of them on fixes"
        watched = f"{watch.photos}, " + (
            "only looked at" if watch.bound is None else f"a round may cost {watch.bound:g} dB"
        )
    announce(
        run,
        scene=f"{loaded.name}, {len(chosen.train)} photos train, {len(chosen.test)} test ({rule})",
        method=f"{method}, preset {sizes} on {on}, seed {seed}",
        size=size_of(loaded),
        start=start,
        targets=f"{', '.join(aims)}: {len(distillation.targets)} views",
        schedule=timetable,
        guard=watched,
        fixer=fixer,
    )
    if not chosen.test:
        unmeasured = "No photo is held out or held back, so nothing is measured; "
        way = "--holdout 1 would hold one back." if planned.rounds and start is None else "--split holds some out."
        console.say(
            "No photo is held out. Figures are of the held-back photos alone, before they join the training."
            if watch.held
            else unmeasured + way
        )
    if network is None:
        results = run.record["results"]
    else:
        compile_ahead(method, on, console.say)
        results = distillation.run(network, run, console.progress, console.say)
        run.finish(results)
    found = run.record.get("rounds", {})
    if found:
        console.say(f"Fixes dropped: {found['dropped']}; rounds rolled back: {found['rolled_back']}")
    views = f"{len(chosen.test)} test views" if chosen.test else f"{len(watch.held)} held-back photos"
    tables = [console.figures_table(f"{loaded.name}, {method}: {views}", results)] if results else []
    console.say(f"Pictures: {run.folder / ('renders' if results else 'path')}")
    if results:
        console.say(f"For a report: difix eval {run.folder}")
    console.finish({"results": results, "rounds": found, "output": str(run.folder)}, as_json, *tables)


def _start_files(start: Path | None) -> list[Path]:
    """What decides what an existing reconstruction is: the .ply, or a run's settings and checkpoints."""
    if start is None or start.is_file():
        return [] if start is None else [start]
    # not eval.json, run.json, rounds: what is written beside a model does not make it another one
    names = ("config.yml", "dataparser_transforms.json", "reconstruction.json")
    described = [start / name for name in names if (start / name).is_file()]
    return sorted([*(start / "nerfstudio_models").glob("*.ckpt"), *described])
