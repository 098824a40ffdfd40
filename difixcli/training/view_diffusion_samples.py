"""What view-conditioned diffusion is trained on: views of scenes beside other photos of them, all on one device.

The photos of all scenes lie in one tensor of square canvases, each in its upper left corner, with a mask of what is
photo. What is drawn at a step follows from the step and the seed; the pictures are cut out on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from difixcli.errors import InputError
from difixcli.priors.view_diffusion.views import InputViews, Pinhole, inverse
from difixcli.runs import IMAGE_SUFFIXES, read_image
from difixcli.scenes import Scene, load_mask, load_photo
from difixcli.scenes.visibility import unhidden
from difixcli.training.options import ViewDiffusionOptions

_DEPTHS = 256  # seed points of a view whose depth is known to the loss
_MATES = 32  # photos beside which a view may stand
_LEAST_SHARED = 0.1  # of the seed points that a view shows, which a photo must show too to be one of them
_LEAST_POINTS = 30  # of a view that says by its seed points what it shares
_POINTS = 4000  # of more seed points, as many spread evenly over the list say what photos share
_CELL = 1 / 128  # of the picture: seed points are few
_HIDDEN = 1.1  # a seed point this many times deeper than one beside it is hidden by it
_HELD_OUT_FROM = 8  # photos of a scene, of which one is never trained on
_SMALLEST = 0.75  # of the canvas, to which photos are made smaller
# what random numbers are drawn for
_VIEWS, _PHOTOS = 1, 2


class ViewBatch(NamedTuple):
    """B views to be made, each from V photos; float32 on the device. Units are the views' nearest depths."""

    images: Tensor
    """(B, V, 3, S, S) in [0, 1]"""
    masks: Tensor
    """(B, V, 1, S, S)"""
    intrinsics: Tensor
    """(B, V, 3, 3)"""
    poses: Tensor
    """(B, V, 4, 4) in the query's axes."""
    query_intrinsics: Tensor
    """(B, 3, 3) of the window."""
    far: Tensor
    """(B,)"""
    truths: Tensor
    """(B, 3, h, w) the windows of the photos at the queries."""
    counts: Tensor
    """(B, 1, h, w) where they count."""
    pixels: Tensor
    """(B, P, 2) x and y in the window of seed points, which may lie outside of it."""
    depths: Tensor
    """(B, P) their z-depth in units of the nearest; 0 for none."""


@dataclass(frozen=True, eq=False)
class HeldView:
    """A view that is never trained on, with the photos that it is made from, on the CPU."""

    name: str
    views: InputViews
    query: Pinhole
    truth: Tensor
    """(3, H, W)"""
    mask: Tensor | None
    """(H, W) bool, where the truth counts."""
    depths: Tensor
    """(P, 3) x, y and z-depth of seed points that it sees."""


def check_views(scene: Scene) -> None:
    """Raises InputError for a scene in which no photo has another beside it."""
    if len(scene.frames) < 2:
        raise InputError(f"The scene {scene.name} has one photo; views are learned from scenes of two or more.")


