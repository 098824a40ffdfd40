"""The multi-resolution hash encoding of Instant-NGP (Müller et al. 2022) on a CPU.

nerfstudio's PyTorch form of it takes most of nerfacto's time on a CPU, in temporaries as large as all corners of all
samples. This is the same function of the same tables, compiled: a sixteenth of the forward pass's time, and no
temporaries.
"""

# numba's types are not Python's: what the compiler checks here, a Python type checker cannot.
# mypy: ignore-errors

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor
from torch.autograd.function import once_differentiable

from difixcli.compiled import FAST, compiled

F = np.float32
_PRIME_Y, _PRIME_Z = np.uint32(2654435761), np.uint32(805459861)


def encode(encoding: torch.nn.Module, positions: Tensor) -> Tensor:
    """What `HashEncoding.pytorch_fwd` returns for positions (..., 3) in [0, 1]: features (..., L·F).

    `encoding` is nerfstudio's module, whose `hash_table` (L·T, F), `scalings` (L,) and `hash_table_size` T = 2^k are
    used as they are. Differentiable, once, to positions and table.
    """
    scalings = encoding.scalings.to(torch.float32)
    flat = positions.reshape(-1, 3)
    features = _Encode.apply(flat, encoding.hash_table, scalings, encoding.hash_table_size)
    return features.view(*positions.shape[:-1], -1)


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, positions, table, scalings, table_size):
        positions, table = positions.contiguous(), table.contiguous()
        features = positions.new_empty(len(positions), len(scalings) * table.shape[1])
        _forward(_array(positions), _array(table), _array(scalings), table_size, _array(features))
        ctx.save_for_backward(positions, table, scalings)
        ctx.table_size = table_size
        return features

    @staticmethod
    @once_differentiable
    def backward(ctx, v_features):
        positions, table, scalings = ctx.saved_tensors
        v_table = torch.zeros_like(table)
        v_positions = torch.zeros_like(positions)
        _backward(
            _array(positions),
            _array(table),
            _array(scalings),
            ctx.table_size,
            _array(v_features.contiguous()),
            _array(v_table),
            _array(v_positions),
            ctx.needs_input_grad[0],
        )
        return v_positions, v_table, None, None


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()


@njit(inline="always")
def _hashed(x, y, z, mask):
    return np.int64((np.uint32(x) ^ (np.uint32(y) * _PRIME_Y) ^ (np.uint32(z) * _PRIME_Z)) & mask)


@njit(inline="always")
def _cell(position, scale):
    """Lower and upper corner along one axis, and where between them the position lies."""
    scaled = position * scale
    floor = np.floor(scaled)
    low = np.int32(floor)
    high = np.int32(np.ceil(scaled))
    return low, high, scaled - floor


@njit(inline="always")
def _corners(positions, i, scale, base, mask):
    """Where between its cell's corners a position lies along each axis, and the corners' rows of the table."""
    x0, x1, wx = _cell(positions[i, 0], scale)
    y0, y1, wy = _cell(positions[i, 1], scale)
    z0, z1, wz = _cell(positions[i, 2], scale)
    i000 = base + _hashed(x0, y0, z0, mask)
    i100 = base + _hashed(x1, y0, z0, mask)
    i010 = base + _hashed(x0, y1, z0, mask)
    i110 = base + _hashed(x1, y1, z0, mask)
    i001 = base + _hashed(x0, y0, z1, mask)
    i101 = base + _hashed(x1, y0, z1, mask)
    i011 = base + _hashed(x0, y1, z1, mask)
    i111 = base + _hashed(x1, y1, z1, mask)
    return wx, wy, wz, i000, i100, i010, i110, i001, i101, i011, i111


@compiled(nogil=True, fastmath=FAST, error_model="numpy")
def _forward(positions, table, scalings, table_size, features):
    mask = np.uint32(table_size - 1)
    width = table.shape[1]
    # Level by level, so that one level's table stays in the cache.
    for level in range(scalings.shape[0]):
        base = level * table_size
        scale = scalings[level]
        for i in range(positions.shape[0]):
            wx, wy, wz, i000, i100, i010, i110, i001, i101, i011, i111 = _corners(positions, i, scale, base, mask)
            ux, uy, uz = F(1) - wx, F(1) - wy, F(1) - wz
            for k in range(width):
                low_y0, low_y1 = table[i000, k] * ux + table[i100, k] * wx, table[i010, k] * ux + table[i110, k] * wx
                up_y0, up_y1 = table[i001, k] * ux + table[i101, k] * wx, table[i011, k] * ux + table[i111, k] * wx
                features[i, level * width + k] = (low_y0 * uy + low_y1 * wy) * uz + (up_y0 * uy + up_y1 * wy) * wz


@compiled(nogil=True, fastmath=FAST, error_model="numpy")
def _backward(positions, table, scalings, table_size, v_features, v_table, v_positions, with_positions):
    mask = np.uint32(table_size - 1)
    width = table.shape[1]
    for level in range(scalings.shape[0]):
        base = level * table_size
        scale = scalings[level]
        for i in range(positions.shape[0]):
            wx, wy, wz, i000, i100, i010, i110, i001, i101, i011, i111 = _corners(positions, i, scale, base, mask)
            ux, uy, uz = F(1) - wx, F(1) - wy, F(1) - wz
            vx = vy = vz = F(0)
            for k in range(width):
                v = v_features[i, level * width + k]
                v_table[i000, k] += v * ux * uy * uz
                v_table[i100, k] += v * wx * uy * uz
                v_table[i010, k] += v * ux * wy * uz
                v_table[i110, k] += v * wx * wy * uz
                v_table[i001, k] += v * ux * uy * wz
                v_table[i101, k] += v * wx * uy * wz
                v_table[i011, k] += v * ux * wy * wz
                v_table[i111, k] += v * wx * wy * wz
                if with_positions:
                    t000, t100, t010, t110 = table[i000, k], table[i100, k], table[i010, k], table[i110, k]
                    t001, t101, t011, t111 = table[i001, k], table[i101, k], table[i011, k], table[i111, k]
                    low_y0, low_y1 = t000 * ux + t100 * wx, t010 * ux + t110 * wx
                    up_y0, up_y1 = t001 * ux + t101 * wx, t011 * ux + t111 * wx
                    across_low = (t100 - t000) * uy + (t110 - t010) * wy
                    across_up = (t101 - t001) * uy + (t111 - t011) * wy
                    vx += v * (across_low * uz + across_up * wz)
                    vy += v * ((low_y1 - low_y0) * uz + (up_y1 - up_y0) * wz)
                    vz += v * (up_y0 * uy + up_y1 * wy - low_y0 * uy - low_y1 * wy)
            if with_positions:
                v_positions[i, 0] += vx * scale
                v_positions[i, 1] += vy * scale
                v_positions[i, 2] += vz * scale
