"""A training's checkpoint: written whole or not at all, read without trust, and saved when a signal ends the work."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from difixcli import interrupts
from difixcli.errors import InputError
from difixcli.runs import atomic
from difixcli.tensor_files import read_pickled

SAVE_AFTER = 60.0
"""Seconds of training that a process which is killed loses at most…"""
SAVE_SHARE = 0.05
"""…unless saving would take more than this share of the time."""


class Pace:
    """When a training of one process saves: every so often, and at once when it is asked to end."""

    def __init__(self) -> None:
        self._saved = time.monotonic()
        self._pause = SAVE_AFTER

    def due(self) -> bool:
        """Whether it is time to save after this step."""
        return interrupts.asked() or time.monotonic() - self._saved > self._pause

    def saved(self, seconds: float) -> None:
        """It has saved just now, which took so long."""
        self._saved = time.monotonic()
        self._pause = max(SAVE_AFTER, seconds / SAVE_SHARE)


def write_checkpoint(path: Path, state: Mapping[str, Any], step: int, kept: str) -> float:
    """Write a checkpoint of tensors and plain values; the seconds that it took.

    InputError, with what is `kept` instead, where it cannot be written.
    """
    begun = time.monotonic()
    try:
        with atomic(path) as temporary:
            torch.save(dict(state), temporary)
    except (OSError, RuntimeError) as error:  # torch hides the system's error in one of its own
        reason = "; ".join(filter(None, (" ".join(str(error).split())[:120], kept)))
        raise InputError(
            f"The checkpoint of step {step} cannot be written ({reason}); make room on the disk and run the same line "
            "again."
        ) from error
    return time.monotonic() - begun


def read_checkpoint(
    path: Path, output: Path, entries: Collection[str], device: str = "cpu", mapped: bool = False
) -> dict[str, Any]:
    """What `write_checkpoint` wrote for a training into `output`; InputError for a file without these `entries`.

    With `mapped`, tensors are read from the disk where they are used.
    """
    cure = f"remove {output} and start again"
    state: Any = read_pickled(path, cure, device, mapped)
    if not isinstance(state, dict) or not set(entries) <= state.keys():
        raise InputError(f"{path} is no checkpoint of a training; {cure}.")
    return state


class OtherTraining(InputError):
    """A folder holds another training than the one that is asked for."""


def check_identity(state: Mapping[str, Any], identity: str, output: Path, data: str) -> None:
    """OtherTraining for a checkpoint of a training with other `data` (in a word), base or options."""
    if state["identity"] != identity:
        raise OtherTraining(
            f"{output} holds a training with other {data}, base or options; choose another output folder."
        )