class ViewPhotos:
    """The photos of scenes, and of a folder, on a device.

    Args:
        scenes: loaded with `size` = the options' canvas, or smaller.
        folder: more photos, without poses, for the autoencoder alone.

    Raises InputError for scenes in which no view has others beside it.
    """

    def __init__(
        self, scenes: Sequence[Scene], folder: Path | None, options: ViewDiffusionOptions, device: str
    ) -> None:
        self.options, self.device, side = options, device, options.canvas
        canvases: list[Tensor] = []
        frames, mates, weights, depths, chances = [], [], [], [], []
        self.held: list[HeldView] = []
        self.names: list[str] = []
        for scene in scenes:
            check_views(scene)
            base = len(canvases)
            held = len(scene.frames) // 2 if len(scene.frames) >= _HELD_OUT_FROM else -1
            seen, common = _seen(scene)
            for i, frame in enumerate(scene.frames):
                if max(frame.camera.width, frame.camera.height) > side:
                    raise InputError(f"{frame.name} is larger than the canvas of {side} pixels; load it smaller.")
                canvases.append(_canvas(frame, side))
                frames.append(frame.camera)
                self.names.append(f"{scene.name}/{frame.name}")
                near, far, known = _depths(frame.camera, scene.points, seen[i], scene.frames, i)
                depths.append((near, far, known))
                shared = common[i]
                shared[[i, held] if held >= 0 else i] = 0
                shared[shared < _LEAST_SHARED] = 0
                order = np.argsort(-shared, kind="stable")[:_MATES]
                mates.append(np.pad(order + base, (0, _MATES - len(order))))
                weights.append(np.pad(shared[order], (0, _MATES - len(order))))
                chances.append(0.0 if i == held or not shared.any() else len(seen) ** -0.5)
            if held >= 0 and np.count_nonzero(weights[base + held]) >= 3:
                self.held.append(held_view(scene, held, 3))
        if not any(chances):
            raise InputError(
                "No two photos of these scenes show the same seed points; give scenes whose photos overlap."
            )
        self.chances = torch.tensor(chances, dtype=torch.float64)
        self.mates, self.weights = torch.from_numpy(np.stack(mates)), torch.from_numpy(np.stack(weights)).float()
        self.canvases = torch.stack(canvases).to(device)
        self.sizes = torch.tensor([[c.height, c.width] for c in frames])
        intrinsics = np.stack([camera.intrinsics for camera in frames])
        self.intrinsics = torch.from_numpy(intrinsics).float().to(device)
        self.poses = torch.from_numpy(np.stack([camera.camera_to_world for camera in frames])).to(device)
        self.ranges = torch.tensor([[near, far] for near, far, _ in depths]).to(device)
        self.known = torch.stack([_filled(known) for _, _, known in depths]).to(device)
        self.alone = _folder_canvases(folder, side).to(device) if folder is not None else self.canvases[:0]

    def batch(self, step: int, batch: int, window: int, augment: bool) -> ViewBatch:
        """The views of a step, in windows of `window` pixels (or what the smallest scale has); with `augment`, tones
        and channels change too.
        """
        options, device = self.options, self.device
        draw = torch.Generator().manual_seed(_seed(options.seed, _VIEWS, step))

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=draw)

        # 1. which views, from which photos; on the CPU, then on their way
        count = int(torch.multinomial(torch.tensor([0.05, 0.35, 0.35, 0.15, 0.1]), 1, generator=draw)) + 1
        queries = torch.multinomial(self.chances, batch, replacement=True, generator=draw)
        # half of the photos are drawn regardless of how much they share
        power = torch.where(uniform(batch, 1) < 0.5, 1.0, 0.0)
        weights = torch.where(self.weights[queries] > 0, self.weights[queries].clamp_min(1e-6) ** power, 1e-12)
        places = torch.multinomial(weights, count, generator=draw)
        there = torch.gather(self.weights[queries], 1, places) > 0  # (B, V)
        photos = torch.gather(self.mates[queries], 1, places)
        scale = round(options.canvas * (_SMALLEST + (1 - _SMALLEST) * float(uniform(1)))) // 8 * 8 / options.canvas
        flip = bool(uniform(1) < 0.5)
        side = round(options.canvas * scale)
        window = min(window, side)
        sizes = (self.sizes[queries] * scale).long()
        corners = (uniform(batch, 2) * (sizes - window + 1).clamp_min(1)).long()  # top, left
        if flip:
            corners[:, 1] = side - window - corners[:, 1]
        closer, farther = 0.75 + 0.25 * uniform(batch), 1 + 0.4 * uniform(batch)
        gain, bend = 1 + 0.3 * (uniform(batch) - 0.5), (0.6 * (uniform(batch) - 0.5)).exp()
        channels = torch.stack(
            [torch.randperm(3, generator=draw) if uniform(1) < 0.3 else torch.arange(3) for _ in range(batch)]
        )
        moved = [each.to(device, non_blocking=True) for each in (queries, photos, there, corners, closer, farther)]
        queries, photos, there, corners, closer, farther = moved
        # 2. the canvases at this step's scale
        chosen = torch.cat([queries[:, None], photos], dim=1)
        planes = self.canvases[chosen].flatten(0, 1).float() / 255
        if side != options.canvas:
            planes = F.interpolate(planes, (side, side), mode="bilinear", antialias=True)
        planes = torch.cat([planes[:, :3].clamp(0, 1), (planes[:, 3:] > 0.99).float()], dim=1)
        intrinsics = self.intrinsics[chosen]
        intrinsics[..., :2, :] *= scale
        poses = inverse(self.poses[queries])[:, None] @ self.poses[chosen]
        near, far = self.ranges[queries].unbind(-1)
        near, far = near * closer, far * farther
        poses[..., :3, 3] /= near[:, None, None]
        known = self.known[queries]
        known[..., :2] *= scale
        if flip:  # a mirrored world: x turns round, in pictures and in axes
            planes = planes.flip(-1)
            intrinsics[..., 0, 2] = side - intrinsics[..., 0, 2]
            poses[..., 0, 1:] *= -1
            poses[..., 1:, 0] *= -1
            known = torch.cat([side - known[..., :1], known[..., 1:]], dim=-1)
        planes = planes.unflatten(0, (batch, count + 1))
        if augment:
            gain, bend, channels = (x.to(device, non_blocking=True) for x in (gain, bend, channels))
            colours = planes[:, :, :3].clamp_min(1e-4) ** bend[:, None, None, None, None]
            colours = (colours * gain[:, None, None, None, None]).clamp(0, 1)
            index = channels[:, None, :, None, None].expand_as(colours)
            planes = torch.cat([torch.gather(colours, 2, index), planes[:, :, 3:]], dim=2)
        # 3. the windows at the queries
        rows = corners[:, 0, None] + torch.arange(window, device=device)
        columns = corners[:, 1, None] + torch.arange(window, device=device)
        sample = torch.arange(batch, device=device)
        cut = planes[:, 0].permute(0, 2, 3, 1)[sample[:, None, None], rows[:, :, None], columns[:, None]]
        cut = cut.permute(0, 3, 1, 2)
        query = intrinsics[:, 0].clone()
        query[:, :2, 2] -= corners.flip(-1)
        masks = planes[:, 1:, 3:] * there[..., None, None, None]
        return ViewBatch(
            images=planes[:, 1:, :3],
            masks=masks,
            intrinsics=intrinsics[:, 1:],
            poses=poses[:, 1:].float(),
            query_intrinsics=query,
            far=(far / near).float(),
            truths=cut[:, :3],
            counts=cut[:, 3:],
            pixels=known[..., :2] - corners.flip(-1)[:, None],
            depths=(known[..., 2] / near[:, None]).float(),
        )

    def pictures(self, step: int, batch: int, window: int) -> tuple[Tensor, Tensor]:
        """Windows (B, 3, w, w) of any photos at a step, and (B, 1, w, w) where they are photo."""
        options = self.options
        draw = torch.Generator().manual_seed(_seed(options.seed, _PHOTOS, step))
        scale = _SMALLEST + (1 - _SMALLEST) * float(torch.rand(1, generator=draw))
        side = max(round(options.canvas * scale), window)
        own = self.chances / self.chances.sum()
        share = options.photo_share if len(self.alone) else 0.0
        others = torch.full((len(self.alone),), share / max(len(self.alone), 1), dtype=torch.float64)
        chosen = torch.multinomial(torch.cat([own * (1 - share), others]), batch, replacement=True, generator=draw)
        sizes = torch.cat([self.sizes, torch.full((len(self.alone), 2), options.canvas)])[chosen]
        room = ((sizes * side / options.canvas).long() - window + 1).clamp_min(1)
        corners = (torch.rand(batch, 2, generator=draw) * room).long().to(self.device, non_blocking=True)
        flip = torch.rand(1, generator=draw) < 0.5
        chosen = chosen.to(self.device, non_blocking=True)
        planes = torch.where(
            (chosen < len(self.canvases))[:, None, None, None],
            self.canvases[chosen.clamp_max(len(self.canvases) - 1)],
            self.alone[(chosen - len(self.canvases)).clamp_min(0)] if len(self.alone) else self.canvases[:1],
        )
        planes = planes.float() / 255
        if side != options.canvas:
            planes = F.interpolate(planes, (side, side), mode="bilinear", antialias=True)
        span = torch.arange(window, device=self.device)
        sample = torch.arange(batch, device=self.device)[:, None, None]
        cut = planes.permute(0, 2, 3, 1)[
            sample, (corners[:, 0, None] + span)[:, :, None], (corners[:, 1, None] + span)[:, None]
        ].permute(0, 3, 1, 2)
        if flip:
            cut = cut.flip(-1)
        return cut[:, :3].clamp(0, 1), (cut[:, 3:] > 0.99).float()


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _canvas(frame, side: int) -> Tensor:  # type: ignore[no-untyped-def]
    """(4, side, side) uint8: the photo in the upper left corner, black elsewhere, and where it counts."""
    photo, mask = load_photo(frame), load_mask(frame)
    canvas = np.zeros((4, side, side), dtype=np.uint8)
    height, width = photo.shape[:2]
    canvas[:3, :height, :width] = np.rint(photo * 255).transpose(2, 0, 1)
    canvas[3, :height, :width] = 255 if mask is None else mask * np.uint8(255)
    return torch.from_numpy(canvas)


