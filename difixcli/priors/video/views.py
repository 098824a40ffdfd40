"""Photos and neighbouring pictures as a picture's own camera sees them, through the depth of its render."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from difixcli.fixer.alignment import align_references
from difixcli.fixer.correspondence import correspond
from difixcli.priors.video.network import NEIGHBOURS
from difixcli.scenes.scene import Camera


@dataclass(frozen=True, eq=False)
class Geometry:
    """Where a film's T pictures were taken from, and how far what they show is away."""

    depth: Tensor
    """(T, 1, H, W) z-depth, 0 where nothing is."""
    intrinsics: Tensor
    """(T, 3, 3) in pixels."""
    poses: Tensor
    """(T, 4, 4) camera-to-world, OpenGL axes."""

    @classmethod
    def of(cls, cameras: Sequence[Camera], depth: np.ndarray) -> Geometry:
        """Of cameras of one size and their depths (T, H, W)."""
        # one origin for all: worlds may lie far away, and float32 has seven digits
        poses = np.stack([camera.camera_to_world for camera in cameras])
        poses[:, :3, 3] -= cameras[0].position
        return cls(
            torch.from_numpy(np.ascontiguousarray(depth, np.float32))[:, None],
            torch.from_numpy(np.stack([camera.intrinsics for camera in cameras]).astype(np.float32)),
            torch.from_numpy(poses.astype(np.float32)),
        )

    def seen_from(
        self, i: int, picture: Tensor, others: Sequence[int], images: Tensor, register: bool
    ) -> tuple[Tensor, Tensor]:
        """`images` (K, 3, H, W), those of the pictures `others`, as they look in the view of picture `i`.

        `picture` (3, H, W) is what there is of it. Returns them, (K, 3, H, W), and where that is believable,
        (K, 1, H, W) in [0, 1]; `register` lets optical flow mend what wrong depth leaves.
        """
        chosen = list(others)
        seen, visibility = align_references(
            picture[None].cpu().float(),
            self.depth[i][None],
            self.intrinsics[i][None],
            self.poses[i][None],
            images[None].cpu().float(),
            self.depth[chosen][None],
            self.intrinsics[chosen][None],
            self.poses[chosen][None],
            register=register,
        )
        return seen[0], visibility[0]

    def beside(self, i: int, render: Tensor, photos: Tensor) -> tuple[Tensor, Tensor]:
        """The first and the last photo (2, 3, H, W) in the view of picture `i`, registered to its render (3, H, W)."""
        return self.seen_from(i, render, (0, len(self.depth) - 1), photos, register=True)

    def places(self, i: int) -> Tensor:
        """(1, 2, 3, H, W): which places of the first and the last photo picture `i` shows (see
        `fixer.correspondence.correspond`).
        """
        ends = [0, len(self.depth) - 1]
        own, lens, pose = self.depth[i][None], self.intrinsics[i][None], self.poses[i][None]
        return correspond(self.depth[ends][None], self.intrinsics[ends][None], self.poses[ends][None], lens, pose, own)

    def near(self, i: int, window: range, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """The pictures of a window (length, 3, H, W) that are neighbours of picture `i`, in its view."""
        others = [i + step for step in NEIGHBOURS if i + step in window]
        images = pictures[[other - window.start for other in others]]
        return self.seen_from(i, pictures[i - window.start], others, images, register=False)
