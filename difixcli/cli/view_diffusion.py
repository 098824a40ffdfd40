"""`difix distill --prior view-diffusion`: a scene from two to four photos; `difix fix --task novel-view`: its views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from difixcli import console
from difixcli.cli.distilling import (
    Distilled,
    absolute,
    ended,
    held,
    method_asked,
    recorded,
    results_of,
    settings_of,
    start_files,
    told,
)
from difixcli.cli.inputs import (
    files_read,
    open_scene,
    pick_device,
    scene_inputs,
    scene_spec,
    size_of,
    split_input,
    tell_loading,
)
from difixcli.cli.outputs import Made, announce, beside_others, folder_beside, tell_frames
from difixcli.errors import InputError
from difixcli.runs import Run, fingerprint
from difixcli.wording import counted

if TYPE_CHECKING:
    from difixcli.cli.distill import DistillRequest
    from difixcli.cli.fix import FixRequest
    from difixcli.priors.view_diffusion.model import ViewDiffusion
    from difixcli.scenes import Camera
    from difixcli.scenes.scene import Scene
    from difixcli.scenes.splits import Split

MOST = 9
"""Photos beyond which nothing is gained by looking at all of them, and everything takes longer."""
_SIZE = 96  # pixels, the long side on a CPU: the bundled networks'
_AROUND = {"cpu": 24, "gpu": 50}  # cameras drawn around the photos; the release's are 50
_ROUNDS = 6
_FEW = 4  # photos of a scene that all train, unless a split says otherwise
_SAMPLE_STEPS = 25  # of DDIM
_SHARE = 0.5  # the release takes a step on a photo and one on a view in turn


def check_few(request: DistillRequest) -> None:
    """InputError for what seeking modes does not take."""
    from difixcli.distillation.seeking import SEEK, check_seek
    from difixcli.priors.view_diffusion.files import check_view_diffusion

    check_seek(request.seek or SEEK[0], request.denoise_steps, request.reuse, request.anneal)
    if request.rounds is not None and request.rounds < 2 and request.seek != "mean":
        raise InputError(
            f"Of {request.rounds} rounds none is left after the first third, on EFT's pictures; ask for 2 or more."
        )
    check_view_diffusion(request.view_diffusion or "bundled")


def distill_few(request: DistillRequest) -> Distilled:
    """Train on a few photos and, around them, on what diffusion says is likely."""
    from difixcli.distillation.schedule import make_schedule
    from difixcli.distillation.seeking import make_seeking
    from difixcli.scenes import make_split
    from difixcli.scenes.sparse_views import check_sparse_views

    rounds = _ROUNDS if request.rounds is None else request.rounds
    on, sizes = pick_device(request.device, request.preset)
    size = _SIZE if request.size is None and sizes == "cpu" else request.size
    loaded = open_scene(request.scene, size, "gpu")
    rule = request.split_rule or few_photos_rule(loaded)
    split = make_split(loaded, rule, need_test="test" in (request.targets or ()))
    check_sparse_views(loaded, split.train)
    if request.compare and not split.test:
        raise InputError(f"The split {rule!r} holds out no photo to compare by; leave --compare out.")
    if len(split.train) > MOST:
        console.warn(
            f"{len(split.train)} photos train, all of which the networks look at for every view; they are for two to "
            f"four, of which --split views:3 makes three."
        )
    aims = request.targets or [f"around:{_AROUND[sizes]}", *(["test"] if split.test else [])]
    network = request.view_diffusion and absolute(request.view_diffusion)
    seeking = make_seeking(sizes, network, request.seek, request.denoise_steps, request.reuse, request.anneal)

    tell_loading("nerfstudio")
    from difixcli.distillation.settings import read_terms
    from difixcli.distillation.view_diffusion import ModeSeeking, own_terms, photo_iterations, planned
    from difixcli.novel_views import NovelViews
    from difixcli.priors.view_diffusion.files import view_diffusion_files
    from difixcli.reconstruction import default_iterations, draws_images, method_config
    from difixcli.reconstruction.objective import check_terms

    method = method_asked(request)
    terms = read_terms(request.loss or ()) or own_terms(draws_images(method_config(method)))
    for aim in {(frame.camera.width, frame.camera.height) for frame in loaded.frames}:
        check_terms(terms, aim[1], aim[0])
    further = request.further or default_iterations(method, sizes)
    photos = 0 if request.start is not None else request.iterations or photo_iterations(further)
    schedule = make_schedule(sizes, photos, further, rounds, share=request.share or _SHARE)
    plan = settings_of(request, method, sizes, on, schedule, terms, targets=aims, raised=1.0, seeking=seeking)
    made = ModeSeeking(loaded, split, plan)
    unheard = ("references", "trust", "drop_below", "guard", "enlargement", "filming")
    arguments = recorded(request, plan, size, rule, unheard)
    files = view_diffusion_files(seeking.network)
    begun = start_files(request.start)
    inputs = {**scene_inputs(loaded), **split_input(loaded, split), "view-diffusion": fingerprint(files)}
    inputs |= {str(path): fingerprint([path]) for path in _paths(aims)}
    if request.start is not None:
        inputs["start"] = fingerprint(begun)
    folder, run = held(request.output, loaded, method, arguments, inputs, request.force, request.from_round)
    networks = None
    if run is None or not run.done:
        networks = open_networks(seeking.network, on)
        reads = [*files_read("bundled", loaded), *files, *_paths(aims), *begun]
        run = Run.open(folder, "distill", arguments, inputs, request.force, reads=reads)
    announce(
        run,
        **told(request, loaded, split, rule, method, sizes, on),
        size=size_of(loaded),
        start=request.start,
        targets=f"{', '.join(aims)}: {counted(len(made.targets), 'view')}, {schedule.share:.0%} of what is drawn",
        schedule=planned(schedule, seeking.seek),
        seek=f"{seeking.seek}" if seeking.seek == "mean" else f"{seeking.seek}, {seeking.steps} denoising steps, each "
        f"x̂₀ for {seeking.reuse} draws",
        points=f"{len(made.scene.points):,} of {len(loaded.points):,} seed points are known from these photos",
    )  # fmt: skip
    work = None if networks is None else partial(made.seek, NovelViews(networks, made.scene, split.train))
    return ended(run, loaded, split, method, results_of(run, split, method, on, work))


def check_views(request: FixRequest) -> None:
    """InputError for views that there cannot be."""
    from difixcli.priors.view_diffusion.files import check_view_diffusion
    from difixcli.scenes import check_rule, check_scene, scene_root
    from difixcli.scenes.trajectories import check_trajectory

    check_scene(_scene_of(request))
    check_view_diffusion(request.view_diffusion or "bundled")
    if request.split is not None:
        check_rule(request.split, scene_root(_scene_of(request)))
    if request.trajectory is not None and request.camera is not None:
        raise InputError("--trajectory and --camera both say where to look from; leave one of them out.")
    if request.trajectory is not None:
        check_trajectory(request.trajectory)


def novel_views(request: FixRequest) -> Made:
    """Render views from the networks alone: the split's test views, a path's, or a file's."""
    from difixcli.scenes import make_split
    from difixcli.scenes.sparse_views import check_sparse_views
    from difixcli.scenes.trajectories import path_world_note

    source, trajectory = _scene_of(request), request.trajectory
    on, _ = pick_device(request.device)
    if trajectory is not None and (note := path_world_note(trajectory)) is not None:
        console.say(note)
    loaded = open_scene(source, request.size, "gpu")
    rule = request.split or few_photos_rule(loaded)
    chosen = make_split(loaded, rule, need_test=trajectory is None and request.camera is None)
    check_sparse_views(loaded, chosen.train)
    shown = _shown(request, loaded, chosen)

    from difixcli.enhancement.novel_views import render_novel_views
    from difixcli.enhancement.runs import path_fingerprint
    from difixcli.novel_views import NovelViews
    from difixcli.priors.view_diffusion.files import view_diffusion_files

    name = absolute(request.view_diffusion or "bundled")
    weights = view_diffusion_files(name)
    steps = request.denoise_steps or _SAMPLE_STEPS
    arguments = {**request.arguments, "scene": scene_spec(source), "split": rule, "view-diffusion": name}
    arguments["trajectory"] = trajectory
    arguments |= {"camera": request.camera and request.camera.absolute(), "steps": steps}
    inputs = {**scene_inputs(loaded), **split_input(loaded, chosen), "view-diffusion": fingerprint(weights)}
    inputs["views"] = path_fingerprint([one for _, one in shown.views])
    output = request.output
    if output is None:
        folder = f"{loaded.name}_views" if source.startswith("sample:") else folder_beside(Path(source), "views")
        output = beside_others(Path(folder), "fix", arguments)
    networks = open_networks(name, on)
    reads = [*files_read("bundled", loaded), *weights, *shown.files]
    run = Run.open(output, "fix", arguments, inputs, request.force, reads=reads)
    announce(
        run,
        scene=f"{loaded.name}, {counted(len(chosen.train), 'photo is', 'photos are')} looked at ({rule})",
        views=f"{shown.where}, drawn in {steps} steps, seed {request.seed}; the networks' size is {networks.size} "
        "pixels",
        device=on,
    )
    views = NovelViews(networks, loaded, chosen.train)
    results = render_novel_views(shown.views, run.folder, views, request.seed, steps, shown.fps, console.progress)
    run.finish(results)
    tell_frames("Views", run.folder, results)
    console.say(f"EFT's own: {run.folder / 'eft'}")
    return Made(run.folder, results)


