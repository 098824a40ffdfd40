"""Images on disk through the fixer: each with its references, checked, and with its confidence where asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from difixcli.enhancement.enhance import checked_size
from difixcli.enhancement.sequence import resized, shrunk
from difixcli.enhancement.video import is_video
from difixcli.errors import InputError, near
from difixcli.evaluation.pictures import CONFIDENCE, image_files
from difixcli.runs import IMAGE_SUFFIXES, make_folder, read_image, write_image
from difixcli.scenes import load_photo, nearest_cameras
from difixcli.scenes.loading import natural_order
from difixcli.scenes.scene import Scene

if TYPE_CHECKING:
    from difixcli.fixer import Fixer

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
RELEASE_SIZE = (576, 1024)  # height and width to which Difix3D's release resizes whatever it is given
# Images of one size that a GPU fixes at once; a CPU gains nothing from more than one.
_BATCH = {"cuda": 4}
_SMALLEST = 16  # pixels: optical flow and the networks' lowest level need something to look at
_PHOTOS_HELD = 16


@dataclass(frozen=True)
class FixOptions:
    """How images are fixed. `size`: long side to shrink larger ones to. `release_resize`: work at 1024×576 whatever
    the image, and resize back, as Difix3D's release does. `confidence`: also write NAME.confidence.png. `fill_seed`:
    seed of the noise that takes the place of transparent pixels, or None for none (networks with raw references).
    """

    size: int | None = None
    release_resize: bool = False
    confidence: bool = False
    fill_seed: int | None = None


class ReferenceChoice(Protocol):
    """Which photos stand beside an image."""

    def beside(self, path: Path, size: tuple[int, int]) -> list[np.ndarray]:
        """Photos (height, width, 3) for the image in this file, at `size` (height, width)."""


class SamePhotos:
    """The same photos beside every image, in the order given."""

    def __init__(self, paths: Sequence[Path]) -> None:
        for path in paths:
            checked_size(path)
        self._paths = list(paths)
        self._at = lru_cache(2)(self._read)

    def beside(self, path: Path, size: tuple[int, int]) -> list[np.ndarray]:
        return self._at(size)

    def _read(self, size: tuple[int, int]) -> list[np.ndarray]:
        return [resized(read_image(path, upright=True), size) for path in self._paths]


class NearestPhotos:
    """The photos of a scene nearest by pose to the frame that an image's name says it shows, never that frame's own.

    Raises InputError for images that are named like no frame of the scene.
    """

    def __init__(self, scene: Scene, images: Sequence[Path], count: int) -> None:
        self._scene = scene
        frames: dict[str, int] = {}
        shared: set[str] = set()  # a rig's cameras often number their photos alike
        for i, frame in enumerate(scene.frames):
            stem = Path(frame.name).stem
            shared |= {stem} & frames.keys()
            frames[stem] = i
        frames |= {name: i for i, name in enumerate(scene.file_names)}
        shared -= set(scene.file_names)
        self._nearest: dict[Path, list[int]] = {}
        cameras = [frame.camera for frame in scene.frames]
        for path in images:
            if path.stem not in frames:
                close = near(path.stem, frames)
                hint = f" (did you mean {' or '.join(close)}?)" if close else ""
                raise InputError(
                    f"{path.name} is named like no frame of the scene {scene.name}{hint}, so its pose is not known; "
                    "name it after its frame, or give photos with --reference."
                )
            own = frames[path.stem]
            if path.stem in shared:
                raise InputError(
                    f"{path.name} is named like several frames of the scene {scene.name}; name it after the one it "
                    f"shows with its folder, as {scene.file_names[own]}."
                )
            nearest = nearest_cameras(cameras[own], cameras, min(count + 1, len(cameras)))
            self._nearest[path] = [i for i in nearest if i != own][:count]
        self._photo = lru_cache(_PHOTOS_HELD)(lambda i, size: resized(load_photo(scene.frames[i]), size))

    def names(self, path: Path) -> list[str]:
        """The frames beside an image, nearest first."""
        return [self._scene.frames[i].name for i in self._nearest[path]]

    def beside(self, path: Path, size: tuple[int, int]) -> list[np.ndarray]:
        return [self._photo(i, size) for i in self._nearest[path]]


def images_to_fix(source: Path, output: Path) -> list[Path]:
    """The image, or the images of a folder in natural order, once their headers are known to be whole.

    Raises InputError naming what is missing, broken, too small, no image, or would be written over.
    """
    if not source.exists():
        raise InputError(f"There is no image or folder {source}; check its name.")
    if source.is_file():
        if is_video(source):
            raise InputError(f"{source} is a video; use difix enhance for it.")
        if source.suffix.lower() not in IMAGE_SUFFIXES:
            raise InputError(f"{source} is no image that difix knows; convert it to PNG.")
        files = [source]
    else:
        files = sorted(image_files(source), key=lambda path: (natural_order(path.stem), path.name))
    if output.expanduser().resolve() == files[0].parent.resolve():
        raise InputError(f"{output} holds the images themselves; choose another --output.")
    stems: dict[str, Path] = {}
    for path in files:
        width, height = checked_size(path)
        if min(width, height) < _SMALLEST:
            raise InputError(f"{path} is {width}×{height} pixels; the fixer needs {_SMALLEST}×{_SMALLEST} at least.")
        if path.stem in stems:
            raise InputError(f"{source} holds {stems[path.stem].name} and {path.name}; keep one image of that name.")
        stems[path.stem] = path
    return files


def has_alpha(path: Path) -> bool:
    """Whether an image's header says that pixels may be transparent."""
    from PIL import Image

    with Image.open(path) as image:
        return "A" in image.getbands() or "transparency" in image.info


