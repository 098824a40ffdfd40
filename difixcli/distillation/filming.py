"""What the video prior is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from difixcli.errors import InputError

NO_CLOUD = "none"
"""In place of a point cloud: the scene's own seed points, and no other structure."""

FRAMES = {"cpu": 8, "gpu": 32}
"""Pictures from one photo to the next, both ends among them; ReconX's are 32."""

LEAST_FRAMES = 3
MOST_FRAMES = 1000  # all of a way's are held at once


@dataclass(frozen=True)
class Filming:
    """How the ways between photos are filmed.

    `points` is where the point cloud comes from: `auto`, `none`, or a file. `video` names the video model, `frames` is
    how many pictures there are from one photo to the next, both ends among them.
    """

    points: str
    video: str
    frames: int


def make_filming(preset: str, points: str | None, video: str | None, frames: int | None) -> Filming:
    """What was asked for, with the preset's defaults in place of what was not."""
    check_frames(frames)
    return Filming(points or "auto", video or "bundled", frames or FRAMES[preset])


def check_frames(frames: int | None) -> None:
    """Raises InputError for too few pictures to show anything between two photos, and for absurdly many."""
    if frames is not None and frames > MOST_FRAMES:
        raise InputError(
            f"--frames {frames} is more than a film between two photos may have; ask for {MOST_FRAMES}, or fewer."
        )
    if frames is not None and frames < LEAST_FRAMES:
        raise InputError(
            f"--frames {frames} shows nothing between two photos, which are the first picture and the last; ask for "
            f"{LEAST_FRAMES} or more."
        )
