"""Distillation that makes a scene larger than its photos: 3DSR (Chen et al., ICCV 2025, arXiv 2508.04090).

A model is trained on the photos at their own size. Its views are then the photos' own, `upscale` times larger: in each
round the super-resolver proposes every one of them, and training sees nothing else (each proposal, and the photo at its
own size). What a run's folder holds beside what any has:

    low_resolution/, supersampled/, bicubic/, per_image/   with a comparison: the model of photos alone trained on as
                          long on the photos, on large views compared with the photos alone, on bicubic enlargements
                          beside the photos, and on each photo super-resolved by itself beside it
    renders/VARIANT/*.png the test views, of the truth's size: those, `distilled` and `enhanced`
    large/VARIANT/*.png   the same, large, where the truth is no larger than the photos
    large/*_training/     what the rows of a comparison were trained on

Without a comparison `low_resolution` is the model of photos alone as their part of the run has left it. `enhanced` is
`distilled` with every render super-resolved once from its own reduction.
"""

from __future__ import annotations

import gc
import os
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from difixcli.distillation.distill import COMPARED, LARGE, Distillation, Say
from difixcli.distillation.prior import Context
from difixcli.distillation.renders import write_truth
from difixcli.distillation.settings import Settings
from difixcli.distillation.super_resolution_prior import IDENTICAL, MADE, photos_alone
from difixcli.distillation.targets import PHOTOS
from difixcli.evaluation.metrics import psnr
from difixcli.images import as_pixels, as_planes, enlarged, reduced
from difixcli.priors.super_resolution.resolver import by_itself, from_render
from difixcli.reconstruction import PseudoView, Reconstruction, is_splat, method_config
from difixcli.reconstruction.presets import most_gaussians
from difixcli.runs import Progress, Run, write_image
from difixcli.scenes import load_mask, load_photo
from difixcli.scenes.scene import Scene, Split
from difixcli.shapes import check_shape
from difixcli.wording import counted

if TYPE_CHECKING:
    from difixcli.priors.super_resolution.resolver import SuperResolver

LOW_RESOLUTION, SUPERSAMPLED, BICUBIC, PER_IMAGE = COMPARED
_KINDS = ("confidence", "target", "photo")  # of pictures, for each view that a row is trained on
_MOST_A_ROUND_CPU = 500  # iterations


