"""What of `difix distill`'s options every prior heeds, as they were given, and the run that they may go on with."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from difixcli.cli.options import Device, Preset
from difixcli.errors import InputError, short, unknown
from difixcli.runs import Run, file_name, find_run, run_record
from difixcli.wording import counted

if TYPE_CHECKING:
    from difixcli.scenes.scene import Scene
    from difixcli.scenes.splits import Split


_OPTIONS = {"overrides": "--set", "terms": "--loss", "scene": "the scene"}  # others are called as arguments are


@dataclass(frozen=True)
class Request:
    """Each option by its name; None where it was not given."""

    scene: str
    method: str | None
    split: str | None
    targets: list[str] | None
    start: Path | None
    iterations: int | None
    further: int | None
    rounds: int | None
    share: float | None
    loss: list[str]
    from_round: int | None
    compare: bool
    size: int | None
    seed: int
    preset: Preset
    device: Device
    settings: list[str]
    output: Path | None
    force: bool
    as_json: bool
    confidence: bool


def method_asked(request: Request) -> str:
    """The method on the line, else that of the run to start from, else splatfacto; InputError for an unknown one."""
    from difixcli.reconstruction import known_methods
    from difixcli.reconstruction.start import method_of

    method = request.method or "splatfacto"
    if request.method is None and request.start is not None and request.start.is_dir():
        method = method_of(request.start)
    if method not in (methods := known_methods()):
        raise unknown("method", method, methods)
    return method


def told(
    request: Request, scene: Scene, split: Split, rule: str, method: str, preset: str, device: str
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


def _no_such_run(folder: Path, arguments: dict[str, Any]) -> str:
    """Why there is no run to go back in: which option of the nearest run is another."""
    nearest: tuple[int, Path, list[str]] | None = None
    for path in sorted([*folder.glob("run.json"), *folder.glob("*/run.json")], reverse=True):
        held = run_record(path.parent)
        if held is None or held["command"] != "distill":
            continue
        asked = json.loads(json.dumps(arguments, default=str))
        other = [key for key in asked if asked[key] != held["arguments"].get(key)]
        if nearest is None or len(other) < nearest[0]:
            nearest = (len(other), path.parent, other)
    if nearest is None:
        return "--from-round goes back in a run of the very same line; there is none yet. Leave it out."
    _, where, other = nearest
    if not other:
        return (
            f"The scene, split or fixer of {where} has changed since, so there is no round to go back to; begin anew."
        )
    held = run_record(where)
    assert held is not None
    was, now = short(str(held["arguments"].get(other[0]))), short(str(arguments[other[0]]))
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