@dataclass(frozen=True)
class _Shown:
    """The views that are asked for: their names and cameras, what they are called, the frames a second of a path, and
    the files that say so."""

    views: list[tuple[str, Camera]]
    where: str
    fps: float | None = None
    files: Sequence[Path] = ()


def _shown(request: FixRequest, scene: Scene, split: Split) -> _Shown:
    from difixcli.scenes import make_trajectory
    from difixcli.scenes.camera_files import read_cameras

    if request.camera is not None:
        file = request.camera.expanduser()
        views = read_cameras(file, scene, scene.frames[split.train[0]].camera)
        return _Shown(views, f"{len(views)} of {request.camera}", files=[file])
    if request.trajectory is not None:
        path = make_trajectory(scene, split.train, request.trajectory)
        views = [(f"frame_{number:05d}", one) for number, one in enumerate(path.cameras, start=1)]
        where = f"{request.trajectory}, {counted(len(views), 'frame')}"
        return _Shown(views, where, path.fps, _paths([request.trajectory]))
    views = [(scene.file_names[i], scene.frames[i].camera) for i in split.test]
    return _Shown(views, f"the {counted(len(views), 'test view')}")


def _scene_of(request: FixRequest) -> str:
    """The scene whose views are asked for: the folder that one stands in, where none is named."""
    return "." if request.source is None else str(request.source)


def few_photos_rule(scene: Scene) -> str:
    """The split where none is asked for: the scene's own, all photos of a scene of a few, three of any other."""
    from difixcli.scenes import DEFAULT_RULE, default_split_rule

    if len(scene.frames) <= _FEW:
        return "all"
    own = default_split_rule(scene)
    return "views:3" if own == DEFAULT_RULE else own


def open_networks(name: str, device: str) -> ViewDiffusion:
    """The view-conditioned diffusion model called `name`, to be used; its licence is said."""
    from difixcli.priors.view_diffusion.model import ViewDiffusion

    model = ViewDiffusion.from_pretrained(name, device)
    console.say(f"View diffusion {name}: licence {model.licence}")
    return model


def _paths(aims: list[str]) -> list[Path]:
    return [Path(aim).expanduser() for aim in aims if aim.lower().endswith(".json")]
