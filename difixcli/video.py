"""Reading videos, one frame in memory at a time; FFmpeg comes with the package imageio-ffmpeg."""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from difixcli.errors import InputError
from difixcli.runs import unreadable


@dataclass(frozen=True)
class Video:
    """A video file being read: frames a second, about how many frames, and the frames one by one.

    The frames are (H, W, 3) uint8 RGB, upright; they can be taken once.
    """

    fps: float
    length: int
    frames: Generator[np.ndarray, None, None]


def read_video(path: Path, options: Sequence[str] = ()) -> Video:
    """Open a video, with FFmpeg's `options` on what it gives out.

    Raises InputError, here or at the broken frame, when it cannot be read.
    """
    import imageio_ffmpeg

    try:
        with path.open("rb"):  # FFmpeg does not say why it cannot
            pass
    except OSError as error:
        raise unreadable(path, error) from error
    # of a phone's video, which FFmpeg turns upright, it says that the frames lie otherwise than in the file
    logging.getLogger("imageio_ffmpeg").setLevel(logging.ERROR)
    reader = imageio_ffmpeg.read_frames(str(path), output_params=list(options))
    try:
        facts = next(reader)
    except (OSError, RuntimeError, StopIteration) as error:
        raise _unreadable(path) from error
    width, height = facts["size"]
    if not (width and height and facts["fps"] > 0):
        reader.close()
        raise _unreadable(path)  # sound alone, or a header without a picture

    def frames() -> Generator[np.ndarray, None, None]:
        try:
            for data in reader:
                yield np.frombuffer(data, np.uint8).reshape(height, width, 3)
        except (OSError, RuntimeError) as error:
            raise _unreadable(path) from error
        finally:
            reader.close()

    return Video(float(facts["fps"]), max(round(facts["duration"] * facts["fps"]), 1), frames())


def _unreadable(path: Path) -> InputError:
    return InputError(f"{path} cannot be read as a video; restore it, or give a folder of its frames.")
