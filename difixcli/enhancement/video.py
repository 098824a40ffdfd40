"""Videos that are made, one frame in memory at a time; FFmpeg comes with the package av."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from difixcli.errors import InputError
from difixcli.images import as_bytes
from difixcli.runs import atomic
from difixcli.video import BT709, SCALING, Moment, first_moment

_SWEEP = 6.0  # seconds in which a split screen's divider goes to and fro
_LINE = 1 / 400  # of the width: half the divider's
_COPIED = frozenset({"aac", "mp3", "ac3", "eac3", "alac", "opus", "flac"})  # sound that an MP4 holds as it is
_LIMITED = 1  # FFmpeg's number for luma of 16 to 235
_AVX_512 = 13  # OpenCV's number for it
# fewer frames ahead than usual: each is held whole
_ENCODING = {"crf": "17", "preset": "medium", "rc-lookahead": "12"}


class VideoWriter:
    """`with VideoWriter(path, fps) as video: video.add(image)`: an H.264 MP4, written whole or not at all.

    Images are (H, W, 3), uint8 or in [0, 1]; they are converted by BT.709's matrix to limited range, and the file says
    so. H.264 in its common form wants even sides: an odd one is continued by its last row or column of pixels. Frames
    follow each other at `fps`, or are shown when their moments say, in units of `time_base` seconds. `sound` is a file
    whose first track of sound is copied; where an MP4 cannot hold it there is none. `notes` are what to say of the
    file, a sentence each.

    Raises InputError for an image of another size than the first, for no image at all, and when the file cannot be
    written, as on a full disk.
    """

    def __init__(self, path: Path, fps: float, time_base: Fraction | None = None, sound: Path | None = None) -> None:
        self.path, self.fps = path, fps
        self.notes: list[str] = []
        self._rate = Fraction(fps).limit_denominator(100_000)
        self._unit = time_base or 1 / self._rate
        self._sound = None
        if sound is not None and (kind := sound_of(sound)) is not None:
            if kind in _COPIED:
                self._sound = sound
            else:
                self.notes.append(
                    f"{path.name} has no sound: that of {sound.name} ({kind}) does not go into an MP4 as it is."
                )
        self._file = atomic(path)
        self._shape: tuple[int, ...] | None = None
        self._container: Any = None
        self._stream: Any = None
        self._heard: _Sound | None = None
        self._lengths: dict[int, int] = {}  # of frames that the encoder still holds, by when they begin
        self._count = 0

    def __enter__(self) -> VideoWriter:
        self._temporary = self._file.__enter__()
        return self

    def add(self, image: np.ndarray, moment: Moment | None = None) -> None:
        """One more frame (H, W, 3), later than those before; without a moment the next one at the writer's rate."""
        import av

        if self._shape is None:
            self._shape = image.shape
        if image.shape != self._shape:
            raise InputError(
                f"A frame of {image.shape[1]}×{image.shape[0]} pixels follows others of another size; the video "
                f"{self.path} needs one size."
            )
        height, width = image.shape[:2]
        odd = ((0, height % 2), (0, width % 2), (0, 0))
        if not self._count and any(map(any, odd)):
            self.notes.append(
                f"{self.path.name} is {width + width % 2}×{height + height % 2} pixels, as H.264 wants even sides: the "
                f"last row or column of {width}×{height} is doubled."
            )
        pixels = as_bytes(image)
        if any(map(any, odd)):
            pixels = np.pad(pixels, odd, mode="edge")
        moment = moment or Moment(self._count / self._rate, 1 / self._rate)
        try:
            if self._container is None:
                self._begin(pixels.shape[0], pixels.shape[1])
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
                format="yuv420p", dst_colorspace=BT709, dst_color_range=_LIMITED, interpolation=SCALING
            )
            frame.pts, frame.time_base = round(moment.start / self._unit), self._unit
            self._lengths[frame.pts] = max(round((moment.start + moment.duration) / self._unit) - frame.pts, 1)
            self._mux(frame)
        except OSError as error:  # PyAV's errors are OSErrors too
            raise self._failure(error) from error
        self._count += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failure = None
        whole = False
        try:
            if kind is None and self._container is None:
                failure = InputError(f"There is no frame for the video {self.path}.")
            elif kind is None:
                self._mux(None)
                if self._heard is not None:
                    self._heard.copy(None)
                self._container.close()
                whole = True
        except OSError as reason:
            failure = self._failure(reason)
        finally:
            if self._container is not None:
                with suppress(OSError):  # what went wrong is told already
                    self._container.close()
            if self._heard is not None:
                self._heard.close()
            self._file.__exit__(None if whole else kind or BaseException, error, trace)
        if failure is not None:
            raise failure

    def _begin(self, height: int, width: int) -> None:
        import av

        self._container = av.open(str(self._temporary), "w", format="mp4", options={"movflags": "+faststart"})
        self._stream = stream = self._container.add_stream("libx264", rate=self._rate, options=_encoding())
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.time_base = self._unit
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = _LIMITED
        if self._sound is not None:
            self._heard = _Sound(self._sound, self._container)

    def _mux(self, frame: Any) -> None:
        """Encode a frame, or with None those that are left, and write what comes out, with the sound beside it."""
        for packet in self._stream.encode(frame):
            packet.duration = self._lengths.pop(round(packet.pts * packet.time_base / self._unit))
            if self._heard is not None:
                self._heard.copy(packet.dts * packet.time_base)
            self._container.mux(packet)

    def _failure(self, error: OSError) -> InputError:
        reason = "no space left on the device" if error.errno == errno.ENOSPC else (error.strerror or str(error))
        return InputError(
            f"The video {self.path} could not be written ({reason}). The frames are kept: make room and run the same "
            "line again."
        )


