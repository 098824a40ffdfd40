"""What of `difix distill`'s options every prior heeds, as they were given, and the run that they may go on with."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from difixcli.cli.options import Device, Preset
from difixcli.errors import InputError
from difixcli.runs import Run, file_name, find_run

if TYPE_CHECKING:
    from difixcli.scenes.scene import Scene


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


def start_files(start: Path | None) -> list[Path]:
    """What decides what an existing reconstruction is: the .ply, or a run's settings and checkpoints."""
    if start is None or start.is_file():
        return [] if start is None else [start]
    # not eval.json, run.json, rounds: what is written beside a model does not make it another one
    names = ("config.yml", "dataparser_transforms.json", "reconstruction.json")
    described = [start / name for name in names if (start / name).is_file()]
    return sorted([*(start / "nerfstudio_models").glob("*.ckpt"), *described])
