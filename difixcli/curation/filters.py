"""Which pairs are not worth training on."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from difixcli.curation.pairs import Pair
from difixcli.scenes import load_photo
from difixcli.scenes.scene import Scene

FAILED_OPACITY = 0.5
"""Mean accumulation, where the photo counts, below which a render shows too little of the scene."""
FAILED_PSNR = 10.0
PERFECT_PSNR = 35.0
BLURRED = 0.25
"""A photo is blurred when its Laplacian's variance is below this share of its scene's median."""


class Filters:
    """The filters of one scene, except those whose pairs are to be kept."""

    def __init__(self, scene: Scene, keep: Collection[str]) -> None:
        self._keep = keep
        self._blurred = set() if "blurred" in keep else blurred_photos(scene)

    def reason(self, pair: Pair) -> str | None:
        """The name of the filter that drops this pair, or None."""
        opacity = pair.render.accumulation
        if pair.mask is not None:  # around an object that was cut out nothing is rendered, rightly
            opacity = opacity[pair.mask]
        failed = opacity.mean() < FAILED_OPACITY or pair.psnr < FAILED_PSNR
        found = {"failed": failed, "perfect": pair.psnr > PERFECT_PSNR, "blurred": pair.frame in self._blurred}
        return next((name for name, yes in found.items() if yes and name not in self._keep), None)


def blurred_photos(scene: Scene) -> set[int]:
    """Indices of the frames whose photos are blurred (Pech-Pacheco et al., ICPR 2000: variance of the Laplacian)."""
    sharpness = np.array([_sharpness(load_photo(frame)) for frame in scene.frames])
    return {int(i) for i in np.flatnonzero(sharpness < BLURRED * np.median(sharpness))}


def _sharpness(photo: np.ndarray) -> float:
    import cv2

    return float(cv2.Laplacian(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY), cv2.CV_32F).var())
