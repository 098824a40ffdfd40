"""The fixer as a prior: every view's render is cleaned, and evidence says what of it is taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from difixcli.distillation.prior import Context, Proposal, Round, View
from difixcli.evidence import agreement, confidence, confirmed, fix_render, mean_support
from difixcli.frames.stages import Pace, carried
from difixcli.reconstruction import Render
from difixcli.reference_views import References, is_bad_fix, looked_up

_BETTER = 0.5  # dB by which photos must speak for the present render before it is fixed in place of photos' own


class FixerPrior:
    """What `difix distill` uses where no other prior is asked for.

    With the trust `supported` no fix is made of a picture that is itself mostly a fix: what is fixed is the render of
    the model that has seen photos alone, unless at this pose, which it was never taught, the present model's is much
    more like the photos. A view that stays where it is keeps its fix, since another could only be one of a fix. With
    `all`, as Difix3D's release, each round fixes the present renders.
    """

    def __init__(self, context: Context) -> None:
        assert context.fixer is not None
        self._fixer = context.fixer
        self._trust, self._drop_below, self._terms = context.trust, context.drop_below, dict(context.terms)
        self._count = context.fixer.config.views if context.references is None else context.references

    def propose(self, shown: Round) -> Iterator[Proposal | None]:
        # renders and aligned photos of a view come while the one before is fixed
        views = carried(shown.views, partial(self._prepared, shown), self._proposals, _handed_on, Pace())
        return (proposal for _, proposal in views)

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """There is nothing to restore."""

    def _prepared(self, shown: Round, view: View) -> Callable[[], Proposal] | None:
        """What then makes the proposal, or None for a view that keeps its fix."""
        if self._trust == "all":
            # only the references are brought in through photos' geometry, if the fixer takes them so
            beside = shown.beside(view, self._count, align=self._fixer.config.references == "aligned")
            return partial(self._as_it_is, shown.render(view), looked_up(beside, self._fixer, confirming=False))
        if shown.kept(view) is not None:
            return None
        beside = shown.beside(view, self._count)
        render = shown.render_photos_only(view)
        before, taught = agreement(render.color, beside), False
        if shown.number > 1:
            present = shown.render(view)
            now = agreement(present.color, beside)
            if now is not None and before is not None and now > before + _BETTER:
                render, before, taught = present, now, True
        return partial(self._supported, render, looked_up(beside, self._fixer, confirming=True), before, taught)

    @staticmethod
    def _proposals(batch: Sequence[tuple[View, Callable[[], Proposal] | None]]) -> list[Proposal | None]:
        return [None if propose is None else propose() for _, propose in batch]

    def _as_it_is(self, render: Render, beside: References) -> Proposal:
        fixed = fix_render(self._fixer, render, beside)
        weight = np.clip(render.accumulation, 0, 1)
        return Proposal(fixed, weight, self._terms, figures=_figures(render, fixed, weight), pictures=_shown(render))

    def _supported(self, render: Render, beside: References, before: float | None, taught: bool) -> Proposal:
        fixed = fix_render(self._fixer, render, beside)
        learned, weight = confirmed(render, fixed, beside, taught), confidence(render, fixed, beside)
        support = mean_support(render, weight)
        dropped = None
        if is_bad_fix(render, fixed):
            dropped = "the fix is broken"
        elif support < self._drop_below:
            dropped = f"support below {self._drop_below:g}"
        figures = {**_figures(render, fixed, weight), "support": support}
        if before is not None and (after := agreement(learned, beside)) is not None:
            figures |= {"agreement_before": before, "agreement": after}
        pictures = {**_shown(render), "fixed": fixed}
        return Proposal(learned, weight, self._terms, dropped=dropped, figures=figures, pictures=pictures)


def _handed_on(view: View, prepared: object, proposal: Proposal | None) -> Proposal | None:
    """Whoever asked for the proposal writes it."""
    return proposal


def _figures(render: Render, fixed: np.ndarray, weight: np.ndarray) -> dict[str, float]:
    return {"mean_confidence": float(weight.mean()), "change": float(np.abs(fixed - render.color).mean())}


def _shown(render: Render) -> dict[str, np.ndarray]:
    return {"render": render.color}