class _Sound:
    """The packets of a file's first track of sound, copied into another as its picture goes on."""

    def __init__(self, path: Path, output: Any) -> None:
        import av

        self._source = av.open(str(path), metadata_errors="replace")
        track = self._source.streams.audio[0]
        self._origin = first_moment(self._source)
        self._output, self._track = output, output.add_stream_from_template(track)
        self._packets: Iterator[Any] = self._source.demux(track)
        self._next = next(self._packets, None)

    def copy(self, until: Fraction | None) -> None:
        """Write what is to be heard before `until` seconds, or all that is left."""
        while (packet := self._next) is not None and packet.dts is not None:
            shift = round(self._origin / packet.time_base)
            begin = packet.dts - shift
            if until is not None and begin * packet.time_base > until:
                return
            packet.pts, packet.dts = begin if packet.pts is None else packet.pts - shift, begin
            packet.stream = self._track
            self._output.mux(packet)
            self._next = next(self._packets, None)

    def close(self) -> None:
        self._source.close()


def _encoding() -> dict[str, str]:
    """What the encoder is told. With AVX-512, x264 of PyAV's wheels does not always make the same bytes of the same
    pictures (measured: 4 films of 136 came out otherwise, and none with AVX2), so it goes without.
    """
    import cv2

    return {**_ENCODING, "x264-params": "asm=avx2"} if cv2.checkHardwareSupport(_AVX_512) else _ENCODING


def sound_of(path: Path) -> str | None:
    """How a film's first track of sound is coded, as FFmpeg calls it; None where it is silent."""
    import av

    with av.open(str(path), metadata_errors="replace") as container:
        return next((track.codec_context.name for track in container.streams.audio), None)


def side_by_side(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """(H, W, 3) twice → (H, 2·W, 3): before on the left, after on the right."""
    return np.concatenate([before, after], axis=1)


def split_screen(before: np.ndarray, after: np.ndarray, seconds: float) -> np.ndarray:
    """(H, W, 3) twice, uint8 → (H, W, 3): before left of a white line, after right of it; the line moves to and fro."""
    width = after.shape[1]
    at = width * (0.5 + 0.4 * np.sin(2 * np.pi * seconds / _SWEEP))
    x = np.arange(width) + 0.5
    picture = np.where((x < at)[None, :, None], before, after)
    picture[:, np.abs(x - at) <= max(0.5, width * _LINE)] = 255
    return picture