def further_iterations(preset: str, photos: int, rounds: int) -> int:
    """Iterations of all rounds, unless told otherwise: in each a sixth of those on photos, as the paper's 5,000 of
    30,000. On a CPU, where a large image takes ten times as long, no more than a few hundred.
    """
    each = max(1, photos // 6)
    return rounds * (min(each, _MOST_A_ROUND_CPU) if preset == "cpu" else each)


def _own_overrides(settings: Settings, pixels: int) -> list[str]:
    """What a splat method is told before anything that was asked for: Gaussians that are as opaque from near as from
    afar, and as many of them as images of so many pixels take. A model to start from is drawn as it was trained.
    """
    if not is_splat(method_config(settings.method)):
        return []
    bound = f"max_gaussians={most_gaussians(settings.preset, pixels)}"
    return [bound] if settings.start is not None else [bound, "pipeline.model.rasterize_mode=antialiased"]


class SuperResolution(Distillation):
    """A run of 3DSR on a scene of small photos; `large` has the same frames at the size of the result.

    Making one checks what was asked and writes nothing.
    """

    def __init__(self, small: Scene, large: Scene, split: Split, settings: Settings) -> None:
        assert settings.enlargement is not None
        pixels = sum(large.frames[i].camera.width * large.frames[i].camera.height for i in split.train)
        overrides = [*_own_overrides(settings, pixels), *settings.overrides]
        super().__init__(large, split, replace(settings, targets=(PHOTOS,), overrides=overrides))
        self.scene, self.large, self.enlargement = small, large, settings.enlargement

    def resolve(self, resolver: SuperResolver, run: Run, progress: Progress, say: Say) -> dict[str, dict[str, Any]]:
        """Run, or go on with, it; return the figures of each variant on the test views."""
        self._begin(run, progress, say)
        self.resolver = resolver
        model = self._update(self._photos())
        shutil.rmtree(self.folder / MADE, ignore_errors=True)  # no round is left that would ask for it
        self._run.save(agreement=self._agreement(model))
        self._write(model, "distilled", enhanced=True)
        del model
        for name, made in self._others():
            self._write(made, name)
            del made
            gc.collect()  # the parts of a model hold on to each other
        return self._figures()

    def _context(self) -> Context:
        return replace(
            super()._context(), resolver=self.resolver, operator=self.enlargement.operator, scratch=self.folder
        )

    def _told(self, record: dict[str, Any]) -> str:
        shape = {"views": [{"figures": {"low_resolution_psnr": float, "detail": float}}]}
        check_shape(record, shape, self.rounds.folder(record["round"]) / "round.json")
        figures = [view["figures"] for view in record["views"]]
        agreement, detail = (float(np.mean([one[key] for one in figures])) for key in ("low_resolution_psnr", "detail"))
        return (
            f"{counted(len(figures), 'view')}; before it the scene agreed with the photos to {agreement:.2f} dB, and "
            f"the detail that is proposed differs from the bicubic enlargement by {255 * detail:.1f} of 255"
        )

    def _others(self) -> Iterator[tuple[str, Reconstruction]]:
        """What the result is compared with, one after the other."""
        gc.collect()
        if not self.settings.compare:
            yield LOW_RESOLUTION, Reconstruction.load(self.folder / "photos", self.scene, self.split.train)
            return
        yield LOW_RESOLUTION, self._compared(LOW_RESOLUTION, [])
        for name in (SUPERSAMPLED, BICUBIC, PER_IMAGE):
            if name != SUPERSAMPLED or photos_alone(self.settings.terms):
                yield name, self._compared(name, self._fixed_views(name))

    def _fixed_views(self, name: str) -> list[PseudoView]:
        """Every training photo made large by itself, with the same terms of the loss; the pictures are written once.

        For `supersampled` only the terms count that compare with the photo.
        """
        terms = photos_alone(self.settings.terms) if name == SUPERSAMPLED else self.settings.terms
        views = []
        for target in self.targets:
            assert target.frame is not None
            files = {kind: self.folder / LARGE / f"{name}_training" / f"{target.name}.{kind}.png" for kind in _KINDS}
            frame = self.scene.frames[target.frame]
            mask = load_mask(frame)
            if not files["photo"].exists():  # which is written last
                photo = as_planes(load_photo(frame), self.resolver.device)
                with torch.no_grad():
                    if name != PER_IMAGE:
                        made = enlarged(photo, self.resolver.factor)
                    else:
                        made = by_itself(self.resolver, photo, self.schedule.rounds, self._seed_of(target.name))
                if mask is not None:
                    ones = np.ones((self.resolver.factor,) * 2, bool)
                    write_image(files["confidence"], np.kron(mask, ones).astype(np.float32))
                write_image(files["target"], as_pixels(made))
                write_image(files["photo"], load_photo(frame))
            weight = None if mask is None else files["confidence"]
            view = PseudoView(target.camera, files["target"], weight, target.frame, terms, photo=files["photo"])
            views.append(view)
        return views

    def _seed_of(self, name: str) -> int:
        return self.settings.seed ^ zlib.crc32(os.fsencode(name))

    # Pictures and figures

    def _write(self, model: Reconstruction, variant: str, enhanced: bool = False) -> None:
        """The test views of a model as `variant`, and with `enhanced` each super-resolved from its own reduction."""
        write_truth(self.folder, self.large if self.enlargement.reduce > 1 else self.scene, self.split)
        with self._timed("final renders"), self._progress(f"renders, {variant}", len(self.split.test)) as update:
            for done, i in enumerate(self.split.test, start=1):
                name = f"{self.scene.file_names[i]}.png"
                render = as_planes(model.render(self.large.frames[i].camera).color, self.resolver.device)
                self._keep(variant, name, render)
                if enhanced:
                    with torch.no_grad():
                        clean = from_render(self.resolver, render, self.enlargement.operator, self._seed_of(name))
                    self._keep("enhanced", name, clean)
                update(done)

    def _keep(self, variant: str, name: str, image: torch.Tensor) -> None:
        if self.enlargement.reduce > 1:
            write_image(self.folder / "renders" / variant / name, as_pixels(image))
            return
        write_image(self.folder / LARGE / variant / name, as_pixels(image))
        small = reduced(image, self.resolver.factor, self.enlargement.operator)
        write_image(self.folder / "renders" / variant / name, as_pixels(small))

    def _agreement(self, model: Reconstruction) -> float:
        """Mean PSNR in dB of the training views' reduced renders against the photos."""
        found = []
        for i in self.split.train:
            render = as_planes(model.render(self.large.frames[i].camera).color, "cpu")
            small = as_pixels(reduced(render, self.resolver.factor, self.enlargement.operator))
            frame = self.scene.frames[i]
            found.append(min(psnr(small, load_photo(frame), load_mask(frame)), IDENTICAL))
        return float(np.mean(found))
