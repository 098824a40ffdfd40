"""Videos that are made, one frame in memory at a time; FFmpeg comes with the package imageio-ffmpeg."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

import numpy as np

from difixcli.errors import InputError
from difixcli.runs import atomic

_SWEEP = 6.0  # seconds in which a split screen's divider goes to and fro
_LINE = 1 / 400  # of the width: half the divider's


class VideoWriter:
    """`with VideoWriter(path, fps) as video: video.add(image)`: an H.264 MP4, written whole or not at all.

    Images are (H, W, 3) in [0, 1]. H.264 in its common form wants even sides: an odd one is continued by its last row
    or column of pixels. Raises InputError for an image of another size than the first, for no image at all, and when
    FFmpeg cannot write, as on a full disk.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.path, self.fps = path, fps
        self._file = atomic(path)
        self._shape: tuple[int, ...] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> VideoWriter:
        self._temporary = self._file.__enter__()
        self._said = tempfile.TemporaryFile()
        return self

    def add(self, image: np.ndarray) -> None:
        if self._process is None:
            self._shape = image.shape
            self._process = self._begun(image.shape[0], image.shape[1])
        if image.shape != self._shape:
            raise InputError(
                f"A frame of {image.shape[1]}×{image.shape[0]} pixels follows others of another size; the video "
                f"{self.path} needs one size."
            )
        odd = ((0, image.shape[0] % 2), (0, image.shape[1] % 2), (0, 0))
        pixels = (np.clip(np.pad(image, odd, mode="edge"), 0, 1) * 255 + 0.5).astype(np.uint8)
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(pixels.tobytes())
        except OSError:  # it has gone; why stands in what it said
            raise self._failure() from None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failure = None
        try:
            if self._process is None:
                failure = None if kind else InputError(f"There is no frame for the video {self.path}.")
            elif kind is not None:
                self._process.kill()
                self._process.wait()
            else:
                failure = self._finished()
        finally:
            self._said.close()
            self._file.__exit__(kind or (type(failure) if failure else None), error, trace)
        if failure is not None:
            raise failure

    def _begun(self, height: int, width: int) -> subprocess.Popen[bytes]:
        import imageio_ffmpeg

        size = f"{width + width % 2}x{height + height % 2}"
        line = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24"]
        line += ["-s", size, "-r", f"{self.fps:g}", "-i", "-", "-an", "-c:v", "libx264", "-pix_fmt", "yuv420p"]
        line += ["-crf", "17", "-preset", "medium", "-movflags", "+faststart", "-f", "mp4", str(self._temporary)]
        # its own session: an interrupt at the terminal is ours to handle
        return subprocess.Popen(
            line, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=self._said, start_new_session=True
        )

    def _finished(self) -> InputError | None:
        """Wait for the last frames; what went wrong, if anything did."""
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.close()
        except OSError:
            return self._failure()
        return self._failure() if self._process.wait() else None

    def _failure(self) -> InputError:
        assert self._process is not None
        code = self._process.wait()
        self._said.seek(0)
        said = self._said.read().decode(errors="replace").strip().splitlines()
        reason = said[-1] if said else f"FFmpeg ended with code {code}"
        if any("No space left" in line for line in said):
            reason = "no space left on the device"
        return InputError(
            f"The video {self.path} could not be written ({reason}). The frames are kept: make room and run the same "
            "line again."
        )


def side_by_side(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """(H, W, 3) twice → (H, 2·W, 3): before on the left, after on the right."""
    return np.concatenate([before, after], axis=1)


def split_screen(before: np.ndarray, after: np.ndarray, seconds: float) -> np.ndarray:
    """(H, W, 3) twice → (H, W, 3): before left of a white line, after right of it; the line moves to and fro."""
    width = after.shape[1]
    at = width * (0.5 + 0.4 * np.sin(2 * np.pi * seconds / _SWEEP))
    x = np.arange(width) + 0.5
    picture = np.where((x < at)[None, :, None], before, after)
    picture[:, np.abs(x - at) <= max(0.5, width * _LINE)] = 1
    return picture
