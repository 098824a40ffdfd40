"""Images through the fixer: each with its references, and with its confidence where asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from difixcli.enhancement.images import Picture, read_picture, resized
from difixcli.enhancement.references import Photos, ReferencePhotos
from difixcli.errors import InputError
from difixcli.evaluation.pictures import CONFIDENCE
from difixcli.runs import Progress, make_folder, read_image, write_image

if TYPE_CHECKING:
    from torch import Tensor

    from difixcli.fixer import Fixer

RELEASE_SIZE = (576, 1024)  # height and width to which Difix3D's release resizes whatever it is given
# Images of one size that a GPU fixes at once; a CPU gains nothing from more than one.
_BATCH = {"cuda": 4}


@dataclass(frozen=True)
class FixOptions:
    """How images are fixed. `release_resize`: work at 1024×576 whatever the image, and resize back, as Difix3D's
    release does. `confidence`: also say how far each pixel is to be trusted. `fill_seed`: seed of the noise that takes
    the place of transparent pixels, or None for none (networks with raw references).
    """

    release_resize: bool = False
    confidence: bool = False
    fill_seed: int | None = None


@dataclass(frozen=True, eq=False)
class Fix:
    """The clean `color` (H, W, 3) of an image, and its `confidence` (H, W), or None where none was asked for."""

    color: np.ndarray
    confidence: np.ndarray | None = None


def fix_pictures(
    fixer: Fixer,
    pictures: Sequence[Picture],
    references: Sequence[Sequence[np.ndarray] | Photos],
    options: FixOptions | None = None,
) -> list[Fix]:
    """Clean views of images of one size, all with opacity or all without, each with photos beside it.

    `references` are photos (H, W, 3) for each image, of its size, as many for one as for another, whose poses nobody
    knows. Fixers that want aligned references get them registered by optical flow, with what flow finds believable as
    their visibility. Raises ValueError where one image has more of them than another.
    """
    import torch

    from difixcli.fixer.confidence import fix_confidence

    options = options or FixOptions()
    whole = (pictures[0].color.shape[0], pictures[0].color.shape[1])
    size = RELEASE_SIZE if options.release_resize else whole
    images = torch.stack([_planar(_lanczos(picture.color, size)) for picture in pictures])
    opacity = None
    if pictures[0].opacity is not None:
        held = [picture.opacity for picture in pictures if picture.opacity is not None]
        opacity = torch.stack([_planar(resized(alpha, size)[..., None]) for alpha in held])
    beside, visibility = _beside(fixer, images, references)
    fixed = fixer(images, beside, opacity, visibility, options.fill_seed)
    sure = None
    if options.confidence:
        second = fixer.second_opinion(images, beside, opacity, visibility, options.fill_seed)
        sure = fix_confidence(images, fixed, opacity, second)
    return [
        Fix(
            _lanczos(fixed[i].permute(1, 2, 0).float().nan_to_num(0).cpu().numpy(), whole),
            None if sure is None else resized(sure[i, 0].numpy(), whole),
        )
        for i in range(len(pictures))
    ]


def _beside(
    fixer: Fixer, images: Tensor, references: Sequence[Sequence[np.ndarray] | Photos]
) -> tuple[Tensor | None, Tensor | None]:
    """References (B, V, 3, H, W) for images (B, 3, H, W) as the fixer wants them; the visibility of aligned ones."""
    from difixcli.fixer.alignment import register_references

    batch, views = len(references), len(references[0])
    if any(len(photos) != views for photos in references):
        raise ValueError("every image of a batch needs as many references as the others")
    if not views:
        return None, None
    size = (images.shape[-2], images.shape[-1])
    aligned = fixer.config.references == "aligned"
    beside = images.new_zeros((batch, views, *images.shape[1:]))
    visibility = images.new_zeros((batch, views, 1, *size)) if aligned else None
    for b, photos in enumerate(references):
        for v, photo in enumerate(photos):  # one after another: of a large image not all can be there twice
            beside[b, v] = _planar(_lanczos(photo, size))
            if visibility is not None:
                registered, seen = register_references(images[b : b + 1], beside[b : b + 1, v : v + 1])
                beside[b, v], visibility[b, v] = registered[0, 0], seen[0, 0]
    return beside, visibility


def fix_images(
    files: Sequence[Path],
    output: Path,
    fixer: Fixer,
    references: ReferencePhotos,
    options: FixOptions | None = None,
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
    options = options or FixOptions()
    make_folder(output)
    for stale in output.glob(".*.part"):  # of a process that was killed while it wrote
        stale.unlink()
    todo = [path for path in files if not all(target.exists() for target in _targets(output, path, options))]
    seconds = 0.0
    unreadable: dict[Path, InputError] = {}
    bad: set[Path] = set()
    beside: dict[Path, list[str]] = {}
    with _bar(progress, "fix", len(todo)) as update:
        for batch in _batches(todo, size, _BATCH.get(fixer.device.type, 1), unreadable):
            begun = time.monotonic()
            pictures = [picture for _, picture in batch]
            photos = [references.beside(path.stem, picture.color) for path, picture in batch]
            made = fix_pictures(fixer, pictures, photos, options)
            for (path, picture), chosen, fixed in zip(batch, photos, made, strict=True):
                if fixed.confidence is not None:
                    write_image(_targets(output, path, options)[0], fixed.confidence)
                write_image(_targets(output, path, options)[-1], fixed.color)
                beside[path] = [references.names[i] for i in chosen.indices]
                if _is_bad(picture, _of_eight_bits(fixed.color)):
                    bad.add(path)
            seconds += time.monotonic() - begun
            update(len(beside) + len(unreadable))
    fixed_now = len(beside)
    # of those of before too; nothing on disk says what was found of them
    with _bar(progress, "check", len(files) - len(todo)) as update:
        for done, path in enumerate(sorted(set(files) - set(todo)), start=1):
            picture = read_picture(path, size)
            beside[path] = references.chosen(path.stem, picture.color)
            if _is_bad(picture, read_image(output / f"{path.stem}.png")):
                bad.add(path)
            update(done)
    if unreadable:
        first, *others = unreadable.values()
        raise InputError(
            f"{first} {f'{len(others)} more cannot be read either. ' if others else ''}All others are "
            f"fixed ({len(beside)} of {len(files)}), in {output}; what you restore, fix by itself."
        )
    return {
        "frames": len(files),
        "kept": len(files) - fixed_now,
        "bad": [path.stem for path in files if path in bad],
        "references": {path.stem: beside[path] for path in files},
        "seconds_per_frame": round(seconds / fixed_now, 4) if fixed_now else None,
        "output": str(output),
    }


def _targets(output: Path, path: Path, options: FixOptions) -> list[Path]:
    """What is written for an image, the fix last."""
    fixed = output / f"{path.stem}.png"
    return [output / f"{path.stem}{CONFIDENCE}", fixed] if options.confidence else [fixed]


def _bar(progress: Progress | None, label: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
    """A progress bar, if there is anything to do."""
    return progress(label, total) if progress and total else nullcontext(lambda done: None)


def _batches(
    paths: Sequence[Path], size: int | None, most: int, unreadable: dict[Path, InputError]
) -> Iterator[list[tuple[Path, Picture]]]:
    """Neighbouring images of one size, all with opacity or all without. Those that are broken go to `unreadable`."""
    batch: list[tuple[Path, Picture]] = []
    for path in paths:
        try:
            picture = read_picture(path, size)
        except InputError as error:
            unreadable[path] = error
            continue
        if batch:
            first = batch[0][1]
            alike = first.color.shape == picture.color.shape and (first.opacity is None) == (picture.opacity is None)
            if not alike or len(batch) == most:
                yield batch
                batch = []
        batch.append((path, picture))
    if batch:
        yield batch


def _of_eight_bits(color: np.ndarray) -> np.ndarray:
    """The image (H, W, 3) as it comes back from a file, so that a later call finds of it what this one does."""
    return (np.clip(color, 0, 1) * 255 + 0.5).astype(np.uint8).astype(np.float32) / 255


def _is_bad(picture: Picture, fixed: np.ndarray) -> bool:
    """Whether a fix (H, W, 3) is broken as a whole."""
    import torch

    from difixcli.fixer.confidence import bad_fixes

    opacity = None if picture.opacity is None else torch.from_numpy(picture.opacity)[None, None]
    return bool(bad_fixes(_planar(picture.color)[None], _planar(fixed)[None], opacity)[0])


def _lanczos(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The image (H, W, 3) in [0, 1] at (height, width) by Pillow's Lanczos filter, with which the release resizes."""
    from PIL import Image

    if image.shape[:2] == size:
        return image
    pixels = Image.fromarray((np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8))
    return np.asarray(pixels.resize((size[1], size[0]), Image.Resampling.LANCZOS), dtype=np.float32) / 255


def _planar(image: np.ndarray) -> Tensor:
    """(H, W, C) numpy → (C, H, W) tensor of its own memory: photos are shared, and read-only."""
    import torch

    return torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1)
