"""References brought into a render's view: exact on known geometry, and never worse for registration."""

from __future__ import annotations

import math

import pytest
import torch

from difixcli.fixer.alignment import MOST_SAMPLES, _sample_photo, _steps, align_references, register_references
from difixcli.fixer.registered import register_photos
from difixcli.fixer.tiling import windows
from difixcli.images import flow

H, W, FOCAL = 96, 144, 120.0


def intrinsics(height: int = H, width: int = W, focal: float = FOCAL) -> torch.Tensor:
    return torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])


def pose(x: float = 0.0, y: float = 0.0, z: float = 0.0, yaw: float = 0.0) -> torch.Tensor:
    c, s = math.cos(yaw), math.sin(yaw)
    return torch.tensor([[c, 0, s, x], [0, 1, 0, y], [-s, 0, c, z], [0, 0, 0, 1.0]])


def pattern(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Smooth colour of a wall at (x, y): (3, ...)."""
    return torch.stack(
        [
            0.5 + 0.25 * torch.sin(5 * x) + 0.15 * torch.sin(11 * y + x),
            0.5 + 0.3 * torch.cos(7 * x + 3 * y),
            0.5 + 0.3 * torch.sin(6 * y - 2 * x),
        ]
    )


def wall_view(camera: torch.Tensor, k: torch.Tensor, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """True colour (3, h, w) and z-depth (1, h, w) of the wall z = -4 from a camera (OpenGL axes), by ray casting."""
    u = (torch.arange(width) + 0.5 - k[0, 2]) / k[0, 0]
    v = (torch.arange(height) + 0.5 - k[1, 2]) / k[1, 1]
    u, v = torch.meshgrid(u, v, indexing="xy")
    rays = torch.stack([u, -v, -torch.ones_like(u)], -1) @ camera[:3, :3].T
    depth = (-4 - camera[2, 3]) / rays[..., 2]
    points = camera[:3, 3] + rays * depth[..., None]
    return pattern(points[..., 0], points[..., 1]), depth[None]


def aligned_wall(register: bool, reference: torch.Tensor, ref_size: tuple[int, int] = (H, W), focal: float = FOCAL):
    k, ref_k = intrinsics(), intrinsics(*ref_size, focal)
    color, depth = wall_view(pose(), k, H, W)
    ref_color, ref_depth = wall_view(reference, ref_k, *ref_size)
    aligned, visibility = align_references(
        color[None],
        depth[None],
        k[None],
        pose()[None],
        ref_color[None, None],
        ref_depth[None, None],
        ref_k[None, None],
        reference[None, None],
        register=register,
    )
    return color, aligned[0, 0], visibility[0, 0, 0]


def wall_beside(reference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
    """The wall's colour and depth, and what `align_references` wants besides: its camera, and one reference's view."""
    k = intrinsics()
    ref_color, ref_depth = wall_view(reference, k, H, W)
    beside = (ref_color[None, None], ref_depth[None, None], k[None, None], reference[None, None])
    return *wall_view(pose(), k, H, W), (k[None], pose()[None], *beside)


@pytest.mark.parametrize("register", [False, True])
@pytest.mark.parametrize(
    "reference",
    [pose(), pose(x=0.4), pose(y=-0.3, z=0.5), pose(x=-0.6, yaw=-0.15), pose(x=0.5, y=0.2, z=-0.6, yaw=0.2)],
)
def test_a_wall_seen_from_elsewhere_lands_on_the_wall(reference: torch.Tensor, register: bool) -> None:
    color, aligned, visibility = aligned_wall(register, reference)
    seen = visibility > 0.9
    assert seen.float().mean() > 0.6
    # what remains is interpolation of the pattern; in the outermost three rows flow may move it a tenth of a pixel
    # (with repeated borders it would not, but real renders' borders lost half a dB by that)
    error = (aligned - color).abs().amax(0) * seen
    assert error[3:-3, 3:-3].max() < 0.01
    assert error.max() < (0.03 if register else 0.01)


def test_a_reference_of_twice_the_size_is_averaged_and_stays_in_place() -> None:
    color, aligned, visibility = aligned_wall(False, pose(x=0.3), (2 * H, 2 * W), 2 * FOCAL)
    assert (aligned - color).abs()[:, visibility > 0.9].max() < 0.01


@pytest.mark.parametrize("register", [False, True])
def test_outside_the_photo_and_behind_its_camera_geometry_sees_nothing(register: bool) -> None:
    """What flow finds there all the same, on a wall that repeats itself, counts less than what geometry shows."""
    most = 0.6 if register else 0
    _, _, visibility = aligned_wall(register, pose(x=1.5))
    assert visibility[:, :40].max() <= most  # the left part of the wall is not in the photo
    assert visibility[:, -40:].min() > 0.9
    _, _, behind = aligned_wall(register, pose(z=-8.0))  # beyond the wall, looking away
    assert behind.max() <= most


def test_flow_brings_what_wrong_depth_loses() -> None:
    """Depth that is far off sends every pixel out of the photo; the pictures still match."""
    color, depth, arguments = wall_beside(pose(x=0.15))
    shares = {}
    for register in (False, True):
        aligned, visibility = align_references(color[None], 0.05 * depth[None], *arguments, register=register)
        seen = visibility[0, 0, 0] > 0.3
        shares[register] = float(seen.float().mean())
        if register:
            assert (aligned[0, 0] - color).abs().mean(0)[seen].median() < 0.05
    assert shares[False] < 0.4 and shares[True] > 0.8


@pytest.mark.parametrize("register", [False, True])
def test_a_pixel_that_is_no_number_spoils_only_its_neighbourhood(register: bool) -> None:
    color, depth, arguments = wall_beside(pose(x=0.1))
    color[:, 10, 10] = math.nan
    aligned, visibility = align_references(color[None], depth[None], *arguments, register=register)
    assert torch.isfinite(aligned).all() and torch.isfinite(visibility).all()
    assert visibility[0, 0, 0, 30:-10, 30:-10].min() > 0.9
    assert torch.isfinite(register_references(color[None], arguments[2])[1]).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_aligned_too(dtype: torch.dtype) -> None:
    color, depth = wall_view(pose(), intrinsics(), H, W)
    images = (color[None].to(dtype), depth[None].to(dtype), intrinsics()[None], pose()[None])
    aligned, visibility = align_references(
        *images, color[None, None].to(dtype), None, intrinsics()[None, None], pose()[None, None], register=False
    )
    assert aligned.dtype == dtype
    assert (aligned[0, 0, :, 5:-5, 5:-5].float() - color[:, 5:-5, 5:-5]).abs().mean() < 0.03
    assert visibility[0, 0, 0, 5:-5, 5:-5].min() > 0.9


def test_a_masked_photo_shows_nothing_by_flow_either() -> None:
    color, depth, arguments = wall_beside(pose(x=0.1))
    _, visibility = align_references(color[None], depth[None], *arguments, ref_masks=torch.zeros(1, 1, 1, H, W))
    assert visibility.max() == 0


def test_what_stands_before_the_surface_hides_it() -> None:
    k, reference = intrinsics(), pose(x=0.3)
    color, depth = wall_view(pose(), k, H, W)
    ref_color, ref_depth = wall_view(reference, k, H, W)
    ref_depth[:, 30:60, 50:90] = 2.0
    ref_color[:, 30:60, 50:90] = 1 - ref_color[:, 30:60, 50:90].round()
    arguments = (k[None], pose()[None], ref_color[None, None])
    cameras = (k[None, None], reference[None, None])
    _, blocked = align_references(color[None], depth[None], *arguments, ref_depth[None, None], *cameras)
    _, unknown = align_references(color[None], depth[None], *arguments, None, *cameras)
    shift = round(FOCAL * 0.3 / 4)
    assert blocked[0, 0, 0, 35:55, 55 + shift : 85 + shift].max() < 0.05
    assert unknown[0, 0, 0, 35:55, 55 + shift : 85 + shift].min() > 0.9
    depth[:, :20] = 0  # nothing was rendered there
    _, holes = align_references(color[None], depth[None], *arguments, None, *cameras)
    assert holes[0, 0, 0, :18].max() <= 0.6


def test_a_photo_that_looks_like_the_render_is_believed_whatever_its_depth() -> None:
    k, reference = intrinsics(), pose(x=0.3)
    color, depth = wall_view(pose(), k, H, W)
    ref_color, ref_depth = wall_view(reference, k, H, W)
    cameras = (k[None, None], reference[None, None])
    for photo, floor, ceiling in ((ref_color, 0.95, 1.0), (1 - ref_color.round(), 0.0, 0.05)):
        _, visibility = align_references(
            color[None], depth[None], k[None], pose()[None], photo[None, None], 0.5 * ref_depth[None, None], *cameras
        )
        inside = visibility[0, 0, 0, 10:-10, 40:-10]
        assert floor <= inside.median() <= ceiling


def test_registration_mends_wrong_depth() -> None:
    k, reference = intrinsics(), pose(x=0.5)
    color, depth = wall_view(pose(), k, H, W)
    ref_color, _ = wall_view(reference, k, H, W)
    arguments = (k[None], pose()[None], ref_color[None, None], None, k[None, None], reference[None, None])
    errors = {}
    for register in (False, True):
        aligned, visibility = align_references(color[None], depth[None] * 1.15, *arguments, register=register)
        seen = visibility[0, 0, 0] > 0.9
        errors[register] = float((aligned[0, 0] - color).abs()[:, seen].mean())
    assert errors[True] < 0.35 * errors[False]


def test_registration_never_follows_an_unrelated_picture_far() -> None:
    k = intrinsics()
    color, depth = wall_view(pose(), k, H, W)
    noise = torch.rand(3, H, W, generator=torch.Generator().manual_seed(0))
    arguments = (k[None], pose()[None], noise[None, None], None, k[None, None], pose()[None, None])
    aligned, _ = align_references(color[None], depth[None], *arguments)
    assert (aligned[0, 0] - color).abs().mean() > 0.15  # it was not bent into the render
    assert torch.isfinite(aligned).all()


def test_without_depth_flow_finds_small_motion_and_doubts_what_is_unrelated() -> None:
    k = intrinsics()
    color, _ = wall_view(pose(), k, H, W)
    near, _ = wall_view(pose(x=0.15), k, H, W)
    noise = torch.rand(3, H, W, generator=torch.Generator().manual_seed(0))
    aligned, visibility = register_references(color[None], torch.stack([near, noise])[None])
    assert (aligned[0, 0] - color).abs()[:, visibility[0, 0, 0] > 0.5].mean() < 0.02
    assert visibility[0, 0].mean() > 0.7
    assert visibility[0, 1].mean() < 0.2


def test_no_references_give_no_references() -> None:
    k = intrinsics()
    color, depth = wall_view(pose(), k, H, W)
    none = torch.zeros(1, 0, 3, H, W)
    aligned, visibility = align_references(
        color[None], depth[None], k[None], pose()[None], none, None, torch.zeros(1, 0, 3, 3), torch.zeros(1, 0, 4, 4)
    )
    assert aligned.shape == (1, 0, 3, H, W)
    assert visibility.shape == (1, 0, 1, H, W)


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_finer_photo_of_the_same_view_is_averaged_exactly(times: int) -> None:
    """Each pixel is the mean of the photo's pixels it covers, with nothing lost to interpolation."""
    fine = torch.rand(3, times * H, times * W, generator=torch.Generator().manual_seed(0))
    wanted = torch.nn.functional.avg_pool2d(fine, times)
    k = intrinsics()
    fine_k = intrinsics(times * H, times * W, times * FOCAL)
    aligned, _ = align_references(
        wanted[None],
        torch.full((1, 1, H, W), 4.0),
        k[None],
        pose()[None],
        fine[None, None],
        None,
        fine_k[None, None],
        pose()[None, None],
        register=False,
    )
    assert (aligned[0, 0] - wanted).abs()[:, 2:-2, 2:-2].max() < 1e-3


def affine_grid(matrix: torch.Tensor, size: tuple[int, int], photo: tuple[int, int]) -> torch.Tensor:
    """(H, W, 2) normalised positions in the middle of a photo, `matrix` (2, 2) of its pixels apart."""
    rows, columns = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in size)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    places = torch.stack([x, y], -1) @ matrix.double().T
    return (places * 2 / torch.tensor([photo[1], photo[0]], dtype=torch.float64)).float()


