"""`difix curate`: pairs from posed scenes, and merging them."""

from __future__ import annotations

import inspect
import os
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from difixcli import console
from difixcli.cli.inputs import check_device, open_scene, pick_device, tell_loading
from difixcli.cli.lines import words
from difixcli.cli.options import (
    ITERATIONS,
    MOST_ITERATIONS,
    SPLIT_DEFAULT,
    SPLIT_RULES,
    Device,
    DeviceOption,
    ForceOption,
    JsonOption,
    MethodOption,
    OutputOption,
    Preset,
    PresetOption,
    SeedOption,
    SetOption,
    SizeOption,
)
from difixcli.cli.outputs import announce
from difixcli.cli.several import Cluster, with_cluster, work
from difixcli.cluster.worker import JOB
from difixcli.curation.strategies import DEFAULT_SHIFTS, DEFAULT_STOPS
from difixcli.errors import InputError
from difixcli.runs import Run, check_output, file_name
from difixcli.wording import counted

if TYPE_CHECKING:
    from difixcli.curation.curated import Curated
    from difixcli.scenes.scene import Scene

_OWN = ("scenes", "test_scene", "shard", "merge", "partial", "output", "force", "as_json", "cluster")
"""Parameters that say nothing of how a scene is curated, or of one scene each its own."""


