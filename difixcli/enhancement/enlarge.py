"""Images made larger by a super-resolver, each by itself."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from difixcli.errors import InputError
from difixcli.frames.pictures import read_picture
from difixcli.frames.writing import Clean, Shot, write_frames
from difixcli.images import as_bytes, as_floats, as_pixels, as_planes
from difixcli.runs import Progress

if TYPE_CHECKING:
    from difixcli.priors.super_resolution.resolver import SuperResolver

STEPS = 4
"""Denoising steps of a super-resolver that has several, 3DSR's."""


def enlarge_images(
    files: Sequence[Path], output: Path, resolver: SuperResolver, seed: int, size: int | None, progress: Progress
) -> dict[str, Any]:
    """Make images larger, into `output`/NAME.png; those that are there already are kept.

    `size` is the long side at which they are first looked at; larger images are shrunk to it. What is transparent
    comes out before black, as renders are.

    Returns {"frames": how many, "kept": how many of them an earlier call had made, "seconds_per_frame": of those made
    now, or None, "output": the folder}. Raises InputError for images that cannot be read, once all others are made.
    """
    import torch

    from difixcli.priors.super_resolution.resolver import by_itself

    def shot(path: Path) -> Shot:
        def read() -> np.ndarray:
            return read_picture(path, size).color

        return Shot(path.stem, read, lambda: (path.stem, read()))

    def larger(name: str, photo: np.ndarray) -> Clean:
        own = seed ^ zlib.crc32(os.fsencode(name))
        with torch.no_grad():
            image = by_itself(resolver, as_planes(as_floats(photo), resolver.device), STEPS, own)
        return Clean(as_bytes(as_pixels(image)))

    unreadable: dict[str, InputError] = {}
    done = write_frames(
        map(shot, files),
        len(files),
        output,
        lambda named: [larger(*one) for one in named],
        unreadable=unreadable,
        progress=lambda _, total: progress("enlarge", total),
    )
    if unreadable:
        first, *others = unreadable.values()
        more = f" {len(others)} more cannot be read either." if others else ""
        made = len(files) - len(unreadable)
        raise InputError(f"{first}{more} All others are made ({made} of {len(files)}), in {output}.")
    return {
        "frames": done.frames,
        "kept": done.kept,
        "seconds_per_frame": done.seconds_per_frame,
        "output": str(output),
    }
