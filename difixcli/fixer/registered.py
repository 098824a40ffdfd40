"""Photos registered to images, given out window by window: of large ones none need be there whole in float numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from difixcli.fixer.alignment import Match, match
from difixcli.fixer.tiling import Window
from difixcli.images import averaged


class RegisteredPhotos:
    """What `Fixer` takes in place of aligned references and their visibility, of a batch of images (B, 3, H, W).

    `photos` are those of each image, V of them: (h, w, 3) uint8 or float32 in [0, 1], of any size; `matches` say where
    in them the image's pixels lie. Made by `register_photos`.
    """

    def __init__(
        self, photos: Sequence[Sequence[np.ndarray]], matches: Sequence[Sequence[Match]], mirrored: bool = False
    ) -> None:
        self._photos, self._matches, self._mirrored = photos, matches, mirrored

    def __len__(self) -> int:
        return len(self._matches)

    def __getitem__(self, i: int) -> RegisteredPhotos:
        """Those of the i-th image alone."""
        return RegisteredPhotos([self._photos[i]], [self._matches[i]], self._mirrored)

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """(B, V, 3, H, W), of the tensor that they stand for."""
        return len(self), len(self._matches[0]), 3, *self._matches[0][0].size

    @classmethod
    def joined(cls, parts: Sequence[RegisteredPhotos]) -> RegisteredPhotos:
        """Those of several images of one size, none of them mirrored, as one batch."""
        return cls([p for part in parts for p in part._photos], [m for part in parts for m in part._matches])

    def mirrored(self) -> RegisteredPhotos:
        """The same for the mirrored images."""
        return RegisteredPhotos(self._photos, self._matches, not self._mirrored)

    def visibility(self) -> Tensor:
        """(B, V, 1, h', w') in [0, 1], at the size at which flow looked at the images."""
        seen = torch.stack([torch.stack([found.visible for found in row]) for row in self._matches])[:, :, None]
        return seen.flip(-1) if self._mirrored else seen

    def cut(self, window: Window, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """The aligned references in a window of the images (B, V, 3, H, W), and their visibility (B, V, 1, H, W)."""
        width = self._matches[0][0].size[1]
        if self._mirrored:
            window = window._replace(left=width - window.left - window.width)
        batch, views, *_ = self.shape
        pairs = [p for row in zip(self._photos, self._matches, strict=True) for p in zip(*row, strict=True)]
        parts = [_cut(photo, found, window, torch.device(device)) for photo, found in pairs]
        aligned, seen = (torch.stack(values).unflatten(0, (batch, views)) for values in zip(*parts, strict=True))
        seen = seen[:, :, None]
        return (aligned.flip(-1), seen.flip(-1)) if self._mirrored else (aligned, seen)

    def small(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """The aligned references of whole images (B, V, 3, h', w') and their visibility (B, V, 1, h', w'), at the size
        at which flow looked at the images.
        """
        rows = zip(self._photos, self._matches, strict=True)
        found = [[_small(*one, torch.device(device)) for one in zip(*row, strict=True)] for row in rows]
        aligned = torch.stack([torch.stack(row) for row in found])
        return aligned.flip(-1) if self._mirrored else aligned, self.visibility().to(aligned)


def register_photos(image: Tensor, photos: Iterable[np.ndarray]) -> RegisteredPhotos:
    """Register photos (h, w, 3), uint8 or in [0, 1], at least one, to one image (1, 3, H, W), uint8 or in [0, 1], of
    unknown pose (see `alignment.match`).
    """
    kept, matches = [], []
    for photo in photos:
        kept.append(photo)
        planes = torch.from_numpy(np.ascontiguousarray(photo.transpose(2, 0, 1))).to(image.device)
        matches.append(match(image[0], planes))
    return RegisteredPhotos([kept], [matches])


def _planes(pixels: np.ndarray, device: torch.device) -> Tensor:
    """(h, w, 3), uint8 or in [0, 1] → (3, h, w) in [0, 1]."""
    planes = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).to(device)
    return planes.float().div_(255) if pixels.dtype == np.uint8 else planes.float()


def _cut(photo: np.ndarray, found: Match, window: Window, device: torch.device) -> tuple[Tensor, Tensor]:
    """One photo in a window: (3, H, W) and (H, W)."""
    size = (photo.shape[0], photo.shape[1])
    part = found.part(window, size)
    pixels = _planes(photo[part.top : part.top + part.height, part.left : part.left + part.width], device)
    moved = Match(found.size, found.shift.to(device), found.visible.to(device), found.span)
    return moved.sampled(pixels, window, part, size)


def _small(photo: np.ndarray, found: Match, device: torch.device) -> Tensor:
    """One whole photo at the size at which flow looked: (3, h', w')."""
    size = (found.visible.shape[0], found.visible.shape[1])
    planes = torch.from_numpy(np.ascontiguousarray(photo.transpose(2, 0, 1))).to(device)
    moved = Match(size, found.shift.to(device, torch.float32), found.visible.to(device, torch.float32), 1.0)
    return moved.sampled(averaged(planes[None], size)[0], Window(0, 0, *size))[0]
