"""The driver of `difix curate`: scenes × strategy → pairs on disk and a manifest, resumable by stage."""

from __future__ import annotations

import errno
import shutil
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from difixcli.cluster.jobs import DONE, FAILED, Jobs, Report
from difixcli.curation.build import Build
from difixcli.curation.clips import DEFAULT_RULE as CLIPS_RULE
from difixcli.curation.clips import clips, clips_of
from difixcli.curation.cross_camera import cross_camera, default_camera_rule
from difixcli.curation.curated import Curated, Failure, finish
from difixcli.curation.cycle import SHIFTED, cycle
from difixcli.curation.filters import Filters
from difixcli.curation.manifest import (
    MODELS,
    SCENE_FILE,
    STAGE_FILE,
    SceneRecord,
    read_scene,
    scene_records,
    stage_stands,
    summaries,
    write_stage,
)
from difixcli.curation.pairs import KINDS, Pair, PairFiles, pair_id, write_pair
from difixcli.curation.sheets import write_sheet
from difixcli.curation.sparse import sparse
from difixcli.curation.strategies import FILTERS, IMAGE_FORMATS, check_named, parse_stop
from difixcli.curation.tars import tar_name, write_tar
from difixcli.curation.underfit import underfit
from difixcli.errors import InputError, less_memory, out_of_memory
from difixcli.interrupts import interruption_behind
from difixcli.reconstruction import default_iterations
from difixcli.runs import Progress, Run, file_name, write_json
from difixcli.scenes import default_split_rule, make_split, scene_fingerprint
from difixcli.scenes.scene import Scene
from difixcli.scenes.trajectories import shift_distance

_POLL = 2.0  # seconds between two looks at what other processes do
_NO_SCENE_WOULD_FARE_BETTER = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


@dataclass(frozen=True)
class Recipe:
    """How every scene's pairs are made.

    `splits` are the sparse, underfit, cross-camera and clips strategies' (empty: the scene's own; of clips, every
    fourth photo), `shifts` cycle's, `stops` underfit's. `keep` names filters that drop nothing; clips stay whole.
    """

    strategy: str
    method: str
    preset: str
    device: str
    iterations: int | None  # None: the preset's default for the method
    splits: Sequence[str]
    shifts: Sequence[str]
    stops: Sequence[str]
    views: int
    seed: int
    overrides: Sequence[str] = ()
    keep: Sequence[str] = ()
    keep_models: bool = False
    image_format: str = "png"
    depth: bool = False
    format: str = "folder"

    def __post_init__(self) -> None:
        """Raises InputError for a name that is not known and for a stop that is no share."""
        check_named(self.strategy, self.keep, self.image_format, self.format)
        for stop in self.stops:
            parse_stop(stop)


@dataclass(frozen=True)
class Stage:
    """A part of a scene's work that is finished as a whole: its folder's name, how many views, their pairs, and the
    names of the frames in the train and test part of its split, if it has one.
    """

    name: str
    views: int
    pairs: Callable[[Build], Iterator[Pair]]
    split: Mapping[str, Sequence[str]] | None = None


def curate(
    scenes: Mapping[str, str],
    load: Callable[[str], Scene],
    recipe: Recipe,
    run: Run,
    test_scenes: Sequence[str],
    progress: Progress,
    say: Callable[[str], None],
    max_failed: int | None = None,
    wait: bool = True,
) -> Curated | None:
    """Make the pairs of all scenes (by name, with what `load` takes) into the run's folder.

    Finished stages (a split, a shift or a stop of a scene) are kept when the run is resumed, and so are trained
    reconstructions; what was cut off is made anew. A scene that fails does not stop the others, but no further one is
    begun when more than `max_failed` have. `test_scenes` are names or patterns of the scenes whose pairs are all for
    testing. `say` is given a line of each scene's reconstructions: which of its seed points they begin from, and what
    looks mistaken.

    Other processes may be at it in the same folder: each scene is made by one of them, and one that another process has
    finished or failed at in the meantime is not tried again. What a process that died was working on is taken over.
    Without `wait`, as in a worker's process, what is done is left as it is, and the end of others' work is not waited
    for: None where all that is left of these scenes is theirs.
    The manifest is written when every scene of the run, not only of these, is finished or has failed. Raises OSError
    when nothing more can be written, and InputError for a damaged record.
    """
    jobs = Jobs(run.folder)
    left = {file_name(name): (name, spec) for name, spec in scenes.items()}
    attempts = {key: 0 if (job := jobs.read(key)) is None else job.attempt for key in left}
    failed = 0
    waited = False
    while left and (max_failed is None or failed <= max_failed):
        taken = None
        for key in list(left):
            job = jobs.read(key)
            since = job is not None and (job.attempt > attempts[key] or (job.state == DONE and not wait))
            if job is not None and since and job.state in (DONE, FAILED):
                failed += job.state == FAILED  # by another process
                del left[key]
                continue
            with jobs.working(key) as report:
                if report is None:
                    continue
                taken = key
                name, spec = left[key]
                with _reported(report):
                    test = any(fnmatchcase(name, one) for one in test_scenes)
                    _scene(load(spec), recipe, run, test, _tee(progress, report), say)
                failed += bool(report.failure)
                del left[key]
                break
        if left and taken is None:
            if not wait:
                return None
            if not waited:
                say(f"Other processes are at work on {', '.join(left)}; waiting for them.")
                waited = True
            time.sleep(_POLL)
    return gather(run.folder)


