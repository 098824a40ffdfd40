"""`difix distill --prior video`: a scene from a few photos far apart, by films of the ways between them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from difixcli import console
from difixcli.cli.inputs import files_read, open_scene, pick_device, scene_inputs, scene_spec, size_of, split_input
from difixcli.cli.outputs import announce
from difixcli.cli.requests import Request, held, method_asked, told
from difixcli.cli.view_diffusion import MOST, few_photos_rule
from difixcli.errors import InputError
from difixcli.runs import Run, fingerprint
from difixcli.wording import counted

if TYPE_CHECKING:
    from difixcli.distillation.filming import Filming
    from difixcli.distillation.settings import Settings

_SIZE = 128  # pixels, the long side on a CPU
_SHARE = {"cpu": 0.2, "gpu": 0.5}  # of what is drawn in the rounds: small models' pictures are worth less than photos


def distill_filmed(
    request: Request, points: str | None, video: str | None, frames: int | None, trust: str | None
) -> None:
    """Train on a few photos and on films of the ways between them."""
    from difixcli.distillation.filming import NO_CLOUD, check_frames, make_filming
    from difixcli.distillation.schedule import make_schedule
    from difixcli.distillation.settings import check_trust
    from difixcli.point_maps.files import AUTO, check_points
    from difixcli.scenes import make_split
    from difixcli.scenes.sparse_views import check_sparse_views

    check_frames(frames)
    if points not in (None, NO_CLOUD):
        check_points(points)
    if trust is not None:
        check_trust(trust)
    on, sizes = pick_device(request.device, request.preset)
    size = _SIZE if request.size is None and sizes == "cpu" else request.size
    loaded = open_scene(request.scene, size, "gpu")
    rule = request.split or few_photos_rule(loaded)
    split = make_split(loaded, rule, need_test=False)
    check_sparse_views(loaded, split.train)
    if request.compare and not split.test:
        raise InputError(f"The split {rule!r} holds out no photo to compare by; leave --compare out.")
    if len(split.train) > MOST:
        console.warn(
            f"{len(split.train)} photos train, between which {len(split.train) - 1} ways are filmed; the video prior "
            "is for a few photos far apart, of which --split views:3 makes three."
        )
    cloud = _absolute(points) if points not in (None, NO_CLOUD, AUTO) else points
    filming = make_filming(sizes, cloud, video and _absolute(video), frames)

    from difixcli.distillation.settings import RAISED, Settings, read_terms
    from difixcli.distillation.video import Filmed, own_terms, planned
    from difixcli.priors.video.files import film_files
    from difixcli.priors.video.opening import open_video_model
    from difixcli.reconstruction import default_iterations, draws_images, method_config
    from difixcli.reconstruction.compilation import compile_ahead
    from difixcli.reconstruction.objective import check_terms

    method = method_asked(request)
    terms = read_terms(request.loss) or own_terms(draws_images(method_config(method)), sizes)
    further = request.further or default_iterations(method, sizes)
    schedule = make_schedule(
        sizes, request.iterations or further, further, request.rounds or 1,
        share=request.share or _SHARE[sizes],
    )  # fmt: skip
    plan = Settings(
        method=method,
        preset=sizes,
        device=on,
        schedule=schedule,
        seed=request.seed,
        compare=request.compare,
        overrides=request.settings,
        targets=(),
        prior="video",
        trust=trust or "supported",
        terms=terms,
        raised=RAISED,
        guard=False,
        filming=filming,
        confidence=request.confidence,
    )
    made = Filmed(loaded, split, plan)
    for camera in {(target.camera.width, target.camera.height) for target in made.targets}:
        check_terms(terms, camera[1], camera[0])
    arguments = _arguments(plan, filming, request, size, rule)
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
    if not split.test:
        console.say("No photo is held out, so nothing is measured; --split holds some out.")
    if model is None:
        results = run.record["results"]
    else:
        compile_ahead(method, on, console.say)
        results = made.film(model, run, console.progress, console.say)
        run.finish(results)
    console.say(f"Pictures: {run.folder / ('renders' if results else 'path')}")
    if results:
        console.say(f"For a report: difix eval {run.folder}")
    title = f"{loaded.name}, {method}: {counted(len(split.test), 'test view')}"
    tables = [console.figures_table(title, results)] if results else []
    console.finish({"results": results, "output": str(run.folder)}, request.as_json, *tables)


def _absolute(name: str) -> str:
    """A path's name from the root on, since a run is gone on with from anywhere; a hub's as it is."""
    path = Path(name).expanduser()
    return str(path.absolute()) if name != "bundled" and path.exists() else name


def _arguments(plan: Settings, filming: Filming, request: Request, size: int | None, rule: str) -> dict[str, Any]:
    """What a run is known by."""
    kept = {**vars(plan), "schedule": vars(plan.schedule), "filming": asdict(filming)}
    for name in ("references", "drop_below", "guard", "enlargement", "seeking", "targets", "start"):  # of other priors
        del kept[name]
    if not plan.confidence:  # runs are known by it since it is there
        del kept["confidence"]
    return {**kept, "scene": scene_spec(request.scene), "size": size, "split": rule}
