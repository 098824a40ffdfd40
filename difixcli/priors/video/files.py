"""Folders of our video models: `config.json` and the tensors that are not those of the fixer it names.

Where the configuration names a fixer (the bundled one, or one on a hub), `model.safetensors` holds what differs from
its weights, as a rule the new layers alone; else it holds every tensor, and `fixer.json` the fixer's configuration.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from difixcli.errors import InputError, out_of_memory
from difixcli.fixer.network import FixerConfig, FixerNetwork
from difixcli.fixer.weights import load_network, local_files
from difixcli.model_folders import FORMATS, looks_like_hub_name
from difixcli.priors.video.network import FilmConfig, FilmNetwork, film_state
from difixcli.priors.video.structure import StructureConfig
from difixcli.runs import read_json, write_json
from difixcli.shapes import built
from difixcli.tensor_files import read_weights, write_tensors

FORMAT = FORMATS["video"]
BUNDLED = Path(__file__).parent / "bundled"
CONFIG, WEIGHTS, FIXER = "config.json", "model.safetensors", "fixer.json"


def is_ours(folder: Path) -> bool:
    """Whether a folder's configuration says that it is a video model of ours."""
    file = folder / CONFIG
    if not file.is_file():
        return False
    values = read_json(file)
    return isinstance(values, dict) and values.get("format") == FORMAT


def film_files(name: str | Path) -> list[Path]:
    """The files here that decide what the video model `name` makes, sorted; none of a name that means none here."""
    if str(name) == "bundled" and not (BUNDLED / WEIGHTS).is_file():
        return local_files("bundled")  # the fixer's, whose pictures it makes then
    folder = BUNDLED if str(name) == "bundled" else Path(name).expanduser()
    if not folder.is_dir():
        return []
    return sorted(f for f in folder.rglob("*") if f.suffix == ".safetensors" or f.name.endswith((CONFIG, FIXER)))


def around(fixer: FixerNetwork, name: str | None, seed: int = 0, config: FilmConfig | None = None) -> FilmNetwork:
    """New layers around a fixer's network that change nothing yet; random where they may be, from the seed.

    `name` is what the fixer is called where it can be had again, None for one that has to be saved with the layers.
    """
    named = dataclasses.replace(config or FilmConfig(), fixer=name, fixer_digest=digest(fixer) if name else "")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FilmNetwork(fixer, named)


def load_film(name: str | Path) -> FilmNetwork:
    """A video model of ours, float32 on the CPU: `bundled`, or a folder that `save_film` wrote.

    The bundled one has the weights that come with this version or, where none do, the bundled fixer's with layers that
    change nothing. Raises InputError for a folder that holds no such model or a damaged one, and where the fixer that
    it names is not the one that it was trained around.
    """
    if str(name) == "bundled" and not (BUNDLED / WEIGHTS).is_file():
        return around(load_network("bundled"), "bundled")
    folder = BUNDLED if str(name) == "bundled" else Path(name).expanduser()
    if not is_ours(folder):
        raise InputError(
            f"{folder} holds no video model of ours; name a folder that difix finetune --task video wrote."
        )
    config = _config(folder / CONFIG)
    tensors = read_weights(folder / WEIGHTS)
    if config.fixer is None:
        fixer = FixerNetwork(built(FixerConfig, read_json(folder / FIXER), folder / FIXER, "update difixcli"))
        known: dict[str, Tensor] = {}
    else:
        fixer = load_network(config.fixer)
        if digest(fixer) != config.fixer_digest:
            raise InputError(
                f"{folder} was trained around another version of the fixer {config.fixer}; train it again with "
                f"difix finetune --task video --base {folder.name if str(name) == 'bundled' else folder}, or use the "
                "version of difixcli that made it."
            )
        known = {f"fixer.{key}": value for key, value in fixer.state_dict().items()}
    try:
        network = FilmNetwork(fixer, config)
        network.load_state_dict(known | tensors)
    except Exception as error:  # diffusers builds whatever a configuration asks for, and stumbles anywhere
        if out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{folder / WEIGHTS} does not fit the configuration beside it ({reason}).") from error
    return network


def save_film(network: FilmNetwork, folder: Path) -> Path:
    """Write a video model, each file whole or not at all; returns the folder, made if missing."""
    config = network.config
    known: dict[str, Tensor] = {}
    if config.fixer is None:
        write_json(folder / FIXER, network.fixer.config.to_json())
    else:
        known = load_network(config.fixer).state_dict()
    values = {"format": FORMAT, **config.to_json()}
    return write_tensors(film_state(network, known), values, folder, "The video model")


def digest(network: FixerNetwork) -> str:
    """A hash of a fixer's weights, wherever and however they are stored."""
    found = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        found.update(name.encode())
        found.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return found.hexdigest()[:32]


def fixer_name(base: str | Path) -> str | None:
    """What a fixer is called where anyone can have it again; None for one in a folder, which may move."""
    return str(base) if str(base) == "bundled" or looks_like_hub_name(str(base)) else None


def _config(file: Path) -> FilmConfig:
    values: Any = read_json(file)
    values.pop("format", None)
    if "structure" in values:
        values["structure"] = built(StructureConfig, values["structure"], f"structure in {file}", "update difixcli")
    return built(FilmConfig, values, file, "update difixcli")
