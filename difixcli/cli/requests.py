"""What of `difix distill`'s options every prior heeds, as they were given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from difixcli.cli.options import Device, Preset


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
