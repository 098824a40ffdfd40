"""The guard: photos that tell whether a round has made the model worse, so that it can be taken back.

Where there are photos enough, a few are held back from training until the last stretch, and their PSNR decides. They
are no references meanwhile either: a fix that had seen them would carry them into training, and the check would praise
itself. Where photos are few every one is needed, and the PSNR of those that train decides: a round that lets it fall
has taught what the photos contradict.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from difixcli.errors import InputError
from difixcli.scenes import load_mask, load_photo
from difixcli.scenes.scene import Scene

if TYPE_CHECKING:
    from difixcli.reconstruction import Reconstruction

SHARE = 0.05
ENOUGH = 20
"""Training photos from which on some are held back by default: from here on they are at most one in twenty."""

BOUND_HELD_BACK, BOUND_TRAINING = 0.2, 0.5
"""How much PSNR, in dB, a round may cost by default. A sound first round costs the photos that train up to 0.2 dB,
because they are drawn less often from then on; photos that are held back only change as the model does."""

_WATCHED = 4  # photos, spread over all, that are looked at where none is held back: gross damage shows in any


@dataclass(frozen=True)
class Guard:
    """`frames` (indices into the scene's frames) are looked at; `held_back` says whether training lacks them.

    A round after which their PSNR has fallen by more than `bound` dB is rolled back; None: no round ever is.
    """

    frames: tuple[int, ...]
    held_back: bool
    bound: float | None

    @property
    def held(self) -> tuple[int, ...]:
        return self.frames if self.held_back else ()

    @property
    def photos(self) -> str:
        """Which photos these are, in words."""
        many = "photos" if len(self.frames) > 1 else "photo"
        return f"{len(self.frames)} {'held-back' if self.held_back else 'training'} {many}"

    def accepts(self, before: float, after: float) -> bool:
        if self.bound is None or math.isnan(before):  # nothing can be seen of photos that are masked wholly
            return True
        return after >= before - self.bound


def make_guard(train: Sequence[int], holdout: str | None, guard: str | None) -> Guard:
    """The guard over the frames that train: `holdout` is a number of photos, a share (`0.1`, `10%`), or None.

    `guard` is a bound in dB, `off`, or None for the default of the kind of photos that are looked at.

    By default one in twenty is held back where at least 20 train, else none. Photos are taken at even distances from
    the training photos' order, so that they spread over the scene and the first and last stay.
    Raises InputError for what is neither number nor share nor bound, and where fewer than two photos would train.
    """
    train = sorted(train)
    count = _count(len(train), holdout)
    if count and len(train) - count < 2:
        raise InputError(
            f"--holdout {holdout} leaves {max(len(train) - count, 0)} of {len(train)} photos to train on; two must "
            "remain. Hold back fewer, or none with --holdout 0."
        )
    chosen = _spread(train, count or min(len(train), _WATCHED))
    return Guard(tuple(chosen), count > 0, _bound(guard, count > 0))


def check_guard(holdout: str | None, guard: str | None) -> None:
    """Raises InputError for what `make_guard` can make nothing of, however many photos train."""
    _count(ENOUGH, holdout)
    _bound(guard, False)


def _bound(guard: str | None, held_back: bool) -> float | None:
    if guard is None:
        return BOUND_HELD_BACK if held_back else BOUND_TRAINING
    if guard == "off":
        return None
    try:
        bound = float(guard)
    except ValueError:
        bound = math.nan
    if not 0 <= bound < 100:
        raise InputError(f"--guard {guard} is no bound in dB; write for example 0.2, or off.")
    return bound


def _count(train: int, holdout: str | None) -> int:
    if holdout is None:
        return round(SHARE * train) if train >= ENOUGH else 0
    text = holdout.strip()
    try:
        if text.endswith("%"):
            share = float(text[:-1]) / 100
        elif text.isdecimal():
            return int(text)
        else:
            share = float(text)
    except ValueError:
        share = math.nan
    if not 0 <= share < 1:
        raise InputError(f"--holdout {holdout} is neither a number of photos nor a share of them; write 2, 0.05 or 5%.")
    return max(1, round(share * train)) if share else 0


def _spread(frames: Sequence[int], count: int) -> list[int]:
    """`count` of the frames at even distances, from the middle of each stretch."""
    return [frames[int((i + 0.5) * len(frames) / count)] for i in range(count)]


def mean_psnr(reconstruction: Reconstruction, scene: Scene, frames: Sequence[int]) -> float:
    """Mean PSNR in dB of the renders of these frames against their photos, at half size; masks are heeded.

    Half the size: what a poisoned round does shows there too, at a quarter of a ray method's time.
    """
    import cv2

    values = []
    for i in frames:
        frame = scene.frames[i]
        width, height = max(1, frame.camera.width // 2), max(1, frame.camera.height // 2)
        render = reconstruction.render(frame.camera.resized(width, height)).color
        photo = cv2.resize(load_photo(frame), (width, height), interpolation=cv2.INTER_AREA)
        squares = ((render - photo) ** 2).mean(axis=-1)
        if (mask := load_mask(frame)) is not None:
            kept = cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA) > 0.99
            if not kept.any():
                continue
            squares = squares[kept]
        values.append(-10 * math.log10(max(float(squares.mean()), 1e-10)))
    return float(np.mean(values)) if values else math.nan
