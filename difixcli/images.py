"""Images as arrays and as tensors, their sizes, and optical flow between them.

How a photo is made smaller and larger: one operator is used everywhere that one is needed. The operator that made the
low-resolution photos is what the low-resolution loss, the super-resolvers and the figures of agreement use alike, or a
scene would be taught to undo the difference between two of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from difixcli.errors import InputError, unknown

if TYPE_CHECKING:  # importing torch takes longer than reading a scene
    from torch import Tensor

Operator = Literal["area", "bicubic"]
OPERATORS: tuple[Operator, ...] = get_args(Operator)
_AT_ONCE = 1 << 22  # numbers of an image that are converted together


def check_operator(name: str) -> Operator:
    """Raises InputError for an operator that there is none of."""
    if name not in OPERATORS:
        raise unknown("way of making photos smaller", name, OPERATORS)
    return name


def resized(pixels: np.ndarray, width: int, height: int, operator: Operator = "area") -> np.ndarray:
    """Pixels (H, W) or (H, W, C) float32 at another size, smaller as a rule: (height, width) or (height, width, C).

    Where sides divide it is what `reduced` makes of them, but for rounding.
    """
    if operator == "area":
        import cv2

        return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    import torch
    from torch.nn import functional

    planes = torch.from_numpy(np.ascontiguousarray(np.atleast_3d(pixels))).movedim(-1, 0)[None]
    small = functional.interpolate(planes, size=(height, width), mode="bicubic", antialias=True, align_corners=False)
    return small[0].movedim(0, -1).numpy().reshape(height, width, *pixels.shape[2:])


def reduced(images: Tensor, factor: int, operator: Operator = "area") -> Tensor:
    """Images (B, C, H, W) made smaller by an integer: (B, C, H / factor, W / factor).

    `area` is the mean over blocks of factor × factor pixels, `bicubic` the antialiased one of PIL and of 3DSR's
    release (its values may leave the images' range by a little). Differentiable.
    Raises InputError where a side does not divide by the factor.
    """
    from torch.nn import functional

    height, width = images.shape[-2:]
    if height % factor or width % factor:
        raise InputError(f"An image of {width}×{height} pixels does not divide by {factor}; crop it to multiples.")
    if operator == "area":
        return functional.avg_pool2d(images, factor)
    size = (height // factor, width // factor)
    return functional.interpolate(images, size=size, mode="bicubic", antialias=True, align_corners=False)


def enlarged(images: Tensor, factor: int) -> Tensor:
    """Images (B, C, h, w) made larger by an integer: (B, C, h · factor, w · factor). Not clamped.

    Bicubic with a = -0.75, torch's and OpenCV's; PIL's has -0.5.
    """
    from torch.nn import functional

    height, width = images.shape[-2:]
    size = (height * factor, width * factor)
    return functional.interpolate(images, size=size, mode="bicubic", align_corners=False)


def agreeing(images: Tensor, photos: Tensor, factor: int, operator: Operator = "area", rounds: int = 5) -> Tensor:
    """Large images (B, C, H, W) whose reductions are the photos (B, C, h, w): what differs is added back, enlarged
    (iterative back-projection, Irani and Peleg 1991), in so many rounds. In [0, 1]. Differentiable.
    """
    import torch

    def agreed(large: Tensor, small: Tensor) -> Tensor:
        for _ in range(rounds):
            large = large + enlarged(small - reduced(large, factor, operator), factor)
        return large.clamp(0, 1)

    if torch.is_grad_enabled() and images.requires_grad:
        return agreed(images, photos)
    made = torch.empty_like(images)
    for channel in range(images.shape[1]):  # a plane at a time: large images take gigabytes
        made[:, channel, None] = agreed(images[:, channel, None], photos[:, channel, None])
    return made


def averaged(images: Tensor, size: Sequence[int]) -> Tensor:
    """Images (B, C, h, w), uint8 or in [0, 1], at (height, width), in [0, 1], each pixel the mean of those that it
    touches.
    """
    import torch
    from torch.nn import functional

    if tuple(images.shape[-2:]) == tuple(size):
        return in_unit(images)
    if images.dtype != torch.uint8:
        return functional.interpolate(images, tuple(size), mode="area")
    # row by row: as float numbers a large image is not needed whole
    height, rows = images.shape[-2], size[0]
    touched = (images[..., i * height // rows : -(-(i + 1) * height // rows), :] for i in range(rows))
    return torch.cat([functional.interpolate(in_unit(x), (1, size[1]), mode="area") for x in touched], dim=-2)


def resized_to(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pixels (H, W) or (H, W, C) in [0, 1] at (height, width): area-averaged where they shrink, bicubic where they
    grow.
    """
    import cv2

    if pixels.shape[:2] == size:
        return pixels
    how = cv2.INTER_AREA if size[0] * size[1] < pixels.shape[0] * pixels.shape[1] else cv2.INTER_CUBIC
    return np.clip(cv2.resize(pixels, (size[1], size[0]), interpolation=how), 0, 1)


def fitted(image: Tensor, size: tuple[int, int]) -> Tensor:
    """An image (C, h, w), uint8 or in [0, 1], at (height, width), in [0, 1]: bilinear, over all that a pixel covers
    where it shrinks.
    """
    import torch
    from torch.nn import functional

    if tuple(image.shape[-2:]) == tuple(size):
        return in_unit(image)
    if image.dtype == torch.uint8:  # channel by channel: as float numbers a large image is not needed whole
        return torch.cat([fitted(in_unit(channel[None]), size) for channel in image])
    return functional.interpolate(image[None], size, mode="bilinear", antialias=True)[0].clamp(0, 1)


def continued(pixels: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Pixels (H, W, C) float32 whose colours, where `known` (H, W) is False, are means of known ones around, of the
    wider a neighbourhood the farther these are: push and pull (Gortler et al., The Lumigraph, 1996).
    """
    return _pulled(np.asarray(pixels, np.float32), known.astype(np.float32))


def _pulled(pixels: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Pixels (H, W, C) with, as far as their weight (H, W) is below 1, what coarser ones show."""
    import cv2

    height, width = weight.shape
    if max(height, width) == 1:
        return pixels
    half = ((width + 1) // 2, (height + 1) // 2)
    shown = cv2.resize(pixels * weight[..., None], half, interpolation=cv2.INTER_AREA).reshape(*half[::-1], -1)
    share = cv2.resize(weight, half, interpolation=cv2.INTER_AREA)
    coarse = _pulled(shown / np.maximum(share, 1e-6)[..., None], np.minimum(4 * share, 1))
    coarse = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR).reshape(height, width, -1)
    return coarse + weight[..., None] * (pixels - coarse)


def flow(target: np.ndarray, source: np.ndarray, finest: int = 0) -> np.ndarray:
    """Dense optical flow (H, W, 2) float32 in pixels of grey images (H, W) uint8: `target[p]` looks like
    `source[p + flow[p]]`; none where a side has fewer than 16 pixels.

    Dense inverse search (Kroeger et al., ECCV 2016), down to the sides divided by 2^`finest`.
    """
    import cv2

    if min(target.shape) < 16:  # less than two of DIS's patches: nothing to match
        return np.zeros((*target.shape, 2), np.float32)
    matcher = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    matcher.setFinestScale(finest)
    return matcher.calc(target, source, None)  # type: ignore[call-overload]


def flows(target: np.ndarray, source: np.ndarray, finest: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """`flow` from one grey image to another, and back."""
    return flow(target, source, finest), flow(source, target, finest)


def in_unit(values: Tensor) -> Tensor:
    """uint8 as float32 in [0, 1]; what is of another kind stays as it is."""
    import torch

    return values.float().div_(255) if values.dtype == torch.uint8 else values


def as_floats(pixels: np.ndarray) -> np.ndarray:
    """uint8 as float32 in [0, 1]; what is float32 stays."""
    return pixels.astype(np.float32) / 255 if pixels.dtype == np.uint8 else pixels


def as_bytes(pixels: np.ndarray) -> np.ndarray:
    """Pixels in [0, 1] as `write_image` writes them: uint8, which stays what it is."""
    if pixels.dtype == np.uint8:
        return pixels
    made = np.empty(pixels.shape, np.uint8)
    rows = max(1, _AT_ONCE * len(pixels) // max(pixels.size, 1))
    for top in range(0, len(pixels), rows):  # in strips, since all of a large image's numbers would be there thrice
        made[top : top + rows] = np.clip(pixels[top : top + rows], 0, 1) * 255 + 0.5
    return made


def as_planes(pixels: np.ndarray, device: str = "cpu") -> Tensor:
    """Pixels (H, W, C) as a batch of one image (1, C, H, W), float32, of its own memory, plane by plane."""
    import torch

    planes = np.empty((pixels.shape[2], *pixels.shape[:2]), np.float32)
    np.copyto(planes, pixels.transpose(2, 0, 1), casting="unsafe")
    return torch.from_numpy(planes)[None].to(device)


def as_pixels(planes: Tensor) -> np.ndarray:
    """A batch of one image (1, C, H, W) as pixels (H, W, C), float32 in [0, 1]."""
    return planes[0].movedim(0, -1).clamp(0, 1).float().cpu().numpy()
