"""3D Gaussian splatting on a CPU: gsplat's `rasterization` for tensors that live in main memory.

    from difixcli.reconstruction.rasteriser import rasterization

has the signature and the semantics of ``gsplat.rendering.rasterization`` (gsplat 1.4) for what nerfstudio's splatfacto
and gsplat's densification strategies use, differentiable to everything they train. The method is Kerbl et al. 2023, "3D
Gaussian Splatting for Real-Time Radiance Field Rendering" (EWA projection, front-to-back alpha compositing); the
antialiased mode is the opacity compensation of Yu et al. 2024, "Mip-Splatting"; absolute gradients are those of Ye et
al. 2024, "AbsGS".

Conventions, as in gsplat: quaternions are wxyz and need not be normalised; `viewmats` are world-to-camera with OpenCV
axes (x right, y down, z forward); pixel (i, j) has its centre at (j + 0.5, i + 0.5); depth is z in camera axes.

Two results differ from gsplat's on purpose. A Gaussian is composited wherever its alpha reaches 1/255, not only in the
tiles within three standard deviations, so faint wide tails are complete and faint Gaussians cost less. And gradients
are summed in a fixed order: the same input gives the same bits.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from difixcli.reconstruction import rasteriser_kernels as kernels
from difixcli.reconstruction.parallel import jobs_taken, one_at_a_time, workers

RENDER_MODES = ("RGB", "D", "ED", "RGB+D", "RGB+ED")
RASTERIZE_MODES = ("classic", "antialiased")
TILE_SIZES = (8, 16, 32)
MAX_SH_DEGREE = 3


def rasterization(
    means: Tensor,  # [N, 3]
    quats: Tensor,  # [N, 4]
    scales: Tensor,  # [N, 3]
    opacities: Tensor,  # [N]
    colors: Tensor,  # [(C,) N, D] or [(C,) N, K, 3]
    viewmats: Tensor,  # [C, 4, 4]
    Ks: Tensor,  # [C, 3, 3]
    width: int,
    height: int,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    eps2d: float = 0.3,
    sh_degree: int | None = None,
    packed: bool = True,
    tile_size: int = 16,
    backgrounds: Tensor | None = None,  # [C, D]
    render_mode: str = "RGB",
    sparse_grad: bool = False,
    absgrad: bool = False,
    rasterize_mode: str = "classic",
    channel_chunk: int = 32,
    distributed: bool = False,
    camera_model: str = "pinhole",
    covars: Tensor | None = None,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Render N Gaussians into C pinhole cameras, differentiably.

    Args:
        means: centres in world axes [N, 3].
        quats: rotations, wxyz, of any length but zero [N, 4].
        scales: standard deviations along the Gaussian's own axes, in world units [N, 3].
        opacities: in [0, 1] [N].
        colors: with `sh_degree` None, channels to composite as they are, [N, D] or [C, N, D]; else
            spherical-harmonics coefficients [N, K, 3] or [C, N, K, 3], K >= (sh_degree + 1)^2, whose value plus 0.5,
            cut off below at 0, is the colour.
        viewmats: world-to-camera matrices, OpenCV axes [C, 4, 4].
        Ks: intrinsics in pixels [C, 3, 3]. Not differentiable.
        width, height: of the images, in pixels.
        near_plane, far_plane: Gaussians whose centre's depth lies outside are left out.
        radius_clip: Gaussians whose radius (three standard deviations, in pixels) is this or less are left out.
        eps2d: added to the diagonal of the image covariances, in square pixels.
        sh_degree: 0 to 3, or None.
        packed: whether per-splat entries of the meta are [nnz, ...] (only what is visible) instead of [C, N, ...].
        tile_size: rows and columns of the tiles in the meta, and height of the blocks that are composited at once: 8,
            16 or 32. Does not change the result.
        backgrounds: colour behind everything [C, D]; depth has none.
        render_mode: "RGB"; "D", accumulated depth; "ED", expected depth, which is accumulated depth over alpha;
            "RGB+D" and "RGB+ED", the colours with the depth as last channel.
        sparse_grad, distributed, camera_model, covars: only gsplat's defaults are supported here.
        absgrad: leave the sums of absolute gradients in ``meta["means2d"].absgrad`` after the backward pass.
        rasterize_mode: "classic" or "antialiased".
        channel_chunk: gsplat's memory limit; all channels are composited at once here and the result is the same.

    Returns:
        Images [C, height, width, X] (X as `render_mode` and D say), alphas [C, height, width, 1], and the meta that
        splatfacto and gsplat's strategies read: means2d (a tensor of the graph: call ``retain_grad`` before the
        backward pass), radii (int32, 0 where a Gaussian is not seen), depths, conics, opacities, camera_ids and
        gaussian_ids (None unless `packed`), width, height, n_cameras, tile_size, tile_width, tile_height.

    Raises:
        ValueError: for arguments that are malformed or not supported.
    """
    cameras = _check(means, quats, scales, opacities, colors, viewmats, Ks, width, height, sh_degree, backgrounds)
    _check_choices(render_mode, rasterize_mode, tile_size, sparse_grad, distributed, camera_model, covars)

    # 1. Camera space: means, covariances and colours of every Gaussian in every camera.
    if sh_degree is None:
        coefficients = means.new_zeros((1, 0, 0, 3))
        positions = means.new_zeros((cameras, 3))
    else:
        coefficients = colors if colors.dim() == 4 else colors[None]
        positions = torch.inverse(viewmats)[:, :3, 3]
    options = (
        int(width),
        int(height),
        np.float32(eps2d),
        np.float32(near_plane),
        np.float32(min(far_plane, 3e38)),
        np.float32(radius_clip),
        -1 if sh_degree is None else int(sh_degree),
        rasterize_mode == "antialiased",
    )
    radii, means2d, depths, conics, seen_opacities, shaded = _Project.apply(
        means, quats, scales, opacities, coefficients, viewmats, Ks, positions, options
    )
    if sh_degree is None:
        shaded = colors if colors.dim() == 3 else colors.expand(cameras, -1, -1)

    # 2. Only what is visible, camera after camera.
    camera_ids = gaussian_ids = None
    splats = means.shape[0]
    camera_starts = np.arange(cameras + 1, dtype=np.int64) * splats
    if packed:
        camera_ids, gaussian_ids = torch.where(radii > 0)
        camera_starts = np.searchsorted(camera_ids.numpy(), np.arange(cameras + 1))
        radii, means2d, depths, conics, seen_opacities, shaded = (
            tensor[camera_ids, gaussian_ids] for tensor in (radii, means2d, depths, conics, seen_opacities, shaded)
        )

    # 3. Channels to composite.
    if render_mode in ("D", "ED"):
        channels = depths[..., None]
        backgrounds = None
    elif render_mode in ("RGB+D", "RGB+ED"):
        channels = torch.cat((shaded, depths[..., None]), dim=-1)
        if backgrounds is not None:
            backgrounds = torch.cat((backgrounds, backgrounds.new_zeros(cameras, 1)), dim=-1)
    else:
        channels = shaded
    if backgrounds is None:
        backgrounds = means.new_zeros((cameras, channels.shape[-1]))

    # 4. Compositing.
    image, alphas = _Composite.apply(
        means2d,
        conics,
        channels,
        seen_opacities,
        backgrounds,
        radii,
        depths,
        (camera_starts, int(width), int(height), int(tile_size), bool(absgrad)),
    )
    if render_mode in ("ED", "RGB+ED"):
        depth = image[..., -1:] / alphas.clamp(min=1e-10)
        image = torch.cat((image[..., :-1], depth), dim=-1)

    meta = {
        "camera_ids": camera_ids,
        "gaussian_ids": gaussian_ids,
        "radii": radii,
        "means2d": means2d,
        "depths": depths,
        "conics": conics,
        "opacities": seen_opacities,
        "width": width,
        "height": height,
        "n_cameras": cameras,
        "tile_size": tile_size,
        "tile_width": math.ceil(width / tile_size),
        "tile_height": math.ceil(height / tile_size),
    }
    return image, alphas, meta


