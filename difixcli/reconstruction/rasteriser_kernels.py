"""The compiled parts of the CPU rasteriser; `rasteriser` holds the interface, the conventions and the autograd.

Everything is float32 and int32 in flat C-contiguous arrays. C cameras, N Gaussians, M = splats (Gaussians as one
camera sees them, camera by camera), D colour channels, K spherical-harmonics bases.

The image is cut into blocks 8 pixels wide (one `Lanes`) and `block_height` high. An *entry* is one splat in one block,
with the range of rows that its ellipse alpha >= 1/255 reaches there.
"""

# numba's types are not Python's: what the compiler checks here, a Python type checker cannot.
# mypy: ignore-errors

from __future__ import annotations

import math

import numpy as np
from numba import prange

from difixcli.compiled import FAST, compiled
from difixcli.reconstruction import rasteriser_lanes as simd
from difixcli.reconstruction.parallel import LOOPS_ONLY, take

F = np.float32
I = np.int32

# gsplat's constants: contributions below this alpha are dropped, alpha is clamped here, and a pixel is finished when
# its transmittance would fall to this.
ALPHA_MIN = 1.0 / 255.0
ALPHA_MAX = 0.999
TRANSMITTANCE_MIN = 1e-4

# exp(-sigma) = 2 ** -(sigma / ln 2), and sigma = (conic form) / 2: the scale that turns conics into base-2 exponents.
_TO_BASE_2 = F(0.5 / math.log(2.0))
_FROM_BASE_2 = F(2.0 * math.log(2.0))
_EXPONENT_MIN = F(-math.log2(ALPHA_MAX))
_ALPHA_MIN = F(ALPHA_MIN)
_TRANSMITTANCE_MIN = F(TRANSMITTANCE_MIN)
# An entry may be a little too large, never too small: the exact test is made at every pixel.
_REACH = F(math.log2(1 / ALPHA_MIN) + 2e-3)

CHUNK = 512
"""Gaussians or splats that are one job."""

_BIN_JOBS = 64
"""Into how many jobs the splats are divided at most to find the blocks that they reach."""

# One packed splat: mean x, y; the Cholesky factor (p, q, r) of its conic in base-2 exponents; log2 of its opacity.
_SPLAT = 6

_SH = (
    0.28209479177387814,
    0.4886025119029199,
    1.0925484305920792,
    0.9461746957575601,
    0.31539156525252005,
    0.5462742152960396,
    0.5900435899266435,
    2.890611442640554,
    2.285228997322329,
    0.4570457994644658,
    1.865881662950577,
    1.119528997770346,
    1.4453057213202770,
)
(_C0, _C1, _C2, _C20, _C20B, _C22, _C33, _C32, _C31, _C31B, _C30, _C30B, _C32B) = (F(value) for value in _SH)

# No reassociation and no assumption of finite numbers where Gaussians are culled: a NaN must be seen.
_CAREFUL = {"contract", "arcp", "nsz"}


@compiled(fastmath=_CAREFUL, error_model="numpy")
def _sh_bases(degree, x, y, z, bases):
    """Real spherical harmonics of a unit direction, in the order of the 3D Gaussian splatting papers."""
    bases[0] = _C0
    if degree < 1:
        return
    bases[1] = -_C1 * y
    bases[2] = _C1 * z
    bases[3] = -_C1 * x
    if degree < 2:
        return
    xx, yy, zz = x * x, y * y, z * z
    bases[4] = _C2 * x * y
    bases[5] = -_C2 * y * z
    bases[6] = _C20 * zz - _C20B
    bases[7] = -_C2 * x * z
    bases[8] = _C22 * (xx - yy)
    if degree < 3:
        return
    bases[9] = -_C33 * y * (F(3.0) * xx - yy)
    bases[10] = _C32 * x * y * z
    bases[11] = y * (_C31B - _C31 * zz)
    bases[12] = z * (_C30 * zz - _C30B)
    bases[13] = x * (_C31B - _C31 * zz)
    bases[14] = _C32B * z * (xx - yy)
    bases[15] = -_C33 * x * (xx - F(3.0) * yy)


@compiled(fastmath=_CAREFUL, error_model="numpy")
def _sh_direction_gradient(degree, x, y, z, w):
    """Gradient to the direction (not yet made tangent to the sphere) of ``sum(w[k] * bases[k])``."""
    vx = vy = vz = F(0.0)
    if degree >= 1:
        vy -= _C1 * w[1]
        vz += _C1 * w[2]
        vx -= _C1 * w[3]
    if degree >= 2:
        vx += _C2 * (y * w[4] - z * w[7]) + F(2.0) * _C22 * x * w[8]
        vy += _C2 * (x * w[4] - z * w[5]) - F(2.0) * _C22 * y * w[8]
        vz += F(2.0) * _C20 * z * w[6] - _C2 * (y * w[5] + x * w[7])
    if degree >= 3:
        xx, yy, zz = x * x, y * y, z * z
        slope = _C31B - _C31 * zz
        vx += (
            -F(6.0) * _C33 * x * y * w[9]
            + _C32 * y * z * w[10]
            + slope * w[13]
            + F(2.0) * _C32B * x * z * w[14]
            - F(3.0) * _C33 * (xx - yy) * w[15]
        )
        vy += (
            -F(3.0) * _C33 * (xx - yy) * w[9]
            + _C32 * x * z * w[10]
            + slope * w[11]
            - F(2.0) * _C32B * y * z * w[14]
            + F(6.0) * _C33 * x * y * w[15]
        )
        vz += (
            _C32 * x * y * w[10]
            - F(2.0) * _C31 * z * (y * w[11] + x * w[13])
            + (F(3.0) * _C30 * zz - _C30B) * w[12]
            + _C32B * (xx - yy) * w[14]
        )
    return vx, vy, vz


@compiled(fastmath=_CAREFUL, error_model="numpy")
def _rotation(quats, n):
    """Rotation matrix (row by row) of a wxyz quaternion of any length, its unit form and 1 / length."""
    w, x, y, z = quats[n, 0], quats[n, 1], quats[n, 2], quats[n, 3]
    scale = F(1.0) / max(math.sqrt(w * w + x * x + y * y + z * z), F(1e-12))
    w, x, y, z = w * scale, x * scale, y * scale, z * scale
    one, two = F(1.0), F(2.0)
    return (
        one - two * (y * y + z * z),
        two * (x * y - w * z),
        two * (x * z + w * y),
        two * (x * y + w * z),
        one - two * (x * x + z * z),
        two * (y * z - w * x),
        two * (x * z - w * y),
        two * (y * z + w * x),
        one - two * (x * x + y * y),
        w,
        x,
        y,
        z,
        scale,
    )


