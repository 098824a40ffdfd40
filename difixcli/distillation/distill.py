"""The progressive 3D update of Difix3D: train on photos, then render, fix and train on, round by round.

On disk a finished run is a nerfstudio run folder with, beside it,

    run.json                 what was asked, timings, results
    rounds/03/               a round's pictures, poses, figures and the checkpoint it began from (see rounds.py)
    plain/                   with a comparison: the same iterations on photos alone, a nerfstudio run too
    renders/{truth,plain,distilled,enhanced}/*.png   the test views; where there are none, the held-back photos' views
                             as they were before these photos joined the training
    renders/mask/*.png       which pixels of the truth count, for views whose photo has a mask
    path/{plain,distilled,enhanced}/*.png            targets that nobody took a photo at
"""

from __future__ import annotations

import gc
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from difixcli.distillation.confidence import check_trust, confidence, mean_support, target
from difixcli.distillation.guard import Guard, make_guard, mean_psnr
from difixcli.distillation.rounds import Rounds
from difixcli.distillation.schedule import Schedule, pseudo_cameras
from difixcli.distillation.targets import Target, make_targets
from difixcli.reconstruction import PseudoView, Reconstruction
from difixcli.reference_views import ReferenceViews, fix_render, is_bad_fix
from difixcli.runs import Progress, Run, write_image
from difixcli.scenes import load_mask, load_photo
from difixcli.scenes.scene import Camera, Scene, Split

if TYPE_CHECKING:
    from difixcli.fixer import Fixer

Say = Callable[[str], None]

_SAVE_EVERY = 500  # iterations a killed run loses at most
_ATTEMPTS = 2  # with pseudo-views; then a round is trained on photos alone


@dataclass(frozen=True)
class Settings:
    """Everything about a distillation but the scene and the fixer.

    `targets` are `test` or camera paths. `references` photos stand beside a render that is fixed; None: as many as the
    fixer takes. `trust` is `supported` (confidence decides what a fix changes) or `all` (fixes are taken as they are,
    as Difix3D's release does); with `supported`, a fix that is broken as a whole, or whose support (see `mean_support`)
    is below `drop_below`, is not trained on.
    `holdout` and `guard` are `make_guard`'s. `start` is an existing reconstruction to go on from.
    """

    method: str
    preset: str
    device: str
    schedule: Schedule
    seed: int
    compare: bool
    overrides: Sequence[str] = ()
    targets: Sequence[str] = ("test",)
    references: int | None = None
    trust: str = "supported"
    drop_below: float = 0.0
    holdout: str | None = None
    guard: str | None = None
    start: str | None = None


