"""A run's folder: `run.json`, atomic writes, and what it means to resume."""

from __future__ import annotations

import errno
import filecmp
import hashlib
import io
import json
import math
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, Protocol

from difixcli import __version__
from difixcli.digests import digests_of
from difixcli.errors import DamagedError, InputError, out_of_memory, short
from difixcli.shapes import RESTORE, Each, check_shape, parsed

if TYPE_CHECKING:  # numpy alone costs a third of what `difix --help` does
    import numpy as np
    from PIL.Image import Image

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

CONFIDENCE = ".confidence.png"
"""What follows an image's name in that of its confidence."""
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v"})
PHOTOS = "photos"
"""The folder, in a distilled run's, of the model as photos alone have taught it."""
JOBS = "jobs"
"""The folder, in a run over several scenes, of what is known of each (see `cluster.jobs`)."""
JOB_RECORD = ".job.json"
"""What follows a job's name in that of its record."""
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Makes a progress bar from a label and a total; what it gives is called with how much is done."""

_LONG_NAME = 200  # bytes, of the 255 that file systems take
_MANY_PIXELS = 2**24
_DENSEST = 9000  # pixels a byte: deflate makes at most 1032 bytes of one, with 8 pixels each
_READ_WHOLE = 64 * 2**20  # bytes
_ENCODERS: dict[str, dict[str, Any]] = {
    ".png": {"format": "PNG", "compress_level": 4},
    ".webp": {"format": "WEBP", "quality": 95},
    ".jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
}
_RECORD = "run.json"
_LOCK = f".{_RECORD}.lock"
RECORD = {
    "command": str,
    "arguments": dict,
    "inputs": Each(str),
    "versions": dict,
    "state": str,
    "seconds": float,
    "timings": Each(float),
    "results": dict,
    "preset?": str,
}
"""The shape of a run's record."""
_at_work: set[Path] = set()  # records of the runs that this process has open
_made: dict[Path, Path] = {}  # of the runs whose folder this process made: the topmost folder that it had to make
_locks: dict[Path, int] = {}  # open lock files; closing one would give its lock back
_PACKAGES = ("torch", "nerfstudio", "gsplat", "diffusers", "numba", "numpy", "pycolmap")


