"""Which of many photos show what a frame shows, told from small pictures of them: no poses, no network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from difixcli.images import as_floats

_SIZE = 32  # pixels of a small picture's sides
_SHIFT = 10  # pixels of it by which two views of one place may be apart


class SimilarPhotos:
    """Finds, for an image, the most similar of the photos, each reduced when it is taken in; all are (H, W, 3), uint8
    or in [0, 1].

    Similarity is the largest normalised cross-correlation of 32×32 pictures over shifts up to a third of them, so a
    view that has moved on finds its photo, and neither exposure nor tint counts.
    """

    def __init__(self, photos: Iterable[np.ndarray]) -> None:
        self._spectra = np.stack([np.conj(_spectrum(photo)) for photo in photos])  # (N, 3, 2·S, S + 1)

    def similarities(self, image: np.ndarray) -> np.ndarray:
        """(N,) correlation in [-1, 1] of an image with each photo."""
        products = (self._spectra * _spectrum(image)).sum(axis=1)
        by_shift = np.fft.irfft2(products, (2 * _SIZE, 2 * _SIZE))
        near = np.r_[-_SHIFT : _SHIFT + 1]
        return by_shift[:, near[:, None], near[None, :]].max(axis=(1, 2))

    def nearest(self, image: np.ndarray, count: int) -> Sequence[int]:
        """Indices of the (at most) `count` most similar photos, the most similar first; ties by index."""
        # rounded, so that what differs by the order of a sum is a tie
        return [int(i) for i in np.argsort(-np.round(self.similarities(image), 9), kind="stable")[:count]]


def _spectrum(image: np.ndarray) -> np.ndarray:
    """(3, 2·S, S + 1) Fourier coefficients of the small picture, of zero mean and unit length, padded with zeros."""
    import cv2

    # channel by channel: as float numbers a large image is not needed whole
    channels = (as_floats(np.ascontiguousarray(image[..., c])).astype(np.float32, copy=False) for c in range(3))
    small = np.stack([cv2.resize(x, (_SIZE, _SIZE), interpolation=cv2.INTER_AREA) for x in channels])
    small = small - small.mean(axis=(1, 2), keepdims=True)
    small = small / max(float(np.linalg.norm(small)), 1e-6)
    return np.fft.rfft2(small, (2 * _SIZE, 2 * _SIZE))
