"""Gaussians as the PLY file of the 3D Gaussian splatting release, which every splat program reads and writes.

Properties: x y z, nx ny nz (0), f_dc_0…2, f_rest_… (channel by channel), opacity (logit), scale_0…2 (log),
rot_0…3 (wxyz). The comment `SplatRenderMode: mip` says that they were trained antialiased (Mip-Splatting's filter), and
look too thin or too bright where that is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from difixcli.errors import InputError
from difixcli.runs import atomic, is_the_systems, unreadable
from difixcli.scenes.ply import FARTHEST, check_counts
from difixcli.wording import counted

_DIRECTIONS = 256  # more than the 25 functions of degree 4 need
_MIP = "SplatRenderMode: mip"
_C0 = 0.28209479177387814  # the spherical harmonic of degree 0


@dataclass(frozen=True, eq=False)
class Gaussians:
    """N Gaussians, float32: `means` (N, 3), `scales` (N, 3) logarithms of standard deviations, `quats` (N, 4)
    rotations wxyz, not necessarily of length 1, `harmonics` (N, (d + 1)², 3) coefficients of colour, `opacities`
    (N, 1) logits. `antialiased` says how they are to be rendered (nerfstudio's `rasterize_mode`), and `left_out` how
    many more stood in the file they were read from that were not finite.
    """

    means: Tensor
    scales: Tensor
    quats: Tensor
    harmonics: Tensor
    opacities: Tensor
    antialiased: bool = False
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.means)

    @property
    def degree(self) -> int:
        return round(self.harmonics.shape[1] ** 0.5) - 1

    @classmethod
    def of_model(cls, model: Any) -> Gaussians:
        """A splatfacto model's."""
        harmonics = torch.cat([model.shs_0[:, None], model.shs_rest], dim=1)
        tensors = (model.means, model.scales, model.quats, harmonics, model.opacities)
        means, scales, quats, harmonics, opacities = (tensor.detach().cpu() for tensor in tensors)
        return cls(means, scales, quats, harmonics, opacities, model.config.rasterize_mode == "antialiased")

    @classmethod
    def of_state(cls, state: dict[str, Tensor]) -> Gaussians:
        """Those of a splatfacto model's state dict."""
        held = {key.removeprefix("gauss_params."): value for key, value in state.items()}
        base = held["features_dc"]
        if not held["features_rest"].shape[1]:  # of degree 0 it keeps the logits of the colours
            base = (torch.sigmoid(base) - 0.5) / _C0
        harmonics = torch.cat([base[:, None], held["features_rest"]], dim=1)
        return cls(held["means"], held["scales"], held["quats"], harmonics, held["opacities"])

    def state(self) -> dict[str, Tensor]:
        """As a splatfacto model's state dict has them, of a degree above 0."""
        named = {
            "means": self.means,
            "scales": self.scales,
            "quats": self.quats,
            "features_dc": self.harmonics[:, 0],
            "features_rest": self.harmonics[:, 1:],
            "opacities": self.opacities,
        }
        return {f"gauss_params.{name}": value.contiguous() for name, value in named.items()}

    def of_degree(self, degree: int) -> Gaussians:
        """The same colours with coefficients up to a higher degree, which are 0."""
        more = (degree + 1) ** 2 - self.harmonics.shape[1]
        return replace(self, harmonics=functional.pad(self.harmonics, (0, 0, 0, max(more, 0))))

    def moved(self, similarity: np.ndarray) -> Gaussians:
        """The Gaussians after a (4, 4) similarity of the world: positions, sizes, rotations and colours' directions."""
        from scipy.spatial.transform import Rotation

        scale = float(np.cbrt(np.linalg.det(similarity[:3, :3])))
        rotation = similarity[:3, :3] / scale
        means = self.means.double() @ torch.from_numpy(similarity[:3, :3].T) + torch.from_numpy(similarity[:3, 3])
        x, y, z, w = Rotation.from_matrix(rotation).as_quat()
        return replace(
            self,
            means=means.float(),
            scales=self.scales + float(np.log(scale)),
            quats=_after(torch.tensor([w, x, y, z], dtype=self.quats.dtype), self.quats),
            harmonics=_turned(self.harmonics, rotation),
        )

    @classmethod
    def read(cls, path: Path) -> Gaussians:
        """Read a PLY file as the 3DGS release, gsplat and nerfstudio write it, or one that SuperSplat has compressed.

        Gaussians that are not finite, or reach `FARTHEST`, are left out. Raises InputError for a file that is missing,
        cut short, a plain point cloud, without harmonics, or empty.
        """
        from plyfile import PlyData, PlyParseError

        from difixcli.reconstruction.compressed_ply import PACKED, unpacked

        vertices: Mapping[str, np.ndarray]
        check_counts(path)
        try:
            file = PlyData.read(str(path))
            data = file["vertex"].data
            if PACKED[0] in (data.dtype.names or ()):
                higher_ones = file["sh"].data if "sh" in file else None
                vertices = unpacked(data, file["chunk"].data, higher_ones)
            else:
                vertices = {name: data[name] for name in data.dtype.names or ()}
        except (PlyParseError, KeyError, ValueError, OSError) as error:
            if is_the_systems(error):
                raise unreadable(path, error) from error
            raise InputError(f"{path} cannot be read as a PLY file of Gaussians ({error}); export it again.") from None
        names = list(vertices)
        if not len(data):
            raise InputError(f"{path} holds no Gaussian (its list of vertices is empty); export it again.")
        shape = [*"xyz", "opacity", *(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4))]
        if missing := [name for name in shape if name not in names]:
            kind = "a plain point cloud" if "opacity" not in names else "no Gaussians"
            raise InputError(
                f"{path} is {kind} (it has no {missing[0]}); name a .ply of trained 3D Gaussians, or train anew."
            )
        base = [f"f_dc_{i}" for i in range(3)]
        rest = sorted(
            (name for name in names if re.fullmatch(r"f_rest_[0-9]{1,3}", name)), key=lambda name: int(name[7:])
        )
        count = len(rest) // 3 + 1
        if any(name not in names for name in base) or len(rest) % 3 or round(count**0.5) ** 2 != count or count > 25:
            raise InputError(
                f"{path} has no spherical harmonics (f_dc_0…2 and all of f_rest_…), but {len(rest)} of f_rest_…; "
                "export it with them (ns-export gaussian-splat --ply-color-mode sh_coeffs)."
            )

        def columns(chosen: list[str]) -> np.ndarray:
            found = [np.asarray(vertices[name], dtype=np.float32) for name in chosen]
            return np.stack(found, axis=1) if found else np.zeros((len(data), 0), np.float32)

        parts = [columns(list("xyz")), columns(shape[4:7]), columns(shape[7:11]), columns(["opacity"])]
        higher = columns(rest).reshape(len(data), 3, count - 1).transpose(0, 2, 1)
        parts.append(np.concatenate([columns(base)[:, None], higher], axis=1).reshape(len(data), -1))
        finite = (np.abs(np.concatenate(parts, axis=1)) < FARTHEST).all(axis=1)  # NaN is not
        if not finite.any():
            raise InputError(f"{path} holds no Gaussian that is finite; export it again.")
        means, scales, quats, opacities, harmonics = (torch.from_numpy(part[finite]) for part in parts)
        antialiased = any(
            comment.lower().replace(" ", "") == _MIP.lower().replace(" ", "") for comment in file.comments
        )
        left_out = len(data) - len(means)
        return cls(means, scales, quats, harmonics.view(len(means), count, 3), opacities, antialiased, left_out)

    def write(self, path: Path) -> int:
        """Write those that are finite as a PLY file, whole or not at all; returns how many were left out.

        Raises InputError where none is finite.
        """
        from plyfile import PlyData, PlyElement

        rest = self.harmonics[:, 1:].transpose(1, 2).reshape(len(self), -1)
        groups = {
            ("x", "y", "z"): self.means,
            ("nx", "ny", "nz"): torch.zeros_like(self.means),
            tuple(f"f_dc_{i}" for i in range(3)): self.harmonics[:, 0],
            tuple(f"f_rest_{i}" for i in range(rest.shape[1])): rest,
            ("opacity",): self.opacities,
            tuple(f"scale_{i}" for i in range(3)): self.scales,
            tuple(f"rot_{i}" for i in range(4)): self.quats,
        }
        table = torch.cat(list(groups.values()), dim=1).numpy().astype("<f4")
        table = table[np.isfinite(table).all(axis=1)]
        if not len(table):
            raise InputError("No Gaussian to export: none of the model's is finite; train it again.")
        names = [name for group in groups for name in group]
        vertices = np.ascontiguousarray(table).view([(name, "<f4") for name in names])[:, 0]
        with atomic(path) as temporary:
            comments = [_MIP] if self.antialiased else []
            PlyData([PlyElement.describe(vertices, "vertex")], byte_order="<", comments=comments).write(str(temporary))
        return len(self) - len(table)


