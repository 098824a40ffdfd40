"""The door through which better views are proposed to distillation: the fixer's, and any other package's.

A prior is shown a whole round at once and proposes, for each view, what training shall see there. It is made by a
function that stands in the entry-point group `difixcli.priors` under the prior's name:

    [project.entry-points."difixcli.priors"]
    mine = "my_package:make"        # make(context: Context) -> Prior

and `difix distill --prior mine` uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from difixcli.errors import InputError, unknown
from difixcli.images import Operator
from difixcli.reference_views import References, ReferenceViews
from difixcli.scenes.scene import Camera, Scene

if TYPE_CHECKING:
    from difixcli.distillation.seeking import Seeking
    from difixcli.distillation.ways import Ways
    from difixcli.fixer import Fixer
    from difixcli.novel_views import NovelViews
    from difixcli.priors.super_resolution.resolver import SuperResolver
    from difixcli.priors.video.span import VideoModel
    from difixcli.reconstruction import Reconstruction, Render, Wanted

GROUP = "difixcli.priors"
FIXER = "fixer"
SUPER_RESOLUTION = "super-resolution"
VIEW_DIFFUSION = "view-diffusion"
VIDEO = "video"
OWN_PRIORS = (FIXER, SUPER_RESOLUTION, VIEW_DIFFUSION, VIDEO)
"""Those that are no other package's."""

_RENDERS_HELD = 4


@dataclass(frozen=True, eq=False)
class View:
    """A pseudo-view of a round: its target's `name`, the `camera` where it stands in this round, and `nearest`, the
    index among the scene's frames of the training photo that stands nearest to it.
    """

    name: str
    camera: Camera
    nearest: int


@dataclass(frozen=True, eq=False)
class Proposal:
    """What training shall see at a view.

    `image` is (H, W, 3) float32 RGB in [0, 1] of the view's camera's size, `weight` (H, W) in [0, 1] how far each
    pixel is trusted (None: wholly), `terms` which loss terms count and how much (see `reconstruction.objective`).
    With `fresh`, each training step that draws the view asks the prior's `refresh` for what stands in their place (see
    `Refreshing`).
    `photo`, with as many times fewer pixels a side as the terms that reduce say, is what these compare with instead of
    the image. `dropped` says why the view is not trained on at all. `figures` are kept in the round's record,
    `pictures` (each (H, W) or (H, W, 3) in [0, 1]) beside it.
    """

    image: np.ndarray
    weight: np.ndarray | None = None
    terms: Mapping[str, float] = field(default_factory=lambda: {"method": 1.0})
    fresh: bool = False
    photo: np.ndarray | None = None
    dropped: str | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    pictures: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Kept:
    """What stands for a view at this very pose since an earlier round: its image and weight as `Proposal` has them, and
    the figures that it came with.
    """

    image: np.ndarray
    weight: np.ndarray | None
    figures: Mapping[str, float]


class Round:
    """A round as a prior is shown it.

    `number` counts from 1 to `rounds`. `views` are all its pseudo-views. `model` is the reconstruction as it is now,
    `photos_only` as the training on photos left it, without a pseudo-view (the same one in the first round). `photos`
    are the frames that train and may be references. Nothing that is rendered disturbs the training.
    """

    def __init__(
        self,
        number: int,
        rounds: int,
        views: Sequence[View],
        model: Reconstruction,
        photos: ReferenceViews,
        kept: Mapping[str, Callable[[], Kept]],
    ) -> None:
        self.number, self.rounds = number, rounds
        self.scene, self.photos, self.views = photos.scene, list(photos.frames), list(views)
        self.model, self.photos_only = model, photos.reconstruction
        self._references, self._kept = photos, kept
        # neighbouring questions are about one view; all of a long path need not be held
        self._renders = lru_cache(_RENDERS_HELD)(lambda view, which: which.render(view.camera))

    def render(self, view: View) -> Render:
        """Colour, accumulation and depth of a view by the model as it is."""
        return self._renders(view, self.model)

    def render_photos_only(self, view: View) -> Render:
        """The same by the model that has seen nothing but photos."""
        return self._renders(view, self.photos_only)

    def beside(self, view: View, count: int, align: bool = True) -> References:
        """The `count` photos nearest to a view, with `align` brought into it through the geometry that photos alone
        have taught.
        """
        return self._references.beside(view.camera, self.render_photos_only(view), align=align, count=count)

    def kept(self, view: View) -> Kept | None:
        """What stands for the view at this pose since an earlier round, if anything does."""
        read = self._kept.get(view.name)
        return None if read is None else read()


