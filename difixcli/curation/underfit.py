"""Strategy `underfit`: stop training early, and render."""

from __future__ import annotations

from collections.abc import Iterator

from difixcli.curation.build import Build
from difixcli.curation.pairs import Pair, render_pairs
from difixcli.runs import file_name
from difixcli.scenes.scene import Scene, Split


def underfit(scene: Scene, build: Build, split: Split, stop: float, views: int) -> Iterator[Pair]:
    """Pairs at training and held-out frames, from a training stopped at the share `stop` (0..1) of its schedule.

    Several stops of one split, asked for in rising order, share one training. References are training frames, never
    the target itself. (Difix3D+, "model underfitting": 25 to 75 %.)
    """
    reached = max(1, round(stop * build.iterations))
    reconstruction = build(scene, split.train, file_name(f"underfit-{split.rule}"), reached)
    frames = sorted({*split.train, *split.test})
    parameters = {"split": split.rule, "stop": stop, "stopped_at": reached}
    yield from render_pairs(scene, frames, reconstruction, split.train, views, parameters)
