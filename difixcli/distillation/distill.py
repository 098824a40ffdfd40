"""The progressive 3D update of Difix3D: train on photos, then render, fix and train on, round by round.

On disk a finished run is a nerfstudio run folder with, beside it,

    run.json                 what was asked, timings, results
    photos/                  the model as the whole training on photos left it, a nerfstudio run too
    rounds/03/               a round's pictures, poses, figures and the checkpoint it began from (see rounds.py)
    rounds/03/*.target.confidence.png   asked for: what of a round's views photos have seen (see frames/marks.py)
    plain/                   with a comparison: as many iterations on photos alone, a nerfstudio run too
    renders/{truth,plain,fixed,distilled,enhanced}/*.png   the test views
    renders/mask/*.png       which pixels of the truth count, for views whose photo has a mask
    path/{plain,fixed,distilled,enhanced}/*.png            targets that nobody took a photo at
    {renders,path}/{fixed,enhanced}/*.confidence.png       asked for: what of a fix photos have seen

`plain` is photos alone: trained as long as the whole with a comparison, else as `photos/` has it. `fixed` is `plain`
with every render fixed once, `enhanced` the same of `distilled` (Difix3D+).
"""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from difixcli.disk import copy_folder
from difixcli.distillation.guard import Guard, Verdict
from difixcli.distillation.prior import Context, Kept, Prior, Proposal, Refreshing, Round, View, make_prior
from difixcli.distillation.renders import FinalRenders
from difixcli.distillation.rounds import Rounds
from difixcli.distillation.schedule import closing_share, pseudo_cameras, same_pose
from difixcli.distillation.settings import Settings
from difixcli.distillation.targets import Target, make_targets
from difixcli.errors import InputError, short
from difixcli.evidence import marks_of
from difixcli.frames.marks import shares
from difixcli.frames.stages import Behind
from difixcli.reconstruction import PseudoView, Reconstruction
from difixcli.reference_views import ReferenceViews
from difixcli.runs import PHOTOS, Progress, Run, read_image, write_image
from difixcli.scenes import nearest_cameras
from difixcli.scenes.scene import Camera, Scene, Split
from difixcli.wording import counted

if TYPE_CHECKING:
    from difixcli.fixer import Fixer

Say = Callable[[str], None]

PLAIN = "plain"
LARGE = "large"  # folder of large renders where there is no truth of their size
COMPARED = ("low_resolution", "supersampled", "bicubic", "per_image")
"""Folders of what super-resolution is compared with."""
MEAN = "mean"
"""Folder of what mode seeking is compared with, beside the plain model."""
POINTS = "points"
"""Folder of what the video prior is compared with, beside the plain model: photos alone, from the point cloud."""
CLOUD = "cloud"
"""Folder of the point cloud that the video prior begins with."""
MARKS = "target.confidence"
"""Of a view's files in a round: what of its target photos have seen."""
_WITNESSES = 4  # photos that say what of a view is seen, where none stand beside it


