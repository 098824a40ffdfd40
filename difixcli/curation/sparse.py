"""Strategy `sparse`: reconstruct from a few frames, render the others where their photos were taken."""

from __future__ import annotations

from collections.abc import Iterator

from difixcli.curation.build import Build
from difixcli.curation.pairs import Pair, render_pairs
from difixcli.runs import file_name
from difixcli.scenes.scene import Scene, Split


def sparse(scene: Scene, build: Build, split: Split, views: int) -> Iterator[Pair]:
    """Pairs at the split's test frames, from a reconstruction of its training frames alone.

    `views` references stand beside each, chosen among the training frames. (Difix3D+, section "data curation"; with
    the splits `clusters` and `groups:K` also DL3DV's protocol there and ArtiFixer's harder pairs.)
    """
    reconstruction = build(scene, split.train, file_name(f"sparse-{split.rule}"))
    yield from render_pairs(scene, split.test, reconstruction, split.train, views, {"split": split.rule})
