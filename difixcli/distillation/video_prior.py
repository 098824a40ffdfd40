"""ReconX's proposals (Liu et al., 2024, arXiv 2408.16767): pictures that a video model films between two photos.

The splats that begin with the point cloud are rendered along the way from a photo to its neighbour; a video model is
given the renders, the cloud and both photos, and makes all pictures of the way together. They train the splats by

    L = Σ_i C_i · (0.8 · L1 + 0.2 · D-SSIM + 0.5 · perceptual)

C_i, of each pixel, is how well the pictures agree there (see `agreement`) divided by its mean over all pictures, so
that on average they weigh what they would without it; above `MOST` it ends. Photos themselves weigh 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from difixcli.distillation.agreement import agreements, reprojected_difference
from difixcli.distillation.prior import Context, Proposal, Round, View
from difixcli.distillation.ways import Way
from difixcli.errors import InputError
from difixcli.novel_views import view_seed
from difixcli.priors.video.span import Span

MOST = 2.0
"""What a pixel weighs at most."""
_RETURNED = 0.5  # so many times as far from the first photo as from the last, a film's end is its beginning


class VideoPrior:
    """Films every way of a round from the splats as they are; keeps no state."""

    def __init__(self, context: Context) -> None:
        assert context.ways is not None and context.video is not None and context.scratch is not None
        self._ways, self._video, self._scratch = context.ways, context.video, context.scratch
        self._seed, self._terms, self._believes = context.seed, dict(context.terms), context.trust == "all"

    def propose(self, shown: Round) -> Iterator[Proposal | None]:
        views = {view.name: view for view in shown.views}
        self._scratch.mkdir(parents=True, exist_ok=True)
        # no picture can be weighed before all are filmed, and there may be no room for all of them in memory
        with TemporaryDirectory(prefix=".films-", suffix=".part", dir=self._scratch) as folder:
            trusts: dict[str, np.floating] = {}
            for number, way in enumerate(self._ways.ways, start=1):
                trusts |= self._laid_down(self._filmed(shown, number, way), Path(folder))
            mean = max(float(np.mean(list(trusts.values()))), 1e-3)
            for name in trusts:
                with np.load(Path(folder) / f"{name}.npz", allow_pickle=False) as held:
                    yield self._proposal(views[name], dict(held), mean)

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """There is nothing to restore."""

    def _laid_down(self, film: dict[str, dict[str, Any]], folder: Path) -> dict[str, np.floating]:
        """Write what `_filmed` gives, a file for each picture; the means of how they agree."""
        for name, one in film.items():
            np.savez(folder / f"{name}.npz", **one)
        return {name: one["agreement"].mean() for name, one in film.items()}

    def _filmed(self, shown: Round, number: int, way: Way) -> dict[str, dict[str, Any]]:
        """By name the pictures between a way's ends, their renders, and how they agree with all others."""
        renders = list(shown.model.render_all(way.cameras))
        photos = [self._ways.photo(frame) for frame in (way.first, way.last)]
        depths = [render.depth for render in renders]
        span = Span(
            cameras=way.cameras,
            photos=np.stack(photos),
            renders=np.stack([render.color for render in renders]),
            opacity=np.stack([render.accumulation for render in renders]),
            depth=np.stack(depths),
            points=self._ways.points,
            colors=self._ways.colors,
        )
        pictures = self._video.film(span, view_seed(self._seed, f"{number}:{shown.number}"))
        if pictures.shape != span.renders.shape:
            raise InputError(
                f"The video model made pictures of {pictures.shape} for {span.renders.shape}; use another --video."
            )
        begun, ended = (float(np.abs(pictures[-1] - photo).mean()) for photo in photos)
        if begun < _RETURNED * ended:
            raise InputError(
                f"The video model does not go to the second photo: its last picture differs by {255 * begun:.0f} of "
                f"255 from the first photo, and by {255 * ended:.0f} from the second; use a --video that is given "
                "both, as bundled is."
            )
        shots = [photos[0], *pictures[1:-1], photos[1]]  # the ends are known
        trust = agreements(shots, depths, way.cameras)
        unsteady = reprojected_difference(shots, depths, way.cameras)
        return {
            name: {
                "picture": pictures[place],
                "render": renders[place].color,
                "agreement": trust[place],
                "reprojected_difference": unsteady[place - 1],
            }
            for place, name in enumerate(way.names, start=1)
        }

    def _proposal(self, view: View, made: dict[str, Any], mean: float) -> Proposal:
        image, agreement = np.clip(made["picture"], 0, 1).astype(np.float32), made["agreement"]
        figures = {
            "change": float(np.abs(image - made["render"]).mean()),
            "mean_confidence": float(agreement.mean()),
            "reprojected_difference": float(made["reprojected_difference"]),
        }
        pictures = {"render": made["render"]}
        if self._believes:
            return Proposal(image, None, self._terms, figures=figures, pictures=pictures)
        weight, terms = believed(agreement, mean, self._terms)
        return Proposal(image, weight, terms, figures=figures, pictures=pictures)


def believed(agreement: np.ndarray, mean: float, terms: dict[str, float]) -> tuple[np.ndarray, dict[str, float]]:
    """C of an agreement (H, W) with others of this `mean`, as weights (H, W) in [0, 1] and terms that are larger by
    what C is larger.
    """
    belief = np.minimum(agreement / mean, MOST)
    largest = max(float(belief.max()), 1e-6)
    return (belief / largest).astype(np.float32), {name: value * largest for name, value in terms.items()}
