"""A folder of images through the fixer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from difixcli.errors import InputError
from difixcli.frames.pictures import read_picture
from difixcli.frames.pipeline import FrameOptions, FramePipeline, is_bad
from difixcli.frames.references import ReferencePhotos
from difixcli.frames.writing import write_frames
from difixcli.runs import Progress

if TYPE_CHECKING:
    from difixcli.fixer import Fixer


def fix_images(
    files: Sequence[Path],
    output: Path,
    fixer: Fixer,
    references: ReferencePhotos,
    options: FrameOptions | None = None,
    size: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Fix images into `output`/NAME.png, and their confidence into `output`/NAME.confidence.png where it is asked for.

    Images that `output` already holds are kept, so the folder must be new or this very run's (`Run.open` sees to
    that); each is written whole or not at all. An image's transparency is taken for the render's opacity. `size` is
    the long side to work at; larger images are shrunk to it.

    Returns {"frames": how many, "kept": how many of them an earlier call had made, "bad": the names of fixes that are
    broken (see `bad_fixes`), "references": names of the photos beside each image, nearest first, "seconds_per_frame":
    of those made now, or None, "output": the folder}. Raises InputError for images that cannot be read, once all others
    are fixed.
    """
    pipeline = FramePipeline(fixer, references, options)
    unreadable: dict[str, InputError] = {}
    done = write_frames(
        [pipeline.shot(path.stem, partial(read_picture, path, size)) for path in files],
        len(files),
        output,
        pipeline.fix,
        pipeline.pace,
        pipeline.alike,
        pipeline.options.confidence,
        told=lambda prepared, color: prepared.names,
        broken=is_bad,
        unreadable=unreadable,
        progress=progress,
    )
    if unreadable:
        first, *others = unreadable.values()
        more = f" {len(others)} more cannot be read either." if others else ""
        raise InputError(
            f"{first}{more} All others are fixed ({len(files) - len(unreadable)} of {len(files)}), in {output}; what "
            "you restore, fix by itself."
        )
    # of those of before too; nothing on disk says which stood beside them
    beside = {path.stem: done.told.get(path.stem) or _beside(path, pipeline, size) for path in files}
    return {
        "frames": done.frames,
        "kept": done.kept,
        "bad": list(done.broken),
        "references": {name: list(names) for name, names in beside.items()},
        "seconds_per_frame": done.seconds_per_frame,
        "output": str(output),
    }


def _beside(path: Path, pipeline: FramePipeline, size: int | None) -> Sequence[str]:
    """The photos beside an image that is fixed already."""
    if not pipeline.references:
        return ()
    return pipeline.references.chosen(path.stem, read_picture(path, size).color)
