"""What `difix curate` does once a request is valid: pairs of each scene, and pairs merged."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from difixcli import console
from difixcli.cli.inputs import open_scene, pick_device, tell_loading
from difixcli.cli.options import Device
from difixcli.cli.outputs import announce
from difixcli.cli.requests import options_of
from difixcli.cli.several import ClusterRequest, work
from difixcli.cluster.worker import HELD, JOB
from difixcli.curation.strategies import DEFAULT_SHIFTS, DEFAULT_STOPS
from difixcli.errors import InputError
from difixcli.runs import Run, file_name, run_record
from difixcli.wording import counted

if TYPE_CHECKING:
    from rich.table import Table

    from difixcli.cli.curate import CurateRequest
    from difixcli.curation.curate import Recipe
    from difixcli.curation.curated import Curated, Failure
    from difixcli.scenes.scene import Scene

_OWN = ("scenes", "test_scene", "shard", "merge", "partial", "output", "force", *options_of(ClusterRequest))
"""Fields that say nothing of how a scene is curated, or of one scene each its own."""


@dataclass(frozen=True)
class Paired:
    """What came of a curation: its folder and what that holds, None where a cluster was given the scenes and is not
    waited for. `own` are the scenes that were asked for, by the names of their folders; None for all that are there.
    """

    output: Path
    curated: Curated | None
    own: Sequence[str] | None = None

    @property
    def failed(self) -> dict[str, Failure]:
        """Those of the scenes that failed."""
        failed = {} if self.curated is None else self.curated.failed
        return {name: failure for name, failure in failed.items() if self.own is None or name in self.own}

    @property
    def left(self) -> list[str]:
        """Those of the scenes that are still to be made."""
        return [name for name in (self.curated.left if self.curated else ()) if self.own and name in self.own]

    def told(self) -> dict[str, Any]:
        """What --json says."""
        told = {"output": str(self.output)}
        return told if self.curated is None else {"results": self.curated.results(), **told}

    def tables(self) -> list[Table]:
        """The stages, for people."""
        return [] if self.curated is None else [console.pairs_table(self.curated.stages)]


def paired(request: CurateRequest) -> Paired:
    """Make the pairs that a valid request asks for."""
    from difixcli.curation.scene_list import parse_shard, shard_of

    # SLURM's machines may have what this one has not
    on, sizes = pick_device(Device.auto if request.cluster == "slurm" else request.device, request.preset)
    tell_loading("nerfstudio")
    from difixcli.cluster.jobs import Jobs
    from difixcli.curation.curate import curate, gather, plan
    from difixcli.reconstruction.compilation import compile_ahead
    from difixcli.reconstruction.configuration import check_settings

    recipe = _recipe(request, sizes, on)
    named = request.named
    part = None if request.shard is None else parse_shard(request.shard)
    chosen = {name: named[name] for name in shard_of(list(named), part)}
    joined = "-".join(file_name(name) for name in list(named)[:3])
    folder = request.output or Path("outputs") / "pairs" / f"{joined}-{request.strategy}-{request.method}"
    check_settings(request.method, request.settings or [])
    lone: dict[str, Scene] = {}
    if request.is_of_one(named):  # one that does not fit leaves nothing behind
        spec = next(iter(named.values()))
        lone[spec] = open_scene(spec, request.size, sizes)
        plan(lone[spec], recipe, folder)
    # not the scenes: more may be added; and as asked: on another machine of those that share the run, auto is another
    asked = {"preset": request.preset.value, "device": request.device.value, "size": request.size}
    arguments = {**vars(recipe), **_as_begun(folder, asked, {"preset": sizes, "device": on})}
    reads = [Path(spec) for spec in named.values() if not spec.startswith("sample:")]
    run = Run.open(folder, "curate", arguments, {}, request.force, reads=reads, shared=True)
    lines = _lines(request, named, run.folder)
    own = [file_name(name) for name in chosen]
    Jobs(run.folder).add(lines, str(Path.cwd()))
    if request.cluster is not None:
        if work(run.folder, {name: lines[name] for name in own}, "curate", request) is None:
            return Paired(run.folder, None, own)
        return ended(run.folder, gather(run.folder), own)
    _settle(run, sizes)
    announce(run, scenes=f"{len(chosen)} of {len(named)}", **_told(request, recipe))
    compile_ahead(request.method, on, console.say)
    curated = curate(
        chosen,
        lambda spec: lone.get(spec) or open_scene(spec, request.size, sizes),
        recipe,
        run,
        request.tested,
        console.progress,
        console.say,
        request.max_failed,
        wait=JOB not in os.environ,
    )
    if curated is None:  # the worker whose process this is takes another scene meanwhile
        raise typer.Exit(HELD)
    if not curated.left:
        run.finish(curated.results())
    return ended(run.folder, curated, own)


def _as_begun(folder: Path, asked: dict[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked for, or, of a run that an earlier version began, which knew it by what `auto` was on its machine,
    what that is here, if it is the same.
    """
    held = run_record(folder)
    if held is None or "preset" in held or any(held["arguments"].get(key) != value for key, value in found.items()):
        return asked
    return {**asked, **{key: value for key, value in found.items() if asked[key] == "auto"}}


