"""What is made of a sequence's frames: videos and figures, two frames at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from difixcli.enhancement.video import VideoWriter, side_by_side, sound_of, split_screen
from difixcli.frames.pictures import SMALLEST, read_pixels, shrunk
from difixcli.frames.stages import read_ahead
from difixcli.frames.writing import Shot
from difixcli.images import as_bytes, as_floats
from difixcli.runs import Progress, read_json, write_json

VIDEO, SIDE_BY_SIDE, SPLIT_SCREEN = "video", "side_by_side", "split_screen"
FILM_FILE = "film.json"
"""What was made of the frames; worth nothing once one of them is made anew."""
_FILM = {
    "fps": float,
    "said": [str],
    "steadiness": (None, {"input": (None, float), "output": (None, float)}),
    **dict.fromkeys((VIDEO, SIDE_BY_SIDE, SPLIT_SCREEN), (None, str)),
}
_MEASURED = 640  # long side at which steadiness is measured: flow on larger frames takes longer than some fixers


@dataclass(frozen=True)
class Film:
    """What becomes of a sequence beside its frames.

    `fps` is the videos' frame rate, None for the source's own. `side_by_side` and `split_screen` ask for videos that
    compare before and after. `steady` averages the fixes along the motion: see `steadiness.steadied`.
    """

    fps: float | None = None
    side_by_side: bool = False
    split_screen: bool = False
    steady: bool = False

    @property
    def asked(self) -> bool:
        """Whether anything is asked for that only a sequence can give."""
        return self != Film()


@dataclass(frozen=True)
class Source:
    """The video that a sequence's frames were taken from: its file, and the unit of their moments in seconds."""

    path: Path
    time_base: Fraction


def make_film(
    shots: Callable[[], Iterator[Shot]],
    frames: int,
    output: Path,
    fps: float,
    film: Film,
    measure: bool = True,
    progress: Progress | None = None,
    source: Source | None = None,
) -> dict[str, Any]:
    """Videos of the frames that `write_frames` wrote, all of one size, and how steady they are; two frames at a time.

    Writes `output`/video.mp4 and, where asked for, side_by_side.mp4 and split_screen.mp4. With `measure`, for frames
    that follow each other closely, "steadiness" is the warped difference of consecutive frames before and after the
    fix, both along the motion of the frames before it, at a long side of at most 640 pixels. With a `source` frames are
    shown when its own are, with its sound, unless the film has a rate of its own: then they follow evenly, in silence.

    Returns {"fps", "video", "side_by_side", "split_screen": paths or None, "steadiness": {"input", "output"} or None,
    "said": sentences on what the video lacks}.
    What an earlier call made of the very same frames is not made again.
    """
    wanted = {"fps": film.fps or fps, **{key: asdict(film)[key] for key in (SIDE_BY_SIDE, SPLIT_SCREEN)}}
    names = [VIDEO, *(name for name in (SIDE_BY_SIDE, SPLIT_SCREEN) if wanted[name])]
    files = {name: output / f"{name}.mp4" for name in names}
    record = output / FILM_FILE
    if record.is_file() and all(file.is_file() for file in files.values()):
        held = read_json(record, {"wanted": dict, "results": _FILM})
        if held["wanted"] == wanted:
            results: dict[str, Any] = held["results"]
            return results
    steadiness = _Steadiness() if measure and frames > 1 else None
    with ExitStack() as stack:
        update = stack.enter_context(progress("video", frames)) if progress else lambda done: None
        timed = source if film.fps is None else None
        clock = (timed.time_base, timed.path) if timed else ()
        videos = {name: stack.enter_context(VideoWriter(file, wanted["fps"], *clock)) for name, file in files.items()}
        compared = len(videos) > 1 or steadiness is not None

        def read(shot: Shot) -> tuple[np.ndarray, np.ndarray | None]:
            return read_pixels(output / f"{shot.name}.png"), shot.before() if compared else None

        for number, (shot, (after, before)) in enumerate(read_ahead(shots(), read)):
            moment = shot.moment if timed else None
            seconds = float(moment.start) if moment else number / wanted["fps"]
            videos[VIDEO].add(after, moment)
            if before is not None:
                if SIDE_BY_SIDE in videos:
                    videos[SIDE_BY_SIDE].add(side_by_side(as_bytes(before), after), moment)
                if SPLIT_SCREEN in videos:
                    videos[SPLIT_SCREEN].add(split_screen(as_bytes(before), after, seconds), moment)
                if steadiness is not None:
                    steadiness.add(before, after)
            update(number + 1)
    said = list(videos[VIDEO].notes)
    if source is not None and film.fps is not None and sound_of(source.path) is not None:
        said.append(f"{files[VIDEO].name} has no sound, since it has another frame rate than {source.path.name}.")
    results = {
        "said": said,
        "fps": wanted["fps"],
        **{name: str(files[name]) if name in files else None for name in (VIDEO, SIDE_BY_SIDE, SPLIT_SCREEN)},
        "steadiness": None if steadiness is None else steadiness.figures(),
    }
    write_json(record, {"wanted": wanted, "results": results})
    return results


class _Steadiness:
    """The warped difference of a sequence, before and after the fix, frame by frame."""

    def __init__(self) -> None:
        self._last: tuple[np.ndarray, np.ndarray] | None = None
        self._figures: list[tuple[float, float]] = []

    def add(self, before: np.ndarray, after: np.ndarray) -> None:
        from difixcli.evaluation.consistency import frame_motion, warped_pair

        height, width = before.shape[:2]
        side = max(_MEASURED, -(-SMALLEST * max(height, width) // min(height, width)))  # of a panorama more
        before, after = (as_floats(shrunk(image, side)) for image in (before, after))
        if self._last is not None:
            motion = frame_motion(self._last[0], before)
            pairs = zip(self._last, (before, after), strict=True)
            first, second = (warped_pair(then, now, motion).difference for then, now in pairs)
            self._figures.append((first, second))
        self._last = before, after

    def figures(self) -> dict[str, float] | None:
        """None where no frame shows anything of the one before it."""
        found = np.array(self._figures)
        if np.isnan(found).any(axis=1).all():
            return None
        first, second = np.nanmean(found, axis=0)
        return {"input": round(float(first), 6), "output": round(float(second), 6)}