@compiled(fastmath=_CAREFUL, error_model="numpy")
def _clamp_limits(K, width, height):
    """Range of x/z and y/z inside which the projection is linearised: the view and 15 % of its width on each side."""
    margin_x = F(0.15) * F(width) / K[0, 0]
    margin_y = F(0.15) * F(height) / K[1, 1]
    return (
        -(K[0, 2] / K[0, 0] + margin_x),
        (F(width) - K[0, 2]) / K[0, 0] + margin_x,
        -(K[1, 2] / K[1, 1] + margin_y),
        (F(height) - K[1, 2]) / K[1, 1] + margin_y,
    )


@compiled(parallel=LOOPS_ONLY, fastmath=_CAREFUL, error_model="numpy")
def project_forward(
    workers,
    taken,
    means,  # [N, 3]
    quats,  # [N, 4]
    scales,  # [N, 3]
    opacities,  # [N]
    coefficients,  # [C or 1, N, K, 3]; K = 0 without spherical harmonics
    viewmats,  # [C, 4, 4]
    Ks,  # [C, 3, 3]
    positions,  # [C, 3] camera centres
    width,
    height,
    eps2d,
    near,
    far,
    radius_clip,
    degree,
    antialiased,
    radii,  # [C, N] int32, out
    means2d,  # [C, N, 2], out
    depths,  # [C, N], out
    conics,  # [C, N, 3], out
    seen_opacities,  # [C, N], out
    colors,  # [C, N, 3] or [C, 0, 3], out
):
    """Project Gaussians and evaluate their colours; rows of Gaussians that are culled become zero."""
    gaussians = means.shape[0]
    chunks = (gaussians + CHUNK - 1) // CHUNK
    jobs = viewmats.shape[0] * chunks
    for _ in prange(workers):
        bases = np.empty(16, np.float32)
        job = take(taken, 0)
        while job < jobs:
            camera = job // chunks
            start = (job % chunks) * CHUNK
            V = viewmats[camera]
            K = Ks[camera]
            fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
            low_x, high_x, low_y, high_y = _clamp_limits(K, width, height)
            sh = coefficients[camera if coefficients.shape[0] > 1 else 0]
            for n in range(start, min(start + CHUNK, gaussians)):
                radii[camera, n] = 0
                means2d[camera, n, 0] = F(0.0)
                means2d[camera, n, 1] = F(0.0)
                depths[camera, n] = F(0.0)
                conics[camera, n, 0] = F(0.0)
                conics[camera, n, 1] = F(0.0)
                conics[camera, n, 2] = F(0.0)
                seen_opacities[camera, n] = F(0.0)
                if degree >= 0:
                    colors[camera, n, 0] = F(0.0)
                    colors[camera, n, 1] = F(0.0)
                    colors[camera, n, 2] = F(0.0)
                mx, my, mz = means[n, 0], means[n, 1], means[n, 2]
                z = V[2, 0] * mx + V[2, 1] * my + V[2, 2] * mz + V[2, 3]
                if not (z >= near and z <= far):
                    continue
                x = V[0, 0] * mx + V[0, 1] * my + V[0, 2] * mz + V[0, 3]
                y = V[1, 0] * mx + V[1, 1] * my + V[1, 2] * mz + V[1, 3]
                rz = F(1.0) / z
                u = fx * x * rz + cx
                v = fy * y * rz + cy

                # G = J W R S, so that the image covariance is G G^T.
                j00, j11 = fx * rz, fy * rz
                j02 = -j00 * min(high_x, max(low_x, x * rz))
                j12 = -j11 * min(high_y, max(low_y, y * rz))
                t00 = j00 * V[0, 0] + j02 * V[2, 0]
                t01 = j00 * V[0, 1] + j02 * V[2, 1]
                t02 = j00 * V[0, 2] + j02 * V[2, 2]
                t10 = j11 * V[1, 0] + j12 * V[2, 0]
                t11 = j11 * V[1, 1] + j12 * V[2, 1]
                t12 = j11 * V[1, 2] + j12 * V[2, 2]
                r00, r01, r02, r10, r11, r12, r20, r21, r22, _qw, _qx, _qy, _qz, _qs = _rotation(quats, n)
                s0, s1, s2 = scales[n, 0], scales[n, 1], scales[n, 2]
                g00 = (t00 * r00 + t01 * r10 + t02 * r20) * s0
                g01 = (t00 * r01 + t01 * r11 + t02 * r21) * s1
                g02 = (t00 * r02 + t01 * r12 + t02 * r22) * s2
                g10 = (t10 * r00 + t11 * r10 + t12 * r20) * s0
                g11 = (t10 * r01 + t11 * r11 + t12 * r21) * s1
                g12 = (t10 * r02 + t11 * r12 + t12 * r22) * s2
                a = g00 * g00 + g01 * g01 + g02 * g02
                b = g00 * g10 + g01 * g11 + g02 * g12
                c = g10 * g10 + g11 * g11 + g12 * g12
                # Cauchy-Binet: the determinant as a sum of squares, which loses no digits for needles.
                m0, m1, m2 = g01 * g12 - g02 * g11, g02 * g10 - g00 * g12, g00 * g11 - g01 * g10
                det_sharp = m0 * m0 + m1 * m1 + m2 * m2
                det = det_sharp + eps2d * (a + c) + eps2d * eps2d
                if not det > F(0.0):
                    continue
                half = F(0.5) * (a - c)
                largest = F(0.5) * (a + c) + eps2d + math.sqrt(max(F(0.01), half * half + b * b))
                radius = np.ceil(F(3.0) * math.sqrt(largest))
                if not (radius > radius_clip and radius < F(1e9)):
                    continue
                if not (
                    u + radius > F(0.0) and u - radius < F(width) and v + radius > F(0.0) and v - radius < F(height)
                ):
                    continue

                radii[camera, n] = I(radius)
                means2d[camera, n, 0] = u
                means2d[camera, n, 1] = v
                depths[camera, n] = z
                conics[camera, n, 0] = (c + eps2d) / det
                conics[camera, n, 1] = -b / det
                conics[camera, n, 2] = (a + eps2d) / det
                seen_opacities[camera, n] = opacities[n] * math.sqrt(det_sharp / det) if antialiased else opacities[n]

                if degree >= 0:
                    dx, dy, dz = mx - positions[camera, 0], my - positions[camera, 1], mz - positions[camera, 2]
                    inverse = F(1.0) / max(math.sqrt(dx * dx + dy * dy + dz * dz), F(1e-12))
                    _sh_bases(degree, dx * inverse, dy * inverse, dz * inverse, bases)
                    red = green = blue = F(0.5)
                    for k in range((degree + 1) * (degree + 1)):
                        red += bases[k] * sh[n, k, 0]
                        green += bases[k] * sh[n, k, 1]
                        blue += bases[k] * sh[n, k, 2]
                    colors[camera, n, 0] = max(red, F(0.0))
                    colors[camera, n, 1] = max(green, F(0.0))
                    colors[camera, n, 2] = max(blue, F(0.0))
            job = take(taken, 0)