def not_finite(left_out: int, count: int, name: str) -> str:
    """The sentence that says how many of a file's or model's Gaussians were left out."""
    return (
        f"{left_out} of {counted(count, 'Gaussian')} of {name} left out: their values are not finite, or beyond any "
        "scene."
    )


def _after(first: Tensor, quats: Tensor) -> Tensor:
    """The rotations `quats` (N, 4) followed by the rotation `first` (4,), wxyz (Hamilton's product)."""
    w, x, y, z = first
    turn = torch.stack([w, -x, -y, -z, x, w, -z, y, y, z, w, -x, z, -y, x, w]).view(4, 4)
    return quats @ turn.T


def _turned(harmonics: Tensor, rotation: np.ndarray) -> Tensor:
    """Coefficients (N, K, 3) of the functions that the rotation (3, 3) carries those of `harmonics` to.

    A rotation mixes the functions of each degree among themselves only. Each degree's matrix is solved for from the
    functions' values at many directions, so that it fits the basis and signs that the rasteriser uses.
    """
    from gsplat.cuda._torch_impl import _eval_sh_bases_fast

    count = harmonics.shape[1]
    generator = torch.Generator().manual_seed(0)
    directions = functional.normalize(torch.randn(_DIRECTIONS, 3, generator=generator, dtype=torch.float64), dim=-1)
    before = _eval_sh_bases_fast(count, directions @ torch.from_numpy(rotation))
    after = _eval_sh_bases_fast(count, directions)
    turned = harmonics.clone()
    for degree in range(1, round(count**0.5)):
        band = slice(degree**2, (degree + 1) ** 2)
        matrix = torch.linalg.lstsq(after[:, band], before[:, band]).solution
        turned[:, band] = torch.einsum("kj,njc->nkc", matrix.to(harmonics.dtype), harmonics[:, band])
    return turned