class Distillation:
    """A run of the progressive update. Making one checks what was asked and writes nothing.

    Raises InputError for targets that do not exist.
    """

    fixer: Fixer | None = None  # where another prior needs none

    def __init__(self, scene: Scene, split: Split, settings: Settings) -> None:
        self.scene, self.split, self.settings = scene, split, settings
        self.schedule = settings.schedule
        self.targets = self._targets()

    def run(self, fixer: Fixer, run: Run, progress: Progress, say: Say) -> dict[str, dict[str, Any]]:
        """Run, or go on with, the update; return the figures of each variant on the views that have a truth."""
        self._begin(run, progress, say)
        self.fixer = fixer
        settings = self.settings
        renders = FinalRenders(
            run.folder, self.scene, self.split, self.targets, fixer, settings.references, settings.trust,
            settings.confidence, progress,
        )  # fmt: skip
        model = self._photos()
        if not self.schedule.rounds:
            self._render(renders, model, "plain", "fixed")
            return self._figures()
        model = self._update(model)
        gc.collect()  # the parts of a model hold on to each other, and there may be no room for another one
        taught_by_photos = None
        if settings.confidence:
            taught_by_photos = Reconstruction.load(self.folder / PHOTOS, self.scene, self.split.train)
        self._render(renders, model, "distilled", "enhanced", taught_by_photos)
        del taught_by_photos
        del model
        gc.collect()
        self._render(renders, self._plain(), "plain", "fixed")
        return self._figures()

    def _targets(self) -> list[Target]:
        return make_targets(self.scene, self.split, self.settings.targets)

    def _begin(self, run: Run, progress: Progress, say: Say) -> None:
        _sweep(run.folder)
        self.folder, self._run, self._progress, self._say = run.folder, run, progress, say
        self.rounds = Rounds(run.folder)

    # Training

    def _photos(self) -> Reconstruction:
        """The run's reconstruction, trained on photos to the end of their part or beyond."""
        if any((self.folder / "nerfstudio_models").glob("*.ckpt")):
            try:
                model = Reconstruction.load(self.folder, self.scene, self.split.train)
            except InputError:
                if (told := self.rounds.recover(self.folder / PHOTOS)) is None:
                    raise
                self._say(told)
                model = Reconstruction.load(self.folder, self.scene, self.split.train)
        else:
            model = self._begun(self.folder, self.schedule.photos)
        self._train(model, self.schedule.photos, "photos alone" if self.schedule.rounds else "plain training")
        if self.schedule.rounds:
            _fork(self.folder, self.folder / PHOTOS)
        return model

    def _begun(self, folder: Path, iterations: int, scene: Scene | None = None) -> Reconstruction:
        """A new reconstruction in `folder` of a schedule of so many iterations, or the one that the run starts from.

        It is of the run's scene, or of `scene`, which is the same with other seed points.
        """
        settings = self.settings
        if settings.start is None:
            model = Reconstruction.create(
                scene or self.scene,
                self.split.train,
                method=settings.method,
                folder=folder,
                preset=settings.preset,
                device=settings.device,
                iterations=iterations,
                overrides=settings.overrides,
                seed=settings.seed,
            )
        else:
            from difixcli.reconstruction.start import start_from

            model = start_from(
                Path(settings.start),
                self.scene,
                self.split.train,
                folder,
                settings.preset,
                settings.device,
                self.schedule.iterations,
                settings.overrides,
                settings.seed,
                settings.method,
            )
            model.save()
        for note in model.notes:
            self._say(note)
        for warning in model.warnings:
            self._say(f"Warning: {warning}")
        return model

    def _train(self, model: Reconstruction, until: int, label: str, prior: Prior | None = None) -> None:
        """Train up to the schedule's iteration `until`, saving on the way; with a prior, its state too."""
        begun, first = time.monotonic(), model.step
        if first >= until:
            return
        with self._progress(label, until - first) as update:
            saving = model.train_to(until, update, None if prior is None else lambda: {"prior": prior.state()})
        self._run.time("saving", saving)
        self._run.time(label, time.monotonic() - begun)
        self._run.save()

    def _further(self, model: Reconstruction) -> None:
        """Let a model that has its training on photos behind it begin the further one, unless it is in it."""
        if not model.in_further_phase:
            model.begin_further_phase(self.schedule.further, self.settings.raised)

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        begun = time.monotonic()
        yield
        self._run.time(name, time.monotonic() - begun)

    # The rounds

    def _update(self, model: Reconstruction) -> Reconstruction:
        """The rounds that are still to do, or what is left of the iterations after one was taken back."""
        schedule, rounds, settings = self.schedule, self.rounds, self.settings
        photos_only = Reconstruction.load(self.folder / PHOTOS, self.scene, self.split.train)
        # it stays as it is, and so do its depths
        photos = ReferenceViews(self.scene, self.split.train, photos_only, len(self.split.train))
        guard = None
        if settings.guard:
            with self._timed("guard"):
                guard = Guard(photos, self.targets)
        going = schedule.finished_rounds(model.step) + 1
        rounds.forget_from(going + 1)  # begun by a process that never saved a step of it
        if rounds.accepted(going):
            rounds.forget_from(going)  # going back to its beginning was interrupted
        if rounds.unfinished(going):
            rounds.restore(going)
            model.go_back()
        prior = self._prior(model)
        for number in range(1, schedule.rounds + 1):
            if rounds.rejected() is not None:
                break
            if rounds.accepted(number) is None:
                self._further(model)
                self._round(model, photos, prior, guard, number)
            if not rounds.accepted(number):
                rounds.take_back(number)
                model.go_back()
                prior = self._prior(model)
            self._run.save(rounds=self._summary())
        if rounds.rejected() is not None:
            self._further(model)
            label = "without the views that were taken back"
            self._teach(model, prior, guard, len(rounds.records()), schedule.iterations, label)
        model.set_pseudo_views([], 0.0)
        return model

    def _prior(self, model: Reconstruction) -> Prior:
        """The prior that was asked for, as it was when the model's checkpoint was saved."""
        prior = make_prior(self.settings.prior, self._context())
        if "prior" in model.beside:
            prior.restore(model.beside["prior"])
        return prior

    def _context(self) -> Context:
        """What the prior is made with."""
        settings = self.settings
        return Context(
            self.fixer,
            self.scene,
            settings.device,
            settings.seed,
            settings.references,
            settings.trust,
            settings.drop_below,
            settings.terms,
        )

    def _round(
        self, model: Reconstruction, photos: ReferenceViews, prior: Prior, guard: Guard | None, number: int
    ) -> None:
        """Let the prior propose a round's views, train on them, and write the guard's verdict."""
        schedule, rounds = self.schedule, self.rounds
        label = f"round {number}/{schedule.rounds}"
        if rounds.record(number) is None:
            if model.step == schedule.photos:
                model.save()  # the further phase is part of what a round begins from
            rounds.keep_checkpoint(number)
            with self._timed("proposing views"):
                proposed = self._proposed(model, photos, prior, number, f"{label}: views")
            model.save(beside={"prior": prior.state()})
            rounds.write(number, proposed)
        # from disk, so that a run that was stopped in the middle of a round goes on with the very same views
        self._teach(model, prior, guard, number, schedule.end(number), f"{label}: train")
        record = rounds.record(number)
        assert record is not None
        record["accepted"] = True
        said = "not judged by photos"
        if guard is not None:
            with self._timed("guard"):
                verdict = guard.judge(model)
            record |= {"guard": asdict(verdict), "accepted": not verdict.harmful}
            said = _said(verdict)
        rounds.write(number, record)
        self._say(f"{label}: {self._told(record)}; {said}" + _taken_back(record))

    def _teach(
        self, model: Reconstruction, prior: Prior, guard: Guard | None, number: int, until: int, label: str
    ) -> None:
        """Train on a round's views and photos up to an iteration; at the end of all rounds on photos alone, as far as
        the guard says that these know the targets. Who takes every fix as it is keeps to the share.
        """
        record = self.rounds.record(number) if number else None
        share = 0.0 if record is None else record["share"]
        last = share
        if guard is not None and self.settings.trust == "supported":
            last = closing_share(share, guard.before)
        begin = until if last == share else max(model.step, min(until, self.schedule.closing))
        if model.step < begin or begin == until:
            self._take_up(model, prior, number)
            self._train(model, begin, label, prior)
        if model.step < until:
            views = self._views_of(record, prior) if record is not None and last else []
            self._say(f"photos know the targets: {last:.0%} of the last {until - begin} iterations are on views")
            model.set_pseudo_views(views, last)
            self._train(model, until, f"{label}, the end", prior)

    def _proposed(
        self, model: Reconstruction, photos: ReferenceViews, prior: Prior, number: int, label: str
    ) -> dict[str, Any]:
        """A round's record, not judged yet; its pictures are written on the way."""
        cameras = self._cameras(number)
        train = [self.scene.frames[i].camera for i in self.split.train]
        views = []
        for target, camera in zip(self.targets, cameras, strict=True):
            own = target.frame is not None and target.frame in self.split.train
            nearest = target.frame if own else self.split.train[nearest_cameras(camera, train, 1)[0]]
            assert nearest is not None
            views.append(View(target.name, camera, nearest))
        last = self.rounds.record(number - 1) if number > 1 else None
        stands = {} if last is None else {entry["target"]: entry for entry in last["views"]}
        kept = {
            view.name: partial(self._kept, stands[view.name])
            for view in views
            if view.name in stands and same_pose(_camera(stands[view.name]), view.camera)
        }
        shown = Round(number, self.schedule.rounds, views, model, photos, kept)
        entries: list[dict[str, Any]] = []
        behind: Behind[None] = Behind()
        with self._progress(label, len(views)) as update, behind:
            for view, proposal in zip(views, prior.propose(shown), strict=True):
                if proposal is None and view.name not in kept:
                    raise InputError(
                        f"The prior {self.settings.prior} keeps a view ({view.name}) of which there is none."
                    )
                entries.append(
                    {**stands[view.name], "kept": True}
                    if proposal is None
                    else self._written(view, proposal, number, behind)
                )
                update(len(entries))
        if self.settings.confidence:
            self._mark(shown, entries)
        trained_on = [entry for entry in entries if entry["dropped"] is None]
        confidences = [entry["figures"].get("mean_confidence", 1.0) for entry in entries]
        return {
            "round": number,
            "schedule": asdict(self.schedule),
            "share": self.schedule.share if trained_on else 0.0,
            "views": entries,
            "kept": sum(entry["kept"] for entry in entries),
            "dropped": len(entries) - len(trained_on),
            "mean_confidence": float(np.mean(confidences)),
        }

    def _mark(self, shown: Round, entries: Sequence[dict[str, Any]]) -> None:
        """Write beside each new target of a round what of it photos have seen, and note how much that is.

        Only photos and what photos alone have taught speak for a pixel: the model has learned from targets before.
        """
        count = self.settings.references
        if count is None:
            count = _WITNESSES if self.fixer is None else self.fixer.config.views
        fresh = [(view, entry) for view, entry in zip(shown.views, entries, strict=True) if not entry["kept"]]
        with self._progress("what photos have seen", max(len(fresh), 1)) as update:
            for done, (view, entry) in enumerate(fresh, start=1):
                target = self.rounds.parent / entry["files"]["target"]
                render = shown.render_photos_only(view)
                marked = marks_of(render, read_image(target), shown.beside(view, count))
                path = target.with_name(f"{view.name}.{MARKS}.png")
                write_image(path, marked)
                entry["files"][MARKS] = path.relative_to(self.rounds.parent).as_posix()
                entry["figures"] |= shares(marked)
                update(done)

    def _cameras(self, number: int) -> list[Camera]:
        """Where each target's view stands in a round."""
        train = [self.scene.frames[i].camera for i in self.split.train]
        return pseudo_cameras(train, [target.camera for target in self.targets], self.schedule, number)

    def _written(self, view: View, proposal: Proposal, number: int, behind: Behind[None]) -> dict[str, Any]:
        """Have what was proposed for a view written; its entry in the round's record."""
        camera = view.camera
        size = (camera.height, camera.width)
        if proposal.image.shape != (*size, 3) or (proposal.weight is not None and proposal.weight.shape != size):
            raise InputError(
                f"The prior {self.settings.prior} proposes an image of {proposal.image.shape} for {view.name}, which "
                f"has {size[0]} rows and {size[1]} columns; image and weight must have the view's size."
            )
        pictures: dict[str, np.ndarray] = {**proposal.pictures, "target": proposal.image}
        if proposal.weight is not None:
            pictures["confidence"] = proposal.weight
        if proposal.photo is not None:
            pictures["photo"] = proposal.photo
        files = {}
        for kind, picture in pictures.items():
            path = self.rounds.folder(number) / f"{view.name}.{kind}.png"
            behind.do(write_image, path, picture)
            files[kind] = path.relative_to(self.rounds.parent).as_posix()
        target = next(target for target in self.targets if target.name == view.name)
        return {
            "target": view.name,
            "frame": None if target.frame is None else self.scene.frames[target.frame].name,
            "camera_to_world": camera.camera_to_world.tolist(),
            "lens": [camera.fx, camera.fy, camera.cx, camera.cy, camera.width, camera.height],
            "nearest": self.scene.frames[view.nearest].name,
            "files": files,
            "terms": dict(proposal.terms),
            "fresh": proposal.fresh,
            "figures": dict(proposal.figures),
            "dropped": proposal.dropped,
            "kept": False,
        }

    def _kept(self, entry: Mapping[str, Any]) -> Kept:
        """What stands for a view since an earlier round."""
        files, parent = entry["files"], self.rounds.parent
        weight = read_image(parent / files["confidence"])[..., 0] if "confidence" in files else None
        return Kept(read_image(parent / files["target"]), weight, entry["figures"])

    def _take_up(self, model: Reconstruction, prior: Prior, number: int) -> None:
        """Let training draw the pseudo-views of a round, as they are on disk; those of none with number 0."""
        record = self.rounds.record(number) if number else None
        if record is None:
            model.set_pseudo_views([], 0.0)
            return
        with self._timed("taking up views"):
            model.set_pseudo_views(self._views_of(record, prior), record["share"])

    def _views_of(self, record: Mapping[str, Any], prior: Prior) -> list[PseudoView]:
        """The pseudo-views of a round's record that are trained on."""
        index = {frame.name: i for i, frame in enumerate(self.scene.frames)}
        views = []
        for entry in record["views"]:
            if entry["dropped"] is not None:
                continue
            if entry["nearest"] not in index:
                raise InputError(
                    f"A round of {self.folder} names the photo {short(entry['nearest'])}, which the scene lacks; "
                    "restore its round.json, or begin anew with --force."
                )
            fresh = None
            if entry["fresh"]:
                if not isinstance(prior, Refreshing):
                    raise InputError(f"The prior {self.settings.prior} has no method refresh, but a view that asks it.")
                fresh = partial(prior.refresh, entry["target"])
            files = {kind: self.rounds.parent / file for kind, file in entry["files"].items()}
            views.append(
                PseudoView(
                    _camera(entry),
                    files["target"],
                    files.get("confidence"),
                    index[entry["nearest"]],
                    entry["terms"],
                    fresh,
                    files.get("photo"),
                )
            )
        return views

    def _told(self, record: dict[str, Any]) -> str:
        """A round's views in words."""
        return (
            f"{counted(len(record['views']), 'view')}, {record['kept']} as they were, mean confidence "
            f"{record['mean_confidence']:.2f}, {record['dropped']} dropped"
        )

    def _summary(self) -> dict[str, Any]:
        """What the rounds came to, for run.json."""
        records, rejected = self.rounds.records(), self.rounds.rejected()
        judged = [record["guard"] for record in records if "guard" in record]
        return {
            "accepted": len(records),
            "taken_back": 0 if rejected is None else rejected["round"],
            "dropped": sum(record["dropped"] for record in records),
            "gains": [verdict["gain"] for verdict in judged],
            "mean_confidence": [record["mean_confidence"] for record in records],
            "handed_over": "distilled" if records else "plain",
        }

    # What photos alone come to, and figures

    def _plain(self) -> Reconstruction:
        """Photos alone: trained as long as the whole with a comparison, else as their part of the run has left it."""
        if not self.settings.compare:
            return Reconstruction.load(self.folder / PHOTOS, self.scene, self.split.train)
        return self._compared(PLAIN, [])

    def _compared(self, name: str, views: Sequence[PseudoView]) -> Reconstruction:
        """What the model of photos alone becomes in all further iterations on these views, or on photos without any."""
        folder = self.folder / name
        _fork(self.folder / PHOTOS, folder)
        model = Reconstruction.load(folder, self.scene, self.split.train)
        self._further(model)
        model.set_pseudo_views(views, self.schedule.share)
        self._train(model, self.schedule.iterations, f"{name}, for comparison")
        return model

    def _render(
        self,
        renders: FinalRenders,
        model: Reconstruction,
        variant: str,
        fixed: str,
        photos_only: Reconstruction | None = None,
    ) -> None:
        taught = variant == "distilled" and bool(self.rounds.records())
        with self._timed("final renders"):
            renders.write(model, variant, fixed, taught, photos_only)

    def _figures(self) -> dict[str, dict[str, Any]]:
        if not self.split.test:
            return {}
        from difixcli.evaluation import evaluate_run

        return evaluate_run(self.folder, self.settings.device)["results"]


