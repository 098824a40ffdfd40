"""Strategy `clips`: the way between two photos as a film, for training a video model."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from difixcli.curation.build import Build
from difixcli.curation.pairs import Pair, render_pair
from difixcli.errors import InputError
from difixcli.reference_views import ReferenceViews
from difixcli.runs import file_name
from difixcli.scenes.scene import Scene, Split
from difixcli.scenes.sparse_views import overlaps

DEFAULT_RULE = "every:4"
"""Every fourth photo ends one clip and begins the next: five pictures a clip."""
LEAST_SHARED = 0.05
"""Of what a clip's picture sees, one of the photos at its ends sees this part, and the two photos of each other."""


def clips_of(scene: Scene, split: Split) -> list[list[int]]:
    """The scene's clips: each a training frame, the target frames after it, and the next training frame.

    A clip's frames are one camera's, in the order of their names. Ways along which photos see too little of the same
    (`LEAST_SHARED`) are none, so that photos in no order make few clips. Raises InputError for a scene without any.
    """
    train, used = set(split.train), {*split.train, *split.test}
    found = []
    for camera in dict.fromkeys(frame.camera_id for frame in scene.frames):
        frames = [i for i, frame in enumerate(scene.frames) if frame.camera_id == camera and i in used]
        ends = [place for place, i in enumerate(frames) if i in train]
        found += [frames[one : two + 1] for one, two in pairwise(ends) if two > one + 1]
    found = [clip for clip in found if _is_one_way(scene, clip)]
    if not found:
        raise InputError(
            f"The split {split.rule!r} makes no clip of {scene.name}: there are no two training photos, seeing some of "
            "the same, with targets between them in the order of their names; choose another --split, such as "
            f"{DEFAULT_RULE}."
        )
    return found


def clips(scene: Scene, build: Build, split: Split) -> Iterator[Pair]:
    """Pairs at every frame of the clips of a split, their ends among them, from a reconstruction of the ends alone.

    Both ends are a frame's references, the nearer one first, for an end itself, too. `clip`, `place` and `of` among a
    pair's parameters say which clip it is of, where in it (from 0) and of how many. (ReconX, section 4.1: a first and a
    last frame, and what a point cloud of the two shows along the way; here the reconstruction shows it.)
    """
    found = clips_of(scene, split)
    reconstruction = build(scene, split.train, file_name(f"clips-{split.rule}"))
    for number, clip in enumerate(found):
        beside = ReferenceViews(scene, [clip[0], clip[-1]], reconstruction, 2)
        for place, frame in enumerate(clip):
            told = {"split": split.rule, "clip": number, "place": place, "of": len(clip)}
            pair = render_pair(scene, frame, beside, [], told, variant=f"_clip-{number:03d}")  # an end is of two clips
            if pair is not None:
                yield pair


def _is_one_way(scene: Scene, clip: list[int]) -> bool:
    shared = overlaps(scene, clip)
    shared = np.minimum(shared, shared.T)
    nearer = np.maximum(shared[0], shared[-1])
    return bool(shared[0, -1] >= LEAST_SHARED and nearer.min() >= LEAST_SHARED)
