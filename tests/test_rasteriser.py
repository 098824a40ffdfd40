"""The CPU rasteriser against a dense float64 twin in plain PyTorch, and against gsplat's own torch code."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from difixcli.reconstruction.rasteriser import rasterization

WIDTH, HEIGHT = 45, 37  # no multiple of a block


@dataclass
class Gaussians:
    """Inputs of `rasterization` that are differentiated."""

    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    colors: Tensor
    viewmats: Tensor

    def tensors(self) -> dict[str, Tensor]:
        return dict(vars(self))

    def leaves(self, dtype: torch.dtype) -> Gaussians:
        return Gaussians(**{k: v.detach().clone().to(dtype).requires_grad_() for k, v in vars(self).items()})


def random_gaussians(count: int = 150, cameras: int = 2, sh_bases: int = 16, seed: int = 0) -> Gaussians:
    """A cloud in front of (and a little beside and behind) random cameras; some needles, some nearly opaque."""
    g = torch.Generator().manual_seed(seed)
    means = (torch.rand(count, 3, generator=g) - 0.5) * torch.tensor([5.0, 4.0, 4.0])
    scales = torch.exp(torch.randn(count, 3, generator=g) * 0.7 - 2.0)
    opacities = torch.rand(count, generator=g)
    opacities[: count // 5] = 0.9995
    viewmats = torch.eye(4).repeat(cameras, 1, 1)
    for camera in range(cameras):
        turn = torch.linalg.qr(torch.eye(3) + 0.2 * torch.randn(3, 3, generator=g)).Q
        turn = turn * torch.sign(torch.diagonal(turn))
        viewmats[camera, :3, :3] = turn if torch.linalg.det(turn) > 0 else torch.eye(3)
        viewmats[camera, :3, 3] = torch.tensor([0.1 * camera, -0.2, 1.8])
    colors = torch.randn(count, sh_bases, 3, generator=g) * 0.3
    return Gaussians(means, torch.randn(count, 4, generator=g), scales, opacities, colors, viewmats)


def intrinsics(cameras: int = 2) -> Tensor:
    K = torch.tensor([[38.0, 0.0, 21.0], [0.0, 41.0, 19.5], [0.0, 0.0, 1.0]])
    return K.repeat(cameras, 1, 1)


def sh_twin(degree: int, directions: Tensor, coefficients: Tensor) -> Tensor:
    """Real spherical harmonics from their textbook normalisations."""
    x, y, z = torch.nn.functional.normalize(directions, dim=-1).unbind(-1)
    pi = math.pi
    bases = [
        torch.full_like(x, 0.5 / math.sqrt(pi)),
        -math.sqrt(3 / (4 * pi)) * y,
        math.sqrt(3 / (4 * pi)) * z,
        -math.sqrt(3 / (4 * pi)) * x,
        0.5 * math.sqrt(15 / pi) * x * y,
        -0.5 * math.sqrt(15 / pi) * y * z,
        0.25 * math.sqrt(5 / pi) * (3 * z * z - 1),
        -0.5 * math.sqrt(15 / pi) * x * z,
        0.25 * math.sqrt(15 / pi) * (x * x - y * y),
        -0.25 * math.sqrt(35 / (2 * pi)) * y * (3 * x * x - y * y),
        0.5 * math.sqrt(105 / pi) * x * y * z,
        -0.25 * math.sqrt(21 / (2 * pi)) * y * (5 * z * z - 1),
        0.25 * math.sqrt(7 / pi) * z * (5 * z * z - 3),
        -0.25 * math.sqrt(21 / (2 * pi)) * x * (5 * z * z - 1),
        0.25 * math.sqrt(105 / pi) * z * (x * x - y * y),
        -0.25 * math.sqrt(35 / (2 * pi)) * x * (x * x - 3 * y * y),
    ]
    used = torch.stack(bases[: (degree + 1) ** 2], dim=-1)
    return (used[..., None] * coefficients[..., : used.shape[-1], :]).sum(-2)


def rotation_twin(quats: Tensor) -> Tensor:
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    zero = torch.zeros_like(w)
    # R = I + 2 w [v] + 2 [v]^2 (Rodrigues), with [v] the cross-product matrix of the vector part
    cross = torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), -1).reshape(-1, 3, 3)
    return torch.eye(3, dtype=quats.dtype) + 2 * w[:, None, None] * cross + 2 * cross @ cross


def dense_twin(
    g: Gaussians,
    Ks: Tensor,
    *,
    sh_degree: int | None,
    render_mode: str = "RGB",
    antialiased: bool = False,
    backgrounds: Tensor | None = None,
    radius_clip: float = 0.0,
    near: float = 0.01,
    far: float = 1e10,
    eps2d: float = 0.3,
) -> tuple[Tensor, Tensor, list[list[Tensor | None]], Tensor]:
    """Every Gaussian at every pixel, in the order of depth.

    Returns images, alphas, each splat's image mean as a tensor per pixel (whose gradients show |d loss / d mean2d|),
    and the pixels [C, H, W] where no alpha and no transmittance lies so near a threshold (1/255, 0.999, 1e-4) that
    float32 may decide otherwise than float64: only those can be compared.
    """
    dtype = g.means.dtype
    Ks = Ks.to(dtype)
    ys, xs = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    pixels = torch.stack((xs, ys), -1).to(dtype)
    images, all_alphas, pixel_means, decided = [], [], [], []
    for camera in range(len(Ks)):
        W, t, K = g.viewmats[camera, :3, :3], g.viewmats[camera, :3, 3], Ks[camera]
        x, y, z = (g.means @ W.T + t).unbind(-1)
        limit_x = 0.15 * WIDTH / K[0, 0]
        limit_y = 0.15 * HEIGHT / K[1, 1]
        tx = z * torch.clamp(x / z, -K[0, 2] / K[0, 0] - limit_x, (WIDTH - K[0, 2]) / K[0, 0] + limit_x)
        ty = z * torch.clamp(y / z, -K[1, 2] / K[1, 1] - limit_y, (HEIGHT - K[1, 2]) / K[1, 1] + limit_y)
        zero = torch.zeros_like(z)
        J = torch.stack((K[0, 0] / z, zero, -K[0, 0] * tx / z**2, zero, K[1, 1] / z, -K[1, 1] * ty / z**2), -1)
        M = J.reshape(-1, 2, 3) @ W @ rotation_twin(g.quats) * g.scales[:, None, :]
        sharp = M @ M.mT
        cov = sharp + eps2d * torch.eye(2, dtype=dtype)
        mean2d = torch.stack((K[0, 0] * x / z + K[0, 2], K[1, 1] * y / z + K[1, 2]), -1)
        opacity = g.opacities
        if antialiased:
            opacity = opacity * torch.sqrt(torch.det(sharp) / torch.det(cov))
        if sh_degree is None:
            color = g.colors if g.colors.dim() == 2 else g.colors[camera]
        else:
            coefficients = g.colors if g.colors.dim() == 3 else g.colors[camera]
            color = (sh_twin(sh_degree, g.means - torch.inverse(g.viewmats[camera])[:3, 3], coefficients) + 0.5).clamp(
                0
            )
        if render_mode in ("D", "ED"):
            color = z[:, None]
        elif render_mode != "RGB":
            color = torch.cat((color, z[:, None]), -1)

        half_trace, det = (cov[:, 0, 0] + cov[:, 1, 1]) / 2, torch.det(cov)
        radius = torch.ceil(3 * torch.sqrt(half_trace + torch.sqrt((half_trace**2 - det).clamp(min=0.01))))
        seen = (z >= near) & (z <= far) & (radius > radius_clip)
        seen &= ((mean2d + radius[:, None] > 0) & (mean2d - radius[:, None] < torch.tensor([WIDTH, HEIGHT]))).all(-1)

        inverse = torch.inverse(cov)
        T = torch.ones(HEIGHT, WIDTH, dtype=dtype)
        done = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
        clear = torch.ones(HEIGHT, WIDTH, dtype=torch.bool)
        image = torch.zeros(HEIGHT, WIDTH, color.shape[1], dtype=dtype)
        means_here: list[Tensor | None] = [None] * len(z)
        for n in [int(i) for i in torch.argsort(z) if seen[i]]:
            center = mean2d[n].expand(HEIGHT, WIDTH, 2)
            means_here[n] = center = center.clone()
            d = pixels - center
            power = -0.5 * torch.einsum("hwi,ij,hwj->hw", d, inverse[n], d)
            alpha = opacity[n] * torch.exp(power)
            clear &= done | (((alpha * 255 - 1).abs() > 2e-5) & ((alpha / 0.999 - 1).abs() > 2e-5))
            alpha = alpha.clamp(max=0.999)
            alpha = torch.where((alpha >= 1 / 255) & ~done, alpha, 0.0)
            rest = T * (1 - alpha)
            clear &= done | ((rest * 1e4 - 1).abs() > 1e-4)
            done = done | (rest <= 1e-4)
            alpha = torch.where(done, 0.0, alpha)
            image = image + (T * alpha)[..., None] * color[n]
            T = T * (1 - alpha)
        if backgrounds is not None:
            shown = torch.zeros(color.shape[1], dtype=dtype)
            if render_mode not in ("D", "ED"):
                shown = torch.cat((backgrounds[camera].to(dtype), shown))[: color.shape[1]]
            image = image + T[..., None] * shown
        if "ED" in render_mode:
            image = torch.cat((image[..., :-1], image[..., -1:] / (1 - T[..., None]).clamp(min=1e-10)), -1)
        images.append(image)
        all_alphas.append(1 - T[..., None])
        pixel_means.append(means_here)
        decided.append(clear)
    return torch.stack(images), torch.stack(all_alphas), pixel_means, torch.stack(decided)


def relative(found: Tensor, truth: Tensor) -> float:
    return float((found.double() - truth).norm() / truth.norm())


def compare(g: Gaussians, *, atol: float = 1e-5, rtol: float = 1e-4, **options) -> dict:
    """Image within `atol` (of the largest value, if above 1), gradients within `rtol` of the twin; returns the meta."""
    Ks = intrinsics(len(g.viewmats))
    backgrounds = options.pop("backgrounds", None)
    absgrad = options.pop("absgrad", False)
    ours, twin = g.leaves(torch.float32), g.leaves(torch.float64)
    ours_background = None if backgrounds is None else backgrounds.clone().requires_grad_()
    twin_background = None if backgrounds is None else backgrounds.double().requires_grad_()
    names = {"near": "near_plane", "far": "far_plane"}
    call = {names.get(k, k): v for k, v in options.items() if k not in ("antialiased", "packed", "tile_size")}
    call |= {k: options.pop(k) for k in ("packed", "tile_size") if k in options}
    call.setdefault("packed", False)
    image, alphas, meta = rasterization(
        **ours.tensors(),
        Ks=Ks,
        width=WIDTH,
        height=HEIGHT,
        backgrounds=ours_background,
        absgrad=absgrad,
        rasterize_mode="antialiased" if options.get("antialiased") else "classic",
        **call,
    )
    truth, true_alphas, pixel_means, decided = dense_twin(twin, Ks, backgrounds=twin_background, **options)
    assert decided.float().mean() > 0.97
    decided = decided[..., None].float()
    assert image.shape == truth.shape
    scale = max(1.0, float(truth.detach().abs().max()))
    assert float(((image.detach().double() - truth.detach()) * decided).abs().max()) <= atol * scale
    assert float(((alphas.detach().double() - true_alphas.detach()) * decided).abs().max()) <= atol
    weights = torch.randn(image.shape, generator=torch.Generator().manual_seed(7)) * decided
    alpha_weights = torch.randn(alphas.shape, generator=torch.Generator().manual_seed(8)) * decided
    meta["means2d"].retain_grad()
    for means_here in pixel_means:
        for mean in means_here:
            if mean is not None:
                mean.retain_grad()
    ((image * weights).sum() + (alphas * alpha_weights).sum()).backward()
    ((truth * weights.double()).sum() + (true_alphas * alpha_weights.double()).sum()).backward()
    for name, tensor in ours.tensors().items():
        true_gradient = twin.tensors()[name].grad
        if true_gradient is None:
            continue
        error = relative(tensor.grad, true_gradient)
        assert error <= rtol, f"gradient of {name}: {error:.1e}"
    if ours_background is not None and ours_background.grad is not None:
        assert relative(ours_background.grad, twin_background.grad) <= rtol
    screen = torch.zeros(len(Ks), len(g.means), 2, dtype=torch.float64)
    screen_absolute = torch.zeros_like(screen)
    for camera, means_here in enumerate(pixel_means):
        for n, mean in enumerate(means_here):
            if mean is not None and mean.grad is not None:
                screen[camera, n] = mean.grad.sum((0, 1))
                screen_absolute[camera, n] = mean.grad.abs().sum((0, 1))
    if call["packed"]:
        screen = screen[meta["camera_ids"], meta["gaussian_ids"]]
        screen_absolute = screen_absolute[meta["camera_ids"], meta["gaussian_ids"]]
    assert relative(meta["means2d"].grad, screen) <= rtol
    if absgrad:
        assert relative(meta["means2d"].absgrad, screen_absolute) <= rtol
    return meta


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_every_sh_degree(degree):
    compare(random_gaussians(seed=degree), sh_degree=degree, absgrad=True)


def test_fewer_degrees_than_coefficients_leave_the_others_alone():
    g = random_gaussians(seed=1).leaves(torch.float32)
    image, _, _ = rasterization(**g.tensors(), Ks=intrinsics(), width=WIDTH, height=HEIGHT, sh_degree=1)
    image.sum().backward()
    assert g.colors.grad[:, :4].abs().max() > 0
    assert g.colors.grad[:, 4:].abs().max() == 0


@pytest.mark.parametrize("mode", ["RGB", "D", "ED", "RGB+D", "RGB+ED"])
@pytest.mark.parametrize("antialiased", [False, True])
def test_render_modes(mode, antialiased):
    compare(
        random_gaussians(count=80, seed=11),
        sh_degree=2,
        render_mode=mode,
        antialiased=antialiased,
        absgrad=True,
        backgrounds=torch.tensor([[0.3, 0.6, 0.9], [1.0, 0.1, 0.0]]),
    )


@pytest.mark.parametrize("packed", [False, True])
def test_plain_channels_of_any_number(packed):
    g = random_gaussians(count=60, seed=3)
    g.colors = torch.rand(60, 5)
    compare(g, sh_degree=None, packed=packed, absgrad=True, backgrounds=torch.rand(2, 5))


def test_colours_per_camera():
    g = random_gaussians(count=60, seed=4)
    g.colors = torch.rand(2, 60, 3)
    compare(g, sh_degree=None)
    g.colors = torch.randn(2, 60, 16, 3) * 0.3
    compare(g, sh_degree=3)


def test_planes_radius_clip_and_packed_meta():
    g = random_gaussians(seed=6)
    meta = compare(g, sh_degree=3, near=1.2, far=3.0, radius_clip=4.0, packed=True, absgrad=True)
    assert meta["means2d"].shape == (len(meta["gaussian_ids"]), 2)
    assert (meta["radii"] > 4).all()
    assert ((meta["depths"] >= 1.2) & (meta["depths"] <= 3.0)).all()
    assert (meta["camera_ids"].diff() >= 0).all()


@pytest.mark.parametrize("tile_size", [8, 32])
def test_tile_size_does_not_change_the_result(tile_size):
    compare(random_gaussians(seed=0), sh_degree=0, tile_size=tile_size)


def test_one_huge_gaussian_and_early_stop():
    g = random_gaussians(count=40, cameras=1, seed=9)
    g.opacities[:] = 0.95
    g.scales *= 4
    compare(g, sh_degree=3, absgrad=True)


def test_projection_and_harmonics_as_gsplat_has_them():
    from gsplat.cuda._torch_impl import (
        _fully_fused_projection,
        _quat_scale_to_covar_preci,
        _spherical_harmonics,
    )

    g = random_gaussians(count=400, seed=5)
    Ks = intrinsics()
    _, _, meta = rasterization(
        **g.tensors(), Ks=Ks, width=WIDTH, height=HEIGHT, sh_degree=3, packed=False, rasterize_mode="antialiased"
    )
    covars, _ = _quat_scale_to_covar_preci(g.quats, g.scales, True, False, False)
    radii, means2d, depths, conics, compensations = _fully_fused_projection(
        g.means, covars, g.viewmats, Ks, WIDTH, HEIGHT, calc_compensations=True
    )
    assert ((meta["radii"] > 0) != (radii > 0)).sum() == 0
    assert (meta["radii"] - radii).abs().max() <= 1  # a ceiling may round either way
    seen = radii > 0
    torch.testing.assert_close(meta["means2d"][seen], means2d[seen], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(meta["depths"][seen], depths[seen], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(meta["conics"][seen], conics[seen], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(meta["opacities"][seen], (g.opacities * compensations)[seen], rtol=1e-3, atol=1e-4)
    directions = g.means - torch.inverse(g.viewmats)[0, :3, 3]
    theirs = _spherical_harmonics(3, directions, g.colors)
    torch.testing.assert_close(sh_twin(3, directions, g.colors), theirs, rtol=1e-5, atol=1e-6)


def test_same_input_same_bits():
    def once() -> list[Tensor]:
        g = random_gaussians(count=400, seed=2).leaves(torch.float32)
        image, _, meta = rasterization(
            **g.tensors(), Ks=intrinsics(), width=WIDTH, height=HEIGHT, sh_degree=3, packed=False, absgrad=True
        )
        image.square().sum().backward()
        return [image, meta["means2d"].absgrad, *(tensor.grad for tensor in g.tensors().values())]

    assert all(torch.equal(a, b) for a, b in zip(once(), once(), strict=True))


def test_nothing_to_see_is_background():
    g = random_gaussians(count=5, seed=0).leaves(torch.float32)
    with torch.no_grad():
        g.means[:, 2] = -50.0
    for packed in (False, True):
        image, alphas, meta = rasterization(
            **g.tensors(),
            Ks=intrinsics(),
            width=WIDTH,
            height=HEIGHT,
            sh_degree=3,
            packed=packed,
            backgrounds=torch.full((2, 3), 0.25),
        )
        assert (image == 0.25).all() and (alphas == 0).all() and not (meta["radii"] > 0).any()
        image.sum().backward()
        assert (g.means.grad == 0).all()


def test_not_a_number_is_left_out():
    g = random_gaussians(count=50, seed=0)
    whole, _, _ = rasterization(
        **{k: v[1:] if k != "viewmats" else v for k, v in g.tensors().items()},
        Ks=intrinsics(),
        width=WIDTH,
        height=HEIGHT,
        sh_degree=3,
    )
    g.means[0] = math.nan
    image, _, _ = rasterization(**g.tensors(), Ks=intrinsics(), width=WIDTH, height=HEIGHT, sh_degree=3)
    assert torch.equal(image, whole)


def test_gsplat_strategy_densifies():
    from gsplat.strategy import DefaultStrategy

    g = random_gaussians(count=100, seed=0)
    params = torch.nn.ParameterDict(
        {
            "means": g.means,
            "quats": g.quats,
            "scales": g.scales.log(),
            "opacities": torch.logit(g.opacities.clamp(max=0.99)),
            "colors": g.colors,
        }
    )
    optimizers = {k: torch.optim.Adam([{"params": [v], "name": k}], lr=1e-3) for k, v in params.items()}
    for packed in (False, True):
        strategy = DefaultStrategy(
            absgrad=True, refine_start_iter=0, refine_every=2, grow_grad2d=1e-9, refine_scale2d_stop_iter=100
        )
        state = strategy.initialize_state()
        before = len(params["means"])
        for step in range(1, 3):
            image, _, info = rasterization(
                params["means"],
                params["quats"],
                params["scales"].exp(),
                params["opacities"].sigmoid(),
                params["colors"],
                g.viewmats,
                intrinsics(),
                WIDTH,
                HEIGHT,
                sh_degree=3,
                packed=packed,
                absgrad=True,
            )
            strategy.step_pre_backward(params, optimizers, state, step, info)
            image.square().mean().backward()
            strategy.step_post_backward(params, optimizers, state, step, info, packed=packed)
        assert len(params["means"]) > before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sh_degree": 4}, "sh_degree"),
        ({"render_mode": "depth"}, "render_mode"),
        ({"rasterize_mode": "smooth"}, "rasterize_mode"),
        ({"tile_size": 10}, "tile_size"),
        ({"sparse_grad": True}, "sparse"),
        ({"distributed": True}, "distributed"),
        ({"camera_model": "fisheye"}, "pinhole"),
        ({"covars": torch.zeros(150, 3, 3)}, "covars"),
        ({"width": 0}, "pixel"),
        ({"backgrounds": torch.zeros(3)}, "backgrounds"),
        ({"means": torch.zeros(150, 3, dtype=torch.float64)}, "float32"),
        ({"opacities": torch.zeros(150, 1)}, "opacities"),
        ({"colors": torch.zeros(150, 9, 3)}, "coefficients"),
    ],
)
def test_what_is_not_supported_is_refused(change, words):
    g = random_gaussians()
    arguments = {**g.tensors(), "Ks": intrinsics(), "width": WIDTH, "height": HEIGHT, "sh_degree": 3, **change}
    with pytest.raises(ValueError, match=words):
        rasterization(**arguments)


def test_base_two_exponential_is_accurate():
    import numba

    from difixcli.reconstruction import rasteriser_lanes as simd

    @numba.njit
    def apply(values, out):
        for i in range(0, values.shape[0], 8):
            simd.store(out, i, simd.halving(simd.load(values, i)))

    values = np.linspace(0, 30, 80_000, dtype=np.float32)
    out = np.empty_like(values)
    apply(values, out)
    np.testing.assert_allclose(out, 2.0 ** -values.astype(np.float64), rtol=3e-7)


@pytest.mark.parametrize("absgrad", [True, False])
def test_bounded_strategy_counts_as_gsplats(absgrad: bool) -> None:
    from gsplat.strategy import DefaultStrategy

    from difixcli.reconstruction.bounded_strategy import bound_strategy

    theirs, ours = (DefaultStrategy(absgrad=absgrad, refine_scale2d_stop_iter=100) for _ in range(2))
    assert bound_strategy(ours, 1000)
    states = [strategy.initialize_state() for strategy in (theirs, ours)]
    for turn in range(3):
        g = random_gaussians(count=100, cameras=1, seed=turn).leaves(torch.float32)
        image, _, info = rasterization(
            **g.tensors(), Ks=intrinsics(1), width=WIDTH, height=HEIGHT, sh_degree=3, packed=False, absgrad=absgrad
        )
        info["means2d"].retain_grad()
        image.square().sum().backward()
        assert 0 < (info["radii"] > 0).sum() < 100
        for strategy, state in zip((theirs, ours), states, strict=True):
            strategy.step_post_backward({"means": g.means}, {}, state, 1, info)
    for key in ("grad2d", "count", "radii"):
        torch.testing.assert_close(states[1][key], states[0][key], rtol=1e-6, atol=0)
