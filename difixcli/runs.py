"""A run's folder: `run.json`, atomic writes, and what it means to resume."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from difixcli import __version__
from difixcli.errors import InputError

_ENCODERS: dict[str, dict[str, Any]] = {
    ".png": {"format": "PNG", "compress_level": 4},
    ".webp": {"format": "WEBP", "quality": 95},
    ".jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
}
_PACKAGES = ("torch", "nerfstudio", "gsplat", "diffusers", "numba", "numpy")


class Run:
    """One command's folder.

    `run.json` holds the command, its arguments, versions, seed, the inputs' fingerprint, timings, results and state
    (`running` or `done`). The same command with the same arguments and inputs into the same folder resumes it.

    Shard i of n of a run has `run-i-of-n.json` instead, so that shards may share a folder at the same time.
    """

    def __init__(
        self, folder: Path, record: dict[str, Any], resumed: bool, shard: tuple[int, int] | None = None
    ) -> None:
        self.folder, self.record, self.resumed, self.shard = folder, record, resumed, shard
        self._started = time.monotonic()

    @classmethod
    def open(
        cls,
        folder: Path,
        command: str,
        arguments: Mapping[str, Any],
        inputs: Mapping[str, str],
        force: bool = False,
        shard: tuple[int, int] | None = None,
    ) -> Run:
        """Begin the run, or its shard (i, n), or take it up where it stopped.

        Raises InputError when the folder holds something else (unless `force`, which removes an earlier run's folder
        but never a folder that no run of ours made, nor other shards' work), or cannot be written.
        """
        folder = folder.expanduser().absolute()
        record_file = folder / _record_name(shard)
        if shard is not None and force:
            raise InputError(f"--force with --shard would remove other shards' work; remove {folder} by hand.")
        fresh = {
            "command": command,
            "arguments": json.loads(json.dumps(dict(arguments), default=str)),
            "inputs": dict(inputs),
            "versions": versions(),
            "state": "running",
            "seconds": 0.0,
            "timings": {},
            "results": {},
        }
        if folder.is_file():
            raise InputError(f"The output {folder} is a file; name a folder with --output.")
        if record_file.is_file():
            held = read_json(record_file)
            same = all(held.get(key) == fresh[key] for key in ("command", "arguments", "inputs"))
            if same and not force:
                return cls(folder, held, True, shard)
            if not force:
                raise InputError(
                    f"{folder} already holds another run (difix {held.get('command')}); "
                    "choose another --output, or replace it with --force."
                )
            shutil.rmtree(folder)
        elif shard is not None and (others := sorted(folder.glob(f"run-*-of-{shard[1]}.json"))):
            if any(read_json(others[0]).get(key) != fresh[key] for key in ("command", "arguments", "inputs")):
                raise InputError(f"{folder} holds shards of another run ({others[0].name}); choose another --output.")
        # another shard that begins at this moment has perhaps written no more than its temporary files
        elif folder.is_dir() and any(shard is None or path.name[0] != "." for path in folder.iterdir()):
            raise InputError(f"{folder} is not empty and holds no run of difix; choose another --output.")
        make_folder(folder)
        run = cls(folder, fresh, False, shard)
        run.save()
        return run

    @property
    def done(self) -> bool:
        return self.record["state"] == "done"

    def time(self, name: str, seconds: float) -> None:
        """Add to a named timing; they show where a run's time went."""
        self.record["timings"][name] = round(self.record["timings"].get(name, 0.0) + seconds, 3)

    def save(self, **changes: Any) -> None:
        """Write `run.json`, with the given keys changed."""
        now = time.monotonic()
        self.record["seconds"] = round(self.record["seconds"] + now - self._started, 3)
        self._started = now
        self.record.update(changes)
        write_json(self.folder / _record_name(self.shard), self.record)

    def finish(self, results: Mapping[str, Any]) -> None:
        self.save(results=dict(results), state="done")


def _record_name(shard: tuple[int, int] | None) -> str:
    return "run.json" if shard is None else f"run-{shard[0]}-of-{shard[1]}.json"


def find_unfinished(parent: Path, command: str, arguments: Mapping[str, Any]) -> Path | None:
    """The newest unfinished run of this very command under `parent`, if there is one."""
    wanted = json.loads(json.dumps(dict(arguments), default=str))
    for record_file in sorted(parent.glob("*/run.json"), reverse=True):
        held = read_json(record_file)
        if held.get("command") == command and held.get("arguments") == wanted and held.get("state") == "running":
            return record_file.parent
    return None


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    found = {"difixcli": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def fingerprint(files: Sequence[Path]) -> str:
    """A short hash of the files' names and sizes and of the content of small text files among them."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.name}:{path.stat().st_size};".encode())
        if path.suffix in {".json", ".txt"}:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def make_folder(folder: Path) -> Path:
    """Make the folder and its parents; InputError where that is not allowed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"The output folder {folder} cannot be written ({error.strerror}); choose another --output."
        ) from error
    return folder


def read_json(path: Path) -> Any:
    """Read JSON; InputError when it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); restore it or remove it.") from error


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all."""
    text = json.dumps(value, indent=1, sort_keys=True) + "\n"
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_image(path: Path, image: np.ndarray) -> None:
    """Write (H, W), (H, W, 3) or (H, W, 4) float values in [0, 1] as an 8-bit image, whole or not at all.

    The suffix says how: `.png` loses nothing; `.webp` and `.jpg` (no transparency) are of high quality.
    """
    from PIL import Image

    pixels = (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    encoded = io.BytesIO()  # the encoders hide why a file could not be written
    Image.fromarray(pixels).save(encoded, **_ENCODERS[path.suffix])
    with atomic(path) as temporary:
        temporary.write_bytes(encoded.getvalue())


def read_image(path: Path) -> np.ndarray:
    """Read an image file as (H, W, 3) float32 RGB in [0, 1]; InputError when it is missing or broken."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"), dtype=np.float32) / 255
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise InputError(f"{path} cannot be read as an image; restore it or remove it.") from error


def file_name(name: str) -> str:
    """A frame's or scene's name as one safe file name, the suffix dropped."""
    stem = name.rsplit(".", 1)[0] if "/" in name or re.search(r"\.(jpe?g|png|webp|tiff?)$", name, re.I) else name
    return re.sub(r"[^\w.-]+", "-", stem)


class atomic:
    """`with atomic(path) as temporary:` write there; on success it becomes `path`, on failure nothing does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = path.with_name(f".{path.name}.{os.getpid()}.part")

    def __enter__(self) -> Path:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return self.temporary

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            os.replace(self.temporary, self.path)
        else:
            self.temporary.unlink(missing_ok=True)