class Run:
    """One command's folder.

    `run.json` holds the command, its arguments, versions, seed, the inputs' fingerprint, timings, results and state
    (`running` or `done`). The same command with the same arguments and inputs into the same folder resumes it.

    Several processes may work in a `shared` run at the same time, on scenes that each claims. Its record says what the
    last of them to save it knew.
    """

    def __init__(self, folder: Path, record: dict[str, Any], resumed: bool, shared: bool = False) -> None:
        self.folder, self.record, self.resumed, self.shared = folder, record, resumed, shared
        self._started = time.monotonic()

    @classmethod
    def open(
        cls,
        folder: Path,
        command: str,
        arguments: Mapping[str, Any],
        inputs: Mapping[str, str],
        force: bool = False,
        *,
        reads: Sequence[Path] = (),
        shared: bool = False,
    ) -> Run:
        """Begin the run, or take it up where it stopped.

        Another run in the folder is replaced if it has written nothing yet, or with `force`; it is removed only once
        the new run stands. What no run of ours made is never removed, and neither are `reads`, the files and folders
        that the command is going to read. Raises InputError when the folder holds something else, would be replaced
        although the command reads it or from it, cannot be written, or is being worked on by another process (by one
        that does not share it, where the run is shared).
        """
        folder = folder.expanduser().absolute()
        check_folder(folder)
        if not force and cls.held(folder, command, arguments, inputs, shared):
            _lock(folder, shared)
            # read again: whoever held the lock until now has perhaps finished it
            if same := cls.held(folder, command, arguments, inputs, shared):
                _at_work.add(folder / _RECORD)
                return same
        fresh = {
            "command": command,
            "arguments": _as_json(arguments),
            "inputs": dict(inputs),
            "versions": versions(),
            "state": "running",
            "seconds": 0.0,
            "timings": {},
            "results": {},
        }
        if (folder / _RECORD).is_file():
            if shared and not force and cls.held(folder, command, arguments, inputs, shared):
                # begun by another process a moment ago
                return cls.open(folder, command, arguments, inputs, force, reads=reads, shared=True)
            held = _own_record(folder)
            if not force and _has_outputs(folder):
                raise _another(folder, f"{held['command']}{_differs(held, fresh)}")
            for path in reads:
                if folder.resolve() in (path.resolve(), *path.resolve().parents):
                    raise InputError(f"{folder} cannot be replaced: {path} is read from it; choose another --output.")
            _lock(folder, shared=False)
            return _replaced(folder, lambda: cls._begun(folder, fresh, shared))
        if folder.is_dir() and any(_counts(path, shared) for path in folder.iterdir()):
            if shared and (folder / _RECORD).is_file():  # begun by another process a moment ago
                return cls.open(folder, command, arguments, inputs, force, reads=reads, shared=True)
            raise _foreign(folder)
        return cls._begun(folder, fresh, shared)

    @classmethod
    def held(
        cls,
        folder: Path,
        command: str,
        arguments: Mapping[str, Any],
        inputs: Mapping[str, str],
        shared: bool = False,
    ) -> Run | None:
        """The run in the folder if it is this very one, finished or not; nothing is written."""
        folder = folder.expanduser().absolute()
        held = run_record(folder)
        if held is None or not _asks_for(held, command, arguments) or held.get("inputs") != dict(inputs):
            return None
        return cls(folder, held, True, shared)

    @staticmethod
    def asked_for(folder: Path, command: str, arguments: Mapping[str, Any]) -> bool:
        """Whether the folder holds a run of this command with these arguments, whatever became of its inputs."""
        held = run_record(folder)
        return held is not None and _asks_for(held, command, arguments)

    @classmethod
    def _begun(cls, folder: Path, record: dict[str, Any], shared: bool) -> Run:
        path = folder / _RECORD
        missing = [one for one in (folder, *folder.parents) if not one.exists()]
        if missing and not shared:  # others may be about to write into a shared one
            _made[path] = missing[-1]
        run = cls(make_folder(folder), record, False, shared)
        _lock(folder, shared)
        _at_work.discard(path)  # of the run that this one replaces
        run.save()
        _at_work.add(path)
        return run

    @property
    def done(self) -> bool:
        return self.record["state"] == "done"

    def time(self, name: str, seconds: float) -> None:
        """Add to a named timing; they show where a run's time went."""
        self.record["timings"][name] = round(self.record["timings"].get(name, 0.0) + seconds, 3)

    def save(self, **changes: Any) -> None:
        """Write `run.json`, with the given keys changed; InputError where it was removed since the run was opened."""
        path = self.folder / _RECORD
        if path in _at_work and not path.exists():
            raise InputError(
                f"The output folder {self.folder} was removed while the command was at work in it; run the same line "
                "again."
            )
        now = time.monotonic()
        self.record["seconds"] = round(self.record["seconds"] + now - self._started, 3)
        self._started = now
        self.record.update(changes)
        write_json(path, self.record)

    def finish(self, results: Mapping[str, Any]) -> None:
        self.save(results=dict(results), state="done")
        _at_work.discard(self.folder / _RECORD)
        if (lock := _locks.pop(self.folder / _LOCK, None)) is not None:
            os.close(lock)


def forget_runs() -> None:
    """A command begins: runs that earlier ones of this process left open are not at work any more."""
    _at_work.clear()
    _made.clear()


def drop_empty_runs() -> None:
    """A command was refused: of the runs that it has open, folders that it made and wrote nothing into are removed."""
    for record in sorted(_at_work & _made.keys()):
        folder, top = record.parent, _made[record]
        if not record.exists() or _has_outputs(folder):
            continue
        if (lock := _locks.pop(folder / _LOCK, None)) is not None:
            os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)
        _at_work.discard(record)
        for parent in folder.parents:
            if not parent.is_relative_to(top) or any(parent.iterdir()):
                break
            parent.rmdir()


def folder_at_work() -> Path | None:
    """The folder of a run that this process has open."""
    return next((record.parent for record in sorted(_at_work)), None)


