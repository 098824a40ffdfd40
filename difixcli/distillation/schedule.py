"""When the pseudo-views move, how far, and how much they count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from difixcli.errors import InputError, unknown
from difixcli.scenes import nearest_cameras, step_towards
from difixcli.scenes.scene import Camera

KINDS = ("progressive", "one-shot", "none")
_STEP = 0.5
_LARGEST_SHARE_OF_RAYS = 0.5


@dataclass(frozen=True)
class Schedule:
    """`start` iterations on photos alone, then `rounds` updates with `every` iterations after each.

    `progressive`: in each round the pseudo-views move `step` normalised units towards their targets (straight line and
    slerp, as Difix3D's release does). `one-shot`: a single round straight at the targets, `step` is None. `none`: plain
    training, no round. `share` (0..1) is how much of what is drawn in training is pseudo-views.
    """

    kind: str
    start: int
    rounds: int
    every: int
    step: float | None
    share: float

    @property
    def iterations(self) -> int:
        return self.start + self.rounds * self.every

    def end(self, number: int) -> int:
        """Iterations that a reconstruction has behind it after the given round; 0 is the phase on photos alone."""
        return self.start + number * self.every

    def finished_rounds(self, iterations: int) -> int:
        """How many rounds a reconstruction of so many iterations has behind it; -1 while it is on photos alone."""
        if iterations < self.start:
            return -1
        return (iterations - self.start) // self.every if self.rounds else 0


def make_schedule(
    preset: str,
    images: bool,
    iterations: int,
    rounds: int | None = None,
    kind: str = "progressive",
    step: float | None = None,
    share: float | None = None,
    started: bool = False,
) -> Schedule:
    """Share `iterations` between photos alone and the rounds; `images` says that the method trains on whole images.

    gpu: half on photos (the paper starts from 30k iterations and updates every 1.5k to 2k). cpu: 60 % on photos and
    five rounds, since a small network's fixes cost as much as the steps between them. With `started`, the
    reconstruction has its training on photos behind it, and the rounds take all.
    Raises InputError when there are fewer iterations than rounds, for a share that makes no sense, and what
    `check_schedule` raises.
    """
    check_schedule(kind, rounds, step, share)
    largest = 1.0 if images else _LARGEST_SHARE_OF_RAYS
    if share is not None and not 0 < share <= largest:
        raise InputError(f"The share {share} of pseudo-views must be above 0 and at most {largest:g} with this method.")
    if kind == "none":
        return Schedule(kind, iterations, 0, 0, None, 0.0)
    gpu = preset == "gpu"
    count = rounds if rounds is not None else (max(1, iterations // 4000) if gpu else 5)
    if kind == "one-shot":
        count = 1
    spent = iterations if started else int(iterations * (0.5 if gpu else 0.4))
    every = spent // max(count, 1)
    if count < 1 or every < 1:
        raise InputError(f"{iterations} iterations cannot be shared among {count} rounds; ask for more or fewer.")
    # the release's loss weight for splats, its probability for rays
    chosen = share if share is not None else (0.3 if images else 0.4)
    first = 0 if started else iterations - every * count
    return Schedule(kind, first, count, every, None if kind == "one-shot" else (step or _STEP), chosen)


def check_schedule(kind: str, rounds: int | None = None, step: float | None = None, share: float | None = None) -> None:
    """Raises InputError for an unknown kind, a step that makes no sense, and options that the kind does not heed."""
    if kind not in KINDS:
        raise unknown("schedule", kind, KINDS)
    for option, value, kinds in (
        ("--rounds", rounds, ("progressive",)),
        ("--step", step, ("progressive",)),
        ("--share", share, ("progressive", "one-shot")),
    ):
        if value is not None and kind not in kinds:
            raise InputError(f"{option} says nothing to the schedule {kind}; leave it out.")
    if step is not None and not step > 0:
        raise InputError(f"The step {step} must be positive: it is how far pseudo-views move in a round.")


def pseudo_cameras(train: Sequence[Camera], targets: Sequence[Camera], travelled: float | None) -> list[Camera]:
    """Where each target's pseudo-view stands when it has `travelled` so many normalised units; None: at its target.

    Each starts at the pose of its nearest training camera and keeps its target's lens. It goes along the straight line
    and turns (slerp) by the same fraction of the way, and stops at its target.
    """
    cameras = []
    for target in targets:
        pose = target.camera_to_world
        if travelled is not None:
            pose = train[nearest_cameras(target, train, 1)[0]].camera_to_world
            if travelled > 0:
                pose = step_towards(pose, target.camera_to_world, travelled)
        cameras.append(target.moved(pose))
    return cameras
