"""`difix distill --prior super-resolution`: a scene larger than its photos; `difix fix --upscale`: larger images."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from difixcli import console
from difixcli.cli.distilling import (
    Distilled,
    absolute,
    held,
    measured,
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
    size_of,
    split_input,
    tell_loading,
    tell_slow,
)
from difixcli.cli.outputs import Made, announce, beside_others, folder_beside, tell_frames
from difixcli.errors import InputError, unknown
from difixcli.runs import Run, check_enlarged, fingerprint
from difixcli.wording import counted

if TYPE_CHECKING:
    from difixcli.cli.distill import DistillRequest
    from difixcli.cli.fix import FixRequest
    from difixcli.enhancement.runs import Cleaner
    from difixcli.images import Operator
    from difixcli.priors.super_resolution.enlargement import Enlargement, Update
    from difixcli.priors.super_resolution.resolver import SuperResolver
    from difixcli.scenes.scene import Scene

UPSCALE = 4
_ROUNDS = 4  # T of the paper
_SIZE = 240  # pixels, the long side of small photos on a CPU
_RAYS = 0.8  # share of rays that are the large views'
_MOST_WRITTEN = 10**9  # pixels of an enlarged image: a photo of 60 megapixels, four times as large


def read_enlargement(request: DistillRequest) -> Enlargement:
    """What was asked for, with defaults in place of what was not. Raises InputError for what there is none of."""
    from difixcli.images import check_operator
    from difixcli.priors.super_resolution.enlargement import UPDATES, Enlargement

    update = request.sr_update or UPDATES[0]
    if update not in UPDATES:
        raise unknown("way to go on from a render", update, UPDATES)
    operator = check_operator(request.downscale or "area")
    # the run is enhanced from anywhere
    resolver = absolute(request.sr or "bundled")
    return Enlargement(request.upscale or UPSCALE, request.reduce or 1, operator, resolver, update)


def check_larger(request: DistillRequest) -> None:
    """InputError for what super-resolution does not take."""
    from difixcli.distillation.settings import read_terms
    from difixcli.priors.super_resolution.files import check_resolver

    enlargement = read_enlargement(request)
    if request.start is not None and enlargement.reduce > 1:
        raise InputError("--start has seen the photos before --reduce would make them smaller; leave one of them out.")
    if request.sr is not None:
        check_resolver(request.sr)
    _check_reduction(read_terms(request.loss or ()), enlargement)


def distill_larger(request: DistillRequest) -> Distilled:
    """Train, super-resolve, train on what came of it, round by round."""
    from difixcli.distillation.schedule import make_schedule
    from difixcli.priors.super_resolution.files import resolver_files
    from difixcli.scenes import default_split_rule, make_split

    enlargement = read_enlargement(request)
    rounds = _ROUNDS if request.rounds is None else request.rounds
    on, sizes = pick_device(request.device, request.preset)
    size = request.size
    if size is None and sizes == "cpu":
        size = _SIZE * enlargement.reduce
    loaded = open_scene(request.scene, size, "gpu")
    rule = request.split_rule or default_split_rule(loaded)
    split = make_split(loaded, rule, need_test=False)
    if request.compare and not split.test:
        raise InputError(f"The split {rule!r} holds out no photo to compare by; leave --compare out.")

    tell_loading("nerfstudio")
    from difixcli.distillation.settings import read_terms
    from difixcli.distillation.super_resolution import SuperResolution, further_iterations
    from difixcli.priors.super_resolution.enlargement import small_and_large
    from difixcli.reconstruction import default_iterations, draws_images, method_config
    from difixcli.reconstruction.objective import check_terms

    small, large = small_and_large(loaded, enlargement)
    method = method_asked(request)
    images = draws_images(method_config(method))
    if images and request.share is not None:
        raise InputError(f"{method} trains on whole images, and here on large ones alone; leave --share out.")
    terms = read_terms(request.loss or ()) or own_terms(enlargement)
    camera = min((frame.camera for frame in large.frames), key=lambda one: min(one.width, one.height))
    check_terms(terms, camera.height, camera.width)
    steps = request.iterations or default_iterations(method, sizes)
    begun = start_files(request.start)
    planned = make_schedule(
        sizes,
        0 if request.start is not None else steps,
        further_iterations(sizes, steps, rounds) if request.further is None else request.further,
        rounds,
        share=None if images else _RAYS if request.share is None else request.share,
        whole=images,
    )
    plan = settings_of(request, method, sizes, on, planned, terms, enlargement=enlargement)
    made = SuperResolution(small, large, split, plan)
    unheard = ("targets", "references", "trust", "drop_below", "guard", "seeking", "filming")
    arguments = recorded(request, plan, size, rule, unheard)
    files = resolver_files(enlargement.resolver)
    inputs = {**scene_inputs(loaded), **split_input(loaded, split)}
    if files:
        inputs["super-resolver"] = fingerprint(files)
    if request.start is not None:
        inputs["start"] = fingerprint(begun)
    folder, run = held(request.output, loaded, method, arguments, inputs, request.force, request.from_round)
    resolver: SuperResolver | None = None
    if run is None or not run.done:
        resolver = _opened(enlargement.resolver, enlargement.upscale, enlargement.operator, on, enlargement.update)
        if request.sr_update is not None and not resolver.steps_alone:
            raise InputError(f"--sr-update says nothing to {enlargement.resolver}, which has one step; leave it out.")
        reads = [*files_read("bundled", loaded), *files, *begun]
        run = Run.open(folder, "distill", arguments, inputs, request.force, reads=reads)
    announce(
        run,
        **told(request, loaded, split, rule, method, sizes, on),
        size=f"photos {size_of(small)}" + (f" (reduced by {enlargement.reduce})" if enlargement.reduce > 1 else "")
        + f", result {size_of(large)}",
        start=request.start,
        schedule=f"{planned.photos} iterations on photos, {counted(planned.rounds, 'round')} of {planned.every} on "
        "larger ones",
        resolver=f"{enlargement.resolver}, {enlargement.upscale} times larger",
    )  # fmt: skip
    if split.test and enlargement.reduce == 1:
        console.say("No photo is as large as the result: figures are of renders made as small as the photos.")
    work = None if resolver is None else partial(made.resolve, resolver)
    results = results_of(run, split, method, on, work)
    return _told(run, enlargement, measured(loaded, split, method), results)


def own_terms(enlargement: Enlargement) -> dict[str, float]:
    """The paper's loss, the method's own against the large image and the same against the photo, with other weights.

    Its λ = 1 takes from the detail that many photos together know (recipes/bench/RESULTS.md).
    """
    operator = "" if enlargement.operator == "area" else f":{enlargement.operator}"
    return {"method": 0.25, f"low_resolution:{enlargement.upscale}{operator}": 1.0}


def _check_reduction(terms: Mapping[str, float], enlargement: Enlargement) -> None:
    """InputError for a term that makes images smaller in another way than the photos were."""
    own = f"low_resolution:{enlargement.upscale}"
    fitting = [f"{own}:{enlargement.operator}", *([own] if enlargement.operator == "area" else [])]
    for name in terms:
        if name.partition(":")[0] == "low_resolution" and name not in fitting:
            raise InputError(f"--loss {name} makes images smaller otherwise than the photos were; write {fitting[-1]}.")


def _told(run: Run, enlargement: Enlargement, title: str, results: dict[str, Any]) -> Distilled:
    """Say where what was made is to be found."""
    agreement = run.record["agreement"]
    console.say(f"Training views, made as small as the photos, agree with them to {agreement:.2f} dB.")
    if results:
        console.say(f"Pictures: {run.folder / ('renders' if enlargement.reduce > 1 else 'large')}")
        console.say(f"For a report: difix eval {run.folder}")
    else:
        console.say(f"For pictures: difix enhance {run.folder} --trajectory spiral")
    return Distilled(run.folder, results, title, {"agreement": agreement})


def large_scene(scene: Scene, asked: dict[str, Any]) -> Scene:
    """A scene at the size of a run's result; `asked` is the enlargement that the run's record has."""
    from difixcli.priors.super_resolution.enlargement import Enlargement, small_and_large

    return small_and_large(scene, Enlargement(**asked))[1]


def resolver_cleaner(asked: dict[str, Any], device: str, seed: int) -> tuple[Cleaner, dict[str, str]]:
    """What enhances the frames of a run of super-resolution, and the fingerprint of what it does that by."""
    from difixcli.enhancement.runs import by_resolver
    from difixcli.priors.super_resolution.files import resolver_files

    name, operator = asked["resolver"], asked["operator"]
    resolver = _opened(name, asked["upscale"], operator, device, asked["update"])
    found = fingerprint(resolver_files(name))
    return by_resolver(resolver, operator, seed), {"super-resolver": found}


def _opened(name: str, factor: int, operator: Operator, device: str, update: Update = "posterior") -> SuperResolver:
    """A super-resolver that shows how far it is in a large image."""
    from difixcli.priors.super_resolution.opening import open_super_resolver

    resolver = open_super_resolver(name, factor, operator, device, update=update)
    resolver.tile_done = console.tile_done
    return resolver


def larger_images(request: FixRequest, source: Path) -> Made:
    """Make images larger, each by itself."""
    from difixcli.enhancement.enlarge import enlarge_images
    from difixcli.frames.pictures import listed_images
    from difixcli.priors.super_resolution.files import resolver_files

    folder = request.output or folder_beside(source, "large")
    sizes = listed_images(source, folder, request.size)
    files = list(sizes)
    name, factor = request.sr or "bundled", request.upscale or UPSCALE
    for path, size in sizes.items():
        check_enlarged(path.name, *size, factor, _MOST_WRITTEN)
    tell_slow(sizes, factor)
    on, _ = pick_device(request.device)
    resolver = _opened(name, factor, "area", on)
    weights = resolver_files(name)
    arguments = {**request.arguments, "upscale": factor}
    inputs = {"source": fingerprint(files), "super-resolver": fingerprint(weights)}
    if request.output is None:
        folder = beside_others(folder, "fix", arguments)
    run = Run.open(folder, "fix", arguments, inputs, request.force, reads=[source, *weights])
    announce(run, resolver=f"{name}, {factor} times larger", device=on)
    results = enlarge_images(files, run.folder, resolver, request.seed, request.size, console.progress)
    run.finish(results)
    tell_frames("Images", run.folder, results)
    return Made(run.folder, results)
