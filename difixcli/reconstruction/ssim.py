"""SSIM for training on a CPU, where a framework's grouped convolutions cost more than rendering the image."""

# numba's types are not Python's: what the compiler checks here, a Python type checker cannot.
# mypy: ignore-errors

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from difixcli.compiled import compiled

F = np.float32
_SIZE, _SIGMA = 11, 1.5
_C1, _C2 = F(0.01**2), F(0.03**2)
_TAPS = [math.exp(-((i - _SIZE // 2) ** 2) / (2 * _SIGMA**2)) for i in range(_SIZE)]
_WINDOW = np.array([tap / sum(_TAPS) for tap in _TAPS], dtype=np.float32)
_FAST = {"nogil": True, "fastmath": True, "error_model": "numpy"}


class CpuSsim(nn.Module):
    """Mean SSIM of two batches of images (B, C, H, W) float32 in [0, 1], H and W at least 11; differentiable once.

    Gaussian window of 11 pixels and σ = 1.5, no padding, constants 0.01² and 0.03² (Wang et al. 2004): the number of
    pytorch_msssim's `SSIM(data_range=1.0)`, which splatfacto's loss uses.
    """

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """() the mean over pixels, channels and images."""
        height, width = first.shape[-2:]
        return _Ssim.apply(first.reshape(-1, height, width), second.reshape(-1, height, width))


class _Ssim(torch.autograd.Function):
    @staticmethod
    def forward(ctx, first, second):
        planes = _array(first), _array(second)
        moments = _moments(*planes)
        ctx.save_for_backward(first, second)
        ctx.moments = moments
        return first.new_tensor(_mean(*moments))

    @staticmethod
    @once_differentiable
    def backward(ctx, v_mean):
        first, second = (_array(tensor) for tensor in ctx.saved_tensors)
        mean_1, mean_2, square_1, square_2, product = ctx.moments
        scale = float(v_mean) / mean_1.size
        v_first = v_second = None
        if ctx.needs_input_grad[0]:
            v_first = _gradient(second, first, mean_2, mean_1, square_2, square_1, product, F(scale))
        if ctx.needs_input_grad[1]:
            v_second = _gradient(first, second, mean_1, mean_2, square_1, square_2, product, F(scale))
        return tuple(None if v is None else torch.from_numpy(v) for v in (v_first, v_second))


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


@compiled(**_FAST)
def _filter(plane, rows, out):
    """The window's valid convolution of one plane (H, W) into `out` (H − 10, W − 10); `rows` (H − 10, W) is scratch."""
    height, width = out.shape
    for y in range(height):
        rows[y, :] = F(0)
        for k in range(_SIZE):
            weight = _WINDOW[k]
            for x in range(plane.shape[1]):
                rows[y, x] += weight * plane[y + k, x]
        out[y, :] = F(0)
        for k in range(_SIZE):
            weight = _WINDOW[k]
            for x in range(width):
                out[y, x] += weight * rows[y, x + k]


@compiled(**_FAST)
def _spread(plane, rows, out):
    """The adjoint of `_filter`: from (H − 10, W − 10) to (H, W)."""
    height, width = plane.shape
    out[:, :] = F(0)
    for y in range(height):
        rows[y, :] = F(0)
        for k in range(_SIZE):
            weight = _WINDOW[k]
            for x in range(width):
                rows[y, x + k] += weight * plane[y, x]
        for k in range(_SIZE):
            weight = _WINDOW[k]
            for x in range(out.shape[1]):
                out[y + k, x] += weight * rows[y, x]


@compiled(**_FAST)
def _moments(first, second):
    """Windowed means of both images, of their squares and of their product."""
    planes, height, width = first.shape
    shape = (planes, height - _SIZE + 1, width - _SIZE + 1)
    mean_1, mean_2 = np.empty(shape, F), np.empty(shape, F)
    square_1, square_2, product = np.empty(shape, F), np.empty(shape, F), np.empty(shape, F)
    rows = np.empty((height - _SIZE + 1, width), F)
    for c in range(planes):
        _filter(first[c], rows, mean_1[c])
        _filter(second[c], rows, mean_2[c])
        _filter(first[c] * first[c], rows, square_1[c])
        _filter(second[c] * second[c], rows, square_2[c])
        _filter(first[c] * second[c], rows, product[c])
    return mean_1, mean_2, square_1, square_2, product


@compiled(**_FAST)
def _mean(mean_1, mean_2, square_1, square_2, product):
    total = 0.0
    for c in range(mean_1.shape[0]):
        for y in range(mean_1.shape[1]):
            row = F(0)
            for x in range(mean_1.shape[2]):
                m1, m2 = mean_1[c, y, x], mean_2[c, y, x]
                a1 = F(2) * m1 * m2 + _C1
                a2 = F(2) * (product[c, y, x] - m1 * m2) + _C2
                b1 = m1 * m1 + m2 * m2 + _C1
                b2 = square_1[c, y, x] - m1 * m1 + square_2[c, y, x] - m2 * m2 + _C2
                row += a1 * a2 / (b1 * b2)
            total += row
    return total / mean_1.size


@compiled(**_FAST)
def _gradient(other, image, mean_1, mean_2, square_1, square_2, product, scale):
    """`scale` times the gradient of the sum of SSIM to `image`, whose moments carry the number 2."""
    planes, height, width = mean_1.shape
    result = np.empty(image.shape, F)
    v_mean, v_square, v_product = np.empty((3, height, width), F)
    rows = np.empty((height, image.shape[2]), F)
    spread_mean, spread_square, spread_product = np.empty((3, image.shape[1], image.shape[2]), F)
    for c in range(planes):
        for y in range(height):
            for x in range(width):
                m1, m2 = mean_1[c, y, x], mean_2[c, y, x]
                a1 = F(2) * m1 * m2 + _C1
                a2 = F(2) * (product[c, y, x] - m1 * m2) + _C2
                b1 = m1 * m1 + m2 * m2 + _C1
                b2 = square_1[c, y, x] - m1 * m1 + square_2[c, y, x] - m2 * m2 + _C2
                inverse = F(1) / (b1 * b2)
                value = a1 * a2 * inverse
                v_product[y, x] = scale * F(2) * a1 * inverse
                v_square[y, x] = -scale * value / b2
                v_mean[y, x] = scale * F(2) * (m1 * (a2 - a1) * inverse + m2 * value * (F(1) / b2 - F(1) / b1))
        _spread(v_mean, rows, spread_mean)
        _spread(v_square, rows, spread_square)
        _spread(v_product, rows, spread_product)
        for y in range(image.shape[1]):
            for x in range(image.shape[2]):
                value = spread_mean[y, x] + F(2) * image[c, y, x] * spread_square[y, x]
                result[c, y, x] = value + other[c, y, x] * spread_product[y, x]
    return result
