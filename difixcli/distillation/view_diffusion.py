"""A scene from two or three photos: SparseFusion (Zhou and Tulsiani, CVPR 2023, arXiv 2212.00792).

The field is first trained on the photos alone, shortly, since there is little to learn from two photos but how to
repeat them. Then views around the photos are drawn beside these at every step: in the first third of the rounds EFT's
pictures, after that what diffusion makes of the render of the moment (see `view_diffusion_prior`). What a run's folder
holds beside what any has:

    plain/, mean/              with a comparison: photos alone, in a schedule of their own of as many iterations, and
                               the model that is begun with trained on as long on EFT's pictures
    renders/{truth,plain,eft,vldm,mean,distilled}/*.png   the test views; `eft` and `vldm` are the networks' own
    path/…/*.png               the same of targets without a photo, where none is held out

Other than in the release, the cameras' circle ends where photos end (`scenes.ring`), and only seed points count that
two photos of the few have seen: where nobody says who saw them, and photos are held out, there are none. No guard takes
rounds back: through the geometry of two photos nothing can be brought into other views that would judge them.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from difixcli.distillation.distill import MEAN, PLAIN, Say
from difixcli.distillation.few_photos import FewPhotos, known_scene, rendered
from difixcli.distillation.prior import Context, make_prior
from difixcli.distillation.schedule import Schedule
from difixcli.distillation.seeking import bootstrapped
from difixcli.distillation.settings import Settings
from difixcli.novel_views import NovelViews, view_seed
from difixcli.reconstruction import Reconstruction
from difixcli.runs import Progress, Run
from difixcli.scenes.scene import Scene, Split
from difixcli.wording import counted

_PHOTOS_SHARE = 10  # of the rounds' iterations: one in so many is spent on photos alone before


def photo_iterations(further: int) -> int:
    """Iterations on photos alone, unless told otherwise."""
    return max(1, further // _PHOTOS_SHARE)


class ModeSeeking(FewPhotos):
    """A run of SparseFusion on a scene of few photos. Making one checks what was asked and writes nothing."""

    def __init__(self, scene: Scene, split: Split, settings: Settings) -> None:
        assert settings.seeking is not None
        super().__init__(known_scene(scene, split), split, settings)
        self._seeking = settings.seeking

    def seek(self, novel: NovelViews, run: Run, progress: Progress, say: Say) -> dict[str, dict[str, Any]]:
        """Run, or go on with, it; return the figures of each variant on the test views."""
        self._begin(run, progress, say)
        self._novel = novel
        model = self._photos()
        self._tell_time(model)
        model = self._update(model)
        self._write("distilled", partial(rendered, model))
        del model
        gc.collect()  # the parts of a model hold on to each other
        if self.settings.compare:
            self._write_model(PLAIN, lambda: self._alone(PLAIN, self.scene))
            if self._seeking.seek != "mean":
                self._write_model(MEAN, self._mean)
            self._write("eft", lambda name, camera: novel.epipolar(camera))
            self._write("vldm", lambda name, camera: novel.sample(camera, view_seed(self.settings.seed, name)))
        return self._figures()

    def _context(self) -> Context:
        return replace(super()._context(), novel_views=self._novel, seeking=self.settings.seeking)

    def _told(self, record: dict[str, Any]) -> str:
        figures = [view["figures"] for view in record["views"]]
        change = 255 * float(np.mean([one["change"] for one in figures]))
        if "mode_weight" not in figures[0]:
            return f"{counted(len(figures), 'view')} by EFT, which changed the renders before by {change:.1f} of 255"
        level = float(np.mean([one["noise_level"] for one in figures]))
        return (
            f"{counted(len(figures), 'view')}, {self._seeking.seek} sought; the first time they were noised to "
            f"{level:.2f} on average, which changed the renders by {change:.1f} of 255"
        )

    def _tell_time(self, model: Reconstruction) -> None:
        """Say what the networks will take, of the first target's view and one x̂₀ of it."""
        seeking, schedule = self._seeking, self.schedule
        if schedule.finished_rounds(model.step) >= schedule.rounds:
            return
        camera = self.targets[0].camera
        render = model.render(camera).color
        pace = _seconds(lambda: self._novel.epipolar(camera))
        whole = len(self.targets) * pace
        said = f"What photos say of a view takes {pace:.2f} s, {len(self.targets)} times"
        if seeking.seek != "mean":
            # a middle level takes half the steps
            each = _seconds(lambda: self._novel.denoised(camera, render, 0.5, 0, seeking.steps))
            sought = (schedule.rounds - bootstrapped(schedule.rounds)) * schedule.every
            count = len(self.targets) * (schedule.rounds - bootstrapped(schedule.rounds))
            count += round(self._draws() * sought / seeking.reuse)
            whole += count * each
            said += f"; an x̂₀ takes {each:.2f} s, about {count} times"
        self._say(f"{said}: {whole / 60:.1f} minutes beside the training.")

    def _draws(self) -> float:
        """How many views a step draws, about."""
        from difixcli.reconstruction import draws_images, method_config

        share = self.schedule.share
        if draws_images(method_config(self.settings.method)):
            return share
        # a draw is a square of 32² pixels at least, twice a batch's rays on a CPU; on a GPU it is as many
        return share / (1 - share) * (0.5 if self.settings.preset == "cpu" else 1.0)

    def _mean(self) -> Reconstruction:
        """The model of photos alone, trained on as long on EFT's pictures."""
        record = self.rounds.record(1)  # whose pictures are EFT's
        assert record is not None
        return self._compared(MEAN, self._views_of(record, make_prior(self.settings.prior, self._context())))


def own_terms(images: bool) -> dict[str, float]:
    """The loss of a view unless told otherwise: the method's own pixels, or a squared error, and 0.1 · perceptual."""
    return {"method" if images else "l2": 1.0, "perceptual": 0.1}


def planned(schedule: Schedule, seek: str) -> str:
    """A schedule in words."""
    if seek == "mean":
        rounds = f"{counted(schedule.rounds, 'round')} of {schedule.every}"
        return f"{schedule.photos} iterations on photos, {rounds} on EFT's pictures, photos beside them"
    first = bootstrapped(schedule.rounds)
    return (
        f"{schedule.photos} iterations on photos, {counted(first, 'round')} of {schedule.every} on EFT's "
        f"pictures and {schedule.rounds - first} on what is sought, photos beside them"
    )


def _seconds(work: Callable[[], object]) -> float:
    begun = time.monotonic()
    work()
    return time.monotonic() - begun
