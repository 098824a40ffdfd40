"""HDR and wide-gamut frames as BT.709 ones: PQ and HLG by ITU-R BT.2100, tone-mapped as BT.2390 proposes it."""

from __future__ import annotations

from functools import cache

import numpy as np

PEAK = 1000.0
"""Nits of the brightest that is kept apart; what is brighter becomes white."""
WHITE = 203.0
"""Nits of HDR's reference white (ITU-R BT.2408), which become the white of BT.709."""

_GAMMA = 2.4  # of a BT.709 display (ITU-R BT.1886)
_TO_709 = np.array(  # linear RGB of BT.2020 to BT.709 (ITU-R BT.2087)
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)
_LUMA = np.array([0.2627, 0.6780, 0.0593], np.float32)  # of BT.2020
_STEPS = 4096


def to_bt709(image: np.ndarray, transfer: str | None) -> np.ndarray:
    """(H, W, 3) uint16 R'G'B' with BT.2020's primaries → (H, W, 3) uint8 with BT.709's.

    `transfer` is "PQ" or "HLG", or None for SDR. The largest of a pixel's three channels decides by how much it is
    dimmed, so that hues stay; what lies outside of BT.709's gamut is cut.
    """
    light = _light(transfer)[image]
    if transfer == "HLG":  # the display's gamma, 1.2 at 1000 nits: BT.2100's OOTF
        light *= PEAK * np.maximum(light @ _LUMA, 1e-6)[..., None] ** np.float32(0.2)
    if transfer is not None:
        # quantised by the square root, finer where it is darker
        place = np.sqrt(np.minimum(light.max(axis=-1) / PEAK, 1)) * (_STEPS - 1)
        light *= _gains()[place.astype(np.int32)][..., None]
    seen = np.clip(light @ _TO_709.T, 0, 1)
    return (seen ** np.float32(1 / _GAMMA) * 255 + 0.5).astype(np.uint8)


def pq_to_nits(signal: np.ndarray) -> np.ndarray:
    """SMPTE ST 2084: signals in [0, 1] → nits in [0, 10000]."""
    power = np.asarray(signal, np.float64) ** (1 / _M2)
    return 10000 * (np.maximum(power - _C1, 0) / (_C2 - _C3 * power)) ** (1 / _M1)


def nits_to_pq(nits: np.ndarray) -> np.ndarray:
    """The inverse of `pq_to_nits`."""
    power = (np.asarray(nits, np.float64) / 10000) ** _M1
    return ((_C1 + _C2 * power) / (1 + _C3 * power)) ** _M2


_M1, _M2 = 2610 / 16384, 2523 / 32
_C1, _C2, _C3 = 3424 / 4096, 2413 / 128, 2392 / 128


def tone_mapped(nits: np.ndarray) -> np.ndarray:
    """Nits of a master of `PEAK` → nits of a display of `WHITE`, by the spline of BT.2390's EETF, black at 0."""
    peak, white = nits_to_pq(np.array(PEAK)), nits_to_pq(np.array(WHITE))
    signal = np.minimum(nits_to_pq(nits) / peak, 1)
    most = white / peak
    knee = 1.5 * most - 0.5
    t = np.clip((signal - knee) / (1 - knee), 0, 1)
    bent = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * most
    return pq_to_nits(np.where(signal < knee, signal, bent) * peak)


@cache
def _light(transfer: str | None) -> np.ndarray:
    """(65536,) float32: light by signal. PQ: nits; HLG: scene light in [0, 1]; SDR: a display's, in [0, 1]."""
    signal = np.arange(2**16) / (2**16 - 1)
    if transfer == "PQ":
        light = pq_to_nits(signal)
    elif transfer == "HLG":
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    else:
        light = signal**_GAMMA
    return light.astype(np.float32)


@cache
def _gains() -> np.ndarray:
    """(4096,) float32: by what nits whose root is at that place are multiplied, so that `WHITE` nits are 1."""
    nits = PEAK * (np.arange(_STEPS) / (_STEPS - 1)) ** 2
    nits[0] = nits[1] / 2
    return (tone_mapped(nits) / nits / WHITE).astype(np.float32)