def _folder_canvases(folder: Path, side: int) -> Tensor:
    """(N, 4, side, side) uint8: the middle squares of a folder's photos, made smaller; smaller ones are left out."""
    import cv2

    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    canvases = []
    for file in files:
        photo = read_image(file)[..., :3]
        least = min(photo.shape[:2])
        if least < side:
            continue
        top, left = (photo.shape[0] - least) // 2, (photo.shape[1] - least) // 2
        small = cv2.resize(photo[top : top + least, left : left + least], (side, side), interpolation=cv2.INTER_AREA)
        canvas = np.full((4, side, side), 255, dtype=np.uint8)
        canvas[:3] = np.rint(small * 255).clip(0, 255).transpose(2, 0, 1)
        canvases.append(torch.from_numpy(canvas))
    if not canvases:
        raise InputError(f"{folder} has no photos of at least {side} pixels; name another folder for --photos.")
    return torch.stack(canvases)


def _visible(points: np.ndarray, camera) -> np.ndarray:  # type: ignore[no-untyped-def]
    """(N,) bool: the seed points in a camera's picture that no nearer one beside them hides."""
    x, y, depth = camera.project(points.astype(np.float64))
    inside = (depth > 0) & (x > 0) & (x < camera.width) & (y > 0) & (y < camera.height)
    inside[inside] = unhidden(x[inside], y[inside], depth[inside], (camera.height, camera.width), _HIDDEN, _CELL)
    return inside