def _said(verdict: Verdict) -> str:
    """A verdict in words."""
    if not verdict.views:
        return "no photo sees the targets, so nothing judges it"
    spread = f" ± {verdict.error:.2f}" if verdict.views > 1 else ""
    return f"agreement with photos {verdict.gain:+.2f}{spread} dB over {counted(verdict.views, 'view')}"


def _taken_back(record: Mapping[str, Any]) -> str:
    return "" if record["accepted"] else ": taken back, it goes on without these"


def _camera(entry: Mapping[str, Any]) -> Camera:
    """The camera of a view's entry in a round's record."""
    fx, fy, cx, cy, width, height = entry["lens"]
    return Camera(np.array(entry["camera_to_world"]), fx, fy, cx, cy, int(width), int(height))


def _sweep(folder: Path) -> None:
    """Remove what a killed process was writing; not in parts of the folder that another command may be writing to."""
    models = (PHOTOS, PLAIN, MEAN, POINTS, *COMPARED)
    for stale in [
        *folder.glob(".*.part"),
        *(path for part in ("rounds", "renders", "path", LARGE, CLOUD) for path in (folder / part).rglob(".*.part")),
        *(path for part in models for path in (folder / part).glob(".*.part")),
        *(path for part in models for path in (folder / part / "scene").rglob(".*.part")),
        *(folder / "scene").rglob(".*.part"),
    ]:
        stale.unlink() if stale.is_file() else shutil.rmtree(stale)


def _fork(source: Path, target: Path) -> None:
    """Copy a nerfstudio run as it stands, unless that was done before: training may go on from the same checkpoint."""
    if (target / "config.yml").exists():
        return
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    left_out = ("run.json", "rounds", "renders", "path", LARGE, CLOUD, PHOTOS, PLAIN, MEAN, POINTS, *COMPARED, ".*")
    copy_folder(source, part, left_out, shared=("*.png",))  # photos may be gigabytes
    part.rename(target)
