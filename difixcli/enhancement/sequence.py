"""Frames one after another through a fixer, and what is made of them: steadier frames, videos, figures.

Everything is read from and written to disk frame by frame, so neither the length of a sequence nor the moment at which
it was stopped counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from difixcli.enhancement.images import check_large_enough, shrunk
from difixcli.enhancement.video import VideoWriter, side_by_side, split_screen
from difixcli.evaluation.pictures import image_size
from difixcli.runs import Progress, make_folder, read_image, read_json, write_image, write_json

VIDEO, SIDE_BY_SIDE, SPLIT_SCREEN = "video", "side_by_side", "split_screen"
_FILM_FILE = "film.json"
_FILM = {
    "fps": float,
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
class Shot:
    """One frame to do: its file name without suffix, how to get the image as it is before the fix, and fixed.

    Both functions give (H, W, 3) in [0, 1]. `before` gives the same whenever it is called.
    """

    name: str
    before: Callable[[], np.ndarray]
    fixed: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Fixed:
    """How many frames there are, how many of them an earlier call had made, their sizes (width, height), and the
    seconds that each of the others took (None without any).
    """

    frames: int
    kept: int
    sizes: frozenset[tuple[int, int]]
    seconds_per_frame: float | None


def fix_frames(
    shots: Iterable[Shot], total: int, output: Path, steady: bool = False, progress: Progress | None = None
) -> Fixed:
    """Write `output`/NAME.png for every shot, each whole or not at all; frames that are there are kept.

    With `steady`, each frame's fix is averaged with the one before it in the order of the shots. All that it takes
    from there is read back from disk, so a call that goes on with another's frames makes what that would have made.
    `total` is about how many shots there are. Raises InputError for a frame that is too small.
    """
    from difixcli.enhancement.steadiness import steadied
    from difixcli.evaluation.consistency import frame_motion

    make_folder(output)
    for stale in output.glob("**/.*.part"):  # of a process that was killed while it wrote
        stale.unlink()
    kept = sum(1 for _ in output.glob("*.png"))
    frames = made = 0
    seconds = 0.0
    sizes: set[tuple[int, int]] = set()
    previous: Shot | None = None
    state: tuple[np.ndarray, np.ndarray] | None = None
    with progress("fix", max(total - kept, 1)) if progress else nullcontext(lambda done: None) as update:
        for shot in shots:
            path = output / f"{shot.name}.png"
            if path.exists():
                state = None
            else:
                begun = time.monotonic()
                (output / _FILM_FILE).unlink(missing_ok=True)  # what it tells of is no more
                image = shot.before()
                check_large_enough(shot.name, image.shape[1], image.shape[0])
                fixed = shot.fixed()
                if steady and previous is not None:
                    if state is None:
                        state = previous.before(), read_image(output / f"{previous.name}.png")
                    fixed = steadied(image, fixed, *state, frame_motion(state[0], image))
                write_image(path, fixed)
                if steady:
                    state = image, read_image(path)
                seconds += time.monotonic() - begun
                made += 1
                update(made)
            frames += 1
            sizes.add(image_size(path))
            previous = shot
    return Fixed(frames, frames - made, frozenset(sizes), round(seconds / made, 4) if made else None)


def make_film(
    shots: Callable[[], Iterator[Shot]],
    frames: int,
    output: Path,
    fps: float,
    film: Film,
    measure: bool = True,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Videos of the frames that `fix_frames` wrote, all of one size, and how steady they are; two frames at a time.

    Writes `output`/video.mp4 and, where asked for, side_by_side.mp4 and split_screen.mp4. With `measure`, for frames
    that follow each other closely, "steadiness" is the warped difference of consecutive frames before and after the
    fix, both along the motion of the frames before it, at a long side of at most 640 pixels.

    Returns {"fps", "video", "side_by_side", "split_screen": paths or None, "steadiness": {"input", "output"} or None}.
    What an earlier call made of the very same frames is not made again.
    """
    wanted = {"fps": film.fps or fps, **{key: asdict(film)[key] for key in (SIDE_BY_SIDE, SPLIT_SCREEN)}}
    names = [VIDEO, *(name for name in (SIDE_BY_SIDE, SPLIT_SCREEN) if wanted[name])]
    files = {name: output / f"{name}.mp4" for name in names}
    record = output / _FILM_FILE
    if record.is_file() and all(file.is_file() for file in files.values()):
        held = read_json(record, {"wanted": dict, "results": _FILM})
        if held["wanted"] == wanted:
            results: dict[str, Any] = held["results"]
            return results
    steadiness = _Steadiness() if measure and frames > 1 else None
    with ExitStack() as stack:
        update = stack.enter_context(progress("video", frames)) if progress else lambda done: None
        videos = {name: stack.enter_context(VideoWriter(file, wanted["fps"])) for name, file in files.items()}
        for number, shot in enumerate(shots()):
            after = read_image(output / f"{shot.name}.png")
            videos[VIDEO].add(after)
            if len(videos) > 1 or steadiness is not None:
                before = shot.before()
                if SIDE_BY_SIDE in videos:
                    videos[SIDE_BY_SIDE].add(side_by_side(before, after))
                if SPLIT_SCREEN in videos:
                    videos[SPLIT_SCREEN].add(split_screen(before, after, number / wanted["fps"]))
                if steadiness is not None:
                    steadiness.add(before, after)
            update(number + 1)
    results = {
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

        before, after = shrunk(before, _MEASURED), shrunk(after, _MEASURED)
        if self._last is not None:
            motion = frame_motion(self._last[0], before)
            pairs = zip(self._last, (before, after), strict=True)
            first, second = (warped_pair(then, now, motion).difference for then, now in pairs)
            self._figures.append((first, second))
        self._last = before, after

    def figures(self) -> dict[str, float]:
        first, second = np.nanmean(np.array(self._figures), axis=0)
        return {"input": round(float(first), 6), "output": round(float(second), 6)}
