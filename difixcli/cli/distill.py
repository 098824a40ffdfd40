"""`difix distill`: fixed views back into the 3D model while it trains."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from difixcli.cli.several import over_scenes
from difixcli.errors import InputError, unknown
from difixcli.runs import Run, check_folder, file_name, find_run, fingerprint

if TYPE_CHECKING:
    from difixcli.scenes.scene import Scene

ROUNDS = "Rounds of fixing"
LARGER = "Super-resolution"


@console.handled
@over_scenes("scene", ".", several_methods=True)
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
    further: Annotated[
        int | None,
        typer.Option(
            help="Iterations of all rounds together; as many as on photos (super-resolution: a sixth a round).",
            min=1,
            rich_help_panel=ROUNDS,
        ),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(
            help="How often views are proposed anew; 3 on a CPU, one per 2,000 iterations on a GPU "
            "(super-resolution: 4).",
            rich_help_panel=ROUNDS,
        ),
    ] = None,
    profile: Annotated[
        str,
        typer.Option(
            help="difix, or published: how Difix3D's release trains with its weights. Other options come before it.",
            rich_help_panel=ROUNDS,
        ),
    ] = "difix",
    step: Annotated[
        float | None,
        typer.Option(
            help="How far pseudo-views move in a round, in normalised units; by default even parts of the way.",
            rich_help_panel=ROUNDS,
        ),
    ] = None,
    share: Annotated[
        float | None,
        typer.Option(
            help="Share of what the rounds train on that is pseudo-views; 0.2 on a CPU, 0.4 on a GPU "
            "(super-resolution: 0.8 of rays, all of images).",
            rich_help_panel=ROUNDS,
        ),
    ] = None,
    prior: Annotated[
        str,
        typer.Option(
            help="What proposes views: fixer, super-resolution, or an installed package's.", rich_help_panel=ROUNDS
        ),
    ] = "fixer",
    references: Annotated[
        int | None,
        typer.Option(help="Photos beside a render; as many as the fixer takes.", min=0, rich_help_panel=ROUNDS),
    ] = None,
    trust: Annotated[
        str | None,
        typer.Option(
            help="supported (default): a fix changes what references and render support; all: everything.",
            rich_help_panel=ROUNDS,
        ),
    ] = None,
    drop_below: Annotated[
        float | None,
        typer.Option(
            help="A fix supported by less than this, 0 to 1, is not trained on (default 0.7).",
            min=0,
            max=1,
            rich_help_panel=ROUNDS,
        ),
    ] = None,
    loss: Annotated[
        list[str] | None,
        typer.Option(
            help="A loss term of pseudo-views and its weight: method=1 (default), l2=1, perceptual=0.1, "
            "low_resolution:4=1; repeatable. Super-resolution: method=0.25 and low_resolution:4=1.",
            rich_help_panel=ROUNDS,
        ),
    ] = None,
    guard: Annotated[
        bool,
        typer.Option(
            "--guard/--no-guard",
            help="Take a round back that makes the views less like the photos brought into them.",
            rich_help_panel=ROUNDS,
        ),
    ] = True,
    from_round: Annotated[
        int | None,
        typer.Option(help="Go back to the beginning of this round of the same run.", min=1, rich_help_panel=ROUNDS),
    ] = None,
    upscale: Annotated[
        int | None,
        typer.Option(help="How many times larger than the photos (default 4).", min=2, rich_help_panel=LARGER),
    ] = None,
    sr: Annotated[
        str | None,
        typer.Option(
            help="bundled (default), a file of weights that spandrel reads, a folder, or a hub name as "
            "stabilityai/stable-diffusion-x4-upscaler.",
            rich_help_panel=LARGER,
        ),
    ] = None,
    reduce: Annotated[
        int | None,
        typer.Option(
            help="First make the photos so many times smaller; what they were is the truth.",
            min=2,
            rich_help_panel=LARGER,
        ),
    ] = None,
    downscale: Annotated[
        str | None,
        typer.Option(help="How photos are made smaller: area (default) or bicubic.", rich_help_panel=LARGER),
    ] = None,
    sr_update: Annotated[
        str | None,
        typer.Option(
            help="How a diffusing super-resolver goes on from a render: posterior (default, 3DSR's release) or paper.",
            rich_help_panel=LARGER,
        ),
    ] = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare", help="Also train as long on photos alone (for super-resolution, on other enlargements too)."
        ),
    ] = False,
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
    from difixcli.cli.super_resolution import Request, distill_larger, read_enlargement
    from difixcli.distillation.prior import SUPER_RESOLUTION, check_prior
    from difixcli.distillation.schedule import check_schedule, make_schedule
    from difixcli.distillation.settings import Settings, find_profile, read_terms, support_wanted
    from difixcli.distillation.targets import check_targets
    from difixcli.scenes import DEFAULT_RULE, check_rule, check_scene, default_split_rule, make_split
    from difixcli.scenes.trajectories import path_world_note

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
    for note in filter(None, map(path_world_note, aims)):
        console.say(note)
    check_schedule(schedule, rounds, step, share, further)
    check_prior(prior)
    larger = {"--upscale": upscale, "--sr": sr, "--reduce": reduce, "--downscale": downscale, "--sr-update": sr_update}
    if prior == SUPER_RESOLUTION:
        unheard = {
            "--targets": targets is not None,
            "--schedule": schedule != "progressive",
            "--profile": profile != "difix",
            "--fixer": fixer != "bundled",
            "--step": step is not None,
            "--references": references is not None,
            "--trust": trust is not None,
            "--drop-below": drop_below is not None,
            "--no-guard": not guard,
        }
        if said := [option for option, there in unheard.items() if there]:
            raise InputError(f"{said[0]} says nothing to the prior {prior}, whose views are the photos'; leave it out.")
        request = Request(
            scene, method, split, start, iterations, further, rounds, share, loss or [], from_round, compare, size,
            seed, preset, device, settings or [], output, force, as_json, sr_update is not None,
        )  # fmt: skip
        distill_larger(request, read_enlargement(upscale, sr, reduce, downscale, sr_update))
        return
    if said := [option for option, value in larger.items() if value is not None]:
        raise InputError(f"{said[0]} belongs to --prior {SUPER_RESOLUTION}; name that, or leave it out.")
    preset_values = find_profile(profile)
    trusted = trust or preset_values.trust
    support = support_wanted(trusted, drop_below)
    terms = read_terms(loss or [])
    if schedule == "none":
        given = {
            "--compare": compare,
            "--no-guard": not guard,
            "--profile": profile != "difix",
            "--prior": prior != "fixer",
            "--trust": trust is not None,
            "--drop-below": drop_below is not None,
            "--loss": bool(loss),
        }
        if said := [option for option, there in given.items() if there]:
            raise InputError(f"{said[0]} says nothing to the schedule none, which is training on photos; leave it out.")
    elif start is not None and iterations is not None:
        raise InputError("With --start training on photos is done; say with --further how long the rounds are.")
    on, sizes = pick_device(device, preset)
    loaded = open_scene(scene, size, sizes)
    rule = split or default_split_rule(loaded)
    if split is None and rule == DEFAULT_RULE and "test" not in aims:
        rule = "all"  # no photo has to be held out where none is aimed at
    chosen = make_split(loaded, rule, need_test="test" in aims)
    inputs = {**scene_inputs(loaded), **split_input(loaded, chosen), **fixer_input(fixer)}

    from difixcli.distillation.distill import Distillation
    from difixcli.reconstruction import default_iterations, draws_images, known_methods, method_config
    from difixcli.reconstruction.compilation import compile_ahead
    from difixcli.reconstruction.objective import check_terms

    if method is None:
        method = "splatfacto"
        if start is not None and start.is_dir():
            from difixcli.reconstruction.start import method_of

            method = method_of(start)
    if method not in (methods := known_methods()):
        raise unknown("method", method, methods)
    drawn = "images" if draws_images(method_config(method)) else "rays"
    terms = terms or dict(preset_values.terms[drawn])
    check_terms(terms, loaded.frames[0].camera.height, loaded.frames[0].camera.width)
    steps = iterations or default_iterations(method, sizes)
    of_rounds = (further or steps) if start is not None and schedule != "none" else further
    if rounds is None and preset_values.iterations_a_round is not None and schedule == "progressive":
        rounds = max(1, (of_rounds or steps) // preset_values.iterations_a_round)
    if step is None and schedule == "progressive":
        step = preset_values.step
    if share is None and schedule != "none":
        share = preset_values.share[drawn]
    planned = make_schedule(
        sizes, 0 if start is not None and schedule != "none" else steps, of_rounds, rounds, schedule, step, share
    )
    plan = Settings(
        method=method,
        preset=sizes,
        device=on,
        schedule=planned,
        seed=seed,
        compare=compare,
        overrides=settings or [],
        targets=aims,
        prior=prior,
        references=preset_values.references if references is None else references,
        trust=trusted,
        drop_below=support,
        terms=terms,
        raised=preset_values.raised,
        guard=guard,
        start=None if start is None else str(start.expanduser().absolute()),
    )
    distillation = Distillation(loaded, chosen, plan)
    arguments = {**vars(plan), "schedule": vars(planned), "scene": scene_spec(scene), "size": size, "split": rule}
    arguments["fixer"] = fixer
    del arguments["enlargement"]
    paths = [Path(aim).expanduser() for aim in aims if aim.lower().endswith(".json")]
    inputs |= {str(path): fingerprint([path], content=True) for path in paths}
    begun = start_files(start)
    if start is not None:
        inputs["start"] = fingerprint(begun, content=True)
    folder, run = held(output, loaded, method, arguments, inputs, force, from_round)
    network = None
    if run is None or not run.done:  # what is done needs no fixer, which may be far away
        network = open_fixer(fixer, on)
        run = Run.open(folder, "distill", arguments, inputs, force, reads=[*files_read(fixer, loaded), *paths, *begun])
    timetable = f"{planned.photos} iterations on photos, no fixes ({schedule})"
    if planned.rounds:
        timetable = (
            f"{planned.photos} iterations on photos, then {planned.rounds} rounds of {planned.every} ({schedule}), "
            f"{planned.share:.0%} of them on views by the prior {prior}"
        )
    announce(
        run,
        scene=f"{loaded.name}, {len(chosen.train)} photos train, {len(chosen.test)} test ({rule})",
        method=f"{method}, preset {sizes} on {on}, seed {seed}",
        size=size_of(loaded),
        start=start,
        targets=f"{', '.join(aims)}: {len(distillation.targets)} views",
        schedule=timetable,
        fixer=fixer,
    )
    if not chosen.test:
        console.say("No photo is held out, so nothing is measured; --split holds some out.")
    if network is None:
        results = run.record["results"]
    else:
        compile_ahead(method, on, console.say)
        results = distillation.run(network, run, console.progress, console.say)
        run.finish(results)
    found = run.record.get("rounds", {})
    if found:
        console.say(_outcome(found, planned.rounds))
    title = f"{loaded.name}, {method}: {len(chosen.test)} test views"
    tables = [console.figures_table(title, results)] if results else []
    console.say(f"Pictures: {run.folder / ('renders' if results else 'path')}")
    if results:
        console.say(f"For a report: difix eval {run.folder}")
    console.finish({"results": results, "rounds": found, "output": str(run.folder)}, as_json, *tables)


def held(
    output: Path | None,
    loaded: Scene,
    method: str,
    arguments: dict[str, Any],
    inputs: dict[str, str],
    force: bool,
    from_round: int | None,
) -> tuple[Path, Run | None]:
    """The folder of a run, and the run that stands there already, gone back to the beginning of a round if asked."""
    from difixcli.distillation.rounds import Rounds

    folder = output
    if folder is None:
        parent = Path("outputs") / file_name(loaded.name) / method
        folder = None if force else find_run(parent, "distill", arguments, inputs)
        folder = folder or parent / time.strftime("%Y-%m-%d_%H%M%S")
    run = None if force else Run.held(folder, "distill", arguments, inputs)
    if from_round is None:
        return folder, run
    if run is None:
        raise InputError("--from-round goes back in a run of the very same line; there is none yet. Leave it out.")
    run = Run.open(folder, "distill", arguments, inputs)  # no other process may be at work in it
    rounds_made = Rounds(run.folder)
    rounds_made.check(from_round)
    run.save(state="running", results={}, rounds={})  # first: what a kill leaves of it is not done
    rounds_made.rewind(from_round)
    return folder, run


def _outcome(found: dict[str, Any], rounds: int) -> str:
    """What became of the rounds, and which model was handed over."""
    kept = f"Views dropped: {found['dropped']}. "
    if not found["taken_back"]:
        return kept + f"All {rounds} rounds were accepted; the distilled model is handed over."
    number = found["taken_back"]
    told = f"Round {number} made the views less like the photos and was taken back (--no-guard keeps it); "
    if found["accepted"]:
        return kept + told + f"what {number - 1} rounds have taught is handed over."
    return kept + told + "the model of photos alone is handed over, trained to the end."


def start_files(start: Path | None) -> list[Path]:
    """What decides what an existing reconstruction is: the .ply, or a run's settings and checkpoints."""
    if start is None or start.is_file():
        return [] if start is None else [start]
    # not eval.json, run.json, rounds: what is written beside a model does not make it another one
    names = ("config.yml", "dataparser_transforms.json", "reconstruction.json")
    described = [start / name for name in names if (start / name).is_file()]
    return sorted([*(start / "nerfstudio_models").glob("*.ckpt"), *described])