def _check(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    sh_degree: int | None,
    backgrounds: Tensor | None,
) -> int:
    """Refuse malformed tensors; returns the number of cameras."""
    gaussians, cameras = means.shape[0], viewmats.shape[0]
    expected = {
        "means": (means, (gaussians, 3)),
        "quats": (quats, (gaussians, 4)),
        "scales": (scales, (gaussians, 3)),
        "opacities": (opacities, (gaussians,)),
        "viewmats": (viewmats, (cameras, 4, 4)),
        "Ks": (Ks, (cameras, 3, 3)),
    }
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have the shape {shape}, not {tuple(tensor.shape)}")
    tensors = {name: tensor for name, (tensor, _) in expected.items()} | {"colors": colors}
    if backgrounds is not None:
        tensors["backgrounds"] = backgrounds
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            raise ValueError(
                f"the CPU rasteriser takes float32 tensors in main memory; {name} is {tensor.dtype} on {tensor.device}"
            )
    if width < 1 or height < 1:
        raise ValueError(f"images must have at least one pixel, not {width}x{height}")
    if sh_degree is None:
        if tuple(colors.shape[:-1]) not in ((gaussians,), (cameras, gaussians)):
            raise ValueError(f"colors must be [N, D] or [C, N, D] when sh_degree is None, not {tuple(colors.shape)}")
    else:
        if sh_degree not in range(MAX_SH_DEGREE + 1):
            raise ValueError(f"sh_degree must be None or 0 to {MAX_SH_DEGREE}, not {sh_degree}")
        if tuple(colors.shape[:-2]) not in ((gaussians,), (cameras, gaussians)) or colors.shape[-1] != 3:
            raise ValueError(f"colors must be [N, K, 3] or [C, N, K, 3] with sh_degree, not {tuple(colors.shape)}")
        if colors.shape[-2] < (sh_degree + 1) ** 2:
            raise ValueError(f"sh_degree {sh_degree} needs {(sh_degree + 1) ** 2} coefficients, not {colors.shape[-2]}")
    channels = colors.shape[-1]
    if backgrounds is not None and tuple(backgrounds.shape) != (cameras, channels):
        raise ValueError(f"backgrounds must have the shape {(cameras, channels)}, not {tuple(backgrounds.shape)}")
    return cameras