@contextmanager
def _reported(report: Report) -> Iterator[None]:
    """What goes wrong with one scene is reported; what would with every scene is raised."""
    try:
        yield
    except Exception as error:
        if (interruption := interruption_behind(error)) is not None:
            raise interruption from error
        if isinstance(error, InputError):
            report.fail(str(error))
            return
        if isinstance(error, OSError) and error.errno in _NO_SCENE_WOULD_FARE_BETTER:
            raise
        if isinstance(error, OSError) and error.errno is not None:
            report.fail(f"{error.strerror} ({error.filename}); mend this and run the same line again.")
        elif out_of_memory(error):
            report.fail(less_memory(("size", "method", "settings")))
        else:
            report.fail(f"{type(error).__name__}: {error}", traceback.format_exc())


def _tee(progress: Progress, report: Report) -> Progress:
    """The same progress, which the job's record tells of, too."""

    @contextmanager
    def told(label: str, total: int) -> Iterator[Callable[[int], None]]:
        with progress(label, total) as update:

            def both(done: int) -> None:
                update(done)
                report.progress(label, done, total)

            yield both

    return told


def gather(folder: Path) -> Curated:
    """What a folder of pairs holds, with a manifest if every scene in it is finished or has failed."""
    jobs = list(Jobs(folder))
    failed = {job.name: Failure(job.message, job.fault) for job in jobs if job.state == FAILED}
    if left := [job.name for job in jobs if job.state not in (DONE, FAILED)]:
        return Curated(summaries(scene_records(folder)), failed, left)
    return finish(folder, failed)


def plan(scene: Scene, recipe: Recipe, home: Path) -> list[Stage]:
    """The stages of a scene whose folder is `home`, in the order in which they share reconstructions.

    Raises InputError for what the strategy cannot do with this scene.
    """
    views = recipe.views
    stages = []
    if recipe.strategy == "cycle":
        for shift in recipe.shifts:
            shift_distance(scene, shift)  # says now what it cannot do
            name = file_name(f"cycle-{shift}")
            pairs = partial(cycle, scene, shift=shift, views=views, folder=home / name / SHIFTED)
            stages.append(Stage(name, len(scene.frames), pairs))
    else:
        rig = recipe.strategy == "cross-camera"
        for split in (make_split(scene, rule) for rule in recipe.splits or [_default_rule(scene, recipe.strategy)]):
            name = file_name(f"{recipe.strategy}-{split.rule}")
            frames = {
                "train": [scene.frames[i].name for i in split.train],
                "test": [scene.frames[i].name for i in split.test],
            }
            if recipe.strategy == "clips":
                count = sum(map(len, clips_of(scene, split)))  # says now that there are none
                stages.append(Stage(name, count, partial(clips, scene, split=split), frames))
                continue
            if recipe.strategy != "underfit":
                pairs = partial(cross_camera if rig else sparse, scene, split=split, views=views)
                stages.append(Stage(name, len(split.test), pairs, frames))
                continue
            for stop in sorted(map(parse_stop, recipe.stops)):
                pairs = partial(underfit, scene, split=split, stop=stop, views=views)
                stages.append(Stage(f"{name}-at-{100 * stop:g}", len(split.train) + len(split.test), pairs, frames))
    if repeated := [name for name, count in Counter(stage.name for stage in stages).items() if count > 1]:
        raise InputError(f"Two of the splits, shifts or stops would share the folder {repeated[0]}; leave one out.")
    return stages


def _default_rule(scene: Scene, strategy: str) -> str:
    """The split of a scene where none was asked for."""
    if strategy == "clips":
        return CLIPS_RULE
    return default_camera_rule(scene) if strategy == "cross-camera" else default_split_rule(scene)


