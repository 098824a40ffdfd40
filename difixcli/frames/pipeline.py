"""Images through a fixer: each with its references, and with its confidence where asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from difixcli.frames.pictures import Picture, check_large_enough
from difixcli.frames.references import Photos, ReferencePhotos
from difixcli.frames.stages import Pace
from difixcli.frames.writing import Shot
from difixcli.images import as_floats, as_planes, resized_to
from difixcli.video import Moment

if TYPE_CHECKING:
    from torch import Tensor

    from difixcli.fixer import Fixer
    from difixcli.fixer.registered import RegisteredPhotos

RELEASE_SIZE = (576, 1024)  # height and width to which Difix3D's release resizes whatever it is given


@dataclass(frozen=True)
class FrameOptions:
    """How frames are fixed, by every command alike.

    `release_resize`: work at 1024×576 whatever the image, and resize back, as Difix3D's release does. `confidence`:
    also say how far each pixel is to be trusted. `fill_seed`: seed of the noise that takes the place of transparent
    pixels, or None for none (networks with raw references). `batch`: how many images of one size a device gets at once,
    by default as many as it gains from.
    """

    release_resize: bool = False
    confidence: bool = False
    fill_seed: int | None = None
    batch: int | None = None


@dataclass(frozen=True, eq=False)
class Prepared:
    """An image and what stands beside it, as the fixer takes them: `image` (1, 3, H, W), uint8 or float32 in [0, 1],
    `opacity` (1, 1, H, W) or None, and `references`, raw (1, V, 3, H, W) or registered, or None. `size` is the image's
    own (height, width), `names` are the photos'. `correspondence` (1, V, 3, H, W) says which of the references' places
    the image shows, or None where that is not known or asked for.
    """

    image: Tensor
    opacity: Tensor | None
    references: Tensor | RegisteredPhotos | None
    size: tuple[int, int]
    names: Sequence[str] = ()
    correspondence: Tensor | None = None


class Fix:
    """A clean image on its way back from the device: `color` (H, W, 3) uint8, and `confidence` (H, W, 3) float32
    (see `frames.marks`), or None where none was asked for. Whoever asks first waits.
    """

    def __init__(self, color: Tensor, confidence: Tensor | None, size: tuple[int, int], arrived: Any = None) -> None:
        self._color, self._confidence, self._size, self._arrived = color, confidence, size, arrived

    @property
    def color(self) -> np.ndarray:
        self._wait()
        return _lanczos(self._color.numpy(), self._size)

    @property
    def confidence(self) -> np.ndarray | None:
        self._wait()
        return None if self._confidence is None else resized_to(as_floats(self._confidence.numpy()), self._size)

    def _wait(self) -> None:
        if self._arrived is not None:
            self._arrived.synchronize()


class FramePipeline:
    """The stages of a fix: `prepare` for a thread ahead, `fix` for the device, and what `Fix` waits for behind.

    `references` are the photos of which some stand beside each image, whose poses nobody knows; None for none. Fixers
    that want aligned references get them registered by optical flow; no other fixer pays for it.
    """

    def __init__(
        self, fixer: Fixer, references: ReferencePhotos | None = None, options: FrameOptions | None = None
    ) -> None:
        self.fixer, self.references, self.options = fixer, references, options or FrameOptions()
        self.pace = Pace.on(fixer.device.type, self.options.batch)
        self._pinned = fixer.device.type == "cuda"

    def shot(self, name: str, read: Callable[[], Picture], moment: Moment | None = None) -> Shot:
        """What `write_frames` takes of an image that is read when its turn comes; `moment` is when a film shows it."""
        return Shot(name, lambda: read().color, lambda: self.prepare(name, read()), moment)

    def prepare(self, name: str, picture: Picture) -> Prepared:
        """An image of a name (that of its file, without suffix) with the photos that are to stand beside it."""
        check_large_enough(name, picture.color.shape[1], picture.color.shape[0])
        aligned = self.fixer.config.references == "aligned"
        if self.references is None:
            return self.beside(picture, ())
        photos = self.references.beside(name, picture.color, as_they_are=aligned)
        prepared = self.beside(picture, photos, [self.references.names[i] for i in photos.indices])
        if self.fixer.config.references != "geometry" or not len(photos):
            return prepared
        places = self.references.places(name, photos.indices, (prepared.image.shape[-2], prepared.image.shape[-1]))
        if places is None:
            return prepared
        import torch

        correspondence = torch.from_numpy(places)[None]
        return replace(prepared, correspondence=correspondence.pin_memory() if self._pinned else correspondence)

    def beside(self, picture: Picture, photos: Photos | Sequence[np.ndarray], names: Sequence[str] = ()) -> Prepared:
        """An image with these photos (h, w, 3), of any size, uint8 or in [0, 1], beside it."""
        import torch

        from difixcli.fixer.registered import register_photos

        whole = (picture.color.shape[0], picture.color.shape[1])
        size = RELEASE_SIZE if self.options.release_resize else whole
        image = _planes(_lanczos(picture.color, size))
        opacity = None
        if picture.opacity is not None:
            opacity = torch.from_numpy(np.array(resized_to(picture.opacity, size), np.float32))[None, None]
        references: Tensor | RegisteredPhotos | None = None
        if len(photos) and self.fixer.config.references == "aligned":
            references = register_photos(image, photos)
        elif len(photos):
            # one after another: of a large image not all can be there twice
            references = torch.zeros((1, len(photos), *image.shape[1:]))
            for v, photo in enumerate(photos):
                references[0, v] = as_planes(_lanczos(resized_to(as_floats(photo), whole), size))[0]
        if self._pinned:
            image = image.pin_memory()
            opacity = None if opacity is None else opacity.pin_memory()
            references = references.pin_memory() if isinstance(references, torch.Tensor) else references
        return Prepared(image, opacity, references, whole, names)

    @staticmethod
    def alike(one: Prepared, other: Prepared) -> bool:
        """Whether two images may be fixed at once."""
        counts = [0 if x.references is None else x.references.shape[1] for x in (one, other)]
        return (
            one.image.shape == other.image.shape
            and one.image.dtype == other.image.dtype
            and (one.opacity is None) == (other.opacity is None)
            and (one.correspondence is None) == (other.correspondence is None)
            and counts[0] == counts[1]
        )

    def fix(self, batch: Sequence[Prepared]) -> list[Fix]:
        """Clean views of images that are alike, in [0, 1] and eight bits; what is not a number comes out black."""
        import torch

        from difixcli.fixer.confidence import fix_confidence
        from difixcli.fixer.registered import RegisteredPhotos

        device, seed = self.fixer.device, self.options.fill_seed
        images = _together([x.image for x in batch], device)
        opacity = _together([x.opacity for x in batch if x.opacity is not None], device)
        registered = [x.references for x in batch if isinstance(x.references, RegisteredPhotos)]
        if registered:
            beside: Tensor | RegisteredPhotos | None = RegisteredPhotos.joined(registered)
        else:
            beside = _together([x.references for x in batch if isinstance(x.references, torch.Tensor)], device)
        places = _together([x.correspondence for x in batch if x.correspondence is not None], device)
        assert images is not None
        fixed = self.fixer(images, beside, opacity, None, seed, places)
        sure = None
        if self.options.confidence:
            second = self.fixer.second_opinion(images, beside, opacity, None, seed, places)
            sure = _marked(fix_confidence(images, fixed, opacity, second).float(), beside)
        # eight bits before they leave the device: a quarter of the way
        pixels, sure = _as_bytes(fixed), None if sure is None else _as_bytes(sure)
        arrived = None
        if device.type == "cuda":
            pixels, sure = _sent(pixels), None if sure is None else _sent(sure)
            arrived = torch.cuda.Event()
            arrived.record()
        return [Fix(pixels[i], None if sure is None else sure[i], batch[i].size, arrived) for i in range(len(batch))]


def is_bad(prepared: Prepared, fixed: np.ndarray) -> bool:
    """Whether a fix (H, W, 3) uint8 is broken as a whole (see `bad_fixes`)."""
    from difixcli.fixer.confidence import bad_fixes

    size = (prepared.image.shape[-2], prepared.image.shape[-1])
    return bool(bad_fixes(prepared.image, _planes(_lanczos(fixed, size)), prepared.opacity)[0])


def _planes(pixels: np.ndarray) -> Tensor:
    """(H, W, 3), uint8 or in [0, 1], as a batch of one image (1, 3, H, W), uint8 or float32."""
    import torch

    if pixels.dtype != np.uint8:
        return as_planes(pixels)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None]


def _together(tensors: Sequence[Tensor], device: Any) -> Tensor | None:
    """Tensors (1, …) as one batch on a device; None for none."""
    import torch

    if not tensors:
        return None
    moved = [x.to(device, non_blocking=True) for x in tensors]
    return moved[0] if len(moved) == 1 else torch.cat(moved)


def _marked(trust: Tensor, references: Tensor | RegisteredPhotos | None) -> Tensor:
    """(B, 1, H, W) → (B, 3, H, W), as `frames.marks`. Raw references show nothing of where they were looked at."""
    import torch
    from torch.nn import functional

    from difixcli.fixer.registered import RegisteredPhotos

    known = torch.zeros_like(trust)
    if isinstance(references, RegisteredPhotos):
        seen = references.visibility().amax(1).to(trust)
        known = trust * functional.interpolate(seen, trust.shape[-2:], mode="bilinear").clamp(0, 1)
    return torch.cat([1 - trust, known, trust - known], dim=1)


def _as_bytes(planes: Tensor) -> Tensor:
    """(B, C, H, W) in [0, 1] → (B, H, W, C) uint8; what is no number is 0."""
    import torch

    pixels = torch.empty((planes.shape[0], *planes.shape[2:], planes.shape[1]), dtype=torch.uint8, device=planes.device)
    for channel in range(planes.shape[1]):  # one by one: of a large image no second copy need be there
        values = planes[:, channel].float().nan_to_num(0, 0, 0).clamp_(0, 1).mul_(255).add_(0.5)
        pixels[..., channel] = values
    return pixels


def _sent(values: Tensor) -> Tensor:
    """On its way to the CPU, which nobody waits for yet."""
    import torch

    there = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    return there.copy_(values, non_blocking=True)


def _lanczos(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The image (H, W, 3), uint8 or in [0, 1], at (height, width) by Pillow's Lanczos filter, with which the release
    resizes.
    """
    from PIL import Image

    if image.shape[:2] == size:
        return image
    whole = image.dtype == np.uint8
    pixels = Image.fromarray(image if whole else (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8))
    large = np.asarray(pixels.resize((size[1], size[0]), Image.Resampling.LANCZOS))
    return large if whole else large.astype(np.float32) / 255
