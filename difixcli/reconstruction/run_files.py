"""What a nerfstudio run's folder holds, and what may be started from, as far as that is told without torch."""

from __future__ import annotations

from pathlib import Path

from difixcli.errors import InputError
from difixcli.runs import read_json
from difixcli.scenes.ply import count_vertices

MODELS = "nerfstudio_models"
CHECKPOINTS = "step-*.ckpt"
RECIPE = "reconstruction.json"
"""What a run of ours was created with."""


def latest_checkpoint(folder: Path) -> Path:
    """The newest checkpoint of a run; InputError when it has none."""
    found = sorted((folder / MODELS).glob(CHECKPOINTS))
    if not found:
        raise InputError(f"{folder} holds no checkpoint in {MODELS}; train it first.")
    return found[-1]


def own_method(run: Path) -> str | None:
    """The method of a run of ours; None for another's. A configuration knows variants (nerfacto-big) by their parent's
    name.
    """
    own = run / RECIPE
    return str(read_json(own, {"method": str})["method"]) if own.is_file() else None


def check_start(path: Path, method: str | None) -> None:
    """Raises InputError for what is neither a run with a checkpoint nor a .ply, and for another method than the run's
    where the run is ours."""
    if path.is_dir():
        if not (path / "config.yml").is_file():
            raise InputError(f"{path / 'config.yml'} is missing; name the folder of a nerfstudio run.")
        latest_checkpoint(path)
        if (held := own_method(path)) is not None:
            check_method(path, held, method)
    elif path.suffix.lower() != ".ply" or not path.is_file():
        raise InputError(f"There is no run folder and no .ply at {path}; name one to start from.")
    elif count_vertices(path) == 0:
        raise InputError(f"{path} is no PLY file, or holds no Gaussian; export it again.")


def check_method(path: Path, held: str, method: str | None) -> None:
    """Raises InputError for another method than that of the run to start from."""
    if method is not None and method != held:
        raise InputError(f"{path} was trained with {held}, not {method}; leave --method out.")
