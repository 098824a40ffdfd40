"""When the pseudo-views move, how far, and how much they count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from difixcli.errors import InputError
from difixcli.scenes import nearest_cameras, step_towards
from difixcli.scenes.scene import Camera


@dataclass(frozen=True)
class Schedule:
    """`start` iterations on photos alone, then `rounds` updates with `every` iterations after each.

    In each round the pseudo-views move `step` normalised units towards their targets (straight line and slerp, as
    Difix3D's release does). How much they count is `share`: see `Reconstruction.set_pseudo_views`.
    """

    start: int
    rounds: int
    every: int
    step: float
    share: float

    @property
    def iterations(self) -> int:
        return self.start + self.rounds * self.every

    def finished_rounds(self, iterations: int) -> int:
        """How many rounds a reconstruction of so many iterations has behind it; -1 while it is on photos alone."""
        return -1 if iterations < self.start else (iterations - self.start) // self.every


def make_schedule(preset: str, images: bool, iterations: int, rounds: int | None) -> Schedule:
    """Share `iterations` between photos alone and the rounds; `images` says that the method trains on whole images.

    gpu: half on photos (the paper starts from 30k iterations and updates every 1.5k to 2k). cpu: 60 % on photos and
    five rounds, since a small network's fixes cost as much as the steps between them.
    Raises InputError when there are fewer iterations than rounds.
    """
    gpu = preset == "gpu"
    count = rounds if rounds is not None else (max(1, iterations // 4000) if gpu else 5)
    every = int(iterations * (0.5 if gpu else 0.4)) // max(count, 1)
    if count < 1 or every < 1:
        raise InputError(f"{iterations} iterations cannot be shared among {count} rounds; ask for more or fewer.")
    # the release's loss weight for splats; its probability of 0.4 for rays is two of them for three of photos
    share = 0.3 if images else 2 / 3
    return Schedule(iterations - every * count, count, every, step=0.5, share=share)


def pseudo_cameras(train: Sequence[Camera], targets: Sequence[Camera], rounds: int, step: float) -> list[Camera]:
    """Where each target's pseudo-view stands in the given round (1 is the first).

    Each starts at the pose of its nearest training camera and keeps its target's lens.
    """
    cameras = []
    for target in targets:
        pose = train[nearest_cameras(target, train, 1)[0]].camera_to_world
        for _ in range(rounds):
            pose = step_towards(pose, target.camera_to_world, step)
        cameras.append(target.moved(pose))
    return cameras