def turned(angle: float, across: float, down: float) -> torch.Tensor:
    c, s = math.cos(angle), math.sin(angle)
    return torch.tensor([[c, -s], [s, c]]) @ torch.diag(torch.tensor([float(across), float(down)]))


@pytest.mark.parametrize("angle", [0.0, 0.4, 2.0])
@pytest.mark.parametrize(("across", "down"), [(0.5, 0.5), (1.0, 1.0), (2.0, 2.0), (1.0, 3.0), (5.0, 5.0), (9.0, 4.0)])
def test_a_ramp_stays_a_ramp_however_photos_are_scaled_and_turned(angle: float, across: float, down: float) -> None:
    """The mean over any pixel of what rises evenly is its value at the pixel's centre."""
    size, photo = (12, 16), (200, 240)
    grid = affine_grid(turned(angle, across, down), size, photo)
    y, x = torch.meshgrid(torch.arange(200) + 0.5, torch.arange(240) + 0.5, indexing="ij")
    ramp = torch.stack([x / 240, y / 200, 1 - (x + y) / 440])
    u, v = (grid[..., 0] + 1) / 2, (grid[..., 1] + 1) / 2
    wanted = torch.stack([u, v, 1 - (240 * u + 200 * v) / 440])
    found = _sample_photo(ramp, grid, torch.ones(size))
    pixel = max(across, down, 1.0) / 200  # what the ramp rises by in a pixel
    assert (found - wanted).abs().max() < 0.06 * pixel  # bicubic kernels move what they sample by up to a twentieth


