"""`difix distill --prior view-diffusion`: a scene from two to four photos; `difix fix --task novel-view`: its views."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from difixcli import console
from difixcli.cli.inputs import files_read, open_scene, pick_device, scene_inputs, scene_spec, size_of, split_input
from difixcli.cli.outputs import announce
from difixcli.cli.requests import Request
from difixcli.errors import InputError, unknown
from difixcli.runs import Run, fingerprint

if TYPE_CHECKING:
    from difixcli.distillation.seeking import Seeking
    from difixcli.distillation.settings import Settings
    from difixcli.priors.view_diffusion.model import ViewDiffusion

MOST = 9
"""Photos beyond which nothing is gained by looking at all of them, and everything takes longer."""
_SIZE = 96  # pixels, the long side on a CPU: the bundled networks'
_AROUND = {"cpu": 24, "gpu": 50}  # cameras drawn around the photos; the release's are 50
_ROUNDS = 6
_SHARE = 0.5  # the release takes a step on a photo and one on a view in turn


def distill_few(
    request: Request, network: str | None, seek: str | None, steps: int | None, reuse: int | None, anneal: bool
) -> None:
    """Train on a few photos and, around them, on what diffusion says is likely."""
    from difixcli.distillation.schedule import make_schedule
    from difixcli.distillation.seeking import SEEK, check_seek, make_seeking
    from difixcli.scenes import default_split_rule, make_split
    from difixcli.scenes.overlap import check_few_photos

    check_seek(seek or SEEK[0], steps, reuse, anneal)
    if request.start is not None and request.iterations is not None:
        raise InputError("With --start training on photos is done; say with --further how long the rounds are.")
    rounds = _ROUNDS if request.rounds is None else request.rounds
    if rounds < 2 and seek != "mean":
        raise InputError(
            f"Of {rounds} rounds none is left after the first third, on EFT's pictures; ask for 2 or more."
        )
    on, sizes = pick_device(request.device, request.preset)
    size = _SIZE if request.size is None and sizes == "cpu" else request.size
    loaded = open_scene(request.scene, size, "gpu")
    rule = request.split or default_split_rule(loaded)
    split = make_split(loaded, rule, need_test="test" in (request.targets or ()))
    check_few_photos(loaded, split.train, rule)
    if request.compare and not split.test:
        raise InputError(f"The split {rule!r} holds out no photo to compare by; leave --compare out.")
    if len(split.train) > MOST:
        console.warn(
            f"{len(split.train)} photos train, all of which the networks look at for every view; they are for two to "
            f"four, of which --split groups:3 makes three."
        )
    aims = request.targets or [f"around:{_AROUND[sizes]}", *(["test"] if split.test else [])]
    seeking = make_seeking(sizes, network and _absolute(network), seek, steps, reuse, anneal)

    from difixcli.cli.distill import held, start_files
    from difixcli.distillation.settings import Settings, read_terms
    from difixcli.distillation.view_diffusion import ModeSeeking, own_terms, photo_iterations, planned
    from difixcli.novel_views import NovelViews
    from difixcli.priors.view_diffusion.files import view_diffusion_files
    from difixcli.reconstruction import default_iterations, draws_images, known_methods, method_config
    from difixcli.reconstruction.compilation import compile_ahead
    from difixcli.reconstruction.objective import check_terms

    method = request.method or "splatfacto"
    if request.method is None and request.start is not None and request.start.is_dir():
        from difixcli.reconstruction.start import method_of

        method = method_of(request.start)
    if method not in (methods := known_methods()):
        raise unknown("method", method, methods)
    terms = read_terms(request.loss) or own_terms(draws_images(method_config(method)))
    for aim in {(frame.camera.width, frame.camera.height) for frame in loaded.frames}:
        check_terms(terms, aim[1], aim[0])
    further = request.further or default_iterations(method, sizes)
    photos = 0 if request.start is not None else request.iterations or photo_iterations(further)
    schedule = make_schedule(sizes, photos, further, rounds, share=request.share or _SHARE)
    plan = Settings(
        method=method,
        preset=sizes,
        device=on,
        schedule=schedule,
        seed=request.seed,
        compare=request.compare,
        overrides=request.settings,
        targets=aims,
        prior="view-diffusion",
        terms=terms,
        raised=1.0,
        guard=False,
        start=None if request.start is None else str(request.start.expanduser().absolute()),
        seeking=seeking,
    )
    made = ModeSeeking(loaded, split, plan)
    arguments = _arguments(plan, seeking, request, size, rule)
    files = view_diffusion_files(seeking.network)
    begun = start_files(request.start)
    inputs = {**scene_inputs(loaded), **split_input(loaded, split), "view-diffusion": fingerprint(files, content=True)}
    inputs |= {str(path): fingerprint([path], content=True) for path in _paths(aims)}
    if request.start is not None:
        inputs["start"] = fingerprint(begun, content=True)
    folder, run = held(request.output, loaded, method, arguments, inputs, request.force, request.from_round)
    networks = None
    if run is None or not run.done:
        networks = open_networks(seeking.network, on)
        reads = [*files_read("bundled", loaded), *files, *_paths(aims), *begun]
        run = Run.open(folder, "distill", arguments, inputs, request.force, reads=reads)
    announce(
        run,
        scene=f"{loaded.name}, {len(split.train)} photos train, {len(split.test)} test ({rule})",
        method=f"{method}, preset {sizes} on {on}, seed {request.seed}",
        size=size_of(loaded),
        start=request.start,
        targets=f"{', '.join(aims)}: {len(made.targets)} views, {schedule.share:.0%} of what is drawn",
        schedule=planned(schedule),
        seek=f"{seeking.seek}" if seeking.seek == "mean" else f"{seeking.seek}, {seeking.steps} denoising steps, each "
        f"x̂₀ for {seeking.reuse} draws",
        points=f"{len(made.scene.points):,} of {len(loaded.points):,} seed points are known from these photos",
    )  # fmt: skip
    if not split.test:
        console.say("No photo is held out, so nothing is measured; --split holds some out.")
    if networks is None:
        results = run.record["results"]
    else:
        compile_ahead(method, on, console.say)
        results = made.seek(NovelViews(networks, made.scene, split.train), run, console.progress, console.say)
        run.finish(results)
    console.say(f"Pictures: {run.folder / ('renders' if results else 'path')}")
    if results:
        console.say(f"For a report: difix eval {run.folder}")
    title = f"{loaded.name}, {method}: {len(split.test)} test views"
    tables = [console.figures_table(title, results)] if results else []
    console.finish({"results": results, "output": str(run.folder)}, request.as_json, *tables)


def open_networks(name: str, device: str) -> ViewDiffusion:
    """The view-conditioned diffusion model called `name`, to be used; its licence is said."""
    from difixcli.priors.view_diffusion.model import ViewDiffusion

    model = ViewDiffusion.from_pretrained(name, device)
    console.say(f"View diffusion {name}: licence {model.licence}")
    return model


def _absolute(name: str) -> str:
    """A folder's name from the root on, since a run is gone on with from anywhere."""
    path = Path(name).expanduser()
    return str(path.absolute()) if name != "bundled" and path.exists() else name


def _arguments(plan: Settings, seeking: Seeking, request: Request, size: int | None, rule: str) -> dict[str, Any]:
    """What a run is known by."""
    kept = {**vars(plan), "schedule": vars(plan.schedule), "seeking": asdict(seeking)}
    for name in ("references", "trust", "drop_below", "guard", "enlargement"):  # of other priors
        del kept[name]
    return {**kept, "scene": scene_spec(request.scene), "size": size, "split": rule}


def _paths(aims: list[str]) -> list[Path]:
    return [Path(aim).expanduser() for aim in aims if aim.lower().endswith(".json")]