def _check_choices(
    render_mode: str,
    rasterize_mode: str,
    tile_size: int,
    sparse_grad: bool,
    distributed: bool,
    camera_model: str,
    covars: Tensor | None,
) -> None:
    """Refuse options that gsplat has on CUDA only, or that do not exist."""
    if render_mode not in RENDER_MODES:
        raise ValueError(f"render_mode must be one of {', '.join(RENDER_MODES)}, not {render_mode!r}")
    if rasterize_mode not in RASTERIZE_MODES:
        raise ValueError(f"rasterize_mode must be one of {', '.join(RASTERIZE_MODES)}, not {rasterize_mode!r}")
    if tile_size not in TILE_SIZES:
        raise ValueError(f"tile_size must be one of {', '.join(map(str, TILE_SIZES))}, not {tile_size}")
    if sparse_grad:
        raise ValueError("the CPU rasteriser has no sparse gradients: leave sparse_grad at False")
    if distributed:
        raise ValueError("the CPU rasteriser is not distributed: leave distributed at False")
    if camera_model != "pinhole":
        raise ValueError(f"the CPU rasteriser has pinhole cameras only, not {camera_model!r}")
    if covars is not None:
        raise ValueError("the CPU rasteriser takes quats and scales, not covars")


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


class _Project(torch.autograd.Function):
    """World to image: 3D Gaussians and spherical harmonics to image Gaussians and colours, [C, N, ...]."""

    @staticmethod
    def forward(ctx, means, quats, scales, opacities, coefficients, viewmats, Ks, positions, options):  # type: ignore[override]
        width, height, eps2d, near, far, radius_clip, degree, antialiased = options
        cameras, gaussians = viewmats.shape[0], means.shape[0]
        radii = torch.empty((cameras, gaussians), dtype=torch.int32)
        means2d = means.new_empty((cameras, gaussians, 2))
        depths = means.new_empty((cameras, gaussians))
        conics = means.new_empty((cameras, gaussians, 3))
        seen_opacities = means.new_empty((cameras, gaussians))
        colors = means.new_empty((cameras, gaussians if degree >= 0 else 0, 3))
        inputs = (means, quats, scales, opacities, coefficients, viewmats, Ks, positions)
        outputs = (radii, means2d, depths, conics, seen_opacities, colors)
        with one_at_a_time:
            kernels.project_forward(  # type: ignore[call-arg]
                workers(),
                jobs_taken(1),
                *map(_array, inputs),
                width,
                height,
                eps2d,
                near,
                far,
                radius_clip,
                degree,
                antialiased,
                *map(_array, outputs),
            )
        ctx.save_for_backward(*inputs, radii, colors)
        ctx.options = (width, height, eps2d, degree, antialiased)
        ctx.mark_non_differentiable(radii)
        return outputs

    @staticmethod
    def backward(ctx, _v_radii, v_means2d, v_depths, v_conics, v_seen_opacities, v_colors):  # type: ignore[override]
        *inputs, radii, colors = ctx.saved_tensors
        means, quats, scales, opacities, coefficients, viewmats, _Ks, _positions = inputs
        chunks = (means.shape[0] + kernels.CHUNK - 1) // kernels.CHUNK
        v_viewmats = means.new_empty((chunks, *viewmats.shape))
        v_positions = means.new_empty((chunks, viewmats.shape[0], 3))
        v_inputs = [
            torch.empty(tensor.shape, dtype=torch.float32) for tensor in (means, quats, scales, opacities, coefficients)
        ]
        with one_at_a_time:
            kernels.project_backward(  # type: ignore[call-arg]
                workers(),
                jobs_taken(1),
                *map(_array, inputs),
                *ctx.options,
                *map(_array, (radii, colors, v_means2d, v_depths, v_conics, v_seen_opacities, v_colors)),
                *map(_array, (*v_inputs, v_viewmats, v_positions)),
            )
        return *v_inputs, v_viewmats.sum(dim=0), None, v_positions.sum(dim=0), None


