"""Views of a scene straight from the view-conditioned networks, without any 3D: the baselines EFT and VLDM."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from difixcli.enhancement.sequence import FILM_FILE, Film, make_film
from difixcli.frames.pictures import check_large_enough
from difixcli.frames.writing import Clean, Shot, write_frames
from difixcli.runs import Progress, read_image, write_image
from difixcli.scenes.scene import Camera

if TYPE_CHECKING:
    from difixcli.novel_views import NovelViews

EFT = "eft"
"""The folder, beside the samples, of EFT's pictures."""


def render_novel_views(
    views: Sequence[tuple[str, Camera]],
    output: Path,
    novel: NovelViews,
    seed: int,
    steps: int,
    fps: float | None,
    progress: Progress,
) -> dict[str, Any]:
    """Write for each named camera `output`/NAME.png, drawn from p(x | π, C), and `output`/eft/NAME.png, EFT's picture;
    with `fps`, of a path, also a video of the samples and one of both side by side. Pictures that are there are kept.

    All views of a call begin with the same noise, so that what follows each other differs by its camera alone.

    Returns {"frames", "kept", "seconds_per_frame", "output"} and what `make_film` returns, of nothing without `fps`.
    """

    def before(name: str, camera: Camera) -> np.ndarray:
        path = output / EFT / f"{name}.png"
        if not path.exists():
            write_image(path, novel.epipolar(camera))
        return read_image(path)

    def checked(name: str, camera: Camera) -> tuple[str, Camera]:
        check_large_enough(name, camera.width, camera.height)
        return name, camera

    def shots() -> Iterator[Shot]:
        for name, camera in views:
            yield Shot(name, partial(before, name, camera), partial(checked, name, camera))

    def sampled(batch: list[tuple[str, Camera]]) -> list[Clean]:
        for name, camera in batch:
            before(name, camera)  # on the disk before its sample is
        return [Clean(novel.sample(camera, seed, steps)) for _, camera in batch]

    done = write_frames(shots(), len(views), output, sampled, stale=[output / FILM_FILE], progress=progress)
    made: dict[str, Any] = {}
    if fps is not None and len(done.sizes) == 1:
        made = make_film(shots, done.frames, output, fps, Film(side_by_side=True), measure=False, progress=progress)
    return {
        "frames": done.frames,
        "kept": done.kept,
        "seconds_per_frame": done.seconds_per_frame,
        "output": str(output),
        **{name: made.get(name) for name in ("video", "side_by_side")},
    }
