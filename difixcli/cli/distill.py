"""`difix distill`: fixed views back into the 3D model while it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from difixcli import console
from difixcli.cli.inputs import check_fixer
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
from difixcli.cli.several import over_scenes
from difixcli.errors import InputError
from difixcli.runs import check_folder

ROUNDS = "Rounds of fixing"
LARGER = "Super-resolution"
FEW = "Few photos"
FILM = "Films between photos"


@console.handled
@over_scenes("scene", ".", several_methods=True)
def distill(
    scene: SceneArgument = ".",
    method: Annotated[
        str | None,
        typer.Option(help="Any nerfstudio method: nerfacto, splatfacto (the default; with --start the run's own)."),
    ] = None,
    split: SplitOption = None,
    views: Annotated[
        int | None,
        typer.Option(
            help="Train on that many mutually farthest photos that overlap: short for --split views:K.", min=2
        ),
    ] = None,
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
            help="What proposes views: fixer, super-resolution, view-diffusion (two to four photos), video (films "
            "between a few photos), or an installed package's.",
            rich_help_panel=ROUNDS,
        ),
    ] = "fixer",
    references: Annotated[
        int | None,
        typer.Option(help="Photos beside a render; as many as the fixer takes.", min=0, rich_help_panel=ROUNDS),
    ] = None,
    trust: Annotated[
        str | None,
        typer.Option(
            help="supported (default): a fix changes what references and render support, a film's pictures weigh as "
            "they agree; all: everything.",
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
    view_diffusion: Annotated[
        str | None,
        typer.Option(
            help="The networks: a folder of difix finetune --task view-diffusion; this version brings none.",
            rich_help_panel=FEW,
        ),
    ] = None,
    seek: Annotated[
        str | None,
        typer.Option(
            help="mode (default): x̂₀ in several denoising steps; sds: in one; mean: EFT's pictures alone.",
            rich_help_panel=FEW,
        ),
    ] = None,
    denoise_steps: Annotated[
        int | None,
        typer.Option(help="Denoising steps from pure noise; 20 on a CPU, 50 on a GPU.", min=1, rich_help_panel=FEW),
    ] = None,
    reuse: Annotated[
        int | None,
        typer.Option(
            help="How many draws of a view one x̂₀ serves; 4 on a CPU, 1 on a GPU.", min=1, rich_help_panel=FEW
        ),
    ] = None,
    anneal: Annotated[
        bool,
        typer.Option("--anneal", help="Let the highest noise level fall from round to round.", rich_help_panel=FEW),
    ] = False,
    frames: Annotated[
        int | None,
        typer.Option(
            help="Pictures from one photo to the next, both among them; 8 on a CPU, 32 on a GPU.", rich_help_panel=FILM
        ),
    ] = None,
    points: Annotated[
        str | None,
        typer.Option(
            help="The point cloud: auto (default) from the photos; what DUSt3R, MASt3R or VGGT say as .npz, or a .ply; "
            "none: the scene's seed points.",
            rich_help_panel=FILM,
        ),
    ] = None,
    video: Annotated[
        str | None,
        typer.Option(
            help="The video model: bundled (default), a folder of difix finetune --task video, or a published one's "
            "folder or hub name.",
            rich_help_panel=FILM,
        ),
    ] = None,
    confidence: Annotated[
        bool,
        typer.Option(
            "--confidence",
            help="Also write beside each fix, as NAME.confidence.png, what of it photos know (green: seen by a photo, "
            "blue: agreed, red: invented).",
        ),
    ] = False,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Also train as long on photos alone (super-resolution: on other enlargements too; view-diffusion: on "
            "EFT's pictures too, and draw the networks' own; video: also from the point cloud).",
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
    from difixcli.cli.fixes import Fixes, distill_fixes
    from difixcli.cli.requests import Request
    from difixcli.cli.super_resolution import distill_larger, read_enlargement
    from difixcli.cli.video import distill_filmed
    from difixcli.cli.view_diffusion import distill_few
    from difixcli.distillation.prior import SUPER_RESOLUTION, VIDEO, VIEW_DIFFUSION, check_prior
    from difixcli.distillation.schedule import check_schedule
    from difixcli.distillation.targets import check_targets
    from difixcli.scenes import check_rule, check_scene
    from difixcli.scenes.trajectories import path_world_note

    # what can be told without torch and nerfstudio is told before they are imported, which takes long
    aims = targets or ["test"]
    check_scene(scene)
    if start is not None and not start.exists():
        raise InputError(f"There is no {start} to start from; check its name.")
    if output is not None:
        check_folder(output)
    if views is not None:
        if split is not None:
            raise InputError(f"--views {views} and --split {split} both say which photos train; leave one out.")
        split = f"views:{views}"
    if split is not None:
        check_rule(split)
    check_targets(aims)
    for note in filter(None, map(path_world_note, aims)):
        console.say(note)
    check_schedule(schedule, rounds, step, share, further)
    check_prior(prior)
    check_fixer(fixer)
    larger = {"--upscale": upscale, "--sr": sr, "--reduce": reduce, "--downscale": downscale, "--sr-update": sr_update}
    seeking = {
        **{"--view-diffusion": view_diffusion, "--seek": seek, "--denoise-steps": denoise_steps, "--reuse": reuse},
        "--anneal": anneal or None,
    }
    filming = {"--frames": frames, "--points": points, "--video": video}
    if prior in (SUPER_RESOLUTION, VIEW_DIFFUSION, VIDEO):
        unheard = {
            "--schedule": schedule != "progressive",
            "--profile": profile != "difix",
            "--fixer": fixer != "bundled",
            "--step": step is not None,
            "--references": references is not None,
            "--trust": trust is not None and prior != VIDEO,
            "--drop-below": drop_below is not None,
            "--no-guard": not guard,
            "--confidence": confidence and prior != VIDEO,
        }
        # views are the photos' or between them, and films begin from the point cloud
        unheard["--targets"] = prior in (SUPER_RESOLUTION, VIDEO) and targets is not None
        unheard["--start"] = prior == VIDEO and start is not None
        if said := [option for option, there in unheard.items() if there]:
            raise InputError(f"{said[0]} says nothing to the prior {prior}; leave it out.")
    for other, given in ((SUPER_RESOLUTION, larger), (VIEW_DIFFUSION, seeking), (VIDEO, filming)):
        if prior != other and (said := [option for option, value in given.items() if value is not None]):
            raise InputError(f"{said[0]} belongs to --prior {other}; name that, or leave it out.")
    request = Request(
        scene, method, split, targets, start, iterations, further, rounds, share, loss or [], from_round, compare, size,
        seed, preset, device, settings or [], output, force, as_json, confidence,
    )  # fmt: skip
    if prior == VIEW_DIFFUSION:
        distill_few(request, view_diffusion, seek, denoise_steps, reuse, anneal)
    elif prior == VIDEO:
        distill_filmed(request, points, video, frames, trust)
    elif prior == SUPER_RESOLUTION:
        enlargement = read_enlargement(upscale, sr, reduce, downscale, sr_update)
        distill_larger(request, enlargement, sr_update is not None)
    else:
        distill_fixes(request, Fixes(fixer, schedule, profile, step, prior, references, trust, drop_below, guard))
