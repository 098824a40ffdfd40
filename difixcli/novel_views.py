"""A scene's few photos before the view-conditioned networks: from a camera to EFT's picture, a sample, and x̂₀."""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch

from difixcli.images import as_pixels, as_planes, resized, resized_to
from difixcli.priors.view_diffusion.views import InputViews, Pinhole
from difixcli.scenes import load_mask, load_photo
from difixcli.scenes.scene import Camera, Scene

if TYPE_CHECKING:
    from difixcli.priors.view_diffusion.model import Condition, ViewDiffusion

_CONDITIONS_HELD = 512  # of a view of 96 pixels one is half a megabyte


class NovelViews:
    """What the networks make of any camera, given the photos `train` of a scene.

    They look at photos and make views at the long side that they were trained at; pictures come back at the camera's
    size. Photos' masks count. What photos say of a camera is found once and kept.
    """

    def __init__(self, network: ViewDiffusion, scene: Scene, train: Sequence[int]) -> None:
        self._network = network
        self._views = input_views(scene, train, network.size)
        self._condition = lru_cache(_CONDITIONS_HELD)(self._conditioned)

    def epipolar(self, camera: Camera) -> np.ndarray:
        """EFT's picture of a camera, (H, W, 3) float32 in [0, 1]."""
        return _at_size(self._condition(_key(camera)).picture, camera)

    def sample(self, camera: Camera, seed: int, steps: int = 25) -> np.ndarray:
        """A view drawn from p(x | π, C) by DDIM, (H, W, 3) float32 in [0, 1]."""
        return _at_size(self._network.sample(self._condition(_key(camera)), seed, steps), camera)

    def denoised(
        self, camera: Camera, render: np.ndarray, level: float, seed: int, steps: int
    ) -> tuple[np.ndarray, float]:
        """x̂₀ of a camera's render (H, W, 3) that is noised to `level` of the schedule, and ᾱ of it.

        `steps` is how many PLMS steps a whole schedule would have; 1 is a single prediction. x̂₀ has the networks' size
        and is float32 in [0, 1] (see `shown`).
        """
        condition = self._condition(_key(camera))
        small = resized(np.ascontiguousarray(render, np.float32), condition.width, condition.height)
        picture, alpha = self._network.denoise(as_planes(small)[0], condition, level, seed, steps=steps)
        return as_pixels(picture[None]), alpha

    def _conditioned(self, key: tuple[float, ...]) -> Condition:
        return self._network.condition(self._views, _pinhole(key, self._network.size))


def input_views(scene: Scene, train: Sequence[int], size: int) -> InputViews:
    """The photos `train` of a scene as the networks take them: in the most frequent of their sizes, `size` pixels on
    the long side, with the seed points that these photos saw.
    """
    frames = [scene.frames[i] for i in train]
    (width, height), _ = Counter((frame.camera.width, frame.camera.height) for frame in frames).most_common(1)[0]
    scale = size / max(width, height)
    width, height = max(1, round(width * scale)), max(1, round(height * scale))
    cameras = [frame.camera.resized(width, height) for frame in frames]
    images, masks = [], []
    for frame in frames:
        mask = load_mask(frame)
        images.append(as_planes(resized_to(load_photo(frame), (height, width)))[0])
        kept = np.ones((height, width, 1), np.float32)
        if mask is not None:
            # a pixel counts when all that it is made of does
            kept = (resized_to(mask.astype(np.float32), (height, width))[..., None] > 0.999).astype(np.float32)
        masks.append(as_planes(kept)[0])
    known = scene.known_to(train).points
    return InputViews(
        images=torch.stack(images),
        intrinsics=torch.stack([torch.from_numpy(camera.intrinsics).float() for camera in cameras]),
        poses=torch.stack([torch.from_numpy(camera.camera_to_world).float() for camera in cameras]),
        masks=torch.stack(masks),
        points=torch.from_numpy(np.asarray(known, np.float32)) if len(known) else None,
    )


def shown(picture: np.ndarray, camera: Camera) -> np.ndarray:
    """A picture (h, w, 3) of the networks' size at the camera's, (H, W, 3) float32 in [0, 1]."""
    return resized_to(np.ascontiguousarray(picture, np.float32), (camera.height, camera.width))


def view_seed(seed: int, name: str) -> int:
    """The seed of what is random about the view called `name`."""
    return seed ^ zlib.crc32(os.fsencode(name))


def _at_size(picture: torch.Tensor, camera: Camera) -> np.ndarray:
    return shown(as_pixels(picture[None]), camera)


def _key(camera: Camera) -> tuple[float, ...]:
    """All there is of a camera, hashable."""
    lens = (camera.fx, camera.fy, camera.cx, camera.cy, float(camera.width), float(camera.height))
    return (*lens, *camera.camera_to_world.ravel().tolist())


def _pinhole(key: tuple[float, ...], size: int) -> Pinhole:
    fx, fy, cx, cy, width, height, *pose = key
    camera = Camera(np.array(pose).reshape(4, 4), fx, fy, cx, cy, int(width), int(height))
    scale = size / max(camera.width, camera.height)
    camera = camera.resized(max(1, round(camera.width * scale)), max(1, round(camera.height * scale)))
    return Pinhole(
        torch.from_numpy(camera.intrinsics).float(),
        torch.from_numpy(camera.camera_to_world).float(),
        camera.height,
        camera.width,
    )
