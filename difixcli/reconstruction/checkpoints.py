"""nerfstudio's checkpoints, written whole and read without trust."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from difixcli.errors import DamagedError
from difixcli.tensor_files import read_pickled


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, on the CPU: tensors, plain values and NumPy's numbers, and nothing else.

    Raises InputError for a file that cannot be read, or that holds other objects (which would be code).
    """
    with torch.serialization.safe_globals(_numpy_numbers()):
        state = read_pickled(path, "restore it, or train again")
    if not isinstance(state, dict) or not isinstance(state.get("pipeline"), dict):
        raise DamagedError(f"{path} is no checkpoint of nerfstudio; name a run that ns-train or difix made.")
    return state


def _numpy_numbers() -> list[Any]:
    """What nerfstudio's learning rates, being NumPy's numbers, are stored with."""
    kinds = [type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")]
    # what rebuilds a number is where NumPy's own pickles say it is
    scalar = np.float64(0).__reduce__()[0]
    return [np.dtype, scalar, *kinds]


def write_checkpoint(state: dict[str, Any], target: Path, spare: Path) -> None:
    """Write `state` as `target`, whole or not at all, and remove older checkpoints beside it.

    It is written to the folder `spare` first: nerfstudio reads a step number from every name beside checkpoints.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = spare / f".{target.name}.{os.getpid()}.part"
    try:
        with temporary.open("wb") as file:  # given a path, torch hides that a disk is full
            torch.save(_plain(state), file)
        os.replace(temporary, target)
    except RuntimeError as error:  # and of a file that cannot be ended torch says so in an error of its own
        hidden = error.__context__
        if isinstance(hidden, OSError):
            raise OSError(hidden.errno, hidden.strerror, str(target)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)
    for other in target.parent.glob("step-*.ckpt"):
        if other != target:
            other.unlink()


def _plain(value: Any) -> Any:
    """The same value without NumPy: tensors, containers and Python's own numbers."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item) for item in value)
    return value
