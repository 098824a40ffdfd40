"""What distillations with every prior have in common: settings, what a run is known by, and the run to go on with."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from difixcli import console
from difixcli.cli.inputs import scene_spec
from difixcli.errors import InputError, short, unknown
from difixcli.runs import Progress, Run, differing, file_name, find_run, run_record
from difixcli.wording import counted

if TYPE_CHECKING:
    from difixcli.cli.distill import DistillRequest
    from difixcli.console import FiguresTable
    from difixcli.distillation.schedule import Schedule
    from difixcli.distillation.settings import Settings
    from difixcli.scenes.scene import Scene
    from difixcli.scenes.splits import Split


_OPTIONS = {"overrides": "--set", "terms": "--loss", "scene": "the scene"}  # others are called as arguments are


@dataclass(frozen=True)
class Distilled:
    """What came of a distillation: its folder, and the figures of each variant on the test views, by row and figure
    (none where no photo is held out). `more` is what else one prior tells: of rounds, or agreement with the photos.
    """

    output: Path
    results: dict[str, dict[str, Any]]
    title: str
    more: dict[str, Any] = field(default_factory=dict)

    def told(self) -> dict[str, Any]:
        """What --json says."""
        return {"results": self.results, **self.more, "output": str(self.output)}

    def tables(self) -> list[FiguresTable]:
        """The figures, for people."""
        return [console.figures_table(self.title, self.results)] if self.results else []


def distilled(request: DistillRequest) -> Distilled:
    """Do what is asked for by a request that is valid."""
    from difixcli.distillation.prior import SUPER_RESOLUTION, VIDEO, VIEW_DIFFUSION
    from difixcli.scenes.trajectories import path_world_note

    for note in filter(None, map(path_world_note, request.targets or ())):
        console.say(note)
    if request.prior == VIEW_DIFFUSION:
        from difixcli.cli.view_diffusion import distill_few

        return distill_few(request)
    if request.prior == VIDEO:
        from difixcli.cli.video import distill_filmed

        return distill_filmed(request)
    if request.prior == SUPER_RESOLUTION:
        from difixcli.cli.super_resolution import distill_larger

        return distill_larger(request)
    from difixcli.cli.fixes import distill_fixes

    return distill_fixes(request)


def settings_of(
    request: DistillRequest,
    method: str,
    preset: str,
    device: str,
    schedule: Schedule,
    terms: Mapping[str, float],
    **own: Any,
) -> Settings:
    """The settings of a distillation: what every prior heeds, as it was asked for and worked out, and the prior's own.

    Only rounds of fixing are guarded, unless the prior's own say otherwise.
    """
    from difixcli.distillation.settings import Settings

    common: dict[str, Any] = {
        "method": method,
        "preset": preset,
        "device": device,
        "schedule": schedule,
        "seed": request.seed,
        "compare": request.compare,
        "overrides": request.settings or [],
        "prior": request.prior,
        "terms": terms,
        "guard": False,
        "confidence": request.confidence,
        "start": None if request.start is None else str(request.start.expanduser().absolute()),
    }
    return Settings(**{**common, **own})


def recorded(
    request: DistillRequest, plan: Settings, size: int | None, rule: str, unheard: Collection[str]
) -> dict[str, Any]:
    """The arguments that a run is known by: the settings but for those that the prior does not heed, and the scene."""
    kept = {name: value for name, value in vars(plan).items() if name not in unheard}
    for name in ("schedule", "enlargement", "seeking", "filming"):
        if name in kept:
            kept[name] = asdict(kept[name])
    if not plan.confidence:  # as of runs that are older than it
        del kept["confidence"]
    return {**kept, "scene": scene_spec(request.scene), "size": size, "split": rule}


def absolute(name: str) -> str:
    """A model's or file's name from the root on, since a run is gone on with from anywhere; other names as they are."""
    path = Path(name).expanduser()
    return str(path.absolute()) if name != "bundled" and path.exists() else name


def method_asked(request: DistillRequest) -> str:
    """The method on the line, else that of the run to start from, else splatfacto; InputError for an unknown one, and
    for settings that it has not."""
    from difixcli.reconstruction import known_methods
    from difixcli.reconstruction.configuration import check_settings
    from difixcli.reconstruction.start import method_of

    method = request.method or "splatfacto"
    if request.method is None and request.start is not None and request.start.is_dir():
        method = method_of(request.start)
    if method not in (methods := known_methods()):
        raise unknown("method", method, methods)
    if request.settings:
        check_settings(method, request.settings)
    return method


def told(
    request: DistillRequest, scene: Scene, split: Split, rule: str, method: str, preset: str, device: str
) -> dict[str, Any]:
    """What `announce` says first of every run of difix distill."""
    train = counted(len(split.train), "photo trains", "photos train")
    return {
        "scene": f"{scene.name}, {train}, {len(split.test)} test ({rule})",
        "method": f"{method}, preset {preset} on {device}, seed {request.seed}",
    }


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
        raise InputError(_no_such_run(folder if output else folder.parent, arguments))
    run = Run.open(folder, "distill", arguments, inputs)  # no other process may be at work in it
    rounds_made = Rounds(run.folder)
    rounds_made.check(from_round)
    run.save(state="running", results={}, rounds={})  # first: what a kill leaves of it is not done
    rounds_made.rewind(from_round)
    return folder, run


def results_of(
    run: Run,
    split: Split,
    method: str,
    device: str,
    work: Callable[[Run, Progress, Callable[[str], None]], dict[str, Any]] | None,
) -> dict[str, Any]:
    """What comes of `work`, which is given the run and whom to tell; None for a run that is done, whose results are
    known.
    """
    from difixcli.reconstruction.compilation import compile_ahead

    if not split.test:
        console.say("No photo is held out, so nothing is measured; --split holds some out.")
    if work is None:
        held: dict[str, Any] = run.record["results"]
        return held
    compile_ahead(method, device, console.say)
    results = work(run, console.progress, console.say)
    run.finish(results)
    return results


def ended(run: Run, scene: Scene, split: Split, method: str, results: dict[str, Any], **more: Any) -> Distilled:
    """Say where the pictures of views are, or of a path where nothing was measured; `more` as in `Distilled`."""
    console.say(f"Pictures: {run.folder / ('renders' if results else 'path')}")
    if results:
        console.say(f"For a report: difix eval {run.folder}")
    return Distilled(run.folder, results, measured(scene, split, method), more)


def measured(scene: Scene, split: Split, method: str) -> str:
    """What figures are of."""
    return f"{scene.name}, {method}: {counted(len(split.test), 'test view')}"


def _no_such_run(folder: Path, arguments: dict[str, Any]) -> str:
    """Why there is no run to go back in: which option of the nearest run is another."""
    asked = json.loads(json.dumps(arguments, default=str))
    nearest: tuple[Path, dict[str, tuple[Any, Any]]] | None = None
    for path in sorted([*folder.glob("run.json"), *folder.glob("*/run.json")], reverse=True):
        held = run_record(path.parent)
        if held is None or held["command"] != "distill":
            continue
        other = differing(held["arguments"], asked)
        if nearest is None or len(other) < len(nearest[1]):
            nearest = path.parent, other
    if nearest is None:
        return "--from-round goes back in a run of the very same line; there is none yet. Leave it out."
    where, other = nearest
    if not other:
        return (
            f"The scene, split or fixer of {where} has changed since, so there is no round to go back to; begin anew."
        )
    was, now = (short(str(value)) for value in next(iter(other.values())))
    return (
        f"--from-round goes back in a run of the very same line; {where} differs in "
        f"{' and '.join(_OPTIONS.get(key, f'--{key}').replace('_', '-') for key in other)} ({was} there, {now} here)."
    )


def start_files(start: Path | None) -> list[Path]:
    """What decides what an existing reconstruction is: the .ply, or a run's settings and checkpoints."""
    if start is None or start.is_file():
        return [] if start is None else [start]
    # not eval.json, run.json, rounds: what is written beside a model does not make it another one
    names = ("config.yml", "dataparser_transforms.json", "reconstruction.json")
    described = [start / name for name in names if (start / name).is_file()]
    return sorted([*(start / "nerfstudio_models").glob("*.ckpt"), *described])