def removed_folder() -> Path | None:
    """The folder of a run that this process has open and that somebody has removed meanwhile."""
    return next((record.parent for record in sorted(_at_work) if not record.exists()), None)


def _counts(path: Path, shared: bool) -> bool:
    """Whether what lies in a folder without a run makes it somebody else's.

    Of a shared run another process has perhaps written its temporary files just now.
    """
    return path.name != _LOCK and not (shared and path.name[0] == ".")


def _lock(folder: Path, shared: bool) -> None:
    """Keep other processes (those that do not share it) out of the run until it is finished or this one ends.

    InputError when one is at work in it. The system takes the lock back when a process ends, however it ends. Without
    effect where the file system or the system has no such locks.
    """
    if fcntl is None:
        return
    path = folder / _LOCK
    held = _locks.get(path)
    if held is not None and path.exists() and os.path.samestat(os.fstat(held), path.stat()):
        return  # this very process
    try:
        opened = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        fcntl.lockf(opened, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            os.close(opened)
            raise InputError(
                f"Another process is at work in {folder}; wait for it, or choose another --output."
            ) from error
    if held is not None:  # of a folder that is gone or going; on NFS none with an open file can be removed
        os.close(held)
    _locks[path] = opened


def find_run(parent: Path, command: str, arguments: Mapping[str, Any], inputs: Mapping[str, str]) -> Path | None:
    """The newest run of this very command on these very inputs under `parent`, if there is one."""
    for record_file in sorted(parent.glob("*/run.json"), reverse=True):
        run = Run.held(record_file.parent, command, arguments, inputs)
        if run is not None:
            return run.folder
    return None


def _asks_for(record: Mapping[str, Any], command: str, arguments: Mapping[str, Any]) -> bool:
    return record.get("command") == command and record.get("arguments") == _as_json(arguments)


def differing(held: Mapping[str, Any], fresh: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Arguments that are not the same in two records, by name, as (held, fresh); of a schedule or the like only what
    differs in it. One that is in one record alone was not asked for in the other.
    """
    found: dict[str, tuple[Any, Any]] = {}
    for key in dict.fromkeys([*fresh, *held]):
        was, now = held.get(key, False), fresh.get(key, False)
        if isinstance(was, dict) and isinstance(now, dict):
            found |= differing(was, now)
        elif was != now or (key in held) != (key in fresh):
            found[key] = was, now
    return found


def _differs(held: Mapping[str, Any], fresh: Mapping[str, Any]) -> str:
    """What tells a run's record from that of what is asked for now: an option or an input, in words."""
    if held["command"] != fresh["command"]:
        return ""
    for key, (was, now) in differing(held.get("arguments", {}), _as_json(fresh["arguments"])).items():
        return f", with another {key.replace('_', ' ')}: {short(str(was))}, not {short(str(now))}"
    changed = [key for key, now in fresh["inputs"].items() if held.get("inputs", {}).get(key) != now]
    return f", before this changed: {', '.join(map(short, changed))}" if changed else ""


def _as_json(arguments: Mapping[str, Any]) -> Any:
    """Arguments as they come back from a file."""
    return json.loads(json.dumps(dict(arguments), default=str))


def run_record(folder: Path) -> dict[str, Any] | None:
    """What the run's record in the folder says (see `RECORD`), or None where there is none or another program wrote it.

    Raises InputError for a record of ours that is broken.
    """
    path = folder / _RECORD
    held = read_json(path) if path.is_file() else None
    ours = (
        isinstance(held, dict)
        and isinstance(held.get("command"), str)
        and isinstance(held.get("versions"), dict)
        and "difixcli" in held["versions"]
        and held.get("state") in ("running", "done")
    )
    if not ours:
        return None
    check_shape(held, RECORD, path)
    return held


def _has_outputs(folder: Path) -> bool:
    """Whether a run has written anything, or has jobs: others may be at work on them, or wait in a cluster's queue."""
    own = (folder / _RECORD, folder / _LOCK)
    files = (path for path in folder.rglob("*") if path.is_file())
    jobs = folder / JOBS
    return any(
        path not in own and (jobs not in path.parents or (path.parent == jobs and path.name.endswith(JOB_RECORD)))
        for path in files
    )


def _replaced(folder: Path, begin: Callable[[], Run]) -> Run:
    """The run that `begin` makes in place of the one in the folder, which goes only when the new one stands."""
    here = folder.resolve()
    aside = here.with_name(f".{here.name}.replaced-{os.getpid()}")
    try:
        here.rename(aside)
    except OSError as error:
        raise InputError(f"{folder} cannot be replaced ({error.strerror}); choose another --output.") from error
    try:
        run = begin()
    except BaseException:
        shutil.rmtree(here, ignore_errors=True)
        aside.rename(here)
        raise
    shutil.rmtree(aside)
    return run


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    from importlib import metadata  # which takes a tenth of what `difix --help` does

    found = {"difixcli": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def fingerprint(files: Sequence[Path], content: bool = True) -> str:
    """A short hash of the files' names, sizes and content.

    Above 64 MiB, and without `content` (of many files that are large together), a file counts by its time of change
    instead: reading gigabytes takes too long, and weights of one architecture all have one size. Small texts do not,
    nor does JSON of any size, which is a manifest that is written again.
    """
    digest = hashlib.sha256()
    facts = {path: path.stat() for path in files}
    small = {path for path in facts if facts[path].st_size <= _READ_WHOLE}
    read = [p for p in facts if p.suffix == ".json" or (p in small and (content or p.suffix == ".txt"))]
    contents = dict(zip(read, digests_of(read), strict=True))
    for path in sorted(facts, key=lambda one: (one.name, one)):
        said = contents.get(path) or facts[path].st_mtime_ns
        digest.update(os.fsencode(f"{path.name}:{facts[path].st_size}:{said};"))
    return digest.hexdigest()[:16]


def check_folder(folder: Path) -> None:
    """Raises InputError for an output that cannot be a folder; nothing is written."""
    for path in (folder := folder.expanduser().absolute(), *folder.parents):
        if path.is_file():
            if path == folder:
                raise InputError(f"The output {folder} is a file; name a folder.")
            raise InputError(f"The output folder {folder} cannot be written ({path} is a file); choose another.")
        if path.is_symlink() and not path.exists():
            raise InputError(
                f"The output folder {folder} cannot be written ({path} is a link to nothing); choose another."
            )
        if path.is_dir():
            if not os.access(path, os.W_OK | os.X_OK):
                raise _unwritable(folder, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
            return


def check_output(folder: Path, command: str, force: bool = False, arguments: Mapping[str, Any] | None = None) -> None:
    """Raises InputError for an output that cannot be a run's folder, as one that holds other things, or without `force`
    what another `command` has written, or the same with other `arguments`, of which some may be left out; nothing is
    written."""
    check_folder(folder)
    folder = folder.expanduser().absolute()
    # a record is looked for last: another process may be beginning a run
    if folder.is_dir() and any(_counts(path, True) for path in folder.iterdir()) and not (folder / _RECORD).is_file():
        raise _foreign(folder)
    if not (folder / _RECORD).is_file():
        return
    held = _own_record(folder)
    asked = {**held["arguments"], **(arguments or {})}
    if force or _asks_for(held, command, asked) or not _has_outputs(folder):
        return
    differs = _differs(held, {"command": command, "arguments": asked, "inputs": held["inputs"]})
    raise _another(folder, f"{held['command']}{differs}")


def _own_record(folder: Path) -> dict[str, Any]:
    """The record in a folder that has one; InputError where another program wrote it."""
    held = run_record(folder)
    if held is None:
        raise InputError(f"{folder} holds a run.json that difix did not write; choose another --output.")
    return held


def _another(folder: Path, held: str) -> InputError:
    return InputError(
        f"{folder} already holds another run (difix {held}); choose another --output, or replace it with --force."
    )


def make_folder(folder: Path) -> Path:
    """Make the folder and its parents; InputError where that is not allowed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise _unwritable(folder, error) from error
    return folder


def _foreign(folder: Path) -> InputError:
    return InputError(f"{folder} is not empty and holds no run of difix; choose another --output.")


def _unwritable(folder: Path, error: OSError) -> InputError:
    return InputError(f"The output folder {folder} cannot be written ({error.strerror}); choose another.")


def read_json(path: Path, shape: Any = object, cure: str = RESTORE) -> Any:
    """Read JSON of a shape (see `shapes`).

    Raises InputError, with the `cure`, when it is none or of another shape, and when it is missing or cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing.") from error
    except UnicodeDecodeError as error:
        raise DamagedError(f"{path} is not valid JSON (it is no UTF-8 text); {cure}.") from error
    except OSError as error:
        raise unreadable(path, error) from error
    value = parsed(text, path, cure)
    check_shape(value, shape, path, cure)
    return value


def is_the_systems(error: Exception) -> bool:
    """Whether a file could not be read for reasons of the system; what readers do with damaged ones has other codes."""
    codes = {errno.EACCES, errno.EPERM, errno.EIO, errno.EISDIR, errno.ENOENT, errno.ESTALE, errno.EMFILE}
    return isinstance(error, OSError) and error.errno in codes


def unreadable(path: object, error: Exception) -> InputError:
    """The error for a file that may be whole, but that the system does not let us read."""
    cure = "allow it to be read (chmod u+r)" if isinstance(error, PermissionError) else "mend that"
    reason = getattr(error, "strerror", None) or error
    return InputError(f"{path} cannot be read ({reason}); {cure} and run the same line again.")


def finite(value: Any) -> Any:
    """The same value with None for every number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


def write_json(path: Path, value: Any, sort_keys: bool = True) -> None:
    """Write JSON whole or not at all; numbers that are not finite, which JSON does not have, are null."""
    text = json.dumps(finite(value), indent=1, sort_keys=sort_keys, allow_nan=False) + "\n"
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_image(path: Path, image: np.ndarray) -> None:
    """Write (H, W), (H, W, 3) or (H, W, 4), uint8 or float values in [0, 1], as an 8-bit image, whole or not at all.

    The suffix says how: `.png` loses nothing; `.webp` and `.jpg` (no transparency) are of high quality.
    """
    import numpy as np
    from PIL import Image

    pixels = image if image.dtype == np.uint8 else (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    encoded = io.BytesIO()  # the encoders hide why a file could not be written
    Image.fromarray(pixels).save(encoded, **_ENCODERS[path.suffix])
    with atomic(path) as temporary:
        temporary.write_bytes(encoded.getvalue())


class Openable(Protocol):
    """A path, or whatever else (a member of a tar) can be opened like one and names itself."""

    def open(self, mode: Literal["rb"]) -> AbstractContextManager[IO[bytes]]: ...


def read_image(path: Openable, alpha: bool = False, upright: bool = False) -> np.ndarray:
    """Read an image file of 8 or 16 bits a channel as (H, W, 3) float32 RGB in [0, 1].

    Transparent pixels stand before black, as renders do; with `alpha` they do not, and their alpha is a fourth
    channel, (H, W, 4), 1 where the file has none. With `upright` the EXIF orientation is applied: right for photos
    that are only looked at, wrong for posed ones, whose intrinsics belong to the pixels as they are stored.
    InputError when it is missing or broken.
    """
    import numpy as np
    from PIL import ImageOps

    with open_image(path) as opened:
        opened.load()
        image = ImageOps.exif_transpose(opened) if upright else opened
        if image.mode == "F" or image.mode.startswith("I"):  # one channel of more than 8 bits
            grey = np.asarray(image, dtype=np.float32) / (1 if image.mode == "F" else 65535)
            pixels = np.repeat(np.clip(grey, 0, 1)[..., None], 3, axis=2)
        else:
            transparent = "A" in image.getbands() or "transparency" in image.info
            pixels = np.asarray(image.convert("RGBA" if transparent else "RGB"), dtype=np.float32)
            pixels /= 255  # in place: of a large image each copy counts
    if pixels.shape[2] == 3:
        return np.pad(pixels, ((0, 0), (0, 0), (0, 1)), constant_values=1) if alpha else pixels
    return pixels if alpha else pixels[..., :3] * pixels[..., 3:]


def most_pixels() -> int:
    """How many pixels an image may have to be read; what PIL refuses, or any number where it refuses nothing."""
    from PIL import Image

    return sys.maxsize if Image.MAX_IMAGE_PIXELS is None else 2 * Image.MAX_IMAGE_PIXELS


def check_enlarged(name: str, width: int, height: int, factor: int, most: int | None = None) -> None:
    """Raises InputError, naming the image of so many pixels, where it is too large to be made `factor` times larger:
    to more than `most` pixels, by default those of an image that is read again.
    """
    most = most_pixels() if most is None else most
    if width * height * factor**2 <= most:
        return
    largest = math.isqrt(most // (width * height))
    cure = f"ask for --upscale {largest} at most, or " if largest > 1 else ""
    raise InputError(
        f"{name} would have {width * factor}×{height * factor} pixels, more than {most // 10**6} million; "
        f"{cure}work at a smaller --size."
    )


@contextmanager
def open_image(path: Openable) -> Iterator[Image]:
    """An image file, opened by PIL; what goes wrong with it in the `with` block is an InputError that names the cause.

    That is: there is no such file, it may not be read, it is no image or damaged, or it has more pixels than are read.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with path.open("rb") as whole:
            raw = getattr(whole, "raw", None)
            file = CappedFile(raw) if isinstance(raw, io.FileIO) else whole
            with Image.open(file) as image:  # the one place where it is
                _check_claim(image, file)
                yield image
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"The image {path} does not exist; check its name.") from None
    except Image.DecompressionBombError:
        most = most_pixels() // 10**6
        raise InputError(
            f"The image {path} has more than {most} million pixels, which is more than is read; make it smaller."
        ) from None
    except Exception as error:  # PIL's readers raise whatever they stumble over
        if is_the_systems(error):
            raise unreadable(path, error) from error
        if out_of_memory(error):
            raise
        reason = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        raise InputError(f"{path} cannot be read as an image{reason}; restore it or remove it.") from error


def _check_claim(image: Image, file: IO[bytes]) -> None:
    """ValueError for an opened image whose header claims more pixels than the bytes of its file can hold."""
    pixels, size = image.width * image.height, file.size if isinstance(file, CappedFile) else 0
    packed = image.format in ("PNG", "BMP", "JPEG", "MPO") or image.info.get("compression") == "raw"
    if packed and size and pixels > _MANY_PIXELS and pixels > _DENSEST * size:
        raise ValueError(f"it claims {image.width}×{image.height} pixels, which {size} bytes cannot hold")


class CappedFile(io.BufferedReader):
    """A file from which no more bytes are asked than it has: the buffer for what is claimed would be made first."""

    def __init__(self, raw: io.FileIO) -> None:
        super().__init__(raw)
        self.size = os.fstat(raw.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(size if size is None or size < 0 else min(size, max(self.size - self.tell(), 0)))


def file_name(name: str) -> str:
    """A frame's or scene's name as one safe file name, an image's suffix dropped."""
    stem = name[: -len(suffix)] if (suffix := Path(name).suffix).lower() in IMAGE_SUFFIXES else name
    return re.sub(r"[^\w.-]+", "-", stem)


def _shortened(name: str) -> str:
    """A name that has room for more: of a very long one the beginning, and a hash that tells it from others."""
    whole = os.fsencode(name)
    if len(whole) <= _LONG_NAME:
        return name
    return f"{name[: _LONG_NAME // 8]}-{hashlib.sha256(whole).hexdigest()[:16]}"


class atomic:
    """`with atomic(path) as temporary:` write there; on success it becomes `path`, on failure nothing does.

    With `kept`, a file that holds the very same already is left alone, with its dates.
    """

    def __init__(self, path: Path, kept: bool = False) -> None:
        self.path, self.kept = path, kept
        # processes of several machines, which may have one number, write into shared runs
        self.temporary = path.with_name(f".{_shortened(path.name)}.{os.getpid()}-{os.urandom(4).hex()}.part")

    def __enter__(self) -> Path:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return self.temporary

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if kind is None:
            if self.kept and self.path.is_file() and filecmp.cmp(self.temporary, self.path, shallow=False):
                self.temporary.unlink()
            else:
                os.replace(self.temporary, self.path)
            return
        self.temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename in (None, str(self.temporary)):
            error.filename = str(self.path)  # of a full disk the system says no more than that