@console.handled
@with_cluster
def curate(
    scenes: Annotated[
        list[str] | None,
        typer.Argument(help="Scene folders, globs, or @LIST with one a line; the current folder by default."),
    ] = None,
    strategy: Annotated[str, typer.Option(help="sparse, cycle, underfit, cross-camera or clips.")] = "sparse",
    method: MethodOption = "splatfacto",
    split: Annotated[
        list[str] | None,
        typer.Option(help=f"{SPLIT_RULES}; repeatable. {SPLIT_DEFAULT}"),
    ] = None,
    shift: Annotated[
        list[str] | None,
        typer.Option(
            help=f"cycle: sideways shift, 2m or a share of the path (default {', '.join(DEFAULT_SHIFTS)}); repeatable."
        ),
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(
            help=f"underfit: share of the schedule to stop at (default {', '.join(DEFAULT_STOPS)}); repeatable."
        ),
    ] = None,
    references: Annotated[int, typer.Option(help="Reference photos beside each render.", min=0)] = 3,
    test_scene: Annotated[
        list[str] | None, typer.Option(help="Names or patterns of scenes kept for testing; repeatable.")
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="Keep pairs that are failed, perfect or blurred; repeatable.")
    ] = None,
    depth: Annotated[
        bool,
        typer.Option(
            "--depth", help="Also write depth, and which places of the references renders show (float32 .npz)."
        ),
    ] = False,
    keep_models: Annotated[
        bool, typer.Option("--keep-models", help="Keep the reconstructions in SCENE/models.")
    ] = False,
    image_format: Annotated[str, typer.Option(help="Of renders and photos: png, webp or jpeg.")] = "png",
    pairs_format: Annotated[str, typer.Option("--format", help="folder, or webdataset for tars.")] = "folder",
    shard: Annotated[str | None, typer.Option(help="Every n-th scene from the i-th on, as 0/4.")] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Merge the folders of several runs, named instead of scenes, into one.")
    ] = False,
    partial: Annotated[
        bool, typer.Option("--partial", help="Merge what is there, and name the scenes that are not.")
    ] = False,
    iterations: Annotated[int | None, typer.Option(help=ITERATIONS, min=1, max=MOST_ITERATIONS)] = None,
    size: SizeOption = None,
    seed: SeedOption = 0,
    preset: PresetOption = Preset.auto,
    device: DeviceOption = Device.auto,
    settings: SetOption = None,
    output: OutputOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
    *,
    cluster: Cluster,
) -> None:
    """Make (render, photo) pairs from posed scenes, to train a fixer on.

    Any number of processes may be given the same line at the same time: they share the scenes.
    """
    common = words(inspect.signature(curate, eval_str=True), locals(), _OWN)
    if merge:
        if cluster.name is not None:
            raise InputError("--merge is quick and needs no cluster; leave --cluster out.")
        _merge_pairs([Path(folder) for folder in scenes or ["."]], output, force, as_json, partial)
        return
    if partial:
        raise InputError("--partial belongs to --merge; name that, or leave it out.")
    from difixcli.curation.scene_list import check_test_scenes, expand_scenes, parse_shard, shard_of
    from difixcli.curation.strategies import check_named, parse_stop
    from difixcli.reconstruction.method_names import check_method_name
    from difixcli.reconstruction.overrides import read_override, read_own_settings
    from difixcli.scenes import DEFAULT_RULE, check_rule, check_scene, scene_root
    from difixcli.scenes.trajectories import check_trajectory

    # what can be told without torch and nerfstudio is told before they are imported, which takes long
    check_device(device)
    named = expand_scenes(scenes or ["."])
    # of several, one that is not there is reported at the end and stops no other; so is a job of several
    alone = len(named) == 1 and JOB not in os.environ and cluster.max_failed is None
    if alone:
        check_scene(next(iter(named.values())))
    for rule in split or []:
        check_rule(rule, scene_root(next(iter(named.values()))) if alone else None)
    part = None if shard is None else parse_shard(shard)
    if output is not None:
        check_output(output)
    check_named(strategy, keep or [], image_format, pairs_format)
    for option, given, users in (
        ("--split", split, ("sparse", "underfit", "cross-camera", "clips")),
        ("--shift", shift, ("cycle",)),
        ("--stop", stop, ("underfit",)),
    ):
        if given and strategy not in users:
            raise InputError(f"{option} belongs to {', '.join(users)} and says nothing to {strategy}; leave it out.")
    for amount in shift or []:
        check_trajectory(f"shift:{amount}")
    for share in stop or []:
        parse_stop(share)
    check_test_scenes(test_scene or [], named)
    check_method_name(method)
    for setting in settings or []:
        read_override(setting)
    read_own_settings(settings or [], "cpu")

    on, sizes = pick_device(device, preset)
    tell_loading("nerfstudio")
    from difixcli.cluster.jobs import Jobs
    from difixcli.curation.clips import DEFAULT_RULE as CLIPS_RULE
    from difixcli.curation.curate import Recipe, gather, plan
    from difixcli.curation.curate import curate as make_pairs
    from difixcli.reconstruction import default_iterations
    from difixcli.reconstruction.compilation import compile_ahead
    from difixcli.reconstruction.configuration import check_settings

    recipe = Recipe(
        strategy=strategy,
        method=method,
        preset=sizes,
        device=on,
        iterations=iterations,
        splits=split or [],
        shifts=shift or DEFAULT_SHIFTS,
        stops=stop or DEFAULT_STOPS,
        views=references,
        seed=seed,
        overrides=settings or [],
        keep=keep or [],
        keep_models=keep_models,
        image_format=image_format,
        depth=depth,
        format=pairs_format,
    )
    chosen = {name: named[name] for name in shard_of(list(named), part)}
    joined = "-".join(file_name(name) for name in list(named)[:3])
    folder = output or Path("outputs") / "pairs" / f"{joined}-{strategy}-{method}"
    check_settings(method, settings or [])
    lone: dict[str, Scene] = {}
    if alone:  # one that does not fit leaves nothing behind
        spec = next(iter(named.values()))
        lone[spec] = open_scene(spec, size, sizes)
        plan(lone[spec], recipe, folder)
    arguments = {
        **vars(recipe),
        "size": size,
    }  # not the scenes: more may be added
    reads = [Path(spec) for spec in named.values() if not spec.startswith("sample:")]
    run = Run.open(folder, "curate", arguments, {}, force, reads=reads, shared=True)
    lines = {}
    for name, spec in named.items():
        tested = [f"--test-scene={one}" for one in test_scene or [] if fnmatchcase(name, one)]
        lines[file_name(name)] = ["curate", spec, *common, *tested, f"--output={run.folder}"]
    chosen_lines = {file_name(name): lines[file_name(name)] for name in chosen}
    Jobs(run.folder).add(lines, str(Path.cwd()))
    if cluster.name is not None:
        if work(run.folder, chosen_lines, "curate", cluster) is None:
            console.finish({"output": str(run.folder)}, as_json)
            return
        finish_pairs(gather(run.folder), run.folder, as_json, list(chosen_lines), cluster.max_failed)
        return
    rules = split or f"each scene's own, else {DEFAULT_RULE}"
    told: dict[str, dict[str, Any]] = {
        "cycle": {"shift": list(recipe.shifts)},
        "underfit": {"split": rules, "stop": list(recipe.stops)},
        "cross-camera": {"split": split or "the rig's first camera"},
        "sparse": {"split": rules},
        "clips": {"split": split or CLIPS_RULE},
    }
    announce(
        run,
        scenes=f"{len(chosen)} of {len(named)}",
        strategy=strategy,
        method=method,
        **told[strategy],
        iterations=iterations or default_iterations(method, sizes),
        size=size or (240 if sizes == "cpu" else "the photos' own"),
        preset=sizes,
        device=on,
    )
    compile_ahead(method, on, console.say)
    curated = make_pairs(
        chosen,
        lambda spec: lone.get(spec) or open_scene(spec, size, sizes),
        recipe,
        run,
        test_scene or [],
        console.progress,
        console.say,
        cluster.max_failed,
    )
    if not curated.left:
        run.finish(curated.results())
    finish_pairs(curated, run.folder, as_json, list(chosen_lines), cluster.max_failed)


