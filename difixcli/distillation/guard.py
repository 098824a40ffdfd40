"""The guard: photos brought into the targets' views tell whether a round has done harm, so that it can be taken back.

No photo is held back for it: few have photos to spare, and one photo's PSNR wanders by more than a round gains. Photos
that train are no judges either, since a model that overfits pleases them best. What judges is how like the aligned
photos the targets' views are (see `evidence.agreement`), each against the same view of the model that photos alone have
taught: a paired comparison over several views, whose spread says how far the mean is to be believed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from difixcli.distillation.targets import Target
from difixcli.evidence import agreement
from difixcli.reconstruction import Reconstruction
from difixcli.reference_views import References, ReferenceViews
from difixcli.scenes.scene import Camera

BOUND = 0.3
"""dB by which a round may make the views less like the photos before it is said to do harm."""

_VIEWS = 12  # of the targets, evenly spread
_REFERENCES = 3
_SIZE = 480  # pixels, the long side that is looked at: harm that no smaller view shows is none
# one-sided 95 % quantiles of Student's t for 1, 2, … degrees of freedom; the normal one's beyond them
_QUANTILES = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812, 1.796)
_NORMAL = 1.645


@dataclass(frozen=True)
class Verdict:
    """What the guard found: how much more like the photos the views have become (dB, mean), how uncertain that mean is
    (its standard error; infinite for a single view), over how many views, and the two mean figures that were compared.
    """

    gain: float
    error: float
    views: int
    before: float
    after: float

    @property
    def harmful(self) -> bool:
        """Whether less than one sound round in twenty would look so bad."""
        if not self.views:
            return False
        quantile = _QUANTILES[self.views - 2] if 2 <= self.views <= len(_QUANTILES) + 1 else _NORMAL
        return self.gain + quantile * self.error < -BOUND


def compare(before: Sequence[float | None], after: Sequence[float | None]) -> Verdict:
    """The paired comparison of views' figures in dB; views that either lacks do not count."""
    pairs = [(b, a) for b, a in zip(before, after, strict=True) if b is not None and a is not None]
    if not pairs:
        return Verdict(0.0, math.inf, 0, math.nan, math.nan)
    gains = [a - b for b, a in pairs]
    error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.inf
    means = (statistics.fmean(b for b, _ in pairs), statistics.fmean(a for _, a in pairs))
    return Verdict(statistics.fmean(gains), error, len(pairs), *means)


class Guard:
    """Judges models by views of the targets, against the model of `photos`, whose training saw nothing but photos.

    `photos` are those that may be brought in. `before` is how like them that model shows each view (dB), None where no
    photo sees it.
    """

    def __init__(self, photos: ReferenceViews, targets: Sequence[Target]) -> None:
        self._cameras = [_smaller(targets[i].camera) for i in _spread(len(targets), _VIEWS)]
        self._references: list[References] = []
        self.before: list[float | None] = []
        for camera in self._cameras:
            render = photos.reconstruction.render(camera)
            beside = photos.beside(camera, render, count=_REFERENCES)
            # the photos themselves, and what depth is asked of, would stay in memory to the end of the run
            self._references.append(replace(beside, photos=(), correspondence=None, seen_by_any=None))
            self.before.append(agreement(render.color, self._references[-1]))

    def judge(self, model: Reconstruction) -> Verdict:
        renders = model.render_all(self._cameras)
        after = [agreement(r.color, beside) for r, beside in zip(renders, self._references, strict=True)]
        return compare(self.before, after)


def _smaller(camera: Camera) -> Camera:
    scale = min(1.0, _SIZE / max(camera.width, camera.height))
    return camera.resized(max(1, round(camera.width * scale)), max(1, round(camera.height * scale)))


def _spread(count: int, most: int) -> list[int]:
    """At most so many of `count` positions at even distances, from the middle of each stretch."""
    if count <= most:
        return list(range(count))
    return [int((i + 0.5) * count / most) for i in range(most)]
