"""Brings reference photos into a render's view: reprojection through depth, then registration by optical flow.

Small networks ignore references given raw and learn at once from references whose pixels lie where the render's lie,
the view-aligned conditioning of SparseFusion (arXiv 2212.00792) in its simplest form. Everything here is tensors in,
tensors out, without gradients; no reconstruction is needed, only its depth and cameras.

Conventions: images are RGB in [0, 1]; depth is z-depth along the viewing axis, positive, 0 where nothing is; poses
are camera-to-world with OpenGL axes (x right, y up, z back); the first pixel's centre lies at (0.5, 0.5).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from difixcli.fixer.tiling import Window
from difixcli.images import fitted, flow, flows

# A point is believed visible when its depth and the reference's own differ by less than about this share.
DEPTH_TOLERANCE = 0.05
# A photo that looks like the render in its neighbourhood, to within about this colour difference, is believed as well:
# thin or unfinished geometry has wrong depth where the picture is right.
COLOR_TOLERANCE = 0.05
# Registration mends what wrong depth leaves, a few pixels; more than this share of the long side is a wrong match.
MAX_SHIFT = 0.025
# How far flow is believed where the pixel has no depth, or its projection falls outside the photo. Disagreeing depths
# do not count against it: of unfinished reconstructions they are wrong more often than pictures that match both ways.
FLOW_AGAINST_GEOMETRY = 0.6
# Samples of a photo along each side of a pixel, at most; of finer photos blocks of pixels are averaged first.
MOST_SAMPLES = 3
# Without depth, a match holds when going there and back again ends within about this many pixels of the image, and of
# those that flow looks at.
ROUND_TRIP_TOLERANCE = 1.5, 0.75
# Flow looks at an image at this share of its sides, but at a long side no less and no more than the pixels below: what
# is finer adds time and errors, and fixes made of half the size are better ones (recipes/bench/RESULTS.md).
FLOW_SHARE = 0.5
FLOW_SIDES = 320, 720


@torch.no_grad()
def align_references(
    render: Tensor,
    depth: Tensor,
    intrinsics: Tensor,
    camera_to_world: Tensor,
    ref_images: Tensor,
    ref_depths: Tensor | None,
    ref_intrinsics: Tensor,
    ref_camera_to_world: Tensor,
    register: bool = True,
    ref_masks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The references as they look from the render's camera, and where that is believable.

    Every pixel of the render is unprojected with its depth and projected into each reference. The photo is sampled
    there once, at its full size: the mean over what the pixel covers, whose extent is the step to where its neighbours
    are projected (of photos more than `MOST_SAMPLES` times as fine, blocks are averaged first). A pixel is visible
    where the projection falls inside the photo, in front of its camera, and either the reference's rendered depth (if
    given) agrees within a soft relative tolerance or the photo's colour there agrees with the render's.

    With `register`, dense optical flow then moves each reference onto the render by a few pixels, only where that
    makes them agree better. And where flow alone, from the render to the photo and back (see `register_references`), is
    believed more than geometry, its pixels are taken, at most to `FLOW_AGAINST_GEOMETRY` where the projection falls
    outside the photo: the pictures of an unfinished reconstruction are better than its depth.

    Args:
        render: (B, 3, H, W) colour the references are aligned to.
        depth: (B, 1, H, W) the render's z-depth.
        intrinsics: (B, 3, 3) pinhole matrix in pixels of the render.
        camera_to_world: (B, 4, 4).
        ref_images: (B, V, 3, h, w).
        ref_depths: (B, V, 1, h', w') z-depth rendered at the references' own cameras, of any size, or None.
        ref_intrinsics: (B, V, 3, 3) in pixels of the references.
        ref_camera_to_world: (B, V, 4, 4).
        register: whether to refine by optical flow.
        ref_masks: (B, V, 1, h, w), 1 where a reference's pixel counts and 0 where not, or None for everywhere.

    Returns:
        aligned (B, V, 3, H, W) in [0, 1], zero where the photo has nothing, and visibility (B, V, 1, H, W) in [0, 1].
    """
    batch, views = ref_images.shape[:2]
    height, width = render.shape[-2:]
    render = render.nan_to_num(0, 0, 0)  # one pixel would spread
    aligned = render.new_zeros((batch, views, 3, height, width))
    visibility = render.new_zeros((batch, views, 1, height, width))
    for b in range(batch):
        points = unproject(depth[b, 0], intrinsics[b], camera_to_world[b])
        for v in range(views):
            image = ref_images[b, v].to(render)
            grid, ref_z = _project(points, ref_intrinsics[b, v], ref_camera_to_world[b, v], image.shape[-2:])
            there = ((depth[b, 0] > 0) & (ref_z > 0)).to(render) * _inside(grid, image.shape[-2:])
            if ref_masks is not None:
                there = there * _counted(ref_masks[b, v].to(render), grid)
            agreement = torch.ones_like(there)
            if ref_depths is not None:
                agreement = _depth_agreement(ref_depths[b, v].to(render), grid, ref_z)
            color = _sample_photo(image, grid, there)
            visible = there * torch.maximum(agreement, _likeness(render[b], color))
            if register:
                if bool((visible > 0.5).any()):
                    shift = _registration(render[b], color, visible)
                    grid = _shifted(grid, shift)
                    there, agreement = (_shifted(x[..., None], shift)[..., 0] for x in (there, agreement))
                    there = there * _inside(grid, image.shape[-2:])
                    if ref_masks is not None:
                        there = there * _counted(ref_masks[b, v].to(render), grid)
                    color = _sample_photo(image, grid, there)
                    visible = there * torch.maximum(agreement, _likeness(render[b], color))
                found = match(render[b], image, None if ref_masks is None else ref_masks[b, v].to(render))
                matched, believed = found.of(Window(0, 0, height, width))
                believed = believed * torch.where(there > 0, 1.0, FLOW_AGAINST_GEOMETRY)
                grid = torch.where((believed > visible)[..., None], matched, grid)
                visible = torch.maximum(visible, believed)
                # always from the photo itself: sampling what was sampled before would cost sharpness
                color = _sample_photo(image, grid, visible)
            aligned[b, v] = color * (visible > 0)
            visibility[b, v, 0] = visible
    return aligned, visibility


