"""Reading videos, one frame in memory at a time, true in time, shape and colour; FFmpeg comes with the package av."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from difixcli.errors import InputError
from difixcli.runs import unreadable

if TYPE_CHECKING:
    import av

BT709, BT601, BT2020 = 1, 5, 9
"""Matrices and primaries, by the numbers that H.273 gives them."""
_UNKNOWN = 2
_TRANSFERS = {16: "PQ", 18: "HLG"}
_FULL_RANGE = 2  # FFmpeg's own number, as H.273 has only a flag
_LARGE = (1280, 577)  # width or height from which an untagged video is taken for BT.709, as players do
_BICUBIC, _FULL_CHROMA, _EXACT = 0x4, 0x2000 | 0x4000, 0x40000
SCALING = _BICUBIC | _FULL_CHROMA | _EXACT
"""How FFmpeg resizes and converts: chroma from and to every pixel, rounded rather than cut."""


@dataclass(frozen=True)
class Moment:
    """When a frame is shown, and for how long, in seconds."""

    start: Fraction
    duration: Fraction


@dataclass(frozen=True)
class VideoFrame:
    """(H, W, 3) uint8 RGB, upright, with square pixels, in BT.709's colours; and when it is shown."""

    image: np.ndarray
    moment: Moment


@dataclass(frozen=True)
class Video:
    """A video file being read: frames a second on average, about how many frames, whether the file counts them (or they
    follow from its `seconds`), the frames one by one, the unit of their times in seconds, and what to say of how it is
    read, a sentence each.

    Every frame comes once, none is repeated or dropped to keep a rate. The frames can be taken once.
    """

    fps: float
    length: int
    counted: bool
    seconds: float
    time_base: Fraction
    notes: tuple[str, ...]
    frames: Generator[VideoFrame, None, None]


def read_video(path: Path, width: int | None = None) -> Video:
    """Open a video, with frames brought to a `width` in pixels where one is given, their shape kept.

    Frames are turned as the file says and stretched (never shrunk) to square pixels. Times count from the first sound
    or picture. Colours are converted by the matrix, range and primaries the file names; without a matrix by BT.709
    where it is large and BT.601 where it is not. PQ and HLG are tone-mapped (see `tone_mapping`). A packet that cannot
    be decoded is passed over. Raises InputError, here or at the first frame, when nothing can be read.
    """
    with _opened(path) as container:
        stream = _picture(container, path)
        rate = stream.average_rate or stream.guessed_rate
        context = stream.codec_context
        if not (context.width and context.height and rate and rate > 0):
            raise no_video(path)  # sound alone, or a header without a picture
        seconds = float(stream.duration * stream.time_base) if stream.duration else (container.duration or 0) / 1e6
        length = stream.frames or max(round(seconds * rate), 1)
        notes = _notes(path, stream)
        time_base = Fraction(stream.time_base)

    def frames() -> Generator[VideoFrame, None, None]:
        given = 0
        with _opened(path) as container:
            stream = _picture(container, path)
            stream.thread_type = "AUTO"
            origin = first_moment(container)
            last: Fraction | None = None
            end = Fraction(0)
            for frame in _decoded(container, stream):
                span = Fraction(frame.duration or 0) * time_base or 1 / Fraction(rate)
                start = None if frame.pts is None else frame.pts * time_base - origin
                if start is None or (last is not None and start <= last):  # without a time, or with a wrong one
                    start = end
                last, end = start, start + span
                yield VideoFrame(_upright(frame, stream, width), Moment(start, span))
                given += 1
        if not given:
            raise no_video(path)

    return Video(float(rate), length, stream.frames > 0, seconds, time_base, notes, frames())


def first_moment(container: av.container.InputContainer) -> Fraction:
    """Where a file's clock stands, in seconds, when the first of its picture and its sound begins."""
    streams = [*container.streams.video[:1], *container.streams.audio[:1]]
    starts = [one.start_time * one.time_base for one in streams if one.start_time is not None and one.time_base]
    return min(starts, default=Fraction(0))


def no_video(path: Path) -> InputError:
    return InputError(f"{path} cannot be read as a video; restore it, or give a folder of its frames.")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    import av

    try:
        container = av.open(str(path), metadata_errors="replace")
    except PermissionError as error:
        raise unreadable(path, error) from error
    except (av.FFmpegError, OSError) as error:
        raise no_video(path) from error
    with container:
        yield container


def _picture(container: Any, path: Path) -> Any:
    streams = [one for one in container.streams.video if "attached_pic" not in str(one.disposition)]  # no cover
    if not streams:
        raise no_video(path)
    return streams[0]


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    """The frames that can be decoded, in the order in which they are shown."""
    import av

    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError:  # the file ends early, or amid garbage
            packet = None
        try:
            yield from stream.decode(packet)
        except av.error.EOFError:
            return
        except av.FFmpegError:
            if packet is None:
                return
        if packet is None or packet.size == 0:
            return


def _upright(frame: Any, stream: Any, width: int | None) -> np.ndarray:
    """(H, W, 3) uint8 of a decoded frame."""
    across, down = frame.width, frame.height
    if aspect := stream.sample_aspect_ratio:
        across, down = (round(across * aspect), down) if aspect > 1 else (across, round(down / aspect))
    turns = round(frame.rotation / 90) % 4
    if width is not None:
        scale = width / (down if turns % 2 else across)
        across, down = max(round(across * scale), 1), max(round(down * scale), 1)
    transfer, wide = _TRANSFERS.get(stream.codec_context.color_trc), _wide(stream)
    converted = frame.reformat(
        width=across,
        height=down,
        format="rgb48le" if transfer or wide else "rgb24",
        src_colorspace=_matrix(frame),
        src_color_range=_FULL_RANGE if frame.color_range == _FULL_RANGE or "j" in frame.format.name[:4] else 1,
        dst_color_range=_FULL_RANGE,
        interpolation=SCALING,
    )
    image = converted.to_ndarray()
    if transfer or wide:
        from difixcli.tone_mapping import to_bt709

        image = to_bt709(image, transfer)
    return np.ascontiguousarray(np.rot90(image, turns))


def _wide(stream: Any) -> bool:
    return bool(stream.codec_context.color_primaries == BT2020)


def _matrix(frame: Any) -> int:
    """The matrix of a frame's colours; of RGB, which has none, any."""
    if frame.colorspace not in (0, _UNKNOWN):
        return int(frame.colorspace)
    return BT709 if frame.width >= _LARGE[0] or frame.height >= _LARGE[1] else BT601


def _notes(path: Path, stream: Any) -> tuple[str, ...]:
    """What is not kept of a video's colours."""
    context, name = stream.codec_context, path.name
    notes = []
    transfer = _TRANSFERS.get(context.color_trc)
    if transfer:
        notes.append(f"{name} is HDR ({transfer}); it is tone-mapped to BT.709, highlights above 1000 nits are cut.")
    elif _wide(stream):
        notes.append(f"{name} has BT.2020's wide colours; they are brought to BT.709, and what lies beyond is cut.")
    form = context.format
    if form is not None and not transfer and (bits := max(part.bits for part in form.components)) > 8:
        notes.append(f"{name} has {bits} bits a channel; frames are read with 8.")
    transparent = stream.metadata.get("alpha_mode") == "1" or (
        form is not None and any(part.is_alpha for part in form.components)
    )
    if transparent:
        notes.append(f"{name} has transparency, which is left out; its colours are taken as if all were opaque.")
    return tuple(notes)
