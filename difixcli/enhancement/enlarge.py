"""Images made larger by a super-resolver, each by itself."""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from difixcli.errors import InputError
from difixcli.frames.pictures import read_picture
from difixcli.images import as_floats, as_pixels, as_planes
from difixcli.runs import Progress, make_folder, write_image

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

    make_folder(output)
    for stale in output.glob(".*.part"):  # of a process that was killed while it wrote
        stale.unlink()
    todo = [path for path in files if not (output / f"{path.stem}.png").exists()]
    unreadable: list[InputError] = []
    begun = time.monotonic()
    with progress("enlarge", max(len(todo), 1)) as update:
        for done, path in enumerate(todo, start=1):
            try:
                photo = as_planes(as_floats(read_picture(path, size).color), resolver.device)
            except InputError as error:
                unreadable.append(error)
            else:
                with torch.no_grad():
                    image = by_itself(resolver, photo, STEPS, seed ^ zlib.crc32(os.fsencode(path.stem)))
                write_image(output / f"{path.stem}.png", as_pixels(image))
            update(done)
    made = len(todo) - len(unreadable)
    if unreadable:
        more = f" {len(unreadable) - 1} more cannot be read either." if len(unreadable) > 1 else ""
        raise InputError(f"{unreadable[0]}{more} All others are made ({made} of {len(files)}), in {output}.")
    return {
        "frames": len(files),
        "kept": len(files) - len(todo),
        "seconds_per_frame": round((time.monotonic() - begun) / made, 4) if made else None,
        "output": str(output),
    }
