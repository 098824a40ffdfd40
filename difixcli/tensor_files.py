"""Files of tensors, read without trust: nothing that they hold is run, and what they claim takes no memory."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from difixcli.errors import DamagedError, InputError, out_of_memory, short
from difixcli.runs import CappedFile, atomic, is_the_systems, unreadable

_SMALL = 2**28  # bytes; a file of fewer that takes more memory than there is claims what it does not have


def read_pickled(path: Path, cure: str, device: str | torch.device = "cpu", mapped: bool = False) -> Any:
    """What a file of torch.save holds: tensors and plain values.

    With `mapped`, tensors are read from the disk where they are used. Raises InputError for a file that is missing or
    may not be read, with the `cure` for one that is damaged, and for one that holds other objects, which would be code.
    """
    try:
        whole = zipfile.is_zipfile(path)
        source = path if whole else CappedFile(io.FileIO(path))
        return torch.load(source, map_location=device, weights_only=True, mmap=mapped and whole)
    except Exception as error:  # torch raises many kinds for a damaged file, some without a word
        if is_the_systems(error):
            raise unreadable(path, error) from error
        if out_of_memory(error) and path.stat().st_size > _SMALL:
            raise
        found = re.search(r"(?:GLOBAL|class|call) ([\w.]+)", str(error))
        if found and "eights only" in str(error) and not _ends_within(path, found[1]):
            raise InputError(
                f"{path} holds more than tensors and plain values ({short(found[1])}), which would be run as code; "
                "nothing of it was run. Get the file anew from where you trust it."
            ) from None
        raise _damaged(path, error, cure) from error


def read_safetensors(path: Path, cure: str) -> dict[str, Tensor]:
    """The tensors of a file; InputError as `read_pickled` raises it."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        with path.open("rb"):  # safetensors hides the system's error in its own
            pass
        return load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        if is_the_systems(error):
            raise unreadable(path, error) from error
        raise _damaged(path, error, cure) from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file as float32; InputError also for one that holds values that are not finite."""
    tensors = read_safetensors(path, "restore it")
    for name, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise InputError(f"{path} holds values that are not numbers (in '{name}'); give undamaged weights.")
    return {name: value.float() for name, value in tensors.items()}


def write_network(network: nn.Module, config: Mapping[str, Any], folder: Path, what: str) -> Path:
    """Writes config.json and model.safetensors, each whole or not at all; returns the folder, made if missing.

    Raises InputError, calling the network `what`, where the folder cannot be written.
    """
    return write_tensors(network.state_dict(), config, folder, what)


def write_tensors(
    state: Mapping[str, Tensor],
    config: Mapping[str, Any],
    folder: Path,
    what: str,
    further: Mapping[str, Mapping[str, Tensor]] = MappingProxyType({}),
) -> Path:
    """`write_network` of some of a network's tensors, and of `further` ones in files of their own, by these' names."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        for file, held in {**further, "model.safetensors": state}.items():
            tensors = {name: value.detach().cpu().contiguous() for name, value in held.items()}
            with atomic(folder / file) as temporary:
                save_file(tensors, temporary, metadata={"format": "pt"})
        with atomic(folder / "config.json") as temporary:
            temporary.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:  # safetensors hides the system's error in its own
        reason = " ".join(str(error).split())[:120]
        raise InputError(
            f"{what} cannot be written to {folder} ({reason}); make room on the disk or choose another folder."
        ) from error
    return folder


def _ends_within(path: Path, name: str) -> bool:
    """Whether a file was cut off within the name of what it would build, which then only looks like another's."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - len(name) - 1))
        rest, last = file.read(), name.rpartition(".")[2].encode()
    return rest.endswith(last) or rest[:-1].endswith(last)  # torch takes the last byte for the end of the line


def _damaged(path: Path, error: Exception, cure: str) -> DamagedError:
    # torch says after its first sentence how to read the file without care
    lines = str(error).strip().splitlines() or [type(error).__name__]
    reason = "it is no file of tensors" if "eights only" in lines[0] or "weights_only" in lines[0] else lines[0]
    if out_of_memory(error):
        reason = "it claims to hold more than it does"
    return DamagedError(f"{path} is damaged or not whole ({short(reason, 160)}); {cure}.")
