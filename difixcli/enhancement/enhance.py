"""Images, folders of frames and videos of unknown poses through the fixer, frame by frame."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from difixcli.enhancement.sequence import FILM_FILE, SIDE_BY_SIDE, SPLIT_SCREEN, VIDEO, Film, Source, make_film
from difixcli.errors import InputError
from difixcli.frames.pictures import Picture, alpha_notes, listed_images, read_picture, shrunk
from difixcli.frames.pipeline import FrameOptions, FramePipeline, is_bad
from difixcli.frames.references import ReferencePhotos, check_references
from difixcli.frames.writing import Shot, write_frames
from difixcli.runs import Progress
from difixcli.scenes.unposed import is_video
from difixcli.video import Moment, read_video
from difixcli.wording import counted

if TYPE_CHECKING:
    from difixcli.fixer import Fixer

_Frame = tuple[str, Callable[[], Picture], Moment | None]
_FPS = 24.0  # of a folder of frames, which does not say
_WHOLE, _BLINK = 0.9, 0.1  # a video is cut short where less than this share of it, and so many seconds less, is there


def enhance_images(
    source: Path,
    output: Path,
    fixer: Fixer,
    references: Sequence[Path] = (),
    size: int | None = None,
    film: Film | None = None,
    count: int | None = None,
    progress: Progress | None = None,
    options: FrameOptions | None = None,
) -> dict[str, Any]:
    """Fix an image, the images of a folder or the frames of a video into `output`/NAME.png, one frame at a time.

    Frames that `output` already holds are kept, so the folder must be new or this very run's (`Run.open` sees to
    that); each is written whole or not at all. Frames of a video are named frame_00001 onwards. An image's transparency
    is taken for the render's opacity.

    Args:
        source: image file, folder (its own images, not its subfolders') or video file.
        output: folder, made if missing.
        fixer: `Fixer`; one for aligned references gets them registered to each frame by optical flow.
        references: clean photos. A photo of another size than the frame is brought to the frame's size (area-averaged
            where it shrinks), so it should have the frame's shape. Photos and frames are turned upright as their EXIF
            orientation says.
        size: long side to work at; larger frames are shrunk to it, smaller ones stay as they are.
        film: also make the videos it describes (see `make_film`) when the source is a video, or a folder of images of
            one size whose names count, or whose film asks for anything in particular. A folder's has 24 frames a
            second. None makes no video.
        count: of more references than that, only so many stand beside a frame, those most similar to it, the most
            similar first; otherwise, and for None, all do, in their order.
        progress: makes a progress bar from a label and a total.
        options: how each frame is fixed.

    Returns {"frames": how many, "kept": how many of them an earlier call had made, "announced": about how many the
    source has by its own account, "cut_short": by how much it ends before that, in words, or None, "bad": the names of
    fixes that are broken (see `bad_fixes`), "seconds_per_frame": of those made now, or None, "output": the folder} and
    what `make_film` returns.
    Raises InputError naming the file that is missing, broken or too small, and for a film of what is no sequence.
    """
    output = output.expanduser()
    options = options or FrameOptions()
    pipeline = FramePipeline(fixer, ReferencePhotos.by_likeness(references, count), options)
    opened = _open(source, output, size, film)

    end = Fraction(0)  # of the last frame that could be read

    def shots() -> Iterator[Shot]:
        nonlocal end
        for name, read, moment in opened.frames():
            if moment is not None:
                end = moment.start + moment.duration
            yield pipeline.shot(name, read, moment)

    fixed = write_frames(
        shots(),
        opened.length,
        output,
        pipeline.fix,
        pipeline.pace,
        pipeline.alike,
        options.confidence,
        film is not None and film.steady,
        broken=is_bad,
        stale=[output / FILM_FILE],
        progress=progress,
    )
    if not fixed.frames:
        raise InputError(f"{source} holds no frame; check that it is the right file.")
    made: dict[str, Any] = {VIDEO: None, SIDE_BY_SIDE: None, SPLIT_SCREEN: None, "fps": None, "steadiness": None}
    if film is not None and opened.sequence and fixed.frames > 1 and len(fixed.sizes) == 1:
        made = make_film(shots, fixed.frames, output, opened.fps, film, progress=progress, source=opened.video)
    return {
        "frames": fixed.frames,
        "kept": fixed.kept,
        "announced": opened.length,
        "cut_short": opened.cut_short(fixed.frames, float(end)),
        "bad": list(fixed.broken),
        "seconds_per_frame": fixed.seconds_per_frame,
        "output": str(output),
        **made,
    }


def check_images(
    source: Path,
    output: Path,
    references: Sequence[Path] = (),
    size: int | None = None,
    film: Film | None = None,
) -> list[str]:
    """Look at what `enhance_images` is going to read, at the images' headers only.

    Returns warnings, a sentence each (see `alpha_notes`, `check_references` and `Video.notes`). Raises InputError for
    what `enhance_images` would refuse.
    """
    opened = _open(source, output, size, film)
    return [*opened.notes, *alpha_notes(opened.files), *check_references(opened.files, references)]


@dataclass(frozen=True)
class _Opened:
    """A source: its frames as (name, function that reads it), which can be taken again, about how many there are, the
    frames a second, whether they follow each other, the images that they are (none of a video), the video that they
    are of, what to say of it, and whether it counts its frames or only says how many seconds it lasts.
    """

    frames: Callable[[], Iterator[_Frame]]
    length: int
    fps: float
    sequence: bool
    files: Sequence[Path]
    video: Source | None = None
    notes: Sequence[str] = ()
    counted: bool = True
    seconds: float = 0.0

    def cut_short(self, frames: int, seconds: float) -> str | None:
        """What to say where much less than the source announces could be read: a file that does not count its frames
        says how long it is, and theirs need not be evenly long.
        """
        if self.counted:
            short = frames < _WHOLE * self.length - 1
            return f"says it has {counted(self.length, 'frame')}, but only {frames} can be read" if short else None
        if seconds >= _WHOLE * self.seconds - _BLINK:
            return None
        return f"says it lasts {self.seconds:.1f} s, but only its first {seconds:.1f} s can be read"


def _open(source: Path, output: Path, size: int | None, film: Film | None) -> _Opened:
    """Look at a source; InputError for what is none, or none that the film can be made of."""
    asked = film is not None and film.asked
    if is_video(source):
        opened = read_video(source)
        frames_of = partial(_video_frames, source, size)
        video = Source(source, opened.time_base)
        return _Opened(
            frames_of, opened.length, opened.fps, True, (), video, opened.notes, opened.counted, opened.seconds
        )
    files = listed_images(source, output, size)
    sizes: dict[tuple[int, int], Path] = {}
    for path, at in files.items():
        sizes.setdefault(at, path)
    if asked and len(files) == 1:
        raise InputError(
            f"{next(iter(files))} is one image, of which there is no film; leave out the options for videos."
        )
    if asked and len(sizes) > 1:
        (a, first), (b, other) = list(sizes.items())[:2]
        raise InputError(
            f"{first.name} is {a[0]}×{a[1]} and {other.name} {b[0]}×{b[1]} pixels; a film needs images of one size."
        )

    def frames() -> Iterator[_Frame]:
        return ((path.stem, partial(read_picture, path, size), None) for path in files)

    return _Opened(frames, len(files), _FPS, asked or _counts([path.stem for path in files]), list(files))


def _video_frames(source: Path, size: int | None) -> Iterator[_Frame]:
    for number, frame in enumerate(read_video(source).frames, start=1):
        yield f"frame_{number:05d}", partial(_as_picture, frame.image, size), frame.moment


def _as_picture(pixels: np.ndarray, size: int | None) -> Picture:
    """A video's frame (H, W, 3) uint8, which is kept as it is until its turn comes."""
    return Picture(shrunk(pixels, size))


def _counts(names: Sequence[str]) -> bool:
    """Whether the names are one name with a number that changes: the frames of a sequence."""
    return len({re.sub(r"\d+", "#", name) for name in names}) == 1 and all(re.search(r"\d", name) for name in names)