@compiled(fastmath=_CAREFUL, error_model="numpy")
def _color_gradient(degree, dx, dy, dz, v_red, v_green, v_blue, sh, v_sh, bases, weights):
    """The gradient of a colour by where its Gaussian stands, (dx, dy, dz) from the camera: three values.

    That by the Gaussian's coefficients is added to `v_sh` [K, 3]; `bases` and `weights` [16] are room to work in.
    """
    inverse = F(1.0) / max(math.sqrt(dx * dx + dy * dy + dz * dz), F(1e-12))
    dx, dy, dz = dx * inverse, dy * inverse, dz * inverse
    _sh_bases(degree, dx, dy, dz, bases)
    for k in range((degree + 1) * (degree + 1)):
        v_sh[k, 0] += bases[k] * v_red
        v_sh[k, 1] += bases[k] * v_green
        v_sh[k, 2] += bases[k] * v_blue
        weights[k] = sh[k, 0] * v_red + sh[k, 1] * v_green + sh[k, 2] * v_blue
    vdx, vdy, vdz = _sh_direction_gradient(degree, dx, dy, dz, weights)
    radial = vdx * dx + vdy * dy + vdz * dz
    return (vdx - radial * dx) * inverse, (vdy - radial * dy) * inverse, (vdz - radial * dz) * inverse


@compiled(fastmath=_CAREFUL, error_model="numpy")
def _covariance_gradient(k0, k1, k2, vc0, vc1, vc2):
    """The gradient of a conic (k0, k1, k2) by the covariance it is the inverse of: three values.

    d conic = -conic d cov conic, with the symmetric gradient [[vc0, vc1 / 2], [vc1 / 2, vc2]].
    """
    half = F(0.5) * vc1
    e00, e01 = vc0 * k0 + half * k1, vc0 * k1 + half * k2
    e10, e11 = half * k0 + vc2 * k1, half * k1 + vc2 * k2
    return -(k0 * e00 + k1 * e10), -(k0 * e01 + k1 * e11), -(k1 * e01 + k2 * e11)


@compiled(fastmath=_CAREFUL, error_model="numpy")
def _quaternion_gradient(qw, qx, qy, qz, qs, vr00, vr01, vr02, vr10, vr11, vr12, vr20, vr21, vr22):
    """The gradient of a rotation's matrix by the quaternion that `_rotation` gives, before it was normalised by qs."""
    two = F(2.0)
    vqw = two * (qx * (vr21 - vr12) + qy * (vr02 - vr20) + qz * (vr10 - vr01))
    vqx = two * (qy * (vr01 + vr10) + qz * (vr02 + vr20) + qw * (vr21 - vr12) - two * qx * (vr11 + vr22))
    vqy = two * (qx * (vr01 + vr10) + qz * (vr12 + vr21) + qw * (vr02 - vr20) - two * qy * (vr00 + vr22))
    vqz = two * (qx * (vr02 + vr20) + qy * (vr12 + vr21) + qw * (vr10 - vr01) - two * qz * (vr00 + vr11))
    along = vqw * qw + vqx * qx + vqy * qy + vqz * qz
    return (vqw - along * qw) * qs, (vqx - along * qx) * qs, (vqy - along * qy) * qs, (vqz - along * qz) * qs