@pytest.mark.parametrize("times", [1, 2, MOST_SAMPLES, 2 * MOST_SAMPLES, 6 * MOST_SAMPLES])
def test_no_pixel_of_a_finer_photo_is_passed_over(times: int) -> None:
    """Detail finer than the grid is averaged away, whatever its phase; what is coarser than that is kept."""
    size, photo = (12, 16), (12 * times, 16 * times)
    grid = affine_grid(turned(0.0, times, times), size, photo)
    y, x = torch.meshgrid(torch.arange(photo[0]), torch.arange(photo[1]), indexing="ij")
    if times > 1:
        fine = ((x + y) % 2).float().expand(3, -1, -1)
        assert (_sample_photo(fine, grid, torch.ones(size)) - 0.5).abs().max() < 0.06  # the mean of 3 × 3 is 5 / 9
    coarse = (0.5 + 0.4 * torch.sin((x + 0.5) / times * 0.3)).expand(3, -1, -1)
    wanted = 0.5 + 0.4 * torch.sin((torch.arange(16) + 0.5) * 0.3)
    assert (_sample_photo(coarse, grid, torch.ones(size)) - wanted)[:, 2:-2, 2:-2].abs().max() < 0.02


def test_a_torn_grid_takes_the_smaller_step() -> None:
    """At a depth edge no pixel's kernel reaches across, and what a photo shows between is not mixed in."""
    places = torch.tensor([0.0, 1, 2, 3, 20, 21, 22]) * 0.02
    grid = torch.stack([places.expand(5, 7), torch.zeros(5, 7)], -1)
    torch.testing.assert_close(_steps(grid, 1)[..., 0], torch.full((5, 7), 0.02))
    assert not _steps(grid, 0).any() and not _steps(grid[:1], 0).any()
    photo = torch.zeros(3, 100, 100)
    photo[:, :, 56:] = 1  # the near side ends at 0.06, that is column 53; the far one begins at 0.4, column 70
    found = _sample_photo(photo, grid, torch.ones(5, 7))
    assert found[..., :4].max() < 1e-6 and found[..., 4:].min() > 1 - 1e-6


