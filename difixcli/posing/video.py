"""Which frames of a video to pose: sharp ones that overlap."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from difixcli.errors import InputError
from difixcli.runs import Progress, write_image
from difixcli.video import read_video

STEP = 0.05
"""Median motion from one chosen frame to the next, as a share of the width, where the count allows it."""
LARGEST_STEP = 0.2
"""Motion between chosen frames above which neighbours may share too little to be matched."""
FEWEST = 24
"""A video that moves little still gives as many frames, if it has them."""

_WIDTH = 480  # at which motion and sharpness are measured


def choose_frames(path: Path, count: int, say: Callable[[str], None], progress: Progress) -> list[int]:
    """Numbers (from 0) of at most `count` frames of a video: equally far apart by motion, each the sharpest near its
    place.

    Motion is the median optical flow of corners, added up from frame to frame. Raises InputError when the video cannot
    be read or stands still.
    """
    import cv2

    sharpness: list[float] = []
    travelled = [0.0]
    before: np.ndarray | None = None
    video = read_video(path, _WIDTH)
    for note in video.notes:
        say(note)
    with progress("Looking for sharp frames", video.length) as done:
        for frame in video.frames:
            grey = cv2.cvtColor(frame.image, cv2.COLOR_RGB2GRAY)
            sharpness.append(float(cv2.Laplacian(grey, cv2.CV_32F, ksize=3).var()))
            if before is not None:
                travelled.append(travelled[-1] + _motion(before, grey) / grey.shape[1])
            before = grey
            done(len(sharpness))
    if travelled[-1] < STEP:
        raise InputError(f"The camera of {path} hardly moves; film while walking around the scene, sideways.")
    chosen = frames_apart(np.array(travelled), np.array(sharpness), count)
    if travelled[-1] / len(chosen) > LARGEST_STEP:
        say(
            f"The camera moves {100 * travelled[-1] / len(chosen):.0f} % of the picture's width between chosen frames, "
            "which may be too far to match; allow more with --frames."
        )
    return chosen


def frames_apart(travelled: np.ndarray, sharpness: np.ndarray, count: int) -> list[int]:
    """At most `count` frames, in order, from how far the camera had travelled at each (N,), in widths, and how sharp
    each is (N,).

    The way is cut into equal windows, `STEP` long if `count` allows; from the middle half of each comes the sharpest.
    """
    wanted = round(travelled[-1] / STEP)
    number = max(2, min(count, len(travelled), max(wanted, FEWEST)))
    if number == len(travelled):  # filmed in leaps: none can be spared
        return list(range(number))
    length = travelled[-1] / number
    chosen: list[int] = []
    for window in range(number):
        middle = (travelled >= (window + 0.25) * length) & (travelled <= (window + 0.75) * length)
        near = np.flatnonzero(middle)
        if not len(near):  # a jump over this place: the frame nearest to it
            near = np.array([np.argmin(np.abs(travelled - (window + 0.5) * length))])
        best = int(near[np.argmax(sharpness[near])])
        if best not in chosen:
            chosen.append(best)
    return sorted(chosen)


def write_frames(path: Path, numbers: list[int], folder: Path, done: Callable[[int], None]) -> list[Path]:
    """Write the frames with these numbers (ascending), as large as the video, unless all are there."""
    files = [folder / f"frame_{number:06d}.jpg" for number in numbers]
    if all(file.is_file() for file in files):
        return files
    wanted = dict(zip(numbers, files, strict=True))
    for number, frame in enumerate(read_video(path).frames):
        file = wanted.pop(number, None)
        if file is not None:
            write_image(file, frame.image.astype(np.float32) / 255)
            done(len(files) - len(wanted))
        if not wanted:
            break
    if wanted:
        raise InputError(f"{path} changed while it was being read; run the same line again.")
    return files


def _motion(before: np.ndarray, after: np.ndarray) -> float:
    """Median length in pixels of the optical flow of corners from one grey picture to the next."""
    import cv2

    corners = cv2.goodFeaturesToTrack(before, 200, 0.01, 8)
    if corners is None:
        return 0.0
    moved, found, _ = cv2.calcOpticalFlowPyrLK(before, after, corners, np.zeros_like(corners), maxLevel=4)
    kept = found.ravel() == 1
    if not kept.any():
        return 0.25 * before.shape[1]  # nothing is followed: a cut, or too fast
    return float(np.median(np.linalg.norm((moved - corners).reshape(-1, 2)[kept], axis=1)))