@compiled(parallel=LOOPS_ONLY, fastmath=_CAREFUL, error_model="numpy")
def project_backward(
    workers,
    taken,
    means,
    quats,
    scales,
    opacities,
    coefficients,
    viewmats,
    Ks,
    positions,
    width,
    height,
    eps2d,
    degree,
    antialiased,
    radii,  # [C, N] of the forward pass
    colors,  # [C, N, 3] of the forward pass: where a channel is 0 it was clamped
    v_means2d,  # [C, N, 2]
    v_depths,  # [C, N]
    v_conics,  # [C, N, 3]
    v_seen_opacities,  # [C, N]
    v_colors,  # [C, N, 3]
    v_means,  # [N, 3], out
    v_quats,  # [N, 4], out
    v_scales,  # [N, 3], out
    v_opacities,  # [N], out
    v_coefficients,  # [C or 1, N, K, 3], out
    v_viewmats,  # [chunks, C, 4, 4], out: sums over CHUNK Gaussians each
    v_positions,  # [chunks, C, 3], out: likewise
):
    """Gradients of `project_forward`; each Gaussian's sum over the cameras is made in the order of the cameras."""
    gaussians = means.shape[0]
    cameras = viewmats.shape[0]
    shared = coefficients.shape[0] == 1
    one, two = F(1.0), F(2.0)
    chunks = (gaussians + CHUNK - 1) // CHUNK
    for _ in prange(workers):
        bases = np.empty(16, np.float32)
        weights = np.empty(16, np.float32)
        chunk = take(taken, 0)
        while chunk < chunks:
            start, stop = chunk * CHUNK, min(chunk * CHUNK + CHUNK, gaussians)
            v_viewmats[chunk] = F(0.0)
            v_positions[chunk] = F(0.0)
            v_means[start:stop] = F(0.0)
            v_quats[start:stop] = F(0.0)
            v_scales[start:stop] = F(0.0)
            v_opacities[start:stop] = F(0.0)
            v_coefficients[:, start:stop] = F(0.0)
            for camera in range(cameras):
                V = viewmats[camera]
                K = Ks[camera]
                fx, fy = K[0, 0], K[1, 1]
                low_x, high_x, low_y, high_y = _clamp_limits(K, width, height)
                sh = coefficients[0 if shared else camera]
                v_sh = v_coefficients[0 if shared else camera]
                for n in range(start, stop):
                    if radii[camera, n] <= 0:
                        continue
                    mx, my, mz = means[n, 0], means[n, 1], means[n, 2]
                    vmx = vmy = vmz = F(0.0)

                    if degree >= 0:
                        v_red = v_colors[camera, n, 0] if colors[camera, n, 0] > F(0.0) else F(0.0)
                        v_green = v_colors[camera, n, 1] if colors[camera, n, 1] > F(0.0) else F(0.0)
                        v_blue = v_colors[camera, n, 2] if colors[camera, n, 2] > F(0.0) else F(0.0)
                        if v_red != F(0.0) or v_green != F(0.0) or v_blue != F(0.0):
                            dx, dy, dz = mx - positions[camera, 0], my - positions[camera, 1], mz - positions[camera, 2]
                            vmx, vmy, vmz = _color_gradient(
                                degree, dx, dy, dz, v_red, v_green, v_blue, sh[n], v_sh[n], bases, weights
                            )
                            v_positions[chunk, camera, 0] -= vmx
                            v_positions[chunk, camera, 1] -= vmy
                            v_positions[chunk, camera, 2] -= vmz

                    v0, v1 = v_means2d[camera, n, 0], v_means2d[camera, n, 1]
                    vc0, vc1, vc2 = v_conics[camera, n, 0], v_conics[camera, n, 1], v_conics[camera, n, 2]
                    v_opacity, v_depth = v_seen_opacities[camera, n], v_depths[camera, n]

                    x = V[0, 0] * mx + V[0, 1] * my + V[0, 2] * mz + V[0, 3]
                    y = V[1, 0] * mx + V[1, 1] * my + V[1, 2] * mz + V[1, 3]
                    z = V[2, 0] * mx + V[2, 1] * my + V[2, 2] * mz + V[2, 3]
                    rz = one / z
                    x_rz, y_rz = x * rz, y * rz
                    lx, ly = min(high_x, max(low_x, x_rz)), min(high_y, max(low_y, y_rz))
                    j00, j11 = fx * rz, fy * rz
                    j02, j12 = -j00 * lx, -j11 * ly
                    t00 = j00 * V[0, 0] + j02 * V[2, 0]
                    t01 = j00 * V[0, 1] + j02 * V[2, 1]
                    t02 = j00 * V[0, 2] + j02 * V[2, 2]
                    t10 = j11 * V[1, 0] + j12 * V[2, 0]
                    t11 = j11 * V[1, 1] + j12 * V[2, 1]
                    t12 = j11 * V[1, 2] + j12 * V[2, 2]
                    r00, r01, r02, r10, r11, r12, r20, r21, r22, qw, qx, qy, qz, qs = _rotation(quats, n)
                    s0, s1, s2 = scales[n, 0], scales[n, 1], scales[n, 2]
                    # H = J W R and G = H S
                    h00 = t00 * r00 + t01 * r10 + t02 * r20
                    h01 = t00 * r01 + t01 * r11 + t02 * r21
                    h02 = t00 * r02 + t01 * r12 + t02 * r22
                    h10 = t10 * r00 + t11 * r10 + t12 * r20
                    h11 = t10 * r01 + t11 * r11 + t12 * r21
                    h12 = t10 * r02 + t11 * r12 + t12 * r22
                    g00, g01, g02, g10, g11, g12 = h00 * s0, h01 * s1, h02 * s2, h10 * s0, h11 * s1, h12 * s2
                    a = g00 * g00 + g01 * g01 + g02 * g02
                    b = g00 * g10 + g01 * g11 + g02 * g12
                    c = g10 * g10 + g11 * g11 + g12 * g12
                    m0, m1, m2 = g01 * g12 - g02 * g11, g02 * g10 - g00 * g12, g00 * g11 - g01 * g10
                    det_sharp = m0 * m0 + m1 * m1 + m2 * m2
                    det = det_sharp + eps2d * (a + c) + eps2d * eps2d
                    rdet = one / det
                    k0, k1, k2 = (c + eps2d) * rdet, -b * rdet, (a + eps2d) * rdet

                    va, vb, vc = _covariance_gradient(k0, k1, k2, vc0, vc1, vc2)
                    if antialiased:
                        ratio = math.sqrt(det_sharp * rdet)
                        v_opacities[n] += v_opacity * ratio
                        if ratio > F(0.0):
                            v_ratio = v_opacity * opacities[n]
                            v_sharp = F(0.5) * v_ratio * rdet / ratio
                            v_det = -F(0.5) * v_ratio * ratio * rdet
                            va += v_sharp * c + v_det * (c + eps2d)
                            vb -= (v_sharp + v_det) * b
                            vc += v_sharp * a + v_det * (a + eps2d)
                    else:
                        v_opacities[n] += v_opacity

                    # cov = G G^T
                    vg00, vg10 = two * (va * g00 + vb * g10), two * (vb * g00 + vc * g10)
                    vg01, vg11 = two * (va * g01 + vb * g11), two * (vb * g01 + vc * g11)
                    vg02, vg12 = two * (va * g02 + vb * g12), two * (vb * g02 + vc * g12)
                    v_scales[n, 0] += vg00 * h00 + vg10 * h10
                    v_scales[n, 1] += vg01 * h01 + vg11 * h11
                    v_scales[n, 2] += vg02 * h02 + vg12 * h12
                    vh00, vh01, vh02 = vg00 * s0, vg01 * s1, vg02 * s2
                    vh10, vh11, vh12 = vg10 * s0, vg11 * s1, vg12 * s2
                    # H = T R
                    vr00, vr01, vr02 = t00 * vh00 + t10 * vh10, t00 * vh01 + t10 * vh11, t00 * vh02 + t10 * vh12
                    vr10, vr11, vr12 = t01 * vh00 + t11 * vh10, t01 * vh01 + t11 * vh11, t01 * vh02 + t11 * vh12
                    vr20, vr21, vr22 = t02 * vh00 + t12 * vh10, t02 * vh01 + t12 * vh11, t02 * vh02 + t12 * vh12
                    vt00 = vh00 * r00 + vh01 * r01 + vh02 * r02
                    vt01 = vh00 * r10 + vh01 * r11 + vh02 * r12
                    vt02 = vh00 * r20 + vh01 * r21 + vh02 * r22
                    vt10 = vh10 * r00 + vh11 * r01 + vh12 * r02
                    vt11 = vh10 * r10 + vh11 * r11 + vh12 * r12
                    vt12 = vh10 * r20 + vh11 * r21 + vh12 * r22

                    vqw, vqx, vqy, vqz = _quaternion_gradient(
                        qw, qx, qy, qz, qs, vr00, vr01, vr02, vr10, vr11, vr12, vr20, vr21, vr22
                    )
                    v_quats[n, 0] += vqw
                    v_quats[n, 1] += vqx
                    v_quats[n, 2] += vqy
                    v_quats[n, 3] += vqz

                    # T = J W, J = [[fx/z, 0, -fx/z * lx], [0, fy/z, -fy/z * ly]] with lx, ly the clamped x/z, y/z
                    vj00 = vt00 * V[0, 0] + vt01 * V[0, 1] + vt02 * V[0, 2]
                    vj02 = vt00 * V[2, 0] + vt01 * V[2, 1] + vt02 * V[2, 2]
                    vj11 = vt10 * V[1, 0] + vt11 * V[1, 1] + vt12 * V[1, 2]
                    vj12 = vt10 * V[2, 0] + vt11 * V[2, 1] + vt12 * V[2, 2]
                    vx = v0 * j00
                    vy = v1 * j11
                    vz = v_depth - (v0 * j00 * x + v1 * j11 * y) * rz
                    vz -= (vj00 * j00 + vj11 * j11 + vj02 * j02 + vj12 * j12) * rz
                    if lx == x_rz:
                        slope = -vj02 * j00 * rz
                        vx += slope
                        vz -= slope * x_rz
                    if ly == y_rz:
                        slope = -vj12 * j11 * rz
                        vy += slope
                        vz -= slope * y_rz

                    v_means[n, 0] += vmx + V[0, 0] * vx + V[1, 0] * vy + V[2, 0] * vz
                    v_means[n, 1] += vmy + V[0, 1] * vx + V[1, 1] * vy + V[2, 1] * vz
                    v_means[n, 2] += vmz + V[0, 2] * vx + V[1, 2] * vy + V[2, 2] * vz

                    out = v_viewmats[chunk, camera]
                    out[0, 0] += vx * mx + j00 * vt00
                    out[0, 1] += vx * my + j00 * vt01
                    out[0, 2] += vx * mz + j00 * vt02
                    out[0, 3] += vx
                    out[1, 0] += vy * mx + j11 * vt10
                    out[1, 1] += vy * my + j11 * vt11
                    out[1, 2] += vy * mz + j11 * vt12
                    out[1, 3] += vy
                    out[2, 0] += vz * mx + j02 * vt00 + j12 * vt10
                    out[2, 1] += vz * my + j02 * vt01 + j12 * vt11
                    out[2, 2] += vz * mz + j02 * vt02 + j12 * vt12
                    out[2, 3] += vz
            chunk = take(taken, 0)


