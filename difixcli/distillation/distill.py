"""The progressive 3D update of Difix3D: train on photos, then render, fix and train on, round by round.

On disk a finished run is a nerfstudio run folder with, beside it,

    run.json                 what was asked, timings, results
    rounds/03/*.png          each round's renders, fixes, training targets and confidences
    rounds/03/round.json     its poses and figures
    plain/                   with --compare: the same iterations on photos alone, a nerfstudio run too
    renders/{truth,plain,distilled,enhanced}/*.png   the test views
    renders/mask/*.png       which pixels of the truth count, for test views whose photo has a mask
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from difixcli.distillation.confidence import confidence, target
from difixcli.distillation.schedule import Schedule, pseudo_cameras
from difixcli.reconstruction import PseudoView, Reconstruction
from difixcli.reference_views import ReferenceViews, fix_render
from difixcli.runs import Run, read_json, write_image, write_json
from difixcli.scenes import load_mask, load_photo
from difixcli.scenes.scene import Camera, Scene, Split

if TYPE_CHECKING:
    from difixcli.fixer import Fixer

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
_SAVE_EVERY = 500  # iterations a killed run loses at most


@dataclass(frozen=True)
class Settings:
    """Everything about a distillation but the scene and the fixer."""

    method: str
    preset: str
    device: str
    schedule: Schedule
    seed: int
    compare: bool
    overrides: Sequence[str] = ()


def distill(
    scene: Scene, split: Split, fixer: Fixer, settings: Settings, run: Run, progress: Progress
) -> dict[str, dict[str, Any]]:
    """Run, or go on with, the progressive update; return the figures of each variant on the test views.

    The variants are `plain` (with `settings.compare`), `distilled`, and `enhanced`, which is distilled with the fixer
    once more on every final render (Difix3D+).
    """
    schedule = settings.schedule
    distilled = _reconstruction(scene, split, settings, run.folder)
    if distilled.step < schedule.start:
        _train(distilled, schedule.start, "photos alone", run, progress)
    if settings.compare and not (run.folder / "plain" / "config.yml").exists():
        _fork(run.folder, run.folder / "plain")
    _update(scene, split, fixer, settings, distilled, run, progress)
    _render_variants(scene, split, fixer, distilled, run, progress)
    if settings.compare:
        plain = Reconstruction.load(run.folder / "plain", scene, split.train)
        _train(plain, schedule.iterations, "plain, for comparison", run, progress)
        _render(plain, scene, split, run.folder / "renders" / "plain", progress)

    from difixcli.evaluation import evaluate_run

    return evaluate_run(run.folder, settings.device)["results"]


def _reconstruction(scene: Scene, split: Split, settings: Settings, folder: Path) -> Reconstruction:
    """The run's reconstruction from its last checkpoint, or a new one."""
    if any((folder / "nerfstudio_models").glob("*.ckpt")):
        return Reconstruction.load(folder, scene, split.train)
    return Reconstruction.create(
        scene,
        split.train,
        method=settings.method,
        folder=folder,
        preset=settings.preset,
        device=settings.device,
        iterations=settings.schedule.iterations,
        overrides=settings.overrides,
        seed=settings.seed,
    )


def _train(reconstruction: Reconstruction, until: int, label: str, run: Run, progress: Progress) -> None:
    """Train up to iteration `until`, saving on the way."""
    begun, first = time.monotonic(), reconstruction.step
    with progress(label, until - first) as update:
        while reconstruction.step < until:
            before = reconstruction.step - first

            def advance(done: int, before: int = before) -> None:
                update(before + done)

            reconstruction.train(min(_SAVE_EVERY, until - reconstruction.step), advance)
            reconstruction.save()
    run.time(label, time.monotonic() - begun)
    run.save()


def _fork(source: Path, target: Path) -> None:
    """Copy a nerfstudio run as it stands, so that plain training goes on from the same checkpoint."""
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(source, part, ignore=shutil.ignore_patterns("run.json", "rounds", "renders", ".*"))
    part.rename(target)


