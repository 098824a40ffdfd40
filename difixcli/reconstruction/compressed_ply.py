"""Gaussians as SuperSplat and splat-transform pack them into a PLY file (`.compressed.ply`).

Each Gaussian is four 32-bit words of the element `vertex`, relative to the bounds of its chunk of 256 in the element
`chunk`: position and logarithms of the scale of 11, 10 and 11 bits, a rotation whose largest component is left out, and
colour with opacity of 8 bits each. An element `sh` holds the higher harmonics, a byte each.
"""

from __future__ import annotations

import numpy as np

CHUNK = 256
"""Gaussians that share their bounds."""

PACKED = ("packed_position", "packed_rotation", "packed_scale", "packed_color")
_C0 = 0.28209479177387814  # the spherical harmonic of degree 0
_MOST_OPAQUE = 1 - 1e-6  # a byte of 255 would be a logit without end


def unpacked(vertex: np.ndarray, chunk: np.ndarray, harmonics: np.ndarray | None) -> dict[str, np.ndarray]:
    """The columns, float32 (N,) each, that the same Gaussians have in a PLY file of the 3DGS release.

    `vertex` (N,), `chunk` (⌈N / 256⌉,) and `harmonics` (N,) are the structured arrays of the elements; without `sh`
    the degree is 0. Raises ValueError where one has not the properties or the length that this asks for.
    """
    bounds = [f"{side}_{what}{axis}" for what in ("", "scale_") for side in ("min", "max") for axis in "xyz"]
    lacking = [name for name in PACKED if name not in (vertex.dtype.names or ())]
    lacking += [name for name in bounds if name not in (chunk.dtype.names or ())]
    if lacking:
        raise ValueError(f"it has no {lacking[0]}")
    if len(chunk) != -(-len(vertex) // CHUNK):
        raise ValueError(f"{len(chunk)} chunks are not those of {len(vertex)} packed Gaussians")
    if harmonics is not None and len(harmonics) != len(vertex):
        raise ValueError(f"harmonics of {len(harmonics)} of {len(vertex)} packed Gaussians")
    of = np.arange(len(vertex)) // CHUNK
    position, rotation, scale, color = (vertex[name].astype(np.uint32) for name in PACKED)

    def between(shares: np.ndarray, names: list[str]) -> np.ndarray:
        """(N, 3) values from shares (N, 3) of the way between the chunk's least and most."""
        least = np.stack([chunk[f"min_{name}"][of] for name in names], axis=1).astype(np.float64)
        most = np.stack([chunk[f"max_{name}"][of] for name in names], axis=1).astype(np.float64)
        return least + shares * (most - least)

    places = between(_three(position), list("xyz"))
    sizes = between(_three(scale), [f"scale_{axis}" for axis in "xyz"])
    channels = np.stack([_share(color, 24, 8), _share(color, 16, 8), _share(color, 8, 8)], axis=1)
    if "min_r" in (chunk.dtype.names or ()):  # older files have no bounds of colours
        channels = between(channels, list("rgb"))
    base = (channels - 0.5) / _C0
    opacity = np.clip(_share(color, 0, 8), 1 - _MOST_OPAQUE, _MOST_OPAQUE)
    columns = {axis: places[:, i] for i, axis in enumerate("xyz")}
    columns |= {f"scale_{i}": sizes[:, i] for i in range(3)}
    columns |= {f"rot_{i}": part for i, part in enumerate(_rotation(rotation).T)}
    columns |= {f"f_dc_{i}": base[:, i] for i in range(3)}
    columns["opacity"] = np.log(opacity / (1 - opacity))
    if harmonics is not None:
        for name in harmonics.dtype.names or ():
            # a byte stands for the middle of its 256th of [-4, 4], the first and last for the ends
            byte = harmonics[name].astype(np.float64)
            columns[name] = 8 * np.where(byte == 0, 0, np.where(byte == 255, 1, (byte + 0.5) / 256)) - 4
    return {name: column.astype(np.float32) for name, column in columns.items()}


def _share(word: np.ndarray, shift: int, bits: int) -> np.ndarray:
    """(N,) in [0, 1]: some bits of a word, over the most they can be."""
    most = (1 << bits) - 1
    return ((word >> shift) & most) / most


def _three(word: np.ndarray) -> np.ndarray:
    """(N, 3) in [0, 1] from 11, 10 and 11 bits."""
    return np.stack([_share(word, 21, 11), _share(word, 11, 10), _share(word, 0, 11)], axis=1)


def _rotation(word: np.ndarray) -> np.ndarray:
    """(N, 4) unit quaternions wxyz: the two upper bits say which component is left out, the largest, which is ≥ 0."""
    others = np.stack([_share(word, shift, 10) - 0.5 for shift in (20, 10, 0)], axis=1) * np.sqrt(2)
    largest = (word >> 30).astype(np.int64)
    quats = np.empty((len(word), 4))
    rows = np.arange(len(word))
    left = np.arange(4)[None] != largest[:, None]
    quats[left] = others.ravel()
    quats[rows, largest] = np.sqrt(np.clip(1 - (others**2).sum(axis=1), 0, None))
    return quats