@compiled()
def _sort_by_depth(keys, ids):
    """Stable radix sort of `ids` by the bits of their positive depths (which order as the floats do)."""
    count = ids.shape[0]
    other_keys = np.empty_like(keys)
    other_ids = np.empty_like(ids)
    starts = np.empty(2049, np.int64)
    for shift in (0, 11, 22):
        starts[:] = 0
        for i in range(count):
            starts[((keys[i] >> shift) & 2047) + 1] += 1
        for digit in range(2048):
            starts[digit + 1] += starts[digit]
        for i in range(count):
            digit = (keys[i] >> shift) & 2047
            position = starts[digit]
            starts[digit] = position + 1
            other_keys[position] = keys[i]
            other_ids[position] = ids[i]
        keys, other_keys = other_keys, keys
        ids, other_ids = other_ids, ids
    return ids


@compiled(fastmath=_CAREFUL, error_model="numpy")
def _pack(m, means2d, conics, opacities, splats):
    """What compositing needs of a splat, beside each other."""
    a, b, c = conics[m, 0] * _TO_BASE_2, conics[m, 1] * _TO_BASE_2, conics[m, 2] * _TO_BASE_2
    p = math.sqrt(a)
    q = b / p
    splats[m, 0] = means2d[m, 0]
    splats[m, 1] = means2d[m, 1]
    splats[m, 2] = p
    splats[m, 3] = q
    # c - q * q, which is exact enough here because eps2d keeps conics away from singular
    splats[m, 4] = math.sqrt(max(c - q * q, F(1e-20)))
    splats[m, 5] = F(math.log2(opacities[m]))


@compiled(fastmath=_CAREFUL, error_model="numpy")
def _box(splat, width, height):
    """First and last column and row of the pixels inside the box around the ellipse alpha >= 1/255.

    The first is after the last where there is none.
    """
    mx, my, p, q, r = splat[0], splat[1], splat[2], splat[3], splat[4]
    reach = splat[5] + _REACH
    if not reach > F(0.0):
        return I(0), I(-1), I(0), I(-1)
    half_height = math.sqrt(reach) / r
    half_width = math.sqrt(reach * (q * q + r * r)) / (p * r)
    return (
        I(max(np.ceil(mx - half_width - F(0.5)), F(0.0))),
        I(min(np.floor(mx + half_width - F(0.5)), F(width - 1))),
        I(max(np.ceil(my - half_height - F(0.5)), F(0.0))),
        I(min(np.floor(my + half_height - F(0.5)), F(height - 1))),
    )


