"""What mode seeking is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from difixcli.errors import InputError, unknown

SEEK = ("mode", "sds", "mean")
HIGHEST = 0.99
"""The highest noise level, a share of the schedule's length: SparseFusion's."""

REUSE = {"cpu": 4, "gpu": 1}
"""How many steps that draw a view train on one x̂₀ of it."""

STEPS = {"cpu": 20, "gpu": 50}
"""PLMS steps of a whole schedule; the release has min(100 t, 50) from level t."""


@dataclass(frozen=True)
class Seeking:
    """How a field is brought to views that are likely.

    `network` names the view-conditioned diffusion model. `seek` is what is sought: `mode` (x̂₀ denoised in several
    steps), `sds` (score distillation: x̂₀ predicted in one step) or `mean` (EFT's pictures all the way). `steps` are the
    denoising steps of a whole schedule, `reuse` how many draws of a view one x̂₀ serves. With `anneal` the highest
    noise level falls from round to round.
    """

    network: str
    seek: str
    steps: int
    reuse: int
    anneal: bool


def make_seeking(
    preset: str, network: str | None, seek: str | None, steps: int | None, reuse: int | None, anneal: bool
) -> Seeking:
    """What was asked for, with the preset's defaults in place of what was not.

    Raises InputError for what there is none of, and for options that `seek` does not heed.
    """
    chosen = seek or SEEK[0]
    check_seek(chosen, steps, reuse, anneal)
    count = 1 if chosen == "sds" else steps or STEPS[preset]
    return Seeking(network or "bundled", chosen, count, reuse or REUSE[preset], anneal)


def check_seek(seek: str, steps: int | None, reuse: int | None, anneal: bool) -> None:
    """Raises InputError for a way of seeking that there is none of, and for options that it does not heed."""
    if seek not in SEEK:
        raise unknown("way of seeking", seek, SEEK)
    unheard = []
    if seek != "mode" and steps is not None:
        unheard.append("--denoise-steps")
    if seek == "mean":
        unheard += [name for name, there in (("--reuse", reuse is not None), ("--anneal", anneal)) if there]
    if unheard:
        why = "which predicts x̂₀ in one step" if seek == "sds" else "which fits EFT's pictures alone"
        raise InputError(f"{unheard[0]} says nothing to --seek {seek}, {why}; leave it out.")


def bootstrapped(rounds: int) -> int:
    """How many of so many rounds show EFT's pictures: the first third, and never all."""
    return min(max(1, round(rounds / 3)), rounds - 1)


def highest_level(seeking: Seeking, number: int, rounds: int) -> float:
    """The highest noise level of round `number`: 0.99; annealed, it falls evenly to a fifth of it in the last round."""
    first = bootstrapped(rounds) + 1
    if not seeking.anneal or rounds <= first:
        return HIGHEST
    return HIGHEST * (1 - 0.8 * (number - first) / (rounds - first))