@runtime_checkable
class Prior(Protocol):
    """What proposes better views. It may keep a state between rounds, which a stopped run takes up again."""

    def propose(self, shown: Round) -> Iterator[Proposal | None]:
        """One proposal for each of `shown.views`, in their order; None keeps what stands for the view already.

        None for a view of which nothing is kept is an error of the prior's.
        """

    def state(self) -> dict[str, Any]:
        """Tensors, containers and plain values that `restore` takes; saved with every checkpoint."""

    def restore(self, state: dict[str, Any]) -> None:
        """Be as `state` was, before the next round is proposed."""


@runtime_checkable
class Refreshing(Prior, Protocol):
    """A prior that proposes anew for every training step, as mode seeking does."""

    def refresh(self, name: str, render: Callable[[], np.ndarray]) -> Wanted:
        """What the view called `name` shall look like at one training step.

        Called for proposals with `fresh` only. `render()` shows the view at this moment, (H, W, 3) float32 RGB in
        [0, 1]. Global random numbers follow from the run's seed and the step.
        """


@dataclass(frozen=True)
class Context:
    """What a prior is made with: the command's fixer, the scene, and the options that concern every prior.

    `fixer` is None where another of our priors is asked for: `resolver` is the super-resolution prior's, `operator` is
    how the scene's photos were made smaller (see `images.reduced`); `novel_views` and `seeking` are view diffusion's;
    `ways` and `video` the video prior's, and `scratch` a folder of the run's for what these two do not hold in memory,
    where a run that goes on removes all that is called `.*.part`.
    `references` is how many photos stand beside a view (None: as many as the prior takes); `trust` and `drop_below` say
    what is trained on and `terms` by which loss terms (see `settings.Settings`).
    """

    fixer: Fixer | None
    scene: Scene
    device: str
    seed: int
    references: int | None
    trust: str
    drop_below: float
    terms: Mapping[str, float]
    resolver: SuperResolver | None = None
    operator: Operator = "area"
    novel_views: NovelViews | None = None
    seeking: Seeking | None = None
    ways: Ways | None = None
    video: VideoModel | None = None
    scratch: Path | None = None


def known_priors() -> list[str]:
    """Names of the priors that can be used here: ours and those of installed packages, sorted."""
    return sorted({*OWN_PRIORS, *(entry.name for entry in entry_points(group=GROUP))})


def check_prior(name: str) -> None:
    """Raises InputError for a prior that nobody offers."""
    if name not in (names := known_priors()):
        raise unknown("prior", name, names)


def make_prior(name: str, context: Context) -> Prior:
    """The prior called `name`.

    Raises InputError for a name that nobody offers, a package that cannot be imported, and one whose prior lacks
    a method of the protocol.
    """
    check_prior(name)
    if name == FIXER:
        from difixcli.distillation.fixer_prior import FixerPrior

        return FixerPrior(context)
    if name == SUPER_RESOLUTION:
        from difixcli.distillation.super_resolution_prior import SuperResolutionPrior

        return SuperResolutionPrior(context)
    if name == VIEW_DIFFUSION:
        from difixcli.distillation.view_diffusion_prior import ViewDiffusionPrior

        return ViewDiffusionPrior(context)
    if name == VIDEO:
        from difixcli.distillation.video_prior import VideoPrior

        return VideoPrior(context)
    entry = next(entry for entry in entry_points(group=GROUP) if entry.name == name)
    try:
        made = entry.load()(context)
    except (ImportError, AttributeError) as error:
        raise InputError(f"The prior {name} cannot be loaded from {entry.value} ({error}); install it again.") from None
    if not isinstance(made, Prior):
        lacking = [method for method in ("propose", "state", "restore") if not hasattr(made, method)]
        raise InputError(f"The prior {name} of {entry.value} is none: it lacks {', '.join(lacking)}.")
    return made
