"""Strategy `sparse`: reconstruct from a few frames, render the others where their photos were taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from difixcli.curation.pairs import Pair
from difixcli.reconstruction import Reconstruction
from difixcli.reference_views import ReferenceViews
from difixcli.scenes.scene import Scene, Split

Build = Callable[[Scene, Sequence[int], str], Reconstruction]  # a scene, its training frames and a stage's name


def sparse(scene: Scene, split: Split, build: Build, views: int) -> Iterator[Pair]:
    """Pairs at the split's test frames, from a reconstruction of its training frames alone.

    `views` references stand beside each, chosen among the training frames. (Difix3D+, section "data curation".)
    """
    reconstruction = build(scene, split.train, "photos")
    references = ReferenceViews(scene, split.train, reconstruction, views)

    def pairs() -> Iterator[Pair]:
        for frame in split.test:
            camera = scene.frames[frame].camera
            render = reconstruction.render(camera)
            yield Pair(frame, camera, render, references.beside(camera, render), {"split": split.rule})

    return pairs()