class _Composite(torch.autograd.Function):
    """Image Gaussians, sorted by depth, to pixels."""

    @staticmethod
    def forward(ctx, means2d, conics, channels, opacities, backgrounds, radii, depths, options):  # type: ignore[override]
        camera_starts, width, height, block_height, absgrad = options
        cameras, count = backgrounds.shape[0], channels.shape[-1]
        flat_conics = _array(conics).reshape(-1, 3)
        flat_opacities = _array(opacities).reshape(-1)
        flat_channels = _array(channels).reshape(-1, count)
        image = means2d.new_empty((cameras, height, width, count))
        alphas = means2d.new_empty((cameras, height, width, 1))
        with one_at_a_time:
            splats, drawn, first_entry, block_starts, items = kernels.bin_splats(
                workers(),
                jobs_taken(3),
                _array(means2d).reshape(-1, 2),
                flat_conics,
                flat_opacities,
                _array(radii).reshape(-1),
                _array(depths).reshape(-1).view(np.int32),
                camera_starts,
                width,
                height,
                block_height,
            )
            finals = np.empty((block_starts.shape[0] - 1, block_height, 16), np.float32)
            lists = (kernels.by_load(block_starts), block_starts, items, splats)
            kernels.composite_forward(
                workers(),
                jobs_taken(1),
                *lists,
                flat_channels,
                _array(backgrounds),
                width,
                height,
                block_height,
                _array(image),
                _array(alphas),
                finals,
            )
        ctx.save_for_backward(means2d, conics, channels, opacities, backgrounds, alphas)
        ctx.lists = (lists, drawn, first_entry, finals)
        ctx.options = (width, height, block_height, absgrad)
        return image, alphas

    @staticmethod
    def backward(ctx, v_image, v_alphas):  # type: ignore[override]
        means2d, conics, channels, opacities, backgrounds, alphas = ctx.saved_tensors
        width, height, block_height, absgrad = ctx.options
        lists, drawn, first_entry, finals = ctx.lists
        count = channels.shape[-1]
        flat_channels = _array(channels).reshape(-1, count)
        v_entries = np.empty(lists[2].shape[0] * kernels.entry_gradients(count), np.float32)
        v_means2d, v_conics, v_channels, v_opacities = (
            torch.zeros(tensor.shape, dtype=torch.float32) for tensor in (means2d, conics, channels, opacities)
        )
        v_absolute = torch.zeros_like(v_means2d) if absgrad else v_means2d.new_zeros((0, 2))
        with one_at_a_time:
            kernels.composite_backward(  # type: ignore[call-arg]
                workers(),
                jobs_taken(1),
                *lists,
                flat_channels,
                _array(backgrounds),
                width,
                height,
                block_height,
                finals,
                absgrad,
                _array(v_image),
                _array(v_alphas),
                v_entries,
            )
            kernels.gather_gradients(
                workers(),
                jobs_taken(1),
                drawn,
                first_entry,
                v_entries,
                _array(conics).reshape(-1, 3),
                _array(opacities).reshape(-1),
                absgrad,
                v_means2d.numpy().reshape(-1, 2),
                v_absolute.numpy().reshape(-1, 2),
                v_conics.numpy().reshape(-1, 3),
                v_opacities.numpy().reshape(-1),
                v_channels.numpy().reshape(-1, count),
            )
        if absgrad:
            means2d.absgrad = v_absolute
        v_backgrounds = None
        if ctx.needs_input_grad[4]:
            v_backgrounds = ((1.0 - alphas) * v_image).sum(dim=(1, 2))
        return v_means2d, v_conics, v_channels, v_opacities, v_backgrounds, None, None, None
