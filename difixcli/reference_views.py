"""The photos that stand beside a render when it is fixed: chosen by pose, given raw and aligned to the render.

This is where a reconstruction (depth) and the fixer (pixels) meet, for curation, distillation and enhancement alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np

from difixcli.images import as_planes, averaged
from difixcli.scenes import load_mask, load_photo, nearest_cameras
from difixcli.scenes.scene import Camera, Frame, Scene

if TYPE_CHECKING:
    from difixcli.fixer import Fixer
    from difixcli.reconstruction import Reconstruction, Render


_DEPTHS_HELD = 64
# Photos are aligned from up to this many times the working size, where they have it: sampled at the working size
# they would lose detail to interpolation.
_DETAIL = 2


@dataclass(frozen=True, eq=False)
class References:
    """The references of one render, nearest first.

    `frames` are indices into the scene's frames; `photos` are (h, w, 3) float32 RGB in [0, 1] each; `aligned`
    (V, H, W, 3) are the same photos reprojected into the render's view, `visibility` (V, H, W) in [0, 1] says where
    that is believable.
    """

    frames: Sequence[int]
    photos: Sequence[np.ndarray]
    aligned: np.ndarray
    visibility: np.ndarray


class ReferenceViews:
    """The clean photos of a scene, with what aligning them needs: their cameras and their rendered depth.

    `frames` are the scene's frames that may serve as references. The depths belong to the reconstruction as it is;
    call `refresh` when it has trained on.
    """

    def __init__(self, scene: Scene, frames: Sequence[int], reconstruction: Reconstruction, count: int) -> None:
        self.scene, self.frames, self.reconstruction, self.count = scene, list(frames), reconstruction, count
        # neighbours on a path share references; the rest of a long one need not be held
        self._depths = lru_cache(_DEPTHS_HELD)(partial(_half_size_depth, scene, reconstruction))

    def refresh(self) -> None:
        """Forget the rendered depths, because the reconstruction has changed."""
        self._depths.cache_clear()

    def photo(self, frame: int) -> np.ndarray:
        """(H, W, 3) the reference photo; read-only."""
        return load_photo(self.scene.frames[frame])

    def depth(self, frame: int) -> np.ndarray:
        """(h, w) the reconstruction's z-depth at a reference's camera, at half its size."""
        return self._depths(frame)

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
        if not frames or not align:
            nothing = np.zeros((0, height, width), np.float32)
            return References(frames, photos, np.zeros((0, height, width, 3), np.float32), nothing)
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
        return References(frames, photos, aligned.numpy(), visibility.numpy())


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
    return reconstruction.render(camera.resized(max(1, camera.width // 2), max(1, camera.height // 2))).depth


def fix_render(fixer: Fixer, render: Render, references: References) -> np.ndarray:
    """The fixer's clean view (H, W, 3) of a render with its references, raw or aligned as its weights want them."""
    import torch

    image = as_planes(render.color)
    opacity = torch.from_numpy(render.accumulation)[None, None]
    count = min(fixer.config.views, len(references.frames))
    if count == 0:
        fixed = fixer(image, None, opacity)
    elif fixer.config.references == "aligned":
        aligned = torch.from_numpy(references.aligned[:count]).permute(0, 3, 1, 2)[None]
        visibility = torch.from_numpy(references.visibility[:count])[None, :, None]
        fixed = fixer(image, aligned, opacity, visibility)
    else:
        photos = [averaged(as_planes(photo), image.shape[-2:]) for photo in references.photos[:count]]
        fixed = fixer(image, torch.cat(photos)[None], opacity)
    return fixed[0].permute(1, 2, 0).float().cpu().numpy()


def is_bad_fix(render: Render, fixed: np.ndarray) -> bool:
    """Whether a fix (H, W, 3) of the render is broken as a whole: see `fixer.confidence.bad_fixes`."""
    import torch

    from difixcli.fixer.confidence import bad_fixes

    opacity = torch.from_numpy(render.accumulation)[None, None]
    return bool(bad_fixes(as_planes(render.color), as_planes(fixed), opacity)[0])


def _matrix(value: np.ndarray):  # type: ignore[no-untyped-def]
    import torch

    return torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32))