def _settle(run: Run, preset: str) -> None:
    """Note in the run's record which preset its pairs are made with; InputError where that is another than `preset`."""
    if (held := run.record.get("preset")) is None:
        run.save(preset=preset)
    elif held != preset:
        raise InputError(
            f"The pairs in {run.folder} are made with the preset {held}, and --preset auto is {preset} on this "
            "machine; go on where they were begun, or choose another --output."
        )


def _recipe(request: CurateRequest, preset: str, device: str) -> Recipe:
    from difixcli.curation.curate import Recipe

    return Recipe(
        strategy=request.strategy,
        method=request.method,
        preset=preset,
        device=device,
        iterations=request.iterations,
        splits=request.split or [],
        shifts=request.shift or DEFAULT_SHIFTS,
        stops=request.stop or DEFAULT_STOPS,
        views=request.references,
        seed=request.seed,
        overrides=request.settings or [],
        keep=request.keep or [],
        keep_models=request.keep_models,
        image_format=request.image_format,
        depth=request.depth,
        format=request.pairs_format,
    )


def _lines(request: CurateRequest, named: Mapping[str, str], folder: Path) -> dict[str, list[str]]:
    """The line of each scene's job, by the name of its folder."""
    common = request.words(_OWN)
    lines = {}
    for name, spec in named.items():
        tested = [f"--test-scene={one}" for one in request.tested if fnmatchcase(name, one)]
        lines[file_name(name)] = ["curate", spec, *common, *tested, f"--output={folder}"]
    return lines


def _told(request: CurateRequest, recipe: Recipe) -> dict[str, Any]:
    """What `announce` says of how scenes are curated, defaults included."""
    from difixcli.curation.clips import DEFAULT_RULE as CLIPS_RULE
    from difixcli.reconstruction import default_iterations
    from difixcli.scenes import DEFAULT_RULE

    split = request.split
    rules = split or f"each scene's own, else {DEFAULT_RULE}"
    stages: dict[str, dict[str, Any]] = {
        "cycle": {"shift": list(recipe.shifts)},
        "underfit": {"split": rules, "stop": list(recipe.stops)},
        "cross-camera": {"split": split or "the rig's first camera"},
        "sparse": {"split": rules},
        "clips": {"split": split or CLIPS_RULE},
    }
    return {
        "strategy": recipe.strategy,
        "method": recipe.method,
        **stages[recipe.strategy],
        "iterations": recipe.iterations or default_iterations(recipe.method, recipe.preset),
        "size": request.size or (240 if recipe.preset == "cpu" else "the photos' own"),
        "preset": recipe.preset,
        "device": recipe.device,
    }


def merged(request: CurateRequest) -> Paired:
    """Merge pairs into the output, or in place where one folder is named."""
    from difixcli.curation.merge import merge

    folders = request.folders
    folder = request.output or folders[0]
    if folder.absolute() not in [path.absolute() for path in folders]:
        arguments = {"merge": [path.absolute() for path in folders]}
        run = Run.open(folder, "curate", arguments, {}, request.force, reads=folders)
        curated = merge(folders, run.folder, request.partial)
        run.finish(curated.results())
    else:
        curated = merge(folders, folder, request.partial)
    return ended(folder.expanduser().absolute(), curated)


def ended(folder: Path, curated: Curated, own: Sequence[str] | None = None) -> Paired:
    """Say how many pairs there are and where, and what is still to be made; `own` as in `Paired`."""
    results = curated.results()
    manifest, merged = folder / "data.json", own is None
    where = manifest if manifest.is_file() and (merged or not curated.left) else folder
    if results["pairs"]:
        console.say(f"{counted(results['pairs'], 'pair')}, renders at {results['psnr']:.2f} dB on average: {where}")
    elif dropped := {name: count for name, count in results["dropped"].items() if count}:
        said = ", ".join(f"{count} {name}" for name, count in dropped.items())
        console.warn(f"No pair is left ({said}); train longer, or keep them with --keep {next(iter(dropped))}.")
    if curated.left:
        said = "they are not in this manifest" if merged else "the manifest is written when all are"
        console.warn(f"Still to be made: {', '.join(curated.left)}; {said}.")
    return Paired(folder, curated, own)
