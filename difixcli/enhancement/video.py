"""Videos in and out, one frame in memory at a time; FFmpeg comes with the package imageio-ffmpeg."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from difixcli.errors import InputError
from difixcli.runs import atomic, read_image

VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v"})


def is_video(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES


@dataclass(frozen=True)
class Video:
    """A video file being read: frames a second, about how many frames, and the frames one by one.

    The frames are (H, W, 3) float32 RGB in [0, 1]; they can be taken once.
    """

    fps: float
    length: int
    frames: Iterator[np.ndarray]


def read_video(path: Path) -> Video:
    """Open a video; InputError, here or at the broken frame, when it cannot be read."""
    import imageio_ffmpeg

    reader = imageio_ffmpeg.read_frames(str(path))
    try:
        facts = next(reader)
    except (OSError, RuntimeError, StopIteration) as error:
        raise _unreadable(path) from error
    width, height = facts["size"]

    def frames() -> Iterator[np.ndarray]:
        try:
            for data in reader:
                yield np.frombuffer(data, np.uint8).reshape(height, width, 3).astype(np.float32) / 255
        except (OSError, RuntimeError) as error:
            raise _unreadable(path) from error
        finally:
            reader.close()

    return Video(float(facts["fps"]), max(round(facts["duration"] * facts["fps"]), 1), frames())


def write_video(images: Sequence[Path], path: Path, fps: float) -> Path:
    """Write image files of one size as an H.264 MP4, whole or not at all.

    H.264 in its common form wants even sides: an odd one is continued by its last row or column of pixels.
    Raises InputError when an image has another size than the first.
    """
    import imageio_ffmpeg

    height, width = read_image(images[0]).shape[:2]
    odd = ((0, height % 2), (0, width % 2), (0, 0))
    with atomic(path) as temporary:
        writer = imageio_ffmpeg.write_frames(
            str(temporary),
            (width + width % 2, height + height % 2),
            fps=fps,
            codec="libx264",
            quality=None,
            macro_block_size=1,
            output_params=["-crf", "17", "-preset", "medium", "-movflags", "+faststart", "-f", "mp4"],
        )
        writer.send(None)
        try:
            for file in images:
                image = read_image(file)
                if image.shape[:2] != (height, width):
                    raise InputError(f"{file} has another size than {images[0].name}; a video needs one size.")
                pixels = (np.pad(image, odd, mode="edge") * 255 + 0.5).astype(np.uint8)
                writer.send(np.ascontiguousarray(pixels))
        finally:
            writer.close()
    return path


def _unreadable(path: Path) -> InputError:
    return InputError(f"{path} cannot be read as a video; restore it, or give a folder of its frames.")