@torch.no_grad()
def register_references(images: Tensor, refs: Tensor) -> tuple[Tensor, Tensor]:
    """Aligns references by optical flow alone, for images whose depth and poses are unknown.

    Args:
        images: (B, 3, H, W) colour the references are aligned to.
        refs: (B, V, 3, h, w) photos near the images' views; other sizes are resampled.

    Returns:
        aligned (B, V, 3, H, W) and visibility (B, V, 1, H, W): high where the flow from image to reference and back
        again returns to the same place and the colours there agree.
    """
    batch, views = refs.shape[:2]
    height, width = images.shape[-2:]
    whole = Window(0, 0, height, width)
    aligned = images.new_zeros((batch, views, 3, height, width))
    visibility = images.new_zeros((batch, views, 1, height, width))
    for b in range(batch):
        for v in range(views):
            photo = refs[b, v].to(images)
            aligned[b, v], visibility[b, v, 0] = match(images[b], photo).sampled(photo, whole)
    return aligned, visibility


@dataclass(frozen=True, eq=False)
class Match:
    """Where in a photo an image of `size` (height, width) finds what it shows, at the size at which flow looked.

    `shift` (h', w', 2) is how much further on than in the image it lies, in normalised positions; `visible` (h', w')
    in [0, 1] says where to believe that; `span` is how many of the photo's pixels one of the image's covers.
    """

    size: tuple[int, int]
    shift: Tensor
    visible: Tensor
    span: float

    def of(self, window: Window) -> tuple[Tensor, Tensor]:
        """The window's normalised positions in the photo (H, W, 2), and (H, W) where to believe them."""
        grid = _pixel_grid(*self.size, self.shift, window)
        if self.shift.shape[:2] == self.size:
            return grid + _cut(self.shift, window), _cut(self.visible, window)
        values = torch.cat([self.shift, self.visible[..., None]], dim=-1).permute(2, 0, 1)
        values = _sample(values, grid).permute(1, 2, 0)
        return grid + values[..., :2], values[..., 2]

    def sampled(
        self, photo: Tensor, window: Window, part: Window | None = None, whole: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The photo (3, h, w), or the `part` of it that counts where the `whole` has another size, as it looks in the
        image's window: (3, H, W), zero where nothing of it is seen, and its visibility (H, W).
        """
        grid, visible = self.of(window)
        if part is not None and whole is not None and (part.height, part.width) != whole:
            scale = grid.new_tensor([whole[1] / part.width, whole[0] / part.height])
            begin = grid.new_tensor([2 * part.left / part.width, 2 * part.top / part.height])
            grid = (grid + 1) * scale - begin - 1
        return _sample_photo(photo, grid, visible, self.span).mul_(visible > 0), visible

    def part(self, window: Window, size: tuple[int, int]) -> Window:
        """The part of a photo of `size` that a window of the image is sampled from."""
        sides = []
        for dim, start, length in ((0, window.top, window.height), (1, window.left, window.width)):
            shift = self.shift.movedim(dim, 0)
            # those rows or columns of the shift between which the window's are interpolated
            first, last = (int(at * len(shift) / self.size[dim]) for at in (start, start + length))
            low, high = (float(x) / 2 for x in torch.aminmax(shift[max(first - 1, 0) : last + 2, :, 1 - dim]))
            margin = 4 * max(1.0, self.span)  # bicubic's reach, and the pixel's own
            begin = int(((start + 0.5) / self.size[dim] + low) * size[dim] - margin)
            end = int(((start + length - 0.5) / self.size[dim] + high) * size[dim] + margin) + 1
            begin = min(max(begin, 0), size[dim] - 1)
            sides.append((begin, min(max(end, begin + 1), size[dim]) - begin))
        return Window(sides[0][0], sides[1][0], sides[0][1], sides[1][1])


@torch.no_grad()
def match(image: Tensor, ref: Tensor, mask: Tensor | None = None) -> Match:
    """Find an image (3, H, W) in a photo (3, h, w), each uint8 or in [0, 1], by optical flow, there and back; `mask`
    (1, h, w) is 1 where the photo's pixels count.
    """
    size = (image.shape[-2], image.shape[-1])
    height, width = flow_size(*size)
    scale = max(size) / max(height, width)
    kind, ref_size = image.dtype if image.is_floating_point() else torch.float32, ref.shape[-2:]
    if image.is_floating_point():
        image = image.float().nan_to_num(0, 0, 0)
    image = fitted(image, (height, width))
    ref = fitted(ref.float() if ref.is_floating_point() else ref, (height, width))
    target, source = _gray(image), _gray(ref)
    there, back = (torch.from_numpy(found).to(image) for found in flows(target, source))
    grid = _shifted(_pixel_grid(height, width, image), there)
    round_trip = there + _sample(back.permute(2, 0, 1), grid).permute(1, 2, 0)
    color = _sample(ref, grid)
    difference = _box((color - image).abs().mean(0), max(3, 2 * round(3.5 / scale) + 1))
    tolerance = max(ROUND_TRIP_TOLERANCE[0] / scale, ROUND_TRIP_TOLERANCE[1])
    visible = torch.exp(-(round_trip.square().sum(-1)) / (2 * tolerance**2))
    visible = visible * torch.exp(-(difference / 0.2).square()) * _inside(grid, (height, width))
    if mask is not None:
        visible = visible * _counted(mask, grid)
    span = _span(grid, visible, ref_size) / scale
    return Match(size, (grid - _pixel_grid(height, width, grid)).to(kind), visible.to(kind), span)


def flow_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) at which flow looks at an image."""
    side = max(height, width)
    wanted = min(side, max(FLOW_SIDES[0], min(FLOW_SHARE * side, FLOW_SIDES[1])))
    return max(1, round(height * wanted / side)), max(1, round(width * wanted / side))


def _pixel_grid(height: int, width: int, like: Tensor, window: Window | None = None) -> Tensor:
    """(H, W, 2) normalised positions in [-1, 1] of every pixel's centre, as grid_sample counts them, or of those in a
    window.
    """
    top, left, rows, columns = window or Window(0, 0, height, width)
    x = (torch.arange(left, left + columns, device=like.device, dtype=like.dtype) + 0.5) * (2 / width) - 1
    y = (torch.arange(top, top + rows, device=like.device, dtype=like.dtype) + 0.5) * (2 / height) - 1
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


def unproject(depth: Tensor, intrinsics: Tensor, camera_to_world: Tensor) -> Tensor:
    """(H, W) z-depth → (H, W, 3) points in the world."""
    height, width = depth.shape
    intrinsics, pose = intrinsics.to(depth), camera_to_world.to(depth)
    x = (torch.arange(width, device=depth.device, dtype=depth.dtype) + 0.5 - intrinsics[0, 2]) / intrinsics[0, 0]
    y = (torch.arange(height, device=depth.device, dtype=depth.dtype) + 0.5 - intrinsics[1, 2]) / intrinsics[1, 1]
    x, y = torch.meshgrid(x, y, indexing="xy")
    # image rows go down and the camera looks along -z
    camera = torch.stack([x * depth, -y * depth, -depth], dim=-1)
    return camera @ pose[:3, :3].T + pose[:3, 3]


def _project(
    points: Tensor, intrinsics: Tensor, camera_to_world: Tensor, size: torch.Size | tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """(H, W, 3) world points → (H, W, 2) normalised positions in an image of `size` and (H, W) z-depth there."""
    intrinsics, pose = intrinsics.to(points), camera_to_world.to(points)
    camera = (points - pose[:3, 3]) @ pose[:3, :3]
    z = -camera[..., 2]
    safe = z.clamp(min=1e-6)
    u = intrinsics[0, 0] * camera[..., 0] / safe + intrinsics[0, 2]
    v = -intrinsics[1, 1] * camera[..., 1] / safe + intrinsics[1, 2]
    grid = torch.stack([u * (2 / size[1]) - 1, v * (2 / size[0]) - 1], dim=-1)
    # points beside or behind the camera project anywhere: keep them finite and outside
    return grid.nan_to_num(3.0).clamp(-3, 3), z


def _cut(values: Tensor, window: Window) -> Tensor:
    """(H, W, …) cut to a window."""
    return values[window.top : window.top + window.height, window.left : window.left + window.width]


def _inside(grid: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """(H, W, 2) → (H, W): 1 between the centres of the outermost pixels of an image of `size`, 0 beyond."""
    # a hundredth of a pixel is rounding, not outside
    limit = grid.new_tensor([1 - 0.98 / size[1], 1 - 0.98 / size[0]])
    return (grid.abs() <= limit).all(-1).to(grid)


def _sample(image: Tensor, grid: Tensor, mode: str = "bilinear") -> Tensor:
    """(C, h, w) sampled at (H, W, 2) normalised positions → (C, H, W)."""
    return F.grid_sample(image[None], grid[None], mode=mode, padding_mode="border", align_corners=False)[0]


def _counted(mask: Tensor, grid: Tensor) -> Tensor:
    """(1, h, w) mask at (H, W, 2) positions → (H, W): 1 where everything a colour is interpolated from counts."""
    return (_sample(mask, grid)[0] > 0.999).to(mask)


def _depth_agreement(ref_depth: Tensor, grid: Tensor, z: Tensor) -> Tensor:
    """(H, W) in [0, 1]: how well the depth seen by the reference agrees with the depth the point has there.

    At a depth edge the interpolated depth belongs to neither side, so the nearest sample may speak too.
    """
    closeness = torch.zeros_like(z)
    for mode in ("bilinear", "nearest"):
        seen = _sample(ref_depth, grid, mode)[0]
        relative = (seen - z).abs() / torch.minimum(seen, z).clamp(min=1e-6)
        closeness = torch.maximum(closeness, torch.exp(-0.5 * (relative / DEPTH_TOLERANCE).square()) * (seen > 0))
    return closeness


def _likeness(render: Tensor, color: Tensor) -> Tensor:
    """(H, W) in [0, 1]: how much two (3, H, W) images look alike around each pixel."""
    return torch.exp(-(_box((color - render).abs().mean(0), 7) / COLOR_TOLERANCE).square())


def _sample_photo(photo: Tensor, grid: Tensor, counts: Tensor, span: float | None = None) -> Tensor:
    """A photo (3, h, w) as it looks in pixels whose centres lie at its normalised positions `grid` (H, W, 2).

    Each pixel is the mean over what it covers in the photo, which is how photos are brought to their working size, too.
    A pixel's extent is the grid's own step there, so the kernel follows foreshortening and turns; where the grid
    tears, at depth edges, the smaller of the steps on both sides. `counts` (H, W) is positive where there is something
    to see. `span` is how many of the photo's pixels a pixel covers, where that is known.
    """
    size = photo.shape[-2:]
    span = _span(grid, counts, size) if span is None else span
    if span > MOST_SAMPLES:
        # so many photo pixels a pixel that whole blocks of them may be averaged first
        factor = min(int(span / MOST_SAMPLES * 2), *size)
        photo = F.interpolate(photo[None], (-(-size[0] // factor), -(-size[1] // factor)), mode="area")[0]
        span /= factor
    count = max(1, round(span))
    if count == 1:
        return _sample(photo, grid, "bicubic").clamp_(0, 1)
    across, down = _steps(grid, 1), _steps(grid, 0)
    offsets = [(i + 0.5) / count - 0.5 for i in range(count)]
    total = torch.zeros_like(photo[:, :1, :1])
    for x in offsets:
        for y in offsets:
            total = total + _sample(photo, grid + x * across + y * down, "bicubic")
    return (total / count**2).clamp(0, 1)


def _span(grid: Tensor, counts: Tensor, size: torch.Size | tuple[int, int]) -> float:
    """How many pixels of a photo of `size` a step of the grid (H, W, 2) covers, as the median where it counts."""
    in_photo = grid.new_tensor([size[1] / 2, size[0] / 2])
    lengths = [(_steps(grid, dim) * in_photo).norm(dim=-1)[counts > 0] for dim in (1, 0)]
    return float(torch.cat(lengths).median()) if lengths[0].numel() else 1.0


def _steps(grid: Tensor, dim: int) -> Tensor:
    """(H, W, 2) positions → (H, W, 2): the step to the next pixel along an axis; of both beside it the smaller."""
    if grid.shape[dim] == 1:
        return torch.zeros_like(grid)
    steps = grid.diff(dim=dim)
    before = torch.cat([steps.narrow(dim, 0, 1), steps], dim)
    after = torch.cat([steps, steps.narrow(dim, -1, 1)], dim)
    return torch.where(before.square().sum(-1, keepdim=True) < after.square().sum(-1, keepdim=True), before, after)


def _gray(image: Tensor) -> np.ndarray:
    """(3, H, W) in [0, 1] → (H, W) uint8, what OpenCV's flow wants."""
    weights = image.new_tensor([0.299, 0.587, 0.114])
    gray = torch.einsum("c,chw->hw", weights, image).clamp(0, 1)
    return (gray * 255 + 0.5).to(torch.uint8).cpu().numpy()


def _shifted(values: Tensor, shift: Tensor) -> Tensor:
    """(H, W, C) values read at every pixel displaced by (H, W, 2) pixels."""
    height, width = values.shape[:2]
    grid = _pixel_grid(height, width, values) + shift * values.new_tensor([2 / width, 2 / height])
    inside = grid.clamp(-1 + 1 / max(width, height), 1 - 1 / max(width, height))
    moved = _sample(values.permute(2, 0, 1), inside).permute(1, 2, 0)
    if values.shape[-1] == 2:  # positions go on beyond the border, values do not
        moved = moved + (grid - inside)
    return moved


def _box(values: Tensor, size: int) -> Tensor:
    """(H, W) local mean over size × size pixels."""
    array = cv2.blur(values.float().cpu().numpy(), (size, size), borderType=cv2.BORDER_REFLECT_101)
    return torch.from_numpy(array).to(values)


def _registration(render: Tensor, color: Tensor, visible: Tensor) -> Tensor:
    """(H, W, 2) shift in pixels that moves the reprojected colour (3, H, W) onto the render (3, H, W).

    Zero where the reference is not visible, where the flow is longer than registration may need, and where moving
    does not make the two agree better in their neighbourhood.
    """
    height, width = visible.shape
    # where the reference shows nothing the render stands in for it, so the flow there is zero and drags nobody along
    filled = color * visible + render * (1 - visible)
    shift = torch.from_numpy(flow(_gray(render), _gray(filled))).to(render)
    longest = max(2.0, MAX_SHIFT * max(height, width))
    length = shift.square().sum(-1).sqrt()
    moved = _shifted(filled.permute(1, 2, 0), shift).permute(2, 0, 1)
    better = _disagreement(render, moved) < _disagreement(render, filled)
    keep = (better & (length <= longest) & (visible > 0.1)).to(render)
    # a soft edge, or the picture would tear where kept and rejected shifts meet
    return shift * (keep * _box(keep, 5))[..., None]


def _disagreement(a: Tensor, b: Tensor) -> Tensor:
    """(H, W) local colour difference of two (3, H, W) images, mostly of detail: exposure differs between photos."""
    difference = (a - b).mean(0)
    detail = (difference - _box(difference, 15)).abs()
    return _box(detail + 0.25 * difference.abs(), 7)