def _update(
    scene: Scene,
    split: Split,
    fixer: Fixer,
    settings: Settings,
    reconstruction: Reconstruction,
    run: Run,
    progress: Progress,
) -> None:
    """The rounds that are still to do."""
    schedule = settings.schedule
    train = [scene.frames[i].camera for i in split.train]
    targets = [scene.frames[i].camera for i in split.test]
    references = ReferenceViews(scene, split.train, reconstruction, fixer.config.views)
    for number in range(schedule.finished_rounds(reconstruction.step) + 1, schedule.rounds + 1):
        cameras = pseudo_cameras(train, targets, number, schedule.step)
        folder = run.folder / "rounds" / f"{number:02d}"
        if not (folder / "round.json").is_file():
            begun = time.monotonic()
            references.refresh()
            entries = []
            with progress(f"round {number}/{schedule.rounds}: fix", len(cameras)) as update:
                for i, camera in enumerate(cameras):
                    entries.append(_fix(folder, split.test[i], camera, fixer, reconstruction, references))
                    update(i + 1)
            run.time("fixing", time.monotonic() - begun)
            write_json(folder / "round.json", {"round": number, "schedule": asdict(schedule), "views": entries})
        # from disk, so that a run that was stopped in the middle of a round goes on with the very same views
        entries = read_json(folder / "round.json")["views"]
        index = {frame.name: i for i, frame in enumerate(scene.frames)}
        views = [
            PseudoView(camera, folder / entry["target"], folder / entry["confidence"], index[entry["nearest"]])
            for camera, entry in zip(cameras, entries, strict=True)
        ]
        reconstruction.set_pseudo_views(views, schedule.share)
        until = schedule.start + number * schedule.every
        _train(reconstruction, until, f"round {number}/{schedule.rounds}: train", run, progress)
    reconstruction.set_pseudo_views([], 0.0)


def _fix(
    folder: Path,
    frame: int,
    camera: Camera,
    fixer: Fixer,
    reconstruction: Reconstruction,
    references: ReferenceViews,
) -> dict[str, Any]:
    """Render and fix the pseudo-view on its way to a test frame, write its pictures into the round's folder and
    return its entry.
    """
    scene = references.scene
    render = reconstruction.render(camera)
    beside = references.beside(camera, render)
    fixed = fix_render(fixer, render, beside)
    weight = confidence(render, fixed, beside)
    name = scene.file_names[frame]
    pictures = {"render": render.color, "fixed": fixed, "target": target(render, fixed), "confidence": weight}
    files = {kind: f"{name}.{kind}.png" for kind in pictures}
    for kind, picture in pictures.items():
        write_image(folder / files[kind], picture)
    nearest = references.nearest(camera, count=1)[0]
    return {
        "frame": scene.frames[frame].name,
        "camera_to_world": camera.camera_to_world.tolist(),
        "references": [scene.frames[f].name for f in beside.frames],
        "nearest": scene.frames[nearest].name,
        **files,
        "mean_confidence": float(weight.mean()),
        "change": float(np.abs(fixed - render.color).mean()),
    }


def _render_variants(
    scene: Scene, split: Split, fixer: Fixer, distilled: Reconstruction, run: Run, progress: Progress
) -> None:
    """Write the test views: the photos, the distilled renders, and those fixed once more."""
    renders = run.folder / "renders"
    references = ReferenceViews(scene, split.train, distilled, fixer.config.views)
    begun = time.monotonic()
    with progress("final renders", len(split.test)) as update:
        for done, i in enumerate(split.test, start=1):
            frame = scene.frames[i]
            name = f"{scene.file_names[i]}.png"
            render = distilled.render(frame.camera)
            write_image(renders / "truth" / name, load_photo(frame))
            if (mask := load_mask(frame)) is not None:
                write_image(renders / "mask" / name, mask.astype(np.float32))
            write_image(renders / "distilled" / name, render.color)
            beside = references.beside(frame.camera, render, align=fixer.config.references == "aligned")
            fixed = fix_render(fixer, render, beside)
            write_image(renders / "enhanced" / name, fixed)
            update(done)
    run.time("final renders", time.monotonic() - begun)


def _render(reconstruction: Reconstruction, scene: Scene, split: Split, folder: Path, progress: Progress) -> None:
    with progress(f"{folder.name} renders", len(split.test)) as update:
        for done, i in enumerate(split.test, start=1):
            frame = scene.frames[i]
            write_image(folder / f"{scene.file_names[i]}.png", reconstruction.render(frame.camera).color)
            update(done)
