"""Gaussians as the PLY file of the 3D Gaussian splatting release, which every splat viewer reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from difixcli.runs import atomic


def write_gaussians(model: Any, path: Path) -> Path:
    """Write a splatfacto model's Gaussians, those that are finite, in the normalised world.

    Properties: x y z, nx ny nz (0), f_dc_0…2, f_rest_… (channel by channel), opacity (logit), scale_0…2 (log),
    rot_0…3 (wxyz).
    """
    from plyfile import PlyData, PlyElement

    means = _array(model.means)
    rest = _array(model.shs_rest.transpose(1, 2)).reshape(len(means), -1)
    groups = {
        ("x", "y", "z"): means,
        ("nx", "ny", "nz"): np.zeros_like(means),
        tuple(f"f_dc_{i}" for i in range(3)): _array(model.shs_0),
        tuple(f"f_rest_{i}" for i in range(rest.shape[1])): rest,
        ("opacity",): _array(model.opacities),
        tuple(f"scale_{i}" for i in range(3)): _array(model.scales),
        tuple(f"rot_{i}" for i in range(4)): _array(model.quats),
    }
    table = np.concatenate(list(groups.values()), axis=1)
    table = table[np.isfinite(table).all(axis=1)]
    names = [name for group in groups for name in group]
    vertices = np.ascontiguousarray(table).view([(name, "<f4") for name in names])[:, 0]
    with atomic(path) as temporary:
        PlyData([PlyElement.describe(vertices, "vertex")], byte_order="<").write(str(temporary))
    return path


def _array(tensor: Any) -> np.ndarray:
    return tensor.detach().cpu().numpy().astype("<f4")
