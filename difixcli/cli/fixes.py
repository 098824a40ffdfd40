"""`difix distill` with the fixer's prior or another package's: train, render, fix, train on the fixes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from difixcli import console
from difixcli.cli.distilling import (
    Distilled,
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
    fixer_input,
    open_fixer,
    open_scene,
    pick_device,
    scene_inputs,
    size_of,
    split_input,
    tell_loading,
)
from difixcli.cli.outputs import DISTILLED_OR_ENHANCED, announce
from difixcli.errors import InputError
from difixcli.runs import Run, fingerprint
from difixcli.wording import counted

if TYPE_CHECKING:
    from difixcli.cli.distill import DistillRequest


def check_fixes(request: DistillRequest) -> None:
    """InputError for what rounds of fixing do not take, and for options that no round would heed."""
    from difixcli.distillation.settings import find_profile, read_terms, support_wanted

    support_wanted(request.trust or find_profile(request.profile).trust, request.drop_below)
    read_terms(request.loss or ())
    of_rounds = ("compare", "guard", "profile", "prior", "trust", "drop_below", "loss")
    if request.schedule == "none" and (said := request.given(*of_rounds)):
        raise InputError(f"{said[0]} says nothing to the schedule none, which is training on photos; leave it out.")


def distill_fixes(request: DistillRequest) -> Distilled:
    """Train on photos, then round by round on what the prior proposes."""
    from difixcli.distillation.schedule import make_schedule
    from difixcli.distillation.settings import find_profile, read_terms, support_wanted
    from difixcli.scenes import DEFAULT_RULE, default_split_rule, make_split

    aims = request.targets or ["test"]
    preset_values = find_profile(request.profile)
    trusted = request.trust or preset_values.trust
    on, sizes = pick_device(request.device, request.preset)
    loaded = open_scene(request.scene, request.size, sizes)
    rule = request.split_rule or default_split_rule(loaded)
    if request.split_rule is None and rule == DEFAULT_RULE and "test" not in aims:
        rule = "all"  # no photo has to be held out where none is aimed at
    chosen = make_split(loaded, rule, need_test="test" in aims)
    if len(chosen.train) == 1:
        console.warn(f"The split {rule} leaves one photo to train on, which shows nothing of depth; hold out fewer.")
    inputs = {**scene_inputs(loaded), **split_input(loaded, chosen), **fixer_input(request.fixer)}

    tell_loading("nerfstudio")
    from difixcli.distillation.distill import Distillation
    from difixcli.reconstruction import default_iterations, draws_images, method_config
    from difixcli.reconstruction.objective import check_terms

    method = method_asked(request)
    rounds, step, share = request.rounds, request.step, request.share
    drawn = "images" if draws_images(method_config(method)) else "rays"
    terms = read_terms(request.loss or ()) or dict(preset_values.terms[drawn])
    steps = request.iterations or default_iterations(method, sizes)
    of_rounds = (
        (request.further or steps) if request.start is not None and request.schedule != "none" else request.further
    )
    if rounds is None and preset_values.iterations_a_round is not None and request.schedule == "progressive":
        rounds = max(1, (of_rounds or steps) // preset_values.iterations_a_round)
    if step is None and request.schedule == "progressive":
        step = preset_values.step
    if share is None and request.schedule != "none":
        share = preset_values.share[drawn]
    planned = make_schedule(
        sizes,
        0 if request.start is not None and request.schedule != "none" else steps,
        of_rounds,
        rounds,
        request.schedule,
        step,
        share,
    )
    plan = settings_of(
        request,
        method,
        sizes,
        on,
        planned,
        terms,
        targets=aims,
        references=preset_values.references if request.references is None else request.references,
        trust=trusted,
        drop_below=support_wanted(trusted, request.drop_below),
        raised=preset_values.raised,
        guard=request.guard,
    )
    distillation = Distillation(loaded, chosen, plan)
    smallest = min(
        (target.camera for target in distillation.targets), key=lambda camera: min(camera.height, camera.width)
    )
    check_terms(terms, smallest.height, smallest.width)
    arguments = recorded(request, plan, request.size, rule, ("enlargement", "seeking", "filming"))
    arguments["fixer"] = request.fixer
    paths = [Path(aim).expanduser() for aim in aims if aim.lower().endswith(".json")]
    inputs |= {str(path): fingerprint([path]) for path in paths}
    begun = start_files(request.start)
    if request.start is not None:
        inputs["start"] = fingerprint(begun)
    folder, run = held(request.output, loaded, method, arguments, inputs, request.force, request.from_round)
    network = None
    if run is None or not run.done:  # what is done needs no fixer, which may be far away
        network = open_fixer(request.fixer, on)
        run = Run.open(
            folder,
            "distill",
            arguments,
            inputs,
            request.force,
            reads=[*files_read(request.fixer, loaded), *paths, *begun],
        )
    timetable = f"{planned.photos} iterations on photos, no fixes ({request.schedule})"
    if planned.rounds:
        timetable = (
            f"{planned.photos} iterations on photos, then {counted(planned.rounds, 'round')} of {planned.every} "
            f"({request.schedule}), {planned.share:.0%} of them on views by the prior {request.prior}"
        )
    announce(
        run,
        **told(request, loaded, chosen, rule, method, sizes, on),
        size=size_of(loaded),
        start=request.start,
        targets=f"{', '.join(aims)}: {counted(len(distillation.targets), 'view')}",
        schedule=timetable,
        fixer=request.fixer,
    )
    work = None if network is None else partial(distillation.run, network)
    results = results_of(run, chosen, method, on, work)
    found = run.record.get("rounds", {})
    if found:
        console.say(_outcome(found, planned.rounds))
    made = ended(run, loaded, chosen, method, results, rounds=found)
    if "distilled" in results:
        console.say(DISTILLED_OR_ENHANCED)
    return made


def _outcome(found: dict[str, Any], rounds: int) -> str:
    """What became of the rounds, and which model was handed over."""
    kept = f"Views dropped: {found['dropped']}. "
    if not found["taken_back"]:
        return kept + f"Rounds accepted: all ({rounds}); the distilled model is handed over."
    number = found["taken_back"]
    told = f"Round {number} made the views less like the photos and was taken back (--no-guard keeps it); "
    if found["accepted"]:
        return kept + told + f"what the {counted(number - 1, 'round')} before taught is handed over."
    return kept + told + "the model of photos alone is handed over, trained to the end."