def _merge_pairs(folders: list[Path], output: Path | None, force: bool, as_json: bool, partial: bool) -> None:
    """`difix curate --merge`: into the output, or in place where one folder is named."""
    from difixcli.curation.merge import check_merge, merge

    if output is None and len(folders) > 1:
        raise InputError("Merging several folders needs one more to write to; name it with --output.")
    folder = output or folders[0]
    if folder.absolute() not in [path.absolute() for path in folders]:
        check_merge(folders, partial)  # first: a folder that nothing is merged into is not made
        run = Run.open(folder, "curate", {"merge": [path.absolute() for path in folders]}, {}, force, reads=folders)
        curated = merge(folders, run.folder, partial)
        run.finish(curated.results())
    else:
        curated = merge(folders, folder, partial)
    finish_pairs(curated, folder, as_json)


def finish_pairs(
    curated: Curated, folder: Path, as_json: bool, own: list[str] | None = None, max_failed: int | None = None
) -> None:
    """Print what was curated.

    Where some of several scenes (`own`: those that were asked for, all by default) failed, the exit code is 3, where
    more than `max_failed` did, 2. Where nobody says how many may, and the only one did, it is 2, or 1 through a fault
    of ours.
    """
    results, folder = curated.results(), folder.expanduser().absolute()
    where = folder / "data.json" if (folder / "data.json").is_file() and not curated.left else folder
    if results["pairs"]:
        console.say(f"{counted(results['pairs'], 'pair')}, renders at {results['psnr']:.2f} dB on average: {where}")
    elif dropped := {name: count for name, count in results["dropped"].items() if count}:
        said = ", ".join(f"{count} {name}" for name, count in dropped.items())
        console.warn(f"No pair is left ({said}); train longer, or keep them with --keep {next(iter(dropped))}.")
    if curated.left:
        console.warn(f"Still to be made: {', '.join(curated.left)}; the manifest is written when all are.")
    found = {"results": results, "output": str(folder)}
    failed = {name: failure for name, failure in curated.failed.items() if own is None or name in own}
    left = [name for name in curated.left if own is not None and name in own]
    if not failed and not left:
        console.finish(found, as_json, console.pairs_table(curated.stages))
        return
    if not failed:
        message = f"{len(left)} of the scenes were not finished; run the same line again."
    elif len(failed) == 1 and own is not None and len(own) == 1:
        message = next(iter(failed.values())).message
    else:
        name, failure = next(iter(failed.items()))
        message = f"{len(failed)} of the scenes failed, the others are whole. {name}: {failure.message}"
    console.finish({**found, "error": message}, as_json, console.pairs_table(curated.stages))
    for name, failure in list(failed.items())[1:]:
        console.warn(f"Scene {name} failed: {failure.message}")
    faults = [failure.fault for failure in failed.values() if failure.fault]
    for fault in faults[:1]:
        console.say(f"{fault}This is a fault in difix. Please report it with the lines above.")
    console.fail(message)
    if own is not None and len(own) == 1 and failed and max_failed is None:
        raise typer.Exit(1 if faults else 2)
    raise typer.Exit(2 if max_failed is not None and len(failed) > max_failed else 3)
