"""Trackers of experiments beside TensorBoard, through accelerate: Weights & Biases, Comet, MLflow and others."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from difixcli.errors import InputError, unknown
from difixcli.torchvision_cure import cure

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

TRACKERS = ("aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb")
"""Those that accelerate knows, whose packages have the same names."""
_PROJECT = "difix"


def check_installed(names: Sequence[str]) -> None:
    """Raises InputError for a tracker whose package is not here, as far as is told without accelerate, which takes
    seconds to import."""
    for name in names:
        if name != "tensorboard" and not (name.isidentifier() and find_spec(name)):
            raise _not_installed(name) if name in TRACKERS else unknown("tracker", name, TRACKERS)


def check_trackers(names: Sequence[str]) -> list[str]:
    """The names without TensorBoard's, which is always there; InputError for one unknown or not installed."""
    cure()
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    known = [str(name) for name in LOGGER_TYPE_TO_CLASS]
    available = {str(getattr(name, "value", name)) for name in get_available_trackers()}
    for name in names:
        if name not in known:
            raise unknown("tracker", name, known)
        if name not in available and name != "tensorboard":
            raise _not_installed(name)
    return sorted({name for name in names if name != "tensorboard"})


def _not_installed(name: str) -> InputError:
    return InputError(f"--track {name} needs its package: pip install {name.replace('_', '-')}.")


def open_trackers(names: Sequence[str], output: Path, options: Mapping[str, Any]) -> list[GeneralTracker]:
    """Trackers with the training's options written down; a training that goes on goes on in the same record there.

    Raises InputError where a tracker cannot be opened, as without a login.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    opened = []
    for name in check_trackers(names):
        kind: Any = LOGGER_TYPE_TO_CLASS[name]
        more: dict[str, Any] = {"logging_dir": str(output / name)} if kind.requires_logging_directory else {}
        if name == "wandb":
            identity = hashlib.sha256(os.fsencode(output.resolve())).hexdigest()[:12]
            more |= {"dir": str(output), "name": output.name, "id": identity, "resume": "allow"}
        try:
            tracker = kind(_PROJECT, **more)
            if hasattr(tracker, "start"):
                tracker.start()
            tracker.store_init_configuration(dict(options))
        except Exception as error:  # every tracker raises what it likes
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise InputError(
                f"--track {name} cannot be opened ({reason}); log in to it first, or leave it out."
            ) from error
        opened.append(tracker)
    return opened
