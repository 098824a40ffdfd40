"""`difix distill --prior video`: a scene from a few photos far apart, by films of the ways between them."""

from __future__ import annotations

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
    told,
)
from difixcli.cli.inputs import (
    check_model,
    files_read,
    open_scene,
    pick_device,
    scene_inputs,
    size_of,
    split_input,
    tell_loading,
)
from difixcli.cli.outputs import announce
from difixcli.cli.view_diffusion import MOST, few_photos_rule
from difixcli.errors import InputError
from difixcli.model_folders import no_video_model
from difixcli.runs import Run, fingerprint
from difixcli.wording import counted

if TYPE_CHECKING:
    from difixcli.cli.distill import DistillRequest

_SIZE = 128  # pixels, the long side on a CPU
_SHARE = {"cpu": 0.2, "gpu": 0.5}  # of what is drawn in the rounds: small models' pictures are worth less than photos


def check_filmed(request: DistillRequest) -> None:
    """InputError for what films do not take."""
    from difixcli.distillation.filming import NO_CLOUD, check_frames
    from difixcli.distillation.settings import check_trust

    check_frames(request.frames)
    check_model(request.video, "video")
    path = Path(request.video or "bundled").expanduser()
    if (
        path != Path("bundled")
        and path.exists()
        and not any((path / name).is_file() for name in ("config.json", "model_index.json"))
    ):
        raise no_video_model(path)
    if request.points not in (None, NO_CLOUD):
        from difixcli.point_maps.names import check_points

        check_points(request.points)
    if request.trust is not None:
        check_trust(request.trust)


def distill_filmed(request: DistillRequest) -> Distilled:
    """Train on a few photos and on films of the ways between them."""
    from difixcli.distillation.filming import NO_CLOUD, make_filming
    from difixcli.distillation.schedule import make_schedule
    from difixcli.point_maps.names import AUTO
    from difixcli.scenes import make_split
    from difixcli.scenes.sparse_views import check_sparse_views

    on, sizes = pick_device(request.device, request.preset)
    size = _SIZE if request.size is None and sizes == "cpu" else request.size
    loaded = open_scene(request.scene, size, "gpu")
    rule = request.split_rule or few_photos_rule(loaded)
    split = make_split(loaded, rule, need_test=False)
    check_sparse_views(loaded, split.train)
    if request.compare and not split.test:
        raise InputError(f"The split {rule!r} holds out no photo to compare by; leave --compare out.")
    if len(split.train) > MOST:
        console.warn(
            f"{len(split.train)} photos train, between which {len(split.train) - 1} ways are filmed; the video prior "
            "is for a few photos far apart, of which --split views:3 makes three."
        )
    points, video = request.points, request.video
    cloud = absolute(points) if points not in (None, NO_CLOUD, AUTO) else points
    filming = make_filming(sizes, cloud, video and absolute(video), request.frames)

    tell_loading("nerfstudio")
    from difixcli.distillation.settings import read_terms
    from difixcli.distillation.video import Filmed, own_terms, planned
    from difixcli.priors.video.files import film_files
    from difixcli.priors.video.opening import open_video_model
    from difixcli.reconstruction import default_iterations, draws_images, method_config
    from difixcli.reconstruction.objective import check_terms

    method = method_asked(request)
    terms = read_terms(request.loss or ()) or own_terms(draws_images(method_config(method)), sizes)
    further = request.further or default_iterations(method, sizes)
    schedule = make_schedule(
        sizes, request.iterations or further, further, request.rounds or 1,
        share=request.share or _SHARE[sizes],
    )  # fmt: skip
    plan = settings_of(
        request, method, sizes, on, schedule, terms, targets=(), trust=request.trust or "supported", filming=filming
    )
    made = Filmed(loaded, split, plan)
    for camera in {(target.camera.width, target.camera.height) for target in made.targets}:
        check_terms(terms, camera[1], camera[0])
    unheard = ("references", "drop_below", "guard", "enlargement", "seeking", "targets", "start")
    arguments = recorded(request, plan, size, rule, unheard)
    weights = film_files(filming.video)
    clouds = [Path(filming.points)] if filming.points not in (AUTO, NO_CLOUD) else []
    inputs = {**scene_inputs(loaded), **split_input(loaded, split), "video": fingerprint(weights)}
    if clouds:
        inputs["points"] = fingerprint(clouds)
    folder, run = held(request.output, loaded, method, arguments, inputs, request.force, request.from_round)
    model = None
    if run is None or not run.done:
        model = open_video_model(filming.video, device=on)
        if (licence := getattr(model, "licence", None)) is not None:
            console.say(f"Video model {filming.video}: licence {licence}")
        if (fixer := getattr(model, "fixer", None)) is not None:
            fixer.notice = console.warn
        reads = [*files_read("bundled", loaded), *weights, *clouds]
        run = Run.open(folder, "distill", arguments, inputs, request.force, reads=reads)
    known = {AUTO: "made from the photos", NO_CLOUD: "none but the scene's seed points"}
    announce(
        run,
        **told(request, loaded, split, rule, method, sizes, on),
        size=size_of(loaded),
        points=known.get(filming.points, filming.points),
        films=f"{counted(len(made.targets), 'picture')} between {len(split.train)} photos, by {filming.video}, "
        f"{schedule.share:.0%} of what is drawn",
        schedule=planned(schedule),
    )
    work = None if model is None else partial(made.film, model)
    return ended(run, loaded, split, method, results_of(run, split, method, on, work))