def test_flow_is_right_to_a_fraction_of_a_pixel() -> None:
    y, x = torch.meshgrid(torch.arange(H) / 20, torch.arange(W) / 20, indexing="ij")
    images = [(255 * pattern(x + shift / 20, y).mean(0)).round().to(torch.uint8).numpy() for shift in (0.0, 0.5)]
    error = (torch.from_numpy(flow(images[1], images[0])) - torch.tensor([0.5, 0.0])).norm(dim=-1)
    assert error.median() < 0.03 and error[5:-5, 5:-5].max() < 0.1


@pytest.mark.parametrize("shape", [(96, 140), (420, 760)])
def test_registered_photos_are_the_same_in_windows_and_whole(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(3)
    height, width = shape
    coarse = torch.rand(1, 3, height // 8, width // 8, generator=generator)
    wide = torch.nn.functional.interpolate(coarse, (height + 6, width + 9), mode="bicubic").clamp(0, 1)
    image, photo = wide[..., 6:, 9:].contiguous(), (wide[0, :, :-6, :-9].permute(1, 2, 0) * 255).round().to(torch.uint8)
    large = photo.repeat_interleave(2, 0).repeat_interleave(2, 1)
    registered = register_photos(image, [photo.numpy(), large.numpy()])
    whole, seen = registered.cut(windows(height, width, 4096, 8)[0])
    assert whole.shape == (1, 2, 3, *shape) == registered.shape and float(seen[..., 20:-20, 20:-20].mean()) > 0.8
    error = ((whole[0, 0] - image[0]).abs() * (seen[0, 0] > 0.5)).mean()
    assert error < 0.25 * (photo.permute(2, 0, 1) / 255 - image[0]).abs().mean()
    tensors = torch.stack([photo.permute(2, 0, 1)])[None] / 255
    for one, two in zip(register_references(image, tensors), (whole, seen), strict=True):
        torch.testing.assert_close(one[:, 0], two[:, 0], atol=1e-4, rtol=0)
    mirrored = registered.mirrored()
    for window in windows(height, width, 64 if height < 100 else 300, 8):
        facing = window._replace(left=width - window.left - window.width)
        for found, wanted in zip(registered.cut(window), (window.of(whole), window.of(seen)), strict=True):
            # of two steps as small as each other rounding chooses one: a few pixels at the photo's border
            assert ((found - wanted).abs() > 1e-3).float().mean() < 2e-3
        for found, wanted in zip(mirrored.cut(window), (facing.of(whole), facing.of(seen)), strict=True):
            assert ((found.flip(-1) - wanted).abs() > 1e-3).float().mean() < 2e-3