@compiled(parallel=LOOPS_ONLY, fastmath=_CAREFUL, error_model="numpy")
def bin_splats(
    workers,
    taken,  # for three loops
    means2d,  # [M, 2]
    conics,  # [M, 3]
    opacities,  # [M]
    radii,  # [M]
    depth_bits,  # [M] int32, the depths' bits
    camera_starts,  # [C + 1] first splat of each camera
    width,
    height,
    block_height,
):
    """Sort the splats of each camera by depth and list the blocks that each reaches with alpha >= 1/255.

    Entries are numbered splat by splat, in the order of camera and depth. Returns packed splats [M, 6], the drawn
    splats in that order [V], their first entries [V + 1], the blocks' first items [blocks + 1], and the items [E, 3],
    sorted by block and front to back in each: entry, splat, rows (first + 256 * end).
    """
    splats = np.empty((means2d.shape[0], _SPLAT), np.float32)
    blocks_x = (width + 7) // 8
    blocks_y = (height + block_height - 1) // block_height
    cameras = camera_starts.shape[0] - 1
    blocks = cameras * blocks_x * blocks_y
    shift = 0  # a division by block_height, which is a power of two
    while (1 << shift) < block_height:
        shift += 1

    ids = np.empty(means2d.shape[0], np.int32)
    keys = np.empty(means2d.shape[0], np.int32)
    visible_starts = np.zeros(cameras + 1, np.int64)
    visible = 0
    for camera in range(cameras):
        first = visible
        for m in range(camera_starts[camera], camera_starts[camera + 1]):
            if radii[m] > 0 and opacities[m] >= _ALPHA_MIN:
                ids[visible] = m
                keys[visible] = depth_bits[m]
                visible += 1
        ids[first:visible] = _sort_by_depth(keys[first:visible].copy(), ids[first:visible].copy())
        visible_starts[camera + 1] = visible

    # Consecutive splats make a job. How many entries it can have at most decides where it writes them.
    size = max(128, (visible + _BIN_JOBS - 1) // _BIN_JOBS)
    jobs = (visible + size - 1) // size
    room = np.zeros(jobs + 1, np.int64)
    for _ in prange(workers):
        job = take(taken, 0)
        while job < jobs:
            most = 0
            for position in range(job * size, min(job * size + size, visible)):
                m = ids[position]
                _pack(m, means2d, conics, opacities, splats)
                x0, x1, y0, y1 = _box(splats[m], width, height)
                if x0 <= x1 and y0 <= y1:
                    most += ((x1 >> 3) - (x0 >> 3) + 1) * ((y1 >> shift) - (y0 >> shift) + 1)
            room[job + 1] = most
            job = take(taken, 0)
    for job in range(jobs):
        room[job + 1] += room[job]

    entry_rows = np.empty(room[jobs], np.int32)
    entry_block = np.empty(room[jobs], np.int32)
    counts = np.empty(visible, np.int32)  # of each splat's entries
    in_block = np.zeros((jobs, blocks), np.int32)  # a job's entries in each block; then the place of its first item
    for _ in prange(workers):
        job = take(taken, 1)
        while job < jobs:
            camera = 0
            entry = room[job]
            for position in range(job * size, min(job * size + size, visible)):
                while position >= visible_starts[camera + 1]:
                    camera += 1
                m = ids[position]
                before = entry
                x0, x1, first_row, last_row = _box(splats[m], width, height)
                mx, my, p, q, r = splats[m, 0], splats[m, 1], splats[m, 2], splats[m, 3], splats[m, 4]
                rr = r * r
                reach = splats[m, 5] + _REACH
                lean = q * (math.sqrt(max(reach, F(0.0))) / r) / p
                inverse = F(1.0) / (q * q + rr)
                reach_c = reach * (q * q + rr)
                area = p * p * rr
                for strip in range(x0 >> 3, (x1 >> 3) + 1 if x0 <= x1 and first_row <= last_row else 0):
                    left = F(max(x0, strip * 8)) + F(0.5) - mx
                    right = F(min(x1, strip * 8 + 7)) + F(0.5) - mx
                    # the ellipse's lowest and highest points between the strip's outer pixel centres
                    top = min(max(lean, left), right)
                    low = (-p * q * top - math.sqrt(max(reach_c - area * top * top, F(0.0)))) * inverse
                    bottom = min(max(-lean, left), right)
                    high = (-p * q * bottom + math.sqrt(max(reach_c - area * bottom * bottom, F(0.0)))) * inverse
                    y0 = max(I(max(np.ceil(my + low - F(0.5)), F(0.0))), first_row)
                    y1 = min(I(min(np.floor(my + high - F(0.5)), F(height - 1))), last_row)
                    if y0 > y1:
                        continue
                    for row in range(y0 >> shift, (y1 >> shift) + 1):
                        offset = row << shift
                        block = (camera * blocks_y + row) * blocks_x + strip
                        entry_rows[entry] = max(y0 - offset, 0) + 256 * min(y1 - offset + 1, block_height)
                        entry_block[entry] = block
                        in_block[job, block] += 1
                        entry += 1
                counts[position] = entry - before
            job = take(taken, 1)

    block_starts = np.empty(blocks + 1, np.int32)
    entries = 0
    for block in range(blocks):
        block_starts[block] = entries
        for job in range(jobs):
            here = in_block[job, block]
            in_block[job, block] = entries
            entries += here
    block_starts[blocks] = entries
    drawn = np.empty(visible, np.int32)
    first_entry = np.empty(visible + 1, np.int32)
    job_entry = np.empty(jobs, np.int64)
    total = 0
    first_entry[0] = 0
    for position in range(visible):
        if position % size == 0:
            job_entry[position // size] = first_entry[total]
        if counts[position] > 0:
            drawn[total] = ids[position]
            first_entry[total + 1] = first_entry[total] + counts[position]
            total += 1

    items = np.empty((entries, 3), np.int32)
    for _ in prange(workers):
        job = take(taken, 2)
        while job < jobs:
            entry, source = job_entry[job], room[job]
            for position in range(job * size, min(job * size + size, visible)):
                for _entry in range(counts[position]):
                    block = entry_block[source]
                    place = in_block[job, block]
                    in_block[job, block] = place + 1
                    items[place, 0] = entry
                    items[place, 1] = ids[position]
                    items[place, 2] = entry_rows[source]
                    entry += 1
                    source += 1
            job = take(taken, 2)
    return splats, drawn[:total], first_entry[: total + 1], block_starts, items


def by_load(block_starts: np.ndarray) -> np.ndarray:
    """The blocks [B], those with most items first: what is begun last is over soon."""
    return np.argsort(block_starts[:-1] - block_starts[1:], kind="stable").astype(np.int32)


# ---- Compositing -------------------------------------------------------------------------------------------------
# Alpha of a splat at a pixel (dx, dy) from its mean is 2 ** -((p dx + q dy)**2 + (r dy)**2 - log2 opacity).
# A worker keeps a block's pixels in `state`, row after row, each field of a row eight floats: transmittance (negated
# once the pixel is finished), the number of the item that finished it (exact up to 2**24), and D colours.

_NEVER = F(1e9)


@compiled(fastmath=FAST, error_model="numpy")
def _composite_block(start, stop, items, splats, colors, left, top, block_height, columns, state):
    channels = colors.shape[1]
    stride = (2 + channels) * 8
    zero = F(0.0)
    none = simd.spread(zero)
    unfinished = 1
    for position in range(start, stop):
        if unfinished == 0:
            break
        m = items[position, 1]
        rows = items[position, 2]
        mx, my, p, q, r = splats[m, 0], splats[m, 1], splats[m, 2], splats[m, 3], splats[m, 4]
        exponent = splats[m, 5]
        across = (simd.load(columns, 0) + (left - mx)) * p
        finished = False
        for row in range(rows & 255, rows >> 8):
            dy = top + F(row) + F(0.5) - my
            at = row * stride
            u = across + q * dy
            v = r * dy
            alpha = simd.halving(simd.clip(u * u + (v * v - exponent), _EXPONENT_MIN, F(30.0)))
            transmittance = simd.load(state, at)
            # zero where alpha is too small, and where the pixel is finished and its transmittance negative
            weight = simd.maximum(simd.select(alpha >= _ALPHA_MIN, alpha * transmittance, none), none)
            rest = transmittance - weight
            finishing = (rest <= _TRANSMITTANCE_MIN) & (weight > zero)
            if simd.any_true(finishing):
                finished = True
                weight = simd.select(finishing, none, weight)
                rest = simd.select(finishing, none - transmittance, transmittance - weight)
                number = simd.spread(F(position - start))
                simd.store(state, at + 8, simd.select(finishing, number, simd.load(state, at + 8)))
            simd.store(state, at, rest)
            if channels == 3:  # by far the most frequent
                simd.store(state, at + 16, simd.load(state, at + 16) + weight * colors[m, 0])
                simd.store(state, at + 24, simd.load(state, at + 24) + weight * colors[m, 1])
                simd.store(state, at + 32, simd.load(state, at + 32) + weight * colors[m, 2])
            else:
                for channel in range(channels):
                    place = at + 16 + 8 * channel
                    simd.store(state, place, simd.load(state, place) + weight * colors[m, channel])
        if finished:
            most = none
            for row in range(block_height):
                most = simd.maximum(most, simd.load(state, row * stride))
            if not simd.any_true(most > zero):
                unfinished = 0


@compiled(parallel=LOOPS_ONLY, fastmath=FAST, error_model="numpy")
def composite_forward(
    workers,
    taken,
    ordered,  # [B] as `by_load` gives them
    block_starts,
    items,
    splats,
    colors,  # [M, D]
    backgrounds,  # [C, D]
    width,
    height,
    block_height,
    image,  # [C, H, W, D], out
    alphas,  # [C, H, W, 1], out
    finals,  # [blocks, block_height, 16], out: final transmittance, and the number of the item that finished the pixel
):
    """Draw all blocks, each front to back."""
    blocks_x = (width + 7) // 8
    blocks_y = (height + block_height - 1) // block_height
    blocks = block_starts.shape[0] - 1
    channels = colors.shape[1]
    stride = (2 + channels) * 8
    columns = np.arange(8).astype(np.float32) + F(0.5)
    for _ in prange(workers):
        state = np.empty(block_height * stride, np.float32)
        job = take(taken, 0)
        while job < blocks:
            block = ordered[job]
            camera = block // (blocks_x * blocks_y)
            top = (block // blocks_x) % blocks_y * block_height
            left = block % blocks_x * 8
            rows = min(block_height, height - top)
            lanes = min(8, width - left)
            state[:] = F(0.0)
            for row in range(block_height):
                simd.store(state, row * stride, simd.spread(F(-1.0)))
                simd.store(state, row * stride + 8, simd.spread(_NEVER))
            for row in range(rows):
                for lane in range(lanes):
                    state[row * stride + lane] = F(1.0)
            _composite_block(
                block_starts[block],
                block_starts[block + 1],
                items,
                splats,
                colors,
                F(left),
                F(top),
                block_height,
                columns,
                state,
            )
            for row in range(block_height):
                at = row * stride
                for lane in range(8):
                    finals[block, row, lane] = abs(state[at + lane])
                    finals[block, row, 8 + lane] = state[at + 8 + lane]
            for row in range(rows):
                at = row * stride
                for lane in range(lanes):
                    alphas[camera, top + row, left + lane, 0] = F(1.0) - abs(state[at + lane])
                for channel in range(channels):
                    background = backgrounds[camera, channel]
                    for lane in range(lanes):
                        image[camera, top + row, left + lane, channel] = (
                            state[at + 16 + 8 * channel + lane] + abs(state[at + lane]) * background
                        )
            job = take(taken, 0)


# The backward pass goes through the items back to front and undoes the transmittance. Its `state` is, row by row:
# transmittance behind the current item, the number of the item that finished the pixel, `behind` = that part of
# dL/d(image) . image which comes from behind the current item, and D channels of dL/d(image). With s = dL/d(sigma) at
# a pixel, an entry's gradients are the sums over its pixels of
#   s * (1, dx, dy, dx dx, dx dy, dy dy), |s * slope in x|, |s * slope in y|, and weight * dL/d(image).


@compiled(fastmath=FAST, error_model="numpy")
def _composite_block_backward(
    start, stop, items, splats, colors, left, top, columns, state, scratch, absolute, v_entries
):
    channels = colors.shape[1]
    stride = (3 + channels) * 8
    entry_stride = entry_gradients(channels)
    one, zero = F(1.0), F(0.0)
    none = simd.spread(zero)
    for position in range(stop - 1, start - 1, -1):
        m = items[position, 1]
        rows = items[position, 2]
        first_row, end_row = rows & 255, rows >> 8
        mx, my, p, q, r = splats[m, 0], splats[m, 1], splats[m, 2], splats[m, 3], splats[m, 4]
        exponent = splats[m, 5]
        dx = simd.load(columns, 0) + (left - mx)
        across = dx * p
        number = F(position - start)
        for row in range(first_row, end_row):
            dy = top + F(row) + F(0.5) - my
            at = row * stride
            u = across + q * dy
            v = r * dy
            power = u * u + (v * v - exponent)
            alpha = simd.halving(simd.clip(power, _EXPONENT_MIN, F(30.0)))
            drawn = (alpha >= _ALPHA_MIN) & (simd.load(state, at + 8) > number)
            alpha = simd.select(drawn, alpha, none)
            inverse = simd.spread(one) / (one - alpha)
            transmittance = simd.load(state, at) * inverse
            simd.store(state, at, transmittance)
            weight = alpha * transmittance
            simd.store(scratch, row * 16, weight)
            if channels == 3:  # by far the most frequent
                light = simd.load(state, at + 24) * colors[m, 0]
                light = light + simd.load(state, at + 32) * colors[m, 1]
                light = light + simd.load(state, at + 40) * colors[m, 2]
            else:
                light = none
                for channel in range(channels):
                    light = light + simd.load(state, at + 24 + 8 * channel) * colors[m, channel]
            behind = simd.load(state, at + 16)
            simd.store(state, at + 16, behind + weight * light)
            v_alpha = behind * inverse - transmittance * light
            simd.store(scratch, row * 16 + 8, simd.select(power > _EXPONENT_MIN, alpha * v_alpha, none))
        sum_0, sum_y, sum_yy, sum_ax, sum_ay = none, none, none, none, none
        for row in range(first_row, end_row):
            dy = top + F(row) + F(0.5) - my
            v_sigma = simd.load(scratch, row * 16 + 8)
            sum_0 = sum_0 + v_sigma
            sum_y = sum_y + v_sigma * dy
            sum_yy = sum_yy + v_sigma * (dy * dy)
            if absolute:
                u = across + q * dy
                sum_ax = sum_ax + simd.magnitude(v_sigma * u)
                sum_ay = sum_ay + simd.magnitude(v_sigma * (u * q + r * r * dy))
        at = items[position, 0] * entry_stride
        sum_x = sum_0 * dx
        sums = simd.totals(sum_0, sum_x, sum_y, sum_x * dx, sum_y * dx, sum_yy, sum_ax * p, sum_ay)
        simd.store(v_entries, at, sums)
        if channels == 3:
            sum_0, sum_1, sum_2 = none, none, none
            for row in range(first_row, end_row):
                weight = simd.load(scratch, row * 16)
                sum_0 = sum_0 + weight * simd.load(state, row * stride + 24)
                sum_1 = sum_1 + weight * simd.load(state, row * stride + 32)
                sum_2 = sum_2 + weight * simd.load(state, row * stride + 40)
            simd.store(v_entries, at + 8, simd.totals(sum_0, sum_1, sum_2, none, none, none, none, none))
        else:
            for channel in range(channels):
                sum_0 = none
                for row in range(first_row, end_row):
                    sum_0 = sum_0 + simd.load(scratch, row * 16) * simd.load(state, row * stride + 24 + 8 * channel)
                v_entries[at + 8 + channel] = simd.total(sum_0)


@compiled()
def entry_gradients(channels):
    """Floats that hold the gradients of one entry: eight, and the channels filled up to whole `Lanes`."""
    return 8 + (channels + 7) // 8 * 8


@compiled(parallel=LOOPS_ONLY, fastmath=FAST, error_model="numpy")
def composite_backward(
    workers,
    taken,
    ordered,  # [B] as `by_load` gives them
    block_starts,
    items,
    splats,
    colors,
    backgrounds,
    width,
    height,
    block_height,
    finals,
    absolute,
    v_image,  # [C, H, W, D]
    v_alphas,  # [C, H, W, 1]
    v_entries,  # [E * entry_gradients(D)], out
):
    """Gradients of every entry."""
    blocks_x = (width + 7) // 8
    blocks_y = (height + block_height - 1) // block_height
    blocks = block_starts.shape[0] - 1
    channels = colors.shape[1]
    stride = (3 + channels) * 8
    entry_stride = entry_gradients(channels)
    columns = np.arange(8).astype(np.float32) + F(0.5)
    for _ in prange(workers):
        state = np.empty(block_height * stride, np.float32)
        scratch = np.empty(block_height * 16, np.float32)
        job = take(taken, 0)
        while job < blocks:
            block = ordered[job]
            camera = block // (blocks_x * blocks_y)
            top = (block // blocks_x) % blocks_y * block_height
            left = block % blocks_x * 8
            state[:] = F(0.0)
            last = F(0.0)
            for row in range(min(block_height, height - top)):
                at = row * stride
                for lane in range(min(8, width - left)):
                    rest = finals[block, row, lane]
                    number = finals[block, row, 8 + lane]
                    last = max(last, number)
                    state[at + lane] = rest
                    state[at + 8 + lane] = number
                    behind = -v_alphas[camera, top + row, left + lane, 0]
                    for channel in range(channels):
                        v_channel = v_image[camera, top + row, left + lane, channel]
                        state[at + 24 + 8 * channel + lane] = v_channel
                        behind += v_channel * backgrounds[camera, channel]
                    state[at + 16 + lane] = behind * rest
            start = block_starts[block]
            stop = min(block_starts[block + 1], start + I(last))
            for position in range(stop, block_starts[block + 1]):
                at = items[position, 0] * entry_stride
                v_entries[at : at + entry_stride] = F(0.0)
            _composite_block_backward(
                start,
                stop,
                items,
                splats,
                colors,
                F(left),
                F(top),
                columns,
                state,
                scratch,
                absolute,
                v_entries,
            )
            job = take(taken, 0)


@compiled(parallel=LOOPS_ONLY, fastmath=FAST, error_model="numpy")
def gather_gradients(
    workers,
    taken,
    drawn,
    first_entry,
    v_entries,
    conics,
    opacities,
    absolute,
    v_means2d,  # [M, 2], zeros, out
    v_absolute,  # [M, 2] or [0, 2], zeros, out
    v_conics,  # [M, 3], zeros, out
    v_opacities,  # [M], zeros, out
    v_colors,  # [M, D], zeros, out
):
    """Sum the entries of each splat, always in the same order."""
    channels = v_colors.shape[1]
    stride = entry_gradients(channels)
    for _ in prange(workers):
        sums = np.empty(stride, np.float32)
        job = take(taken, 0)
        while job * CHUNK < drawn.shape[0]:
            for i in range(job * CHUNK, min(job * CHUNK + CHUNK, drawn.shape[0])):
                m = drawn[i]
                for part in range(0, stride, 8):
                    lanes = simd.spread(F(0.0))
                    for entry in range(first_entry[i], first_entry[i + 1]):
                        lanes = lanes + simd.load(v_entries, entry * stride + part)
                    simd.store(sums, part, lanes)
                v_means2d[m, 0] = -(conics[m, 0] * sums[1] + conics[m, 1] * sums[2])
                v_means2d[m, 1] = -(conics[m, 1] * sums[1] + conics[m, 2] * sums[2])
                v_conics[m, 0] = F(0.5) * sums[3]
                v_conics[m, 1] = sums[4]
                v_conics[m, 2] = F(0.5) * sums[5]
                v_opacities[m] = -sums[0] / opacities[m]
                if absolute:
                    v_absolute[m, 0] = sums[6] * _FROM_BASE_2
                    v_absolute[m, 1] = sums[7] * _FROM_BASE_2
                for channel in range(channels):
                    v_colors[m, channel] = sums[8 + channel]
            job = take(taken, 0)
