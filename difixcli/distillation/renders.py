"""The final renders of a run: what each variant shows at the views that have a truth, and along camera paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from difixcli.distillation.targets import Target
from difixcli.evidence import enhanced, fix_render, marks_of
from difixcli.frames.stages import Pace, carried
from difixcli.reconstruction import Reconstruction, Render
from difixcli.reference_views import References, ReferenceViews, looked_up
from difixcli.runs import CONFIDENCE, Progress, write_image
from difixcli.scenes import load_mask, load_photo
from difixcli.scenes.scene import Camera, Scene, Split

if TYPE_CHECKING:
    from difixcli.fixer import Fixer

_View = tuple[str, str, Camera]  # folder, name, camera


def write_truth(run: Path, scene: Scene, split: Split) -> None:
    """Write the test views' photos into RUN/renders/truth, their masks into RUN/renders/mask; what is there stays."""
    for i in split.test:
        frame, name = scene.frames[i], f"{scene.file_names[i]}.png"
        if (truth := run / "renders" / "truth" / name).exists():
            continue
        if (mask := load_mask(frame)) is not None:
            write_image(run / "renders" / "mask" / name, mask.astype(np.float32))
        write_image(truth, load_photo(frame))  # last: where it is, the mask is, too


class FinalRenders:
    """Writes renders of the split's test views into RUN/renders/VARIANT and of path targets into RUN/path/VARIANT.

    Fixed views are made with `references` photos beside them (None: as many as the fixer takes). With the trust
    `supported` a fix leaves alone what no evidence says is wrong (`evidence.enhanced`); with `all` it is taken as it
    is. With `confidence`, NAME.confidence.png beside a fix says what of it photos have seen (see `frames.marks`).
    """

    def __init__(
        self,
        run: Path,
        scene: Scene,
        split: Split,
        targets: Sequence[Target],
        fixer: Fixer,
        references: int | None,
        trust: str,
        confidence: bool,
        progress: Progress,
    ) -> None:
        self._run, self._scene, self._split, self._fixer = run, scene, split, fixer
        self._count = fixer.config.views if references is None else references
        self._trust, self._confidence, self._progress = trust, confidence, progress
        views = [(scene.file_names[i], scene.frames[i].camera) for i in split.test]
        paths = [(target.name, target.camera) for target in targets if target.frame is None]
        self._views: Mapping[str, Sequence[tuple[str, Camera]]] = {"renders": views, "path": paths}

    def write(
        self,
        model: Reconstruction,
        variant: str,
        fixed: str,
        taught: bool,
        photos_only: Reconstruction | None = None,
    ) -> None:
        """Write a model's renders as `variant`, and the same fixed once as `fixed`; and the truth beside them.

        `taught` says that the model has learned from fixes. `photos_only` is what photos alone have taught, where the
        model has seen more than photos: what it was taught by fixes speaks for none of them.
        """
        write_truth(self._run, self._scene, self._split)
        beside_all = ReferenceViews(self._scene, self._split.train, model, self._count)
        views = [(folder, *view) for folder, views in self._views.items() for view in views]
        supported = self._trust == "supported"
        align = supported or self._confidence or self._fixer.config.references == "aligned"

        def prepared(view: _View) -> tuple[Render, References, Render]:
            render = model.render(view[2])
            known = photos_only.render(view[2]) if self._confidence and photos_only is not None else render
            beside = beside_all.beside(view[2], render, align=align)
            return render, looked_up(beside, self._fixer, confirming=supported), known

        def cleaned(batch: Sequence[tuple[_View, tuple[Render, References, Render]]]) -> list[np.ndarray]:
            if supported:
                return [enhanced(self._fixer, *made[:2], taught=taught) for _, made in batch]
            return [fix_render(self._fixer, *made[:2]) for _, made in batch]

        def write(view: _View, made: tuple[Render, References, Render], clean: np.ndarray) -> None:
            folder, name, _ = view
            render, beside, known = made
            write_image(self._run / folder / variant / f"{name}.png", render.color)
            if self._confidence:
                write_image(self._run / folder / fixed / f"{name}{CONFIDENCE}", marks_of(known, clean, beside))
            write_image(self._run / folder / fixed / f"{name}.png", clean)

        with self._progress(f"renders, {variant} and {fixed}", len(views)) as update:
            for done, _ in enumerate(carried(views, prepared, cleaned, write, Pace()), start=1):
                update(done)
