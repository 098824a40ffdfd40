"""SSIM for training on a CPU, where a framework's grouped convolutions cost more than rendering the image."""

# numba's types are not Python's: what the compiler checks here, a Python type checker cannot.
# mypy: ignore-errors

from __future__ import annotations

import math

import numpy as np
import torch
from numba import prange
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from difixcli.compiled import FAST, compiled
from difixcli.reconstruction import rasteriser_lanes as simd
from difixcli.reconstruction.parallel import LOOPS_ONLY, jobs_taken, one_at_a_time, take, workers

F = np.float32
_SIZE, _SIGMA = 11, 1.5
_EDGE = _SIZE - 1
_C1, _C2 = F(0.01**2), F(0.03**2)
_TAPS = [math.exp(-((i - _SIZE // 2) ** 2) / (2 * _SIGMA**2)) for i in range(_SIZE)]
_W0, _W1, _W2, _W3, _W4, _W5 = (F(tap / sum(_TAPS)) for tap in _TAPS[: _SIZE // 2 + 1])  # it is symmetric
_FAST = {"fastmath": FAST, "error_model": "numpy"}
_BAND = 16
"""Rows that are filtered at once."""


class CpuSsim(nn.Module):
    """Mean SSIM of two batches of images (B, C, H, W) float32 in [0, 1], H and W at least 11; differentiable once.

    Gaussian window of 11 pixels and σ = 1.5, no padding, constants 0.01² and 0.03² (Wang et al. 2004): the number of
    pytorch_msssim's `SSIM(data_range=1.0)`, which splatfacto's loss uses. Images that lie in memory as (B, H, W, C),
    which is how they are rendered, are read where they are.
    """

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """() the mean over pixels, channels and images."""
        return _Ssim.apply(first.permute(0, 2, 3, 1), second.permute(0, 2, 3, 1))


class _Ssim(torch.autograd.Function):
    """Of images (B, H, W, C)."""

    @staticmethod
    def forward(ctx, first, second):
        images, height, width, channels = first.shape
        bands = (height - _EDGE + _BAND - 1) // _BAND
        sums = np.empty(images * bands)
        # of each image's windows dSSIM/d(mean), for either image, and what both have in common: dSSIM/d(mean square)
        # and dSSIM/d(mean product); around them is room for the windows that do not lie in the image whole
        row = ((width + _EDGE) * channels + 7) // 8 * 8
        slopes = np.empty((4 if any(ctx.needs_input_grad) else 0) * images * (height + _EDGE) * row, F)
        with one_at_a_time:
            _compare(workers(), jobs_taken(1), _flat(first), _flat(second), *first.shape, sums, slopes)
        ctx.save_for_backward(first, second)
        ctx.slopes = slopes
        ctx.count = images * (height - _EDGE) * (width - _EDGE) * channels
        return first.new_tensor(sums.sum() / ctx.count)

    @staticmethod
    @once_differentiable
    def backward(ctx, v_mean):
        first, second = ctx.saved_tensors
        gradients = [None, None]
        scale = F(float(v_mean) / ctx.count)
        for i, (image, other) in enumerate(((first, second), (second, first))):
            if ctx.needs_input_grad[i]:
                gradients[i] = torch.empty(image.shape, dtype=image.dtype)
                arrays = (_flat(image), _flat(other), ctx.slopes, i)
                with one_at_a_time:
                    _gradient(workers(), jobs_taken(1), *arrays, *image.shape, scale, _flat(gradients[i]))
        return tuple(gradients)


def _flat(images: Tensor) -> np.ndarray:
    return images.detach().contiguous().flatten().numpy()


@compiled(**_FAST)
def _window(array, at, step):
    """The window's weighted sum of 11 values `step` apart, the first of which is at `at`; and the seven beside it."""
    return (
        (simd.load(array, at) + simd.load(array, at + 10 * step)) * _W0
        + (simd.load(array, at + step) + simd.load(array, at + 9 * step)) * _W1
        + (simd.load(array, at + 2 * step) + simd.load(array, at + 8 * step)) * _W2
        + (simd.load(array, at + 3 * step) + simd.load(array, at + 7 * step)) * _W3
        + (simd.load(array, at + 4 * step) + simd.load(array, at + 6 * step)) * _W4
        + simd.load(array, at + 5 * step) * _W5
    )


@compiled(**_FAST)
def _product(one, other, at):
    return simd.load(one, at) * simd.load(other, at)


@compiled(**_FAST)
def _window_of_product(one, other, at, step):
    """The same of the products of two arrays' values."""
    return (
        (_product(one, other, at) + _product(one, other, at + 10 * step)) * _W0
        + (_product(one, other, at + step) + _product(one, other, at + 9 * step)) * _W1
        + (_product(one, other, at + 2 * step) + _product(one, other, at + 8 * step)) * _W2
        + (_product(one, other, at + 3 * step) + _product(one, other, at + 7 * step)) * _W3
        + (_product(one, other, at + 4 * step) + _product(one, other, at + 6 * step)) * _W4
        + _product(one, other, at + 5 * step) * _W5
    )


@compiled(parallel=LOOPS_ONLY, **_FAST)
def _compare(
    threads,
    taken,
    first,  # [B * H * W * C]
    second,
    images,
    height,
    width,
    channels,
    sums,  # [B * bands], out: of SSIM over a band of rows
    slopes,  # [4 * B * (H + 10) * R] with R = (W + 10) * C filled up to whole `Lanes`, or [0], out
):
    length, rows, across, edge = width * channels, height - 10, (width - 10) * channels, 10 * channels
    padded = (length + edge + 7) // 8 * 8
    bands = (rows + _BAND - 1) // _BAND
    columns = np.arange(8).astype(F)
    for _ in prange(threads):
        # rows that are read up to seven values beyond their end
        mean_1, mean_2 = np.zeros(padded + 8, F), np.zeros(padded + 8, F)
        square_1, square_2, product = np.zeros(padded + 8, F), np.zeros(padded + 8, F), np.zeros(padded + 8, F)
        job = take(taken, 0)
        while job < images * bands:
            image, band = job // bands, job % bands
            total = 0.0
            for y in range(band * _BAND, min(band * _BAND + _BAND, rows)):
                top = (image * height + y) * length
                for group in range((length + 7) // 8):
                    x = min(group * 8, length - 8)
                    simd.store(mean_1, x, _window(first, top + x, length))
                    simd.store(mean_2, x, _window(second, top + x, length))
                    simd.store(square_1, x, _window_of_product(first, first, top + x, length))
                    simd.store(square_2, x, _window_of_product(second, second, top + x, length))
                    simd.store(product, x, _window_of_product(first, second, top + x, length))
                none = simd.spread(F(0))
                row = none
                at = (image * (height + 10) + y + 10) * padded + edge
                kind = images * (height + 10) * padded
                for group in range((across + 7) // 8):
                    x = group * 8
                    inside = simd.load(columns, 0) < F(across - x)
                    m1, m2 = _window(mean_1, x, channels), _window(mean_2, x, channels)
                    m12 = m1 * m2
                    m11_22 = m1 * m1 + m2 * m2
                    squares = _window(square_1, x, channels) + _window(square_2, x, channels)
                    a1 = m12 * F(2) + _C1
                    a2 = (_window(product, x, channels) - m12) * F(2) + _C2
                    b1 = m11_22 + _C1
                    b2 = squares - m11_22 + _C2
                    inverse = simd.spread(F(1)) / (b1 * b2)
                    value = a1 * a2 * inverse
                    row = row + simd.select(inside, value, none)
                    if slopes.shape[0] > 0:
                        steep = (a2 - a1) * inverse * F(2)
                        level = value * (b1 - b2) * inverse * F(2)
                        simd.store(slopes, at + x, simd.select(inside, m2 * steep + m1 * level, none))
                        simd.store(slopes, at + x + kind, simd.select(inside, m1 * steep + m2 * level, none))
                        simd.store(slopes, at + x + 2 * kind, simd.select(inside, none - value * b1 * inverse, none))
                        simd.store(slopes, at + x + 3 * kind, simd.select(inside, a1 * inverse * F(2), none))
                total += simd.total(row)
            sums[job] = total
            if slopes.shape[0] > 0:
                first_row = 0 if band == 0 else band * _BAND + 10
                last_row = height + 10 if band == bands - 1 else band * _BAND + _BAND + 10
                for kind in range(4):
                    for y in range(first_row, last_row):
                        at = ((kind * images + image) * (height + 10) + y) * padded
                        if 10 <= y < rows + 10:
                            slopes[at : at + edge] = F(0)
                            slopes[at + edge + across : at + padded] = F(0)
                        else:
                            slopes[at : at + padded] = F(0)
            job = take(taken, 0)


@compiled(parallel=LOOPS_ONLY, **_FAST)
def _gradient(
    threads,
    taken,
    first,  # [B * H * W * C] that the gradient is to
    second,
    slopes,  # as `_compare` leaves them
    number,  # of `first` among the images compared: 0 or 1
    images,
    height,
    width,
    channels,
    scale,
    result,  # [B * H * W * C], out: `scale` times the gradient of the sum of SSIM
):
    length = width * channels
    padded = (length + 10 * channels + 7) // 8 * 8
    kind = images * (height + 10) * padded
    bands = (height + _BAND - 1) // _BAND
    for _ in prange(threads):
        mean, square, product = np.empty(padded, F), np.empty(padded, F), np.empty(padded, F)
        job = take(taken, 0)
        while job < images * bands:
            image, band = job // bands, job % bands
            for y in range(band * _BAND, min(band * _BAND + _BAND, height)):
                top = (image * (height + 10) + y) * padded
                for x in range(0, padded, 8):
                    simd.store(mean, x, _window(slopes, number * kind + top + x, padded))
                    simd.store(square, x, _window(slopes, 2 * kind + top + x, padded))
                    simd.store(product, x, _window(slopes, 3 * kind + top + x, padded))
                at = (image * height + y) * length
                for group in range((length + 7) // 8):
                    x = min(group * 8, length - 8)
                    value = _window(mean, x, channels)
                    value = value + simd.load(first, at + x) * _window(square, x, channels) * F(2)
                    value = value + simd.load(second, at + x) * _window(product, x, channels)
                    simd.store(result, at + x, value * scale)
            job = take(taken, 0)
