"""The photos that stand beside a render when it is fixed: chosen by pose, given raw and aligned to the render.

This is where a reconstruction (depth) and the fixer (pixels) meet, for curation, distillation and enhancement alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np

from difixcli.images import as_planes, averaged
from difixcli.scenes import load_mask, load_photo, nearest_cameras
from difixcli.scenes.scene import Camera, Frame, Scene
from difixcli.scenes.visibility import unhidden

if TYPE_CHECKING:
    from difixcli.fixer import Fixer
    from difixcli.reconstruction import Reconstruction, Render


_DEPTHS_HELD = 8  # of large photos; of small ones as many as take so many bytes
_DEPTH_BYTES = 2**28
# Photos are aligned from up to this many times the working size, where they have it: sampled at the working size
# they would lose detail to interpolation.
_DETAIL = 2
_LONGEST_EDGE = 1 / 12  # of the long side: points that are farther apart know nothing of what lies between them
_SAME_DEPTH = 1.2  # so many times farther than another, a point is of another surface
_OPAQUE = 0.5  # accumulation from which on depth is believed
_IN_FRONT = 0.05  # of the depth: so much nearer, something hides a point
_EVERYWHERE = 0.99  # of photos' pixels that show something: then emptiness is a hole
_OF_AN_OBJECT = 0.1  # of photos' pixels that masks leave out: from there on it is what lies around an object
_ASKED = 8  # photos that say so
_LOOKED_AT = 200  # pixels of a long side, of renders whose points are looked for in photos and of these photos' depth
_PHOTOS_HELD = 4096  # depths of that size
_NO_MORE = 1e-3  # of a render's pixels: no further photo is asked about fewer


@dataclass(frozen=True, eq=False)
class References:
    """The references of one render, nearest first.

    `frames` are indices into the scene's frames; `photos` are (h, w, 3) float32 RGB in [0, 1] each; `aligned`
    (V, H, W, 3) are the same photos reprojected into the render's view, `visibility` (V, H, W) in [0, 1] says where
    that is believable. `correspondence` makes, for fixers that look references up by their geometry, which places of
    the first so many photos the render's pixels show, (V, 3, H, W) as `fixer.correspondence.correspond` does for photos
    brought to the render's size; None where no geometry is known. `seen_by_any` makes, likewise, which of the
    render's pixels any photo has seen, not only these (see `ReferenceViews.seen_by_any`).
    """

    frames: Sequence[int]
    photos: Sequence[np.ndarray]
    aligned: np.ndarray
    visibility: np.ndarray
    correspondence: Callable[[int], np.ndarray] | None = None
    seen_by_any: Callable[[], np.ndarray] | None = None


class ReferenceViews:
    """The clean photos of a scene, with what aligning them needs: their cameras and their rendered depth.

    `frames` are the scene's frames that may serve as references. The depths belong to the reconstruction as it is;
    call `refresh` when it has trained on.
    """

    def __init__(self, scene: Scene, frames: Sequence[int], reconstruction: Reconstruction, count: int) -> None:
        self.scene, self.frames, self.reconstruction, self.count = scene, list(frames), reconstruction, count
        # neighbours on a path share references; the rest of a long one need not be held
        whole = max(
            (4 * scene.frames[frame].camera.width * scene.frames[frame].camera.height for frame in self.frames),
            default=4,
        )
        # nothing of these holds on to this object, which would then be there until Python looks for such circles
        self._depths = lru_cache(max(_DEPTHS_HELD, 4 * _DEPTH_BYTES // whole))(
            partial(_half_size_depth, scene, reconstruction)
        )
        self._seen_depths = lru_cache(max(_DEPTHS_HELD, _DEPTH_BYTES // whole))(
            partial(seen_depth, scene, reconstruction)
        )
        self._shown_depths = lru_cache(_PHOTOS_HELD)(partial(_shown_depth, scene, reconstruction, self._depths))
        self._full: bool | None = None  # whether photos show something everywhere, once it was asked

    def refresh(self) -> None:
        """Forget the rendered depths, because the reconstruction has changed."""
        self._depths.cache_clear()
        self._seen_depths.cache_clear()
        self._shown_depths.cache_clear()
        self._full = None

    def photo(self, frame: int) -> np.ndarray:
        """(H, W, 3) the reference photo; read-only."""
        return load_photo(self.scene.frames[frame])

    def depth(self, frame: int) -> np.ndarray:
        """(h, w) the reconstruction's z-depth at a reference's camera, at half its size."""
        return self._depths(frame)

    def seen_depth(self, frame: int, size: tuple[int, int]) -> np.ndarray:
        """(H, W) see `reference_views.seen_depth`."""
        return self._seen_depths(frame, size)

    def correspondence(self, frames: Sequence[int], camera: Camera, render: Render) -> np.ndarray:
        """(V, 3, H, W) float32: which places of the frames' photos, brought to the render's size, a render made at
        `camera` shows; see `fixer.correspondence.correspond`.

        Photos' places are known where the reconstruction is opaque and no mask leaves them out, and the render's where
        nothing that it shows hides them.
        """
        import torch

        from difixcli.fixer.correspondence import correspond

        height, width = render.depth.shape
        cameras = [self.scene.frames[f].camera.resized(width, height) for f in frames]
        depths = np.stack([self.seen_depth(f, (height, width)) for f in frames])
        found = correspond(  # on the CPU, where adding up has one order
            torch.from_numpy(depths)[None, :, None],
            torch.stack([_matrix(c.intrinsics) for c in cameras])[None],
            torch.stack([_matrix(c.camera_to_world) for c in cameras])[None],
            _matrix(camera.intrinsics)[None],
            _matrix(camera.camera_to_world)[None],
            torch.from_numpy(opaque_depth(render))[None, None],
        )
        return found[0].numpy()

    def seen_by_any(self, camera: Camera, render: Render) -> np.ndarray:
        """(H, W) bool: what of a render made at `camera` any of the frames' photos has seen, by the depths of both and
        to a 200th of its long side. What a photo's mask leaves out it has not seen.

        Where the render is not opaque it counts as seen, unless photos show something everywhere: then it is a hole.
        """
        import cv2

        height, width = render.depth.shape
        less = min(1.0, _LOOKED_AT / max(height, width))
        size = (max(1, round(width * less)), max(1, round(height * less)))
        depth = cv2.resize(opaque_depth(render), size, interpolation=cv2.INTER_NEAREST)
        x, y = np.meshgrid(np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5)
        unseen = depth > 0
        points = camera.resized(*size).unproject(x, y, depth.astype(np.float64))
        for frame in self.nearest(camera, count=len(self.frames)):
            left = np.nonzero(unseen)
            unseen[left] = ~self._shown(frame, points[left])
            if unseen.mean() < _NO_MORE:
                break
        if self._full is None:
            self._full = self._show_something()
        if self._full:
            unseen |= depth <= 0
        return cv2.resize(unseen.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) == 0

    def _shown(self, frame: int, points: np.ndarray) -> np.ndarray:
        """(N,) bool: which of the points (N, 3) a frame's photo shows."""
        camera = _looked_at(self.scene.frames[frame].camera)
        u, v, z = camera.project(points)
        with np.errstate(invalid="ignore"):
            shown = (z > 0) & (u >= 0) & (v >= 0) & (u < camera.width) & (v < camera.height)
        if not shown.any():  # most photos of a large scene, whose depth need not be rendered
            return shown
        column, row = (np.where(shown, place, 0).astype(int) for place in (u, v))
        there = self._shown_depths(frame)[row, column]
        return shown & ((there <= 0) | (there > (1 - _IN_FRONT) * z))

    def _show_something(self) -> bool:
        """Whether photos show something everywhere but where their masks leave it out, by a few of them; not where
        masks cut out an object.
        """
        some = [self._shown_depths(frame) for frame in self.frames[:: max(1, len(self.frames) // _ASKED)]]
        if not some or np.mean([np.isnan(depth).mean() for depth in some]) > _OF_AN_OBJECT:
            return False
        shares = [(depth[~np.isnan(depth)] > 0).mean() for depth in some if not np.isnan(depth).all()]
        return bool(np.mean(shares) > _EVERYWHERE)

    def nearest(self, camera: Camera, exclude: Iterable[int] = (), count: int | None = None) -> list[int]:
        """The frames nearest to the camera by pose distance, nearest first, without those excluded; at most `count`,
        or as many as references are wanted.
        """
        wanted = self.count if count is None else count
        excluded = set(exclude)
        candidates = [f for f in self.frames if f not in excluded]
        cameras = [self.scene.frames[f].camera for f in candidates]
        return [candidates[i] for i in nearest_cameras(camera, cameras, min(wanted, len(candidates)))]

    def beside(
        self,
        camera: Camera,
        render: Render,
        exclude: Iterable[int] = (),
        align: bool = True,
        count: int | None = None,
    ) -> References:
        """The references of a render made at `camera`, aligned through the render's depth; at most `count`, or as many
        as are wanted.

        What their masks leave out is not visible. Without `align`, for fixers that take raw references, `aligned` and
        `visibility` are empty, and no depth is rendered. Aligning is done on the reconstruction's device.
        """
        import torch

        from difixcli.fixer.alignment import align_references

        frames = self.nearest(camera, exclude, count)
        height, width = render.depth.shape
        photos = [self.photo(f) for f in frames]

        def geometry(first: int) -> np.ndarray:
            return self.correspondence(frames[:first], camera, render)

        if not frames or not align:
            nothing = np.zeros((0, height, width), np.float32)
            return References(frames, photos, np.zeros((0, height, width, 3), np.float32), nothing, geometry)

        def seen_by_any() -> np.ndarray:
            return self.seen_by_any(camera, render)

        # references of one lens share one size; others are brought to the first one's
        detailed = [_detailed(self.scene.frames[f]) for f in frames]
        first = detailed[0].camera
        cameras = [frame.camera.resized(first.width, first.height) for frame in detailed]
        size = (first.height, first.width)
        images = torch.cat([averaged(as_planes(load_photo(frame)), size) for frame in detailed])
        half = self.depth(frames[0]).shape
        depths = torch.cat([averaged(torch.from_numpy(self.depth(f))[None, None], half) for f in frames])
        held = [load_mask(frame) for frame in detailed]
        masks = None
        if any(mask is not None for mask in held):
            whole = [np.ones(size, bool) if mask is None else mask for mask in held]
            masks = torch.cat([averaged(as_planes(mask[..., None]), size) for mask in whole])[None]
        device = self.reconstruction.device
        aligned, visibility = align_references(
            as_planes(render.color).to(device),
            torch.from_numpy(render.depth)[None, None].to(device),
            _matrix(camera.intrinsics)[None].to(device),
            _matrix(camera.camera_to_world)[None].to(device),
            images[None].to(device),
            depths[None].to(device),
            torch.stack([_matrix(c.intrinsics) for c in cameras])[None].to(device),
            torch.stack([_matrix(c.camera_to_world) for c in cameras])[None].to(device),
            ref_masks=None if masks is None else masks.to(device),
        )
        aligned, visibility = aligned[0].permute(0, 2, 3, 1).cpu(), visibility[0, :, 0].cpu()
        return References(frames, photos, aligned.numpy(), visibility.numpy(), geometry, seen_by_any)


def _detailed(frame: Frame) -> Frame:
    """The frame at `_DETAIL` times its working size, or at its photo's own if that is less."""
    camera, (width, height) = frame.camera, frame.lens.size
    factor = min(_DETAIL, width / camera.width, height / camera.height)
    if factor <= 1:
        return frame
    return replace(frame, camera=camera.resized(round(camera.width * factor), round(camera.height * factor)))


def _half_size_depth(scene: Scene, reconstruction: Reconstruction, frame: int) -> np.ndarray:
    camera = scene.frames[frame].camera
    # it only tells what hides what: half the size serves, at a quarter of a ray method's time
    return reconstruction.render(_halved(camera)).depth


def _shown_depth(
    scene: Scene, reconstruction: Reconstruction, halved: Callable[[int], np.ndarray], frame: int
) -> np.ndarray:
    """(h, w) the z-depth of what a frame's photo shows, at its size of `_looked_at`: 0 where that is nothing, NaN where
    its mask leaves it out. `halved` makes `_half_size_depth` of a frame.
    """
    small, half = _looked_at(scene.frames[frame].camera), _halved(scene.frames[frame].camera)
    depth = halved(frame) if small.width == half.width else reconstruction.render(small).depth
    mask = load_mask(replace(scene.frames[frame], camera=small))
    return depth if mask is None else np.where(mask, depth, np.float32(np.nan))


def _halved(camera: Camera) -> Camera:
    return camera.resized(max(1, camera.width // 2), max(1, camera.height // 2))


def _looked_at(camera: Camera) -> Camera:
    """Half its size, or `_LOOKED_AT` where that is less."""
    half = _halved(camera)
    factor = _LOOKED_AT / max(half.width, half.height)
    return (
        half if factor >= 1 else half.resized(max(1, round(half.width * factor)), max(1, round(half.height * factor)))
    )


def seen_depth(scene: Scene, reconstruction: Reconstruction, frame: int, size: tuple[int, int]) -> np.ndarray:
    """(H, W) z-depth at a frame's camera at this size (height, width), 0 where the reconstruction is not opaque or the
    photo's mask leaves the place out.
    """
    depth = opaque_depth(reconstruction.render(scene.frames[frame].camera.resized(size[1], size[0])))
    if (mask := load_mask(scene.frames[frame])) is not None:
        whole = averaged(as_planes(mask[..., None]), size)[0, 0].numpy()
        depth = np.where(whole > 0.999, depth, 0)
    return depth.astype(np.float32)


def opaque_depth(render: Render) -> np.ndarray:
    """(H, W) float32 z-depth of a render, 0 where it is not opaque: the mean over little is nowhere."""
    return np.where(render.accumulation > _OPAQUE, render.depth, 0).astype(np.float32)


def places_by_points(scene: Scene, frame: int, references: Sequence[int], size: tuple[int, int]) -> np.ndarray | None:
    """(V, 3, H, W) float32: which places of references' photos an image of a frame's view shows, all of them brought to
    this size (height, width), as `fixer.correspondence.correspond` gives it; None where the seed points say too little.

    The points that a reference's photo shows, and nothing hides from the frame's camera, are known in both. Between
    three of them that are near each other, and about as far away, places are interpolated.
    """
    found = [_places_by_points(scene, frame, reference, size) for reference in references]
    return np.stack(found) if any(one[2].any() for one in found) else None


def _places_by_points(scene: Scene, frame: int, reference: int, size: tuple[int, int]) -> np.ndarray:
    from scipy.spatial import Delaunay, QhullError

    from difixcli.reconstruction.seed_depth import HIDDEN_BEHIND, depth_map

    height, width = size
    camera, theirs = scene.frames[frame].camera.resized(width, height), scene.frames[reference].camera
    seen = depth_map(scene, reference)
    row, column = np.nonzero(seen)
    points = theirs.unproject(column + 0.5, row + 0.5, seen[row, column].astype(np.float64))
    x, y, depth = camera.project(points)
    inside = np.flatnonzero((depth > 1e-3) & (x >= 0) & (x < width) & (y >= 0) & (y < height))
    inside = inside[unhidden(x[inside], y[inside], depth[inside], size, HIDDEN_BEHIND)]
    nothing = np.zeros((3, height, width), np.float32)
    at = np.stack([x[inside], y[inside]], axis=1)
    try:
        mesh = Delaunay(at) if len(at) > 3 else None
    except QhullError:  # all on a line
        mesh = None
    if mesh is None:
        return nothing
    corners = mesh.simplices
    edges = np.linalg.norm(at[corners] - at[np.roll(corners, 1, axis=1)], axis=-1).max(axis=1)
    depths = depth[inside][corners]
    whole = (edges < _LONGEST_EDGE * max(size)) & (depths.max(axis=1) < _SAME_DEPTH * depths.min(axis=1))
    pixels = np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), axis=-1)
    inner = mesh.find_simplex(pixels)
    known = (inner >= 0) & whole[inner]
    into, beyond = mesh.transform[inner[known], :2], mesh.transform[inner[known], 2]
    shares = np.einsum("nij,nj->ni", into, pixels[known] - beyond)
    shares = np.concatenate([shares, 1 - shares.sum(axis=1, keepdims=True)], axis=1)
    scale = np.array([width / theirs.width, height / theirs.height])
    places = (np.stack([column, row], axis=1)[inside] + 0.5) * scale - 0.5
    nothing[:2, known] = np.einsum("nk,nkc->cn", shares, places[corners[inner[known]]])
    nothing[2, known] = np.isfinite(nothing[:2, known]).all(axis=0)
    return np.nan_to_num(nothing, nan=0.0, posinf=0.0, neginf=0.0)


def looked_up(references: References, fixer: Fixer, confirming: bool) -> References:
    """The same, with what `evidence.fix_render` and, where it will be asked, `evidence.confirmed` look up found now: in
    a thread ahead, as a rule.
    """
    if confirming and references.seen_by_any is not None:
        seen = references.seen_by_any()
        references = replace(references, seen_by_any=lambda: seen)
    count = min(fixer.config.views, len(references.frames))
    if fixer.config.references != "geometry" or references.correspondence is None or not count:
        return references
    places = references.correspondence(count)
    return replace(references, correspondence=lambda first: places[:first])


def is_bad_fix(render: Render, fixed: np.ndarray) -> bool:
    """Whether a fix (H, W, 3) of the render is broken as a whole: see `fixer.confidence.bad_fixes`."""
    import torch

    from difixcli.fixer.confidence import bad_fixes

    opacity = torch.from_numpy(render.accumulation)[None, None]
    return bool(bad_fixes(as_planes(render.color), as_planes(fixed), opacity)[0])


def _matrix(value: np.ndarray):  # type: ignore[no-untyped-def]
    import torch

    return torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32))