def _scene(scene: Scene, recipe: Recipe, run: Run, test: bool, progress: Progress, say: Callable[[str], None]) -> None:
    """All stages of one scene, and its record."""
    home = run.folder / file_name(scene.name)
    stages = plan(scene, recipe, home)
    record = SceneRecord(scene.name, scene_fingerprint(scene), test, recipe.format)
    held = read_scene(home / SCENE_FILE) if (home / SCENE_FILE).is_file() else None
    if held is not None and replace(held, test=test) != record:
        if any(home.glob(f"*/{STAGE_FILE}")):
            raise InputError(
                f"{_changed(held, record, scene)} since {home} was begun; remove that folder, or curate into another "
                "--output."
            )
        shutil.rmtree(home)
        held = None
    if held is not None:
        _move_tars(home, test)
        if held.test != test:
            say(f"{scene.name}: its pairs are for {'testing' if test else 'training'} from now on.")
    if held != record:
        write_json(home / SCENE_FILE, asdict(record))
    for leftover in home.rglob(".*.part"):  # of a process that was killed
        leftover.unlink()
    build = Build(
        folder=home / MODELS,
        method=recipe.method,
        preset=recipe.preset,
        device=recipe.device,
        iterations=recipe.iterations or default_iterations(recipe.method, recipe.preset),
        overrides=recipe.overrides,
        seed=recipe.seed,
        progress=progress,
        say=say,
    )
    todo = [stage for stage in stages if not stage_stands(home / stage.name, stage.split)]
    for stage in todo:
        tars = (run.folder / tar_name(home / stage.name, part) for part in (False, True))
        for stale in (home / stage.name / STAGE_FILE, *tars):
            stale.unlink(missing_ok=True)
    if todo:
        # a clip without some of its pictures would be none
        filters = Filters(scene, FILTERS if recipe.strategy == "clips" else recipe.keep)
        for stage in todo:
            _stage(scene, stage, home / stage.name, record, recipe, build, filters, run)
    if recipe.format == "webdataset":
        for folder in [home / "photos", *(home / stage.name / kind for stage in stages for kind in (*KINDS, SHIFTED))]:
            shutil.rmtree(folder, ignore_errors=True)
    if not recipe.keep_models:
        shutil.rmtree(home / MODELS, ignore_errors=True)


def _changed(held: SceneRecord, record: SceneRecord, scene: Scene) -> str:
    """What tells a scene's record from the one that its folder holds, in words."""
    if held.name != record.name:
        return f"The scene's name has changed from {held.name} to {record.name}"
    if held.format != record.format:
        return f"The format has changed from {held.format} to {record.format}"
    return f"The photos or poses of {scene.root} have changed"


def _move_tars(home: Path, test: bool) -> None:
    """Tars of a scene's finished stages go to where those of its part lie; no others do, whenever it was killed."""
    for record in home.glob(f"*/{STAGE_FILE}"):
        held, wanted = (home.parent / tar_name(record.parent, part) for part in (not test, test))
        if held.is_file():
            wanted.parent.mkdir(exist_ok=True)
            held.replace(wanted)


def _stage(
    scene: Scene,
    stage: Stage,
    home: Path,
    record: SceneRecord,
    recipe: Recipe,
    build: Build,
    filters: Filters,
    run: Run,
) -> None:
    """Make, filter and write the pairs of one stage into its folder `home`."""
    begun, trained = time.monotonic(), build.seconds
    files = PairFiles(IMAGE_FORMATS[recipe.image_format], recipe.depth or recipe.strategy == "clips")
    made = {"strategy": recipe.strategy, "method": recipe.method, "iterations": build.iterations}
    entries: dict[str, Any] = {}
    dropped: dict[str, str] = {}
    pairs = stage.pairs(build)
    first = list(islice(pairs, 1))  # trains, with a bar of its own
    with build.progress(f"{scene.name}: pairs of {stage.name}", stage.views) as update:
        for done, pair in enumerate(chain(first, pairs), start=1):
            key = pair_id(home, scene, pair)
            if (reason := filters.reason(pair)) is None:
                entries[key] = write_pair(home, scene, pair, files, made)
            else:
                dropped[key] = reason
            update(done)
    write_sheet(home, entries)
    if recipe.format == "webdataset" and entries:
        write_tar(run.folder / tar_name(home, record.test), run.folder, entries)
    reconstruction = build.seconds - trained
    seconds = {"reconstruction": reconstruction, "pairs": time.monotonic() - begun - reconstruction}
    write_stage(home, stage.split, entries, dropped, {name: round(value, 2) for name, value in seconds.items()})
    for name, value in seconds.items():
        run.time(name, value)
