"""When the pseudo-views move, how far, and how much they count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from difixcli.errors import InputError, unknown
from difixcli.scenes import nearest_cameras, step_towards
from difixcli.scenes.scene import Camera
from difixcli.scenes.trajectories import blend_poses

KINDS = ("progressive", "one-shot", "none")
SHARE = {"cpu": 0.2, "gpu": 0.4}
"""How much of what is drawn in the rounds is pseudo-views."""

_CLOSING = 6  # the last one in so many of the rounds' iterations, at most half of the last round, is the closing
_KNOWN = (31.0, 34.0)  # dB of agreement (see `evidence.agreement`) between which photos come to be the better teachers

ROUNDS_CPU = 3
_ITERATIONS_A_ROUND = 2_000  # on a GPU, as Difix3D's release


@dataclass(frozen=True)
class Schedule:
    """A complete training of `photos` iterations on photos alone, then `rounds` of `every` further iterations each.

    `progressive`: the pseudo-views go from their nearest photos to their targets (straight line and slerp), in even
    parts that end at the targets with the last round, or by `step` normalised units a round, as Difix3D's release does.
    `one-shot`: a single round at the targets. `none`: the training on photos, no round. `share` (0..1) is how much of
    what is drawn in the rounds is pseudo-views.
    """

    kind: str
    photos: int
    rounds: int
    every: int
    step: float | None
    share: float

    @property
    def further(self) -> int:
        """The iterations of all rounds."""
        return self.rounds * self.every

    @property
    def iterations(self) -> int:
        return self.photos + self.further

    @property
    def closing(self) -> int:
        """The iteration from which on photos alone are drawn, as far as they know the targets (see `closing_share`)."""
        return self.iterations - min(self.further // _CLOSING, self.every // 2)

    def end(self, number: int) -> int:
        """Iterations that a reconstruction has behind it after the given round; 0 is the training on photos."""
        return self.photos + number * self.every

    def finished_rounds(self, iterations: int) -> int:
        """How many rounds a reconstruction of so many iterations has behind it; -1 while it is on photos alone."""
        if iterations < self.photos:
            return -1
        return (iterations - self.photos) // self.every if self.rounds else 0


def make_schedule(
    preset: str,
    photos: int,
    further: int | None = None,
    rounds: int | None = None,
    kind: str = "progressive",
    step: float | None = None,
    share: float | None = None,
    whole: bool = False,
) -> Schedule:
    """`photos` iterations on photos, 0 where a reconstruction is taken up that has them behind it, then the rounds.

    The rounds take `further` iterations together, as many as the training on photos unless told otherwise; what does
    not divide by the number of rounds is left out. Without `rounds` there are `ROUNDS_CPU` of them on the cpu preset,
    and on the gpu preset one for every 2,000 iterations. With `whole` the rounds draw nothing but pseudo-views.
    Raises InputError when there are fewer iterations than rounds, for a share that makes no sense, and what
    `check_schedule` raises.
    """
    check_schedule(kind, rounds, step, share, further)
    if kind == "none":
        return Schedule(kind, photos, 0, 0, None, 0.0)
    spent = photos if further is None else further
    count = rounds if rounds is not None else (max(1, spent // _ITERATIONS_A_ROUND) if preset == "gpu" else ROUNDS_CPU)
    if kind == "one-shot":
        count = 1
    every = spent // max(count, 1)
    if count < 1 or every < 1:
        raise InputError(f"{spent} iterations cannot be shared among {count} rounds; ask for more or fewer.")
    return Schedule(kind, photos, count, every, step, 1.0 if whole else SHARE[preset] if share is None else share)


def check_schedule(
    kind: str,
    rounds: int | None = None,
    step: float | None = None,
    share: float | None = None,
    further: int | None = None,
) -> None:
    """Raises InputError for an unknown kind, values that make no sense, and options that the kind does not heed."""
    if kind not in KINDS:
        raise unknown("schedule", kind, KINDS)
    for option, value, kinds in (
        ("--rounds", rounds, ("progressive",)),
        ("--step", step, ("progressive",)),
        ("--share", share, ("progressive", "one-shot")),
        ("--further", further, ("progressive", "one-shot")),
    ):
        if value is not None and kind not in kinds:
            raise InputError(f"{option} says nothing to the schedule {kind}; leave it out.")
    if rounds is not None and rounds < 1:
        raise InputError(f"--rounds {rounds} is no number of rounds; ask for 1 or more, or for --schedule none.")
    if step is not None and not step > 0:
        raise InputError(f"The step {step} must be positive: it is how far pseudo-views move in a round.")
    if share is not None and not 0 < share < 1:
        raise InputError(f"The share {share} of pseudo-views must be above 0 and below 1; 0.3 is the release's.")


def closing_share(share: float, agreements: Sequence[float | None]) -> float:
    """Of what is drawn at the end of the rounds, the part that is pseudo-views, where it was `share` before.

    `agreements` (dB) say how like the photos the targets' views are in the model of photos alone, None where no photo
    sees one. Where photos know the targets well, pseudo-views cost detail that the end on photos brings back; where
    they do not, photos alone are fitted more and more closely while the targets' views get worse.
    """
    low, high = _KNOWN
    left = [1.0 if value is None else min(max((high - value) / (high - low), 0.0), 1.0) for value in agreements]
    return share * sum(left) / len(left) if left else share


def pseudo_cameras(train: Sequence[Camera], targets: Sequence[Camera], schedule: Schedule, number: int) -> list[Camera]:
    """Where each target's pseudo-view stands in round `number` (from 1): between its nearest training camera's pose and
    its own. Lenses are the targets'.
    """
    cameras = []
    for target in targets:
        start = train[nearest_cameras(target, train, 1)[0]].camera_to_world
        if schedule.step is not None:
            pose = step_towards(start, target.camera_to_world, number * schedule.step)
        elif number == schedule.rounds:
            pose = target.camera_to_world
        else:
            pose = blend_poses(start, target.camera_to_world, number / schedule.rounds)
        cameras.append(target.moved(pose))
    return cameras


def same_pose(one: Camera, other: Camera) -> bool:
    """Whether two cameras stand at one place and look the same way, to rounding."""
    return bool(np.allclose(one.camera_to_world, other.camera_to_world, atol=1e-6))