def fix_images(
    files: Sequence[Path],
    output: Path,
    fixer: Fixer,
    references: ReferenceChoice,
    options: FixOptions,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Fix images into `output`/NAME.png, and their confidence into `output`/NAME.confidence.png where it is asked for.

    Images that `output` already holds are kept, so the folder must be new or this very run's (`Run.open` sees to
    that); each is written whole or not at all. An image's transparency is taken for the render's opacity.

    Returns {"frames": how many, "kept": how many of them an earlier call had made, "bad": the names of fixes that are
    broken (see `bad_fixes`), "seconds_per_frame": of those made now, or None, "output": the folder}.
    Raises InputError naming the file that is broken.
    """
    make_folder(output)
    todo = [path for path in files if not all(target.exists() for target in _targets(output, path, options))]
    made, seconds = 0, 0.0
    with progress("fix", len(files)) if progress else nullcontext(lambda done: None) as update:
        done = len(files) - len(todo)
        update(done)
        for batch in _batches(todo, options, _BATCH.get(fixer.device.type, 1)):
            begun = time.monotonic()
            _fix_batch(fixer, batch, output, references, options)
            seconds += time.monotonic() - begun
            made += len(batch)
            update(done + made)
    bad = [path.stem for path in files if _is_bad(path, output, options)]
    return {
        "frames": len(files),
        "kept": len(files) - made,
        "bad": bad,
        "seconds_per_frame": round(seconds / made, 4) if made else None,
        "output": str(output),
    }


def _targets(output: Path, path: Path, options: FixOptions) -> list[Path]:
    """What is written for an image, the fix last."""
    fixed = output / f"{path.stem}.png"
    return [output / f"{path.stem}{CONFIDENCE}", fixed] if options.confidence else [fixed]


def _read(path: Path, options: FixOptions) -> tuple[np.ndarray, np.ndarray | None]:
    """(H, W, 3) before black as renders are, and (H, W) opacity if the image has any, at the size to work at."""
    image = shrunk(read_image(path, alpha=True, upright=True), options.size)
    color, opacity = image[..., :3] * image[..., 3:], image[..., 3]
    return color, None if bool((opacity == 1).all()) else opacity


_Read = tuple[Path, np.ndarray, np.ndarray | None]


def _batches(paths: Sequence[Path], options: FixOptions, most: int) -> Iterator[list[_Read]]:
    """Neighbouring images of one size, all with opacity or all without."""
    batch: list[_Read] = []
    for path in paths:
        color, opacity = _read(path, options)
        alike = batch and batch[0][1].shape == color.shape and (batch[0][2] is None) == (opacity is None)
        if batch and (not alike or len(batch) == most):
            yield batch
            batch = []
        batch.append((path, color, opacity))
    if batch:
        yield batch


def _fix_batch(
    fixer: Fixer, batch: Sequence[_Read], output: Path, references: ReferenceChoice, options: FixOptions
) -> None:
    import torch

    from difixcli.fixer.alignment import register_references
    from difixcli.fixer.confidence import fix_confidence

    whole = batch[0][1].shape[:2]
    size = RELEASE_SIZE if options.release_resize else whole
    images = torch.stack([_planar(_lanczos(color, size)) for _, color, _ in batch])
    opacity = None
    if batch[0][2] is not None:
        opacity = torch.stack([_planar(resized(alpha, size)[..., None]) for *_, alpha in batch if alpha is not None])
    photos = [references.beside(path, whole) for path, *_ in batch]
    beside, visibility = None, None
    if photos[0]:
        beside = torch.stack([torch.stack([_planar(_lanczos(photo, size)) for photo in row]) for row in photos])
        if fixer.config.references == "aligned":
            beside, visibility = register_references(images, beside)
    fixed = fixer(images, beside, opacity, visibility, options.fill_seed)
    confidence = None
    if options.confidence:
        second = fixer.second_opinion(images, beside, opacity, visibility, options.fill_seed)
        confidence = fix_confidence(images, fixed, opacity, second)
    for i, (path, *_) in enumerate(batch):
        *sure, target = _targets(output, path, options)
        if confidence is not None:
            write_image(sure[0], resized(confidence[i, 0].numpy(), whole))
        write_image(target, _lanczos(fixed[i].permute(1, 2, 0).nan_to_num(0).numpy(), whole))


def _is_bad(path: Path, output: Path, options: FixOptions) -> bool:
    """Whether the fix on disk is broken, so that a resumed run counts those of before too."""
    import torch

    from difixcli.fixer.confidence import bad_fixes

    color, alpha = _read(path, options)
    fixed = read_image(output / f"{path.stem}.png")
    opacity = None if alpha is None else torch.from_numpy(np.ascontiguousarray(alpha))[None, None]
    return bool(bad_fixes(_planar(color)[None], _planar(fixed)[None], opacity)[0])


def _lanczos(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The image (H, W, 3) in [0, 1] at (height, width) by Pillow's Lanczos filter, with which the release resizes."""
    from PIL import Image

    if image.shape[:2] == size:
        return image
    pixels = Image.fromarray((np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8))
    return np.asarray(pixels.resize((size[1], size[0]), Image.Resampling.LANCZOS), dtype=np.float32) / 255


def _planar(image: np.ndarray):  # type: ignore[no-untyped-def]
    """(H, W, C) numpy → (C, H, W) tensor."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32))
