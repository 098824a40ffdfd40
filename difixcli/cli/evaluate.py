"""`difix eval`: figures, pictures, comparisons."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import os
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from difixcli import console
from difixcli.cli.inputs import check_device, pick_device
from difixcli.cli.lines import words
from difixcli.cli.options import Device, DeviceOption, JsonOption, OutputOption
from difixcli.cli.outputs import DISTILLED_OR_ENHANCED, folder_beside
from difixcli.cli.several import Cluster, claimed, finished_runs, none_finished, tell_failures, with_cluster, work
from difixcli.cluster.worker import JOB
from difixcli.errors import InputError, unknown
from difixcli.runs import check_folder, file_name, make_folder, read_json, write_json
from difixcli.wording import counted

_OWN = ("prediction", "output", "as_json", "cluster")
"""Parameters that say nothing of how a scene is measured."""
_TELLING = 0.5  # of the truth's own pose AUC


@console.handled
@with_cluster
def evaluate(
    prediction: Annotated[
        list[Path],
        typer.Argument(
            help="A run, or several to compare (the --output of difix distill over scenes stands for all of its runs, "
            "@LIST for those of a file's lines); or a folder of images, then the true ones."
        ),
    ],
    metrics: Annotated[
        str | None,
        typer.Option(
            help="psnr, ssim, st-lpips, st-lpips-alex, lpips, lpips-vgg, fid, tsed, warped, cross-view, pose-auc; the "
            "quick ones by default."
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="How to measure: nerfbusters, dl3dv, rds, llff-sr, mip360-sr, co3d-2view, re10k-2view, "
            "re10k-2view:large, dl3dv-K, sparse:K or every:N; by default as the run is."
        ),
    ] = None,
    color_correct: Annotated[
        str | None,
        typer.Option(help="Also measure after fitting each image's colours to its truth: affine, quadratic."),
    ] = None,
    masks: Annotated[Path | None, typer.Option(help="Folder of masks NAME.png; only white pixels count.")] = None,
    inception: Annotated[Path | None, typer.Option(help="Inception's weights for FID (torch-fidelity's file).")] = None,
    geometry: Annotated[
        list[Path] | None,
        typer.Option(
            help="A run on all photos of a scene (--split all), or on those of several, whose depth counts for "
            "nerfbusters' masks and cross-view; repeatable."
        ),
    ] = None,
    device: DeviceOption = Device.auto,
    output: OutputOption = None,
    as_json: JsonOption = False,
    *,
    cluster: Cluster,
) -> None:
    """Measure renders against photos, or compare runs: figures, pictures, and how each number was made."""
    common = words(inspect.signature(evaluate, eval_str=True), locals(), _OWN)
    check_device(device)
    from difixcli.evaluation.color_correction import CORRECTIONS
    from difixcli.evaluation.evaluate import (
        Plan,
        check_folders,
        evaluate_folders,
        evaluate_run,
        evaluate_runs,
        suggested_metrics,
    )
    from difixcli.evaluation.metrics import METRICS, parse_metrics
    from difixcli.evaluation.protocols import OWN, parse_protocol
    from difixcli.evaluation.report import write_report
    from difixcli.evaluation.run_folders import RunFolder, is_run
    from difixcli.evaluation.tables import write_table
    from difixcli.posing.known_lenses import found_poses
    from difixcli.scenes.unposed import is_video

    prediction, missing = finished_runs(prediction)
    if not prediction:
        raise none_finished(missing)
    geometry, lost = finished_runs(geometry or [])
    if lost:  # which is refused where a scene that is measured needs it
        console.warn(f"The --geometry of {', '.join(lost)} is not finished.")
    for path in [*prediction, *([masks] if masks else []), *([inception] if inception else []), *geometry]:
        if not path.exists():
            raise InputError(f"There is no {path}; check its name.")
    if color_correct is not None and color_correct not in CORRECTIONS:
        raise unknown("colour correction", color_correct, CORRECTIONS)
    keys = None if metrics is None else parse_metrics(metrics)
    if inception is not None and not inception.is_file():
        raise InputError(f"{inception} is a folder; --inception takes the file of Inception's weights.")
    if inception is not None and "fid" not in (keys or ()):
        raise InputError("--inception is of FID alone, which is measured where --metrics names fid.")
    if geometry and "cross_view" not in (keys or ()) and protocol != "nerfbusters":
        raise InputError("--geometry is for --protocol nerfbusters and the figure cross-view alone; leave it out.")
    way = OWN if protocol is None else parse_protocol(protocol)
    if output is not None:
        check_folder(output)
    if films := [path for path in prediction if is_video(path)]:
        raise InputError(f"{films[0]} is a video; difix eval takes images: name the folder of its frames.")
    runs = [is_run(path) for path in prediction]
    if not all(runs) and (any(runs) or len(prediction) != 2):
        raise InputError(
            f"{prediction[runs.index(False)]} is no run; difix eval takes runs, or a folder of images and then "
            "the folder of the true ones."
        )
    if cluster.name is None and cluster.max_failed is not None:
        raise InputError("--max-failed counts the scenes that a cluster could not measure; name one with --cluster.")
    if cluster.name is not None and (not all(runs) or not cluster.wait):
        raise InputError("--cluster measures runs, and their one table is made at the end: add --wait.")
    plan = Plan(keys, color_correct, way, masks, inception, "cpu", geometry, found_poses)  # type: ignore[arg-type]
    if not all(runs):
        check_folders(prediction[0], prediction[1], plan)
    elif cluster.name is None and JOB not in os.environ:  # of several one that cannot be measured stops no other
        for path in prediction:
            RunFolder.read(path)
    on, _ = pick_device(device)
    if all(runs) and keys is None:
        keys, left_out = suggested_metrics(prediction, way)
        if left_out:
            console.warn(left_out)
    many = False
    plan = replace(plan, metrics=keys, device=on)
    first = prediction[0].absolute()
    with claimed():  # a job is done when its figures are written
        if not all(runs):
            folder = output or folder_beside(first, "eval")
            evaluated = evaluate_folders(prediction[0], prediction[1], on, plan, console.progress)
            rows, spreads = {first.name: evaluated["results"]}, {first.name: evaluated["std"]}
        else:
            alone = len(runs) == 1 and cluster.name is None  # jobs are never kept in a run
            folder = output or (first if alone else Path("outputs") / "comparisons" / _joined(prediction))
            if cluster.name is not None and is_run(folder):
                raise InputError(f"{folder} is a run, where no jobs are kept; choose another --output.")
            make_folder(folder)
            if cluster.name is not None:
                if "fid" in (keys or ()):
                    console.warn(
                        "Jobs measure a scene each, so FID is a mean over scenes, and not of their images as one set."
                    )
                evaluated, failed = _by_jobs(prediction, common, folder, cluster)
                missing += failed
                many = cluster.max_failed is not None and len(failed) > cluster.max_failed
            elif len(runs) == 1:
                evaluated = evaluate_run(first, on, metrics is None, plan, folder, console.progress)
            else:
                evaluated = evaluate_runs(prediction, plan, folder, console.progress)
            rows, spreads = {**evaluated["results"], **evaluated.get("baselines", {})}, evaluated["std"]
        folder = folder.expanduser().absolute()
        scenes = evaluated.get("scenes", {})
        title = (
            first.name
            if len(prediction) == 1 or not all(runs)
            else " and ".join(path.absolute().name for path in prediction)
        )
        title = f"{title}: {counted(evaluated['images'], 'view')}"
        report = write_report(evaluated, make_folder(folder) / "report.html", title)
        write_json(folder / "eval.json", evaluated, sort_keys=False)  # rows and scenes are in the order given
        write_table(evaluated, folder / "eval.csv")
    tables = [
        console.figures_table(f"{name}: {counted(one['images'], 'view')}", one["results"], one["std"])
        for name, one in scenes.items()
    ]
    if evaluated.get("partial"):
        console.warn(f"Not in every scene, so without a mean over scenes: {', '.join(evaluated['partial'])}.")
    if rows:
        tables.append(console.figures_table(title if not scenes else "Mean over scenes", rows, spreads))
    for name, value in evaluated.get("reference", {}).items():
        console.say(f"{METRICS[name].name} of the truth itself: {value:.{METRICS[name].digits}f}")
    if evaluated.get("reference", {}).get("pose_auc", 1) < _TELLING:
        console.warn("Not even the true images' cameras are found anew here, so pose AUC says little of the others.")
    console.say("; ".join(f"{name}: {said}" for name, said in evaluated["conditions"].items()))
    for one in scenes.values() if scenes else [evaluated]:
        for variant, images in one["per_image"].items():
            if same := sum(figures.get("psnr") == math.inf for figures in images.values()):
                are = "is" if same == 1 else "are"
                console.warn(
                    f"{same} of {counted(len(images), 'image')} ({variant}) {are} identical to the truth: such a PSNR "
                    "is infinite, and the mean is that of the others."
                )
    shown = {row for one in [evaluated, *scenes.values()] for row in one["results"]}
    if any(_both(row, shown) for row in shown):
        console.say(DISTILLED_OR_ENHANCED)
    console.say(f"Report: {report}")
    held = ("results", "std", "protocol", "conditions")
    found = {name: evaluated[name] for name in held} | {
        "scenes": {name: {"results": one["results"], "std": one["std"]} for name, one in scenes.items()}
    }
    if not missing:
        console.finish({**found, "report": str(report)}, as_json, *tables)
        return
    message = f"Missing in this: {', '.join(missing)}."
    console.finish({**found, "report": str(report), "missing": missing, "error": message}, as_json, *tables)
    console.fail(message)
    raise typer.Exit(2 if many else 3)


def _both(row: str, rows: Collection[str]) -> bool:
    """Whether a row is of distilled renders, beside that of the same renders enhanced."""
    return row.endswith("distilled") and f"{row.removesuffix('distilled')}enhanced" in rows


def _by_jobs(runs: list[Path], common: list[str], folder: Path, cluster: Cluster) -> tuple[dict[str, Any], list[str]]:
    """What jobs, one a scene, have measured of runs, and the scenes whose job failed."""
    from difixcli.cluster.jobs import DONE, Jobs
    from difixcli.evaluation.evaluate import by_scene, over_scenes

    folder = folder.absolute()
    named = by_scene([run.absolute() for run in runs])
    scenes = {file_name(scene): scene for scene in named}
    lines = {
        key: ["eval", *map(str, named[scene]), *common, f"--output={folder / key}"] for key, scene in scenes.items()
    }
    jobs = Jobs(folder)
    jobs.add(lines, str(Path.cwd()), anew=True)  # what was measured before may have changed since
    outcome = work(folder, lines, "eval", cluster) or []
    bad = [job for job in outcome if job.state != DONE]
    tell_failures(jobs, bad)
    done = {job.name for job in outcome if job.state == DONE}
    made = {scene: read_json(folder / key / "eval.json") for key, scene in scenes.items() if key in done}
    if not made:
        raise InputError("Not one of the scenes could be measured; see the lines above.")
    return {**over_scenes(made), "scenes": made}, [scenes[job.name] for job in bad]


def _joined(folders: list[Path]) -> str:
    """A folder's name for a comparison of runs: their names and what tells such comparisons apart."""
    paths = [str(path.absolute()) for path in folders]
    digest = hashlib.sha256(json.dumps(paths).encode()).hexdigest()[:8]
    return "-".join([*(file_name(path.absolute().name) for path in folders[:3]), digest])