def _seen(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """(N, P) bool: which seed points are in each photo's picture, and the `shares` of the photos."""
    seen = np.stack([_visible(scene.points, frame.camera) for frame in scene.frames])
    return seen, shares(seen, np.stack([frame.camera.camera_to_world[:3, 2] for frame in scene.frames]))


def shares(seen: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """(N, N) in [0, 1]: of what the view of a row shows, the share that the photo of a column shows too.

    `seen` (N, P) bool are the seed points in each one's picture: of many, evenly spread ones are counted. Where a view
    shows few, it is how well both axes (N, 3) agree.
    """
    chosen = seen[:, :: max(1, -(-seen.shape[1] // _POINTS))].astype(np.float32)
    counts, every = chosen.sum(axis=1, dtype=np.float64), seen.sum(axis=1)
    found = (chosen @ chosen.T) / np.maximum(counts, 1)[:, None]
    for i in np.flatnonzero(counts < _LEAST_POINTS):
        if every[i] >= _LEAST_POINTS:  # too few of the chosen ones
            found[i] = seen[:, seen[i]].sum(axis=1) / every[i]
        else:
            found[i] = np.maximum(axes @ axes[i], 0)
    return found


def _depths(camera, points: np.ndarray, seen: np.ndarray, frames, i: int):  # type: ignore[no-untyped-def]
    """Nearest and farthest depth of a view as `InputViews.depth_range` gives them, and x, y and depth (P, 3) of what
    it sees.
    """
    others = [frame.camera for j, frame in enumerate(frames) if j != i]
    views = InputViews(
        torch.zeros(len(others), 3, 1, 1),
        torch.from_numpy(np.stack([c.intrinsics for c in others])).float(),
        torch.from_numpy(np.stack([c.camera_to_world for c in others])).float(),
        None,
        torch.from_numpy(points),
    )
    near, far = views.depth_range(_pinhole(camera))
    x, y, depth = camera.project(points[seen].astype(np.float64))
    known = np.stack([x, y, depth], axis=1)
    return near, far, known[np.linspace(0, len(known) - 1, min(len(known), _DEPTHS)).astype(int)]


def _filled(known: np.ndarray) -> Tensor:
    """(P, 3) float32, with zeros for what is missing."""
    filled = np.zeros((_DEPTHS, 3), dtype=np.float32)
    filled[: len(known)] = known
    return torch.from_numpy(filled)


def _pinhole(camera) -> Pinhole:  # type: ignore[no-untyped-def]
    return Pinhole(
        torch.from_numpy(camera.intrinsics).float(),
        torch.from_numpy(camera.camera_to_world).float(),
        camera.height,
        camera.width,
    )


def input_views(scene: Scene, chosen: Sequence[int], side: int) -> InputViews:
    """Photos of a scene as input views of one size: the same canvas of `side` pixels, masked where they end."""
    frames = [scene.frames[i] for i in chosen]
    canvases = torch.stack([_canvas(frame, side) for frame in frames]).float() / 255
    height, width = (max(getattr(f.camera, name) for f in frames) for name in ("height", "width"))
    return InputViews(
        canvases[:, :3, :height, :width],
        torch.from_numpy(np.stack([f.camera.intrinsics for f in frames])).float(),
        torch.from_numpy(np.stack([f.camera.camera_to_world for f in frames])).float(),
        canvases[:, 3:, :height, :width],
        torch.from_numpy(scene.points),
    )


def held_view(scene: Scene, held: int, count: int) -> HeldView:
    """A view of a scene beside `count` of the photos that share seed points with it, from the one that shares most to
    the one that shares least.
    """
    frame = scene.frames[held]
    seen, common = _seen(scene)
    shared = common[held]
    shared[held] = 0
    order = [int(j) for j in np.argsort(-shared, kind="stable") if shared[j] >= _LEAST_SHARED]
    if len(order) < count:
        raise InputError(f"Fewer than {count} photos of {scene.name} share seed points with {frame.name}.")
    chosen = [order[round(i * (len(order) - 1) / max(count - 1, 1))] for i in range(count)]
    mask = load_mask(frame)
    return HeldView(
        name=f"{scene.name}/{frame.name}",
        views=input_views(scene, chosen, max(max(f.camera.width, f.camera.height) for f in scene.frames)),
        query=_pinhole(frame.camera),
        truth=torch.from_numpy(load_photo(frame).copy()).permute(2, 0, 1),
        mask=None if mask is None else torch.from_numpy(mask.copy()),
        depths=torch.from_numpy(_depths(frame.camera, scene.points, seen[held], scene.frames, held)[2]).float(),
    )