class Distillation:
    """A run of the progressive update. Making one checks what was asked and writes nothing.

    Raises InputError for targets that do not exist, photos that cannot be held back, and an unknown kind of trust.
    """

    def __init__(self, scene: Scene, split: Split, settings: Settings) -> None:
        check_trust(settings.trust)
        self.scene, self.split, self.settings = scene, split, settings
        self.schedule = settings.schedule
        self.targets = make_targets(scene, split, settings.targets)
        # a run that is taken up has seen every photo: none of them can be a stranger to it
        holdout = "0" if settings.start or not self.schedule.rounds else settings.holdout
        self.guard: Guard = make_guard(split.train, holdout, settings.guard)
        self.photos = [i for i in split.train if i not in self.guard.held]

    def run(self, fixer: Fixer, run: Run, progress: Progress, say: Say) -> dict[str, dict[str, Any]]:
        """Run, or go on with, the update; return the figures of each variant on the views that have a truth.

        The variants are `plain` (with a comparison, or with the schedule `none`), `distilled`, and `enhanced`, which
        is the best of them with the fixer once more on every final render (Difix3D+).
        """
        _sweep(run.folder)
        self.fixer, self.folder, self._run, self._progress, self._say = fixer, run.folder, run, progress, say
        self.rounds = Rounds(run.folder)
        compare = self.settings.compare and self.schedule.rounds > 0
        self._distilled(fork=compare and not self._own_plain)
        if compare:
            gc.collect()  # the parts of a model hold on to each other, and there may be no room for a second one
            self._plain()
        return self._figures()

    # The reconstruction

    def _reconstruction(self) -> Reconstruction:
        """The run's reconstruction from its last checkpoint, or a new one."""
        if any((self.folder / "nerfstudio_models").glob("*.ckpt")):
            return Reconstruction.load(self.folder, self.scene, self.split.train)
        settings = self.settings
        if settings.start is not None:
            from difixcli.reconstruction.start import start_from

            model = start_from(
                Path(settings.start),
                self.scene,
                self.split.train,
                self.folder,
                settings.preset,
                settings.device,
                self.schedule.iterations,
                settings.overrides,
                settings.seed,
                settings.method,
            )
            for warning in model.warnings:
                self._say(f"Warning: {warning}")
            model.save()
            return model
        return self._new(self.folder, self.guard.held)

    def _new(self, folder: Path, unseen: Sequence[int] = ()) -> Reconstruction:
        settings = self.settings
        return Reconstruction.create(
            self.scene,
            self.split.train,
            method=settings.method,
            folder=folder,
            preset=settings.preset,
            device=settings.device,
            iterations=self.schedule.iterations,
            overrides=settings.overrides,
            seed=settings.seed,
            unseen=unseen,
        )

    def _train(self, model: Reconstruction, until: int, label: str) -> None:
        """Train up to the schedule's iteration `until`, saving on the way."""
        begun, first = time.monotonic(), model.step
        if first >= until:
            return
        with self._progress(label, until - first) as update:
            while model.step < until:
                before = model.step - first

                def advance(done: int, before: int = before) -> None:
                    update(before + done)

                model.train(min(_SAVE_EVERY, until - model.step), advance)
                with self._timed("saving"):
                    model.save()
        self._run.time(label, time.monotonic() - begun)
        self._run.save()

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        begun = time.monotonic()
        yield
        self._run.time(name, time.monotonic() - begun)

    # The rounds

    @property
    def _return(self) -> int:
        """The iteration at which photos that are held back join the training: the middle of the last round."""
        return self.schedule.iterations - self.schedule.every // 2

    def _judged_at(self, number: int) -> int:
        """The iteration after which the guard looks at a round."""
        end = self.schedule.end(number)
        return min(end, self._return) if self.guard.held else end

    def _update(self, model: Reconstruction) -> None:
        """The rounds that are still to do."""
        schedule, rounds = self.schedule, self.rounds
        going = schedule.finished_rounds(model.step) + 1
        rounds.forget_from(going + 1)
        if model.step < self._judged_at(going) and rounds.accepted(going):
            rounds.forget_from(going)  # going back to its beginning was interrupted
        for number in range(1, schedule.rounds + 1):
            while not rounds.accepted(number):
                if rounds.accepted(number) is None:
                    self._attempt(model, number)
                if not rounds.accepted(number):
                    rounds.take_back(number)
                    model.go_back()
                self._run.save(rounds=self._summary())
            if number == schedule.rounds and model.step == self._judged_at(number):
                self._keep_views(model)
            if number == schedule.rounds and model.step < schedule.iterations:
                model.hold_back(())
                self._take_up(model, number)
                self._train(model, schedule.iterations, f"round {number}/{number}: train on all photos")
        model.hold_back(())
        model.set_pseudo_views([], 0.0)

    def _attempt(self, model: Reconstruction, number: int) -> None:
        """Make a round's fixes, train on them, and write the guard's verdict."""
        schedule, rounds, guard = self.schedule, self.rounds, self.guard
        model.hold_back(guard.held)
        label = f"round {number}/{schedule.rounds}"
        if rounds.record(number) is None:
            rounds.keep_checkpoint(number)
            rounds.write(number, self._fixes(model, number, f"{label}: fix"))
        self._take_up(model, number)
        self._train(model, self._judged_at(number), f"{label}: train")
        # from disk, so that a run that was stopped in the middle of a round goes on with the very same views
        record = rounds.record(number)
        assert record is not None
        checked = record["guard"]
        with self._timed("guard"):
            checked["after"] = mean_psnr(model, self.scene, guard.frames)
        alone = not record["share"]  # what is plain training needs no guard
        before = math.nan if checked["before"] is None else checked["before"]
        # many small losses are a large one: no round may end below where the first began, either
        first = rounds.record(1)
        begun = None if first is None else first["guard"]["before"]
        least = before if begun is None else max(before, begun)
        checked["accepted"] = alone or guard.accepts(least, checked["after"])
        rounds.write(number, record)
        views = "photos alone" if alone else f"{len(record['views'])} views"
        self._say(
            f"{label}: {views}, mean confidence {record['mean_confidence']:.2f}, {record['dropped']} fixes dropped; "
            f"{guard.photos} {before:.2f} → {checked['after']:.2f} dB"
            + ("" if checked["accepted"] else ": rolled back, it goes on with smaller steps and less weight")
        )

    def _fixes(self, model: Reconstruction, number: int, label: str) -> dict[str, Any]:
        """Render and fix this round's pseudo-views; the round's record, not judged yet."""
        rounds, schedule = self.rounds, self.schedule
        attempt = rounds.rejected(number)
        scale = 0.5 ** sum(rounds.rejected(n) for n in range(1, number + 1))
        last = rounds.record(number - 1) if number > 1 else None
        alone = attempt >= _ATTEMPTS
        travelled = None
        if schedule.step is not None:
            travelled = (0.0 if last is None else last["travelled"]) + (0.0 if alone else schedule.step * scale)
        entries: list[dict[str, Any]] = []
        with self._timed("guard"):
            before = mean_psnr(model, self.scene, self.guard.frames)
        begun = time.monotonic()
        if not alone:
            cameras = pseudo_cameras(
                [self.scene.frames[i].camera for i in self.photos], [t.camera for t in self.targets], travelled
            )
            references = self._references(model, self.photos)
            with self._progress(label, len(cameras)) as update:
                for i, camera in enumerate(cameras):
                    entries.append(self._fix(self.rounds.folder(number), self.targets[i], camera, model, references))
                    update(i + 1)
        self._run.time("fixing", time.monotonic() - begun)
        dropped = sum(entry["dropped"] is not None for entry in entries)
        return {
            "round": number,
            "attempt": attempt + 1,
            "schedule": asdict(schedule),
            "travelled": travelled,
            "share": 0.0 if dropped == len(entries) else schedule.share * scale,
            "views": entries,
            "dropped": dropped,
            "mean_confidence": float(np.mean([e["mean_confidence"] for e in entries])) if entries else 0.0,
            "guard": {
                "photos": [self.scene.frames[i].name for i in self.guard.frames],
                "held_back": self.guard.held_back,
                "bound": self.guard.bound,
                "before": before,
            },
        }

    def _fix(
        self, folder: Path, goal: Target, camera: Camera, model: Reconstruction, references: ReferenceViews
    ) -> dict[str, Any]:
        """Render and fix the pseudo-view on its way to a target, write its pictures into the round's folder and
        return its entry.
        """
        with self._timed("fixing, renders"):
            render = model.render(camera)
        with self._timed("fixing, references"):
            beside = references.beside(camera, render)
        with self._timed("fixing, network"):
            fixed = fix_render(self.fixer, render, beside)
        with self._timed("fixing, confidence and files"):
            if self.settings.trust == "all":
                weight, learned = np.ones(fixed.shape[:2], np.float32), fixed
            else:
                weight, learned = confidence(render, fixed, beside), target(render, fixed)
            pictures = {"render": render.color, "fixed": fixed, "target": learned, "confidence": weight}
            files = {kind: f"{goal.name}.{kind}.png" for kind in pictures}
            for kind, picture in pictures.items():
                write_image(folder / files[kind], picture)
        support, reason = 1.0, None
        if self.settings.trust == "supported":
            support = mean_support(render, weight)
            if is_bad_fix(render, fixed):
                reason = "the fix is broken"
            elif support < self.settings.drop_below:
                reason = f"support below {self.settings.drop_below:g}"
        nearest = references.nearest(camera, count=1)[0]
        return {
            "target": goal.name,
            "frame": None if goal.frame is None else self.scene.frames[goal.frame].name,
            "camera_to_world": camera.camera_to_world.tolist(),
            "lens": [camera.fx, camera.fy, camera.cx, camera.cy, camera.width, camera.height],
            "references": [self.scene.frames[f].name for f in beside.frames],
            "nearest": self.scene.frames[nearest].name,
            "files": files,
            "mean_confidence": float(weight.mean()),
            "support": support,
            "change": float(np.abs(fixed - render.color).mean()),
            "dropped": reason,
        }

    def _take_up(self, model: Reconstruction, number: int) -> None:
        """Let training draw the pseudo-views of a round, as they are on disk."""
        record = self.rounds.record(number)
        assert record is not None
        folder, index = self.rounds.folder(number), {frame.name: i for i, frame in enumerate(self.scene.frames)}
        views = []
        for entry in record["views"]:
            if entry["dropped"] is None:
                fx, fy, cx, cy, width, height = entry["lens"]
                camera = Camera(np.array(entry["camera_to_world"]), fx, fy, cx, cy, int(width), int(height))
                files = entry["files"]
                weight = None if self.settings.trust == "all" else folder / files["confidence"]
                views.append(PseudoView(camera, folder / files["target"], weight, index[entry["nearest"]]))
        with self._timed("taking up fixes"):
            model.set_pseudo_views(views, record["share"])

    def _summary(self) -> dict[str, Any]:
        """What the rounds came to, for run.json."""
        records = self.rounds.records()
        return {
            "dropped": sum(record["dropped"] for record in records),
            "rolled_back": sum(self.rounds.rejected(n) for n in range(1, self.schedule.rounds + 1)),
            "psnr": [record["guard"]["after"] for record in records],
            "mean_confidence": [record["mean_confidence"] for record in records],
            "photos": self.guard.photos,
        }

    def _references(self, model: Reconstruction, frames: Sequence[int]) -> ReferenceViews:
        wanted = self.settings.references
        return ReferenceViews(self.scene, frames, model, self.fixer.config.views if wanted is None else wanted)

    # Renders and figures

    @property
    def _own_plain(self) -> bool:
        """Whether the comparison trains from the beginning: on all photos, which this run has not."""
        return bool(self.guard.held) and bool(self.split.test)

    @property
    def _measured(self) -> Sequence[int]:
        """The frames whose photos are the truth of the figures: held out, or else held back for a while."""
        return self.split.test or self.guard.held

    def _keep_views(self, model: Reconstruction) -> None:
        """Where no photo is held out: the held-back photos' views, while they are still strangers to the model."""
        if not self.split.test and self.guard.held:
            self._render_measured(model, "distilled", self.photos)

    def _distilled(self, fork: bool) -> None:
        """Photos alone, the rounds, the final renders; with `fork`, what photos alone made is kept for comparison."""
        model = self._reconstruction()
        if model.step < self.schedule.start:
            model.hold_back(self.guard.held)
            self._train(model, self.schedule.start, "photos alone" if self.schedule.rounds else "plain training")
        if fork and not (self.folder / "plain" / "config.yml").exists():
            _fork(self.folder, self.folder / "plain")
        if self.schedule.rounds:
            self._update(model)
        self._final_renders(model, "distilled" if self.schedule.rounds else "plain")

    def _final_renders(self, model: Reconstruction, variant: str) -> None:
        if self.split.test:
            self._render_measured(model, variant, self.split.train)
        paths = [(t.name, t.camera) for t in self.targets if t.frame is None]
        self._render_views(model, paths, self.folder / "path", variant, self.split.train)

    def _render_measured(self, model: Reconstruction, variant: str, references: Sequence[int]) -> None:
        """Write the views with a truth: the photos, the renders, and those fixed once more."""
        renders, views = self.folder / "renders", []
        for i in self._measured:
            frame, name = self.scene.frames[i], self.scene.file_names[i]
            views.append((name, frame.camera))
            write_image(renders / "truth" / f"{name}.png", load_photo(frame))
            if (mask := load_mask(frame)) is not None:
                write_image(renders / "mask" / f"{name}.png", mask.astype(np.float32))
        self._render_views(model, views, renders, variant, references)

    def _render_views(
        self,
        model: Reconstruction,
        views: Sequence[tuple[str, Camera]],
        folder: Path,
        variant: str,
        references: Sequence[int],
    ) -> None:
        """Write renders of the views, and the same fixed once more as `enhanced`."""
        if not views:
            return
        beside_all = self._references(model, references)
        with self._timed("final renders"), self._progress("final renders", len(views)) as update:
            for done, (name, camera) in enumerate(views, start=1):
                render = model.render(camera)
                write_image(folder / variant / f"{name}.png", render.color)
                beside = beside_all.beside(camera, render, align=self.fixer.config.references == "aligned")
                write_image(folder / "enhanced" / f"{name}.png", fix_render(self.fixer, render, beside))
                update(done)

    def _plain(self) -> None:
        """Train as long on photos alone, for comparison."""
        folder = self.folder / "plain"
        if any((folder / "nerfstudio_models").glob("*.ckpt")):
            plain = Reconstruction.load(folder, self.scene, self.split.train)
        else:
            plain = self._new(folder)
        label = "plain, for comparison"
        if not self._own_plain and self.guard.held and plain.step <= self._return:
            # nothing else is held out: it is measured on the same photos at the same moment
            plain.hold_back(self.guard.held)
            self._train(plain, self._return, label)
            self._render(plain, [(self.scene.file_names[i], self.scene.frames[i].camera) for i in self.guard.held])
            plain.hold_back(())
        self._train(plain, self.schedule.iterations, label)
        if self.split.test:
            self._render(plain, [(self.scene.file_names[i], self.scene.frames[i].camera) for i in self.split.test])
        self._render(plain, [(t.name, t.camera) for t in self.targets if t.frame is None], "path")

    def _render(self, model: Reconstruction, views: Sequence[tuple[str, Camera]], kind: str = "renders") -> None:
        with self._timed("plain renders"):
            for name, camera in views:
                write_image(self.folder / kind / "plain" / f"{name}.png", model.render(camera).color)

    def _figures(self) -> dict[str, dict[str, Any]]:
        if not self._measured:
            return {}
        from difixcli.evaluation import evaluate_run

        return evaluate_run(self.folder, self.settings.device)["results"]


def _sweep(folder: Path) -> None:
    """Remove what a killed process was writing; not in parts of the folder that another command may be writing to."""
    for stale in [
        *folder.glob(".*.part"),
        *(path for part in ("rounds", "renders", "path") for path in (folder / part).rglob(".*.part")),
        *(folder / "plain").glob(".*.part"),
        *(folder / "plain" / "scene").rglob(".*.part"),
        *(folder / "scene").rglob(".*.part"),
    ]:
        stale.unlink() if stale.is_file() else shutil.rmtree(stale)


def _fork(source: Path, target: Path) -> None:
    """Copy a nerfstudio run as it stands, so that plain training goes on from the same checkpoint."""
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(source, part, ignore=shutil.ignore_patterns("run.json", "rounds", "renders", "path", ".*"))
    part.rename(target)
