"""What a distillation is asked for, and the named profiles that set it all at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from difixcli.distillation.filming import Filming
from difixcli.distillation.schedule import Schedule
from difixcli.distillation.seeking import Seeking
from difixcli.errors import InputError, unknown
from difixcli.priors.super_resolution.enlargement import Enlargement

TRUSTS = ("supported", "all")
DROP_BELOW = 0.7
"""The support (see `evidence.mean_support`) below which a fix is not trained on, unless another is asked for."""

RAISED = 0.3
"""Learning rates begin the rounds at this share of what training on photos began with."""


@dataclass(frozen=True)
class Profile:
    """Values that stand for options nobody has given. `share` and `step` None: as the schedule says."""

    trust: str
    share: Mapping[str, float | None]  # of methods that draw images, and of those that draw rays
    terms: Mapping[str, Mapping[str, float]]  # likewise
    step: float | None
    iterations_a_round: int | None
    references: int | None
    raised: float


_METHOD = {"method": 1.0}
PROFILES = {
    "difix": Profile(
        trust="supported",
        share={"images": None, "rays": None},
        terms={"images": _METHOD, "rays": _METHOD},
        step=None,
        iterations_a_round=None,
        references=None,
        raised=RAISED,
    ),
    # what Difix3D's release trains with: splats draw a pseudo-view with p = 0.3 and multiply its loss by 0.3, fields
    # draw one with p = 0.4; poses move by 0.5 normalised units every 2,000 iterations and snap to their targets; one
    # reference; what a render is transparent in is masked; rates stay where training on photos has brought them
    "published": Profile(
        trust="all",
        share={"images": 0.3, "rays": 0.4},
        terms={"images": {"method": 0.3}, "rays": _METHOD},
        step=0.5,
        iterations_a_round=2_000,
        references=1,
        raised=0.0,
    ),
}


@dataclass(frozen=True)
class Settings:
    """Everything about a distillation but the scene and the fixer.

    `targets` are `test`, camera paths, or `photos` with the super-resolution prior. `prior` proposes the views (see
    `prior.known_priors`). `references` photos stand beside a render that is fixed; None: as many as the prior takes.
    `trust` is `supported` (evidence decides
    what a fix changes) or `all` (fixes are taken as they are but for where the render is transparent, as Difix3D's
    release does); with `supported`, a fix that is broken as a whole, or whose support is below `drop_below`, is not
    trained on. `terms` are the loss terms that count for pseudo-views (see `reconstruction.objective`). Learning rates
    begin the rounds at `raised` of their first values, or where training on photos has left them if that is more.
    `guard` says whether rounds that do harm are taken back. `start` is an existing reconstruction to go on from.
    `enlargement` is there with the super-resolution prior alone, `seeking` with view diffusion's,
    `filming` with the video prior's. With `confidence` there is a map beside each fix that says what of it photos have
    seen (see `frames.marks`).
    """

    method: str
    preset: str
    device: str
    schedule: Schedule
    seed: int
    compare: bool
    overrides: Sequence[str] = ()
    targets: Sequence[str] = ("test",)
    prior: str = "fixer"
    references: int | None = None
    trust: str = "supported"
    drop_below: float = DROP_BELOW
    terms: Mapping[str, float] = field(default_factory=lambda: dict(_METHOD))
    raised: float = RAISED
    guard: bool = True
    start: str | None = None
    enlargement: Enlargement | None = None
    seeking: Seeking | None = None
    filming: Filming | None = None
    confidence: bool = False


def find_profile(name: str) -> Profile:
    """Raises InputError for a profile that there is none of."""
    if name not in PROFILES:
        raise unknown("profile", name, sorted(PROFILES))
    return PROFILES[name]


def check_trust(trust: str) -> None:
    """Raises InputError for an unknown kind of trust."""
    if trust not in TRUSTS:
        raise unknown("kind of trust", trust, TRUSTS)


def support_wanted(trust: str, drop_below: float | None) -> float:
    """The least support of a fix that is trained on; 0 with the trust `all`, which takes every fix as it is.

    Raises InputError for an unknown kind of trust, and for a bound that it does not heed.
    """
    check_trust(trust)
    if trust == "supported":
        return DROP_BELOW if drop_below is None else drop_below
    if drop_below is not None:
        raise InputError(f"--drop-below says nothing with --trust {trust}, which takes every fix; leave one out.")
    return 0.0


def read_terms(given: Sequence[str]) -> dict[str, float]:
    """Loss terms as the command line has them, `name=weight` or `name` (1): by name, how much they count.

    Raises InputError for a weight that is no number of 0 or more; whether a name is known is the objective's to say.
    """
    terms = {}
    for text in given:
        name, _, weight = text.rpartition("=") if "=" in text else (text, "", "1")
        try:
            value = float(weight)
        except ValueError:
            value = -1.0
        if not name or not 0 <= value < float("inf"):
            raise InputError(f"--loss {text} is no term with its weight; write for example --loss perceptual=0.1.")
        terms[name] = value
    return terms
