"""Frames one after another through a pipeline into a folder, of which what is there is kept.

Everything is read from and written to disk frame by frame, so neither the length of a sequence nor the moment at which
it was stopped counts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from difixcli.errors import InputError
from difixcli.evaluation.pictures import image_size
from difixcli.frames.pictures import read_pixels
from difixcli.frames.stages import Pace, carried
from difixcli.images import as_bytes, as_floats
from difixcli.runs import CONFIDENCE, Progress, make_folder, write_image
from difixcli.video import Moment

BROKEN = "broken.txt"
"""The file beside frames that names those that are broken, a line each."""
_ANY_NAME = "surrogateescape"  # file names need not be UTF-8


@dataclass(frozen=True)
class Shot:
    """One frame to do: its file name without suffix, how to get the image as it is before the fix, (H, W, 3), uint8 or
    in [0, 1], the same whenever that is called, and how to prepare it for the work, in a thread. `moment` is when a
    video shows it, None for frames that follow each other evenly.
    """

    name: str
    before: Callable[[], np.ndarray]
    prepare: Callable[[], Any]
    moment: Moment | None = None


class Made(Protocol):
    """What work makes of a frame: (H, W, 3) uint8 or float32 in [0, 1], and its marks (H, W, 3) or None."""

    @property
    def color(self) -> np.ndarray: ...

    @property
    def confidence(self) -> np.ndarray | None: ...


@dataclass(frozen=True, eq=False)
class Clean:
    """A frame that is done, as `Made`."""

    color: np.ndarray
    confidence: np.ndarray | None = None


@dataclass(frozen=True)
class Fixed:
    """How many frames there are, how many of them an earlier call had made, their sizes (width, height), the seconds
    that each of the others took (None without any), what `told` said of the others by name, and the names of all that
    are broken, in the order of the shots.
    """

    frames: int
    kept: int
    sizes: frozenset[tuple[int, int]]
    seconds_per_frame: float | None
    told: dict[str, Any] = field(default_factory=dict)
    broken: tuple[str, ...] = ()


def write_frames(
    shots: Iterable[Shot],
    total: int,
    output: Path,
    work: Callable[[list[Any]], Sequence[Made]],
    pace: Pace | None = None,
    alike: Callable[[Any, Any], bool] = lambda a, b: True,
    confidence: bool = False,
    steady: bool = False,
    told: Callable[[Any, np.ndarray], Any] = lambda prepared, color: None,
    broken: Callable[[Any, np.ndarray], bool] = lambda prepared, color: False,
    unreadable: dict[str, InputError] | None = None,
    stale: Sequence[Path] = (),
    progress: Progress | None = None,
) -> Fixed:
    """Write `output`/NAME.png for every shot, each whole or not at all, and with `confidence` NAME.confidence.png;
    frames that are there are kept.

    Shots are prepared in threads ahead, `work` makes of neighbours that are `alike` what is then written in threads
    behind (see `stages.carried`). `told` is asked there about what was prepared and the (H, W, 3) uint8 that is
    written, and `broken` whether that is broken, which `output`/broken.txt remembers. `total` is about how many shots
    there are; files that are `stale` once a frame is made anew are removed.

    With `steady`, each frame's fix is averaged with the one before it in the order of the shots. All that it takes
    from there is what 8 bits hold, so a call that goes on with another's frames makes what that would have made.

    Raises InputError for a frame that cannot be read, once those before it are written; or keeps it in `unreadable`, by
    its shot's name, and goes on.
    """
    make_folder(output)
    for part in output.glob("**/.*.part"):  # of a process that was killed while it wrote
        part.unlink()
    there = sum(1 for path in output.glob("*.png") if not path.name.endswith(CONFIDENCE))
    remembered = _Broken(output / BROKEN)
    names: list[str] = []
    kept = made = 0
    sizes: set[tuple[int, int]] = set()
    followed: dict[str, Shot | None] = {}
    steadier = _Steadier(output) if steady else None

    previous: Shot | None = None

    def there_already(shot: Shot) -> bool:
        nonlocal kept, previous
        names.append(shot.name)
        whole = all(path.exists() for path in _targets(output, shot.name, confidence))
        if whole:
            kept += 1
            sizes.add(image_size(output / f"{shot.name}.png"))
        elif steady:
            followed[shot.name] = previous
        previous = shot
        return whole

    def worked(batch: list[tuple[Shot, Any]]) -> Sequence[Made]:
        for path in stale:
            path.unlink(missing_ok=True)  # what it tells of is no more
        done = work([prepared for _, prepared in batch])
        if steadier is None:
            return done
        return [
            steadier.steadied(shot, followed.pop(shot.name), one) for (shot, _), one in zip(batch, done, strict=True)
        ]

    def write(shot: Shot, prepared: Any, one: Made) -> Any:
        color = as_bytes(one.color)
        if confidence:
            assert one.confidence is not None
            write_image(output / f"{shot.name}{CONFIDENCE}", one.confidence)
        if broken(prepared, color):
            remembered.add(shot.name)  # before the frame is there, which is not looked at again
        write_image(output / f"{shot.name}.png", color)
        return (color.shape[1], color.shape[0]), told(prepared, color)

    said: dict[str, Any] = {}
    failed: dict[Shot, InputError] | None = None if unreadable is None else {}
    begun = time.monotonic()
    with progress("fix", max(total - there, 1)) if progress else nullcontext(lambda done: None) as update:
        for shot, (size, answer) in carried(
            shots, lambda shot: shot.prepare(), worked, write, pace or Pace(), alike, failed, there_already
        ):
            made += 1
            sizes.add(size)
            said[shot.name] = answer
            update(made + len(failed or ()))
    if unreadable is not None and failed:
        unreadable |= {shot.name: error for shot, error in failed.items()}
    seconds = round((time.monotonic() - begun) / made, 4) if made else None
    bad = remembered.names()
    return Fixed(len(names), kept, frozenset(sizes), seconds, said, tuple(name for name in names if name in bad))


class _Broken:
    """Names of frames in a file, a line each, to which several threads add."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()

    def names(self) -> frozenset[str]:
        if not self._path.is_file():
            return frozenset()
        return frozenset(self._path.read_text(encoding="utf-8", errors=_ANY_NAME).split("\n"))

    def add(self, name: str) -> None:
        with self._lock, self._path.open("a", encoding="utf-8", errors=_ANY_NAME) as file:
            file.write(f"{name}\n")


def _targets(output: Path, name: str, confidence: bool) -> list[Path]:
    """What is written for a frame, the fix last."""
    fixed = output / f"{name}.png"
    return [output / f"{name}{CONFIDENCE}", fixed] if confidence else [fixed]


class _Steadier:
    """Averages each frame's fix with the one before it."""

    def __init__(self, output: Path) -> None:
        self._output = output
        self._last: tuple[str, np.ndarray, np.ndarray] | None = None  # name, before, fixed

    def steadied(self, shot: Shot, previous: Shot | None, made: Made) -> Made:
        from difixcli.evaluation.consistency import frame_motion
        from difixcli.frames.steadiness import steadied

        before, color = shot.before(), made.color
        if previous is not None:
            if self._last is None or self._last[0] != previous.name:  # it was kept
                self._last = previous.name, previous.before(), read_pixels(self._output / f"{previous.name}.png")
            last, fixed = (as_floats(pixels) for pixels in self._last[1:])
            image = as_floats(before)
            color = steadied(image, as_floats(color), last, fixed, frame_motion(last, image))
        pixels = as_bytes(color)
        self._last = shot.name, before, pixels
        return Clean(pixels, made.confidence)
