"""What `difix eval` does once a request is valid: figures, the report, and what is told of them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from difixcli import console
from difixcli.cli.inputs import pick_device
from difixcli.cli.outputs import DISTILLED_OR_ENHANCED, folder_beside
from difixcli.cli.requests import options_of
from difixcli.cli.several import ClusterRequest, claimed, tell_failures, work
from difixcli.errors import InputError
from difixcli.runs import file_name, make_folder, write_json
from difixcli.wording import counted

if TYPE_CHECKING:
    from difixcli.cli.evaluate import EvaluateRequest
    from difixcli.console import FiguresTable
    from difixcli.evaluation.evaluate import Plan

_OWN = ("prediction", "output", *options_of(ClusterRequest))
"""Fields that say nothing of how a scene is measured."""
_TELLING = 0.5  # of the truth's own pose AUC


@dataclass(frozen=True)
class Measured:
    """What came of measuring: the report, what eval.json beside it holds, and the figures and their spreads by row and
    figure under a title.

    `missing` are the scenes whose runs are not finished, or could not be measured by a cluster; `too_many` says that
    more of the latter could not than may.
    """

    report: Path
    evaluated: Mapping[str, Any]
    title: str
    rows: Mapping[str, Mapping[str, float | None]]
    spreads: Mapping[str, Mapping[str, float | None]]
    missing: Sequence[str] = ()
    too_many: bool = False

    @property
    def scenes(self) -> Mapping[str, Mapping[str, Any]]:
        """Of several scenes what was measured of each."""
        scenes: Mapping[str, Mapping[str, Any]] = self.evaluated.get("scenes", {})
        return scenes

    def told(self) -> dict[str, Any]:
        """What --json says."""
        told = {name: self.evaluated[name] for name in ("results", "std", "protocol", "conditions")}
        told["scenes"] = {name: {"results": one["results"], "std": one["std"]} for name, one in self.scenes.items()}
        told["report"] = str(self.report)
        return {**told, "missing": list(self.missing)} if self.missing else told

    def tables(self) -> list[FiguresTable]:
        """The figures of each scene and over all, for people."""
        tables = [
            console.figures_table(f"{name}: {counted(one['images'], 'view')}", one["results"], one["std"])
            for name, one in self.scenes.items()
        ]
        if self.rows:
            title = "Mean over scenes" if self.scenes else self.title
            tables.append(console.figures_table(title, self.rows, self.spreads))
        return tables


def measured(request: EvaluateRequest) -> Measured:
    """Do what is asked for by a request that is valid."""
    from difixcli.evaluation.evaluate import evaluate_folders, suggested_metrics
    from difixcli.evaluation.report import write_report
    from difixcli.evaluation.run_folders import is_run
    from difixcli.evaluation.tables import write_table

    predictions, missing = request.predicted
    if lost := request.geometry_runs[1]:  # which is refused where a scene that is measured needs it
        console.warn(f"The --geometry of {', '.join(lost)} is not finished.")
    on, _ = pick_device(request.device)
    plan = replace(request.plan, device=on)
    runs = is_run(predictions[0])
    if runs and plan.metrics is None:
        keys, left_out = suggested_metrics(predictions, plan.protocol)
        plan = replace(plan, metrics=keys)
        if left_out:
            console.warn(left_out)
    first = predictions[0].absolute()
    title = first.name
    failed: list[str] = []
    with claimed():  # a job is done when its figures are written
        if runs:
            folder, evaluated, failed = _of_runs(request, predictions, plan)
            title = " and ".join(path.absolute().name for path in predictions)
            rows, spreads = {**evaluated["results"], **evaluated.get("baselines", {})}, evaluated["std"]
        else:
            folder = request.output or folder_beside(first, "eval")
            evaluated = evaluate_folders(predictions[0], predictions[1], on, plan, console.progress)
            rows, spreads = {first.name: evaluated["results"]}, {first.name: evaluated["std"]}
        folder = folder.expanduser().absolute()
        title = f"{title}: {counted(evaluated['images'], 'view')}"
        report = write_report(evaluated, make_folder(folder) / "report.html", title)
        write_json(folder / "eval.json", evaluated, sort_keys=False)  # rows and scenes are in the order given
        write_table(evaluated, folder / "eval.csv")
    too_many = request.max_failed is not None and len(failed) > request.max_failed
    made = Measured(report, evaluated, title, rows, spreads, [*missing, *failed], too_many)
    _tell(made)
    return made


def _of_runs(request: EvaluateRequest, runs: Sequence[Path], plan: Plan) -> tuple[Path, dict[str, Any], list[str]]:
    """The folder that the report of runs goes to, what was measured of them, and the scenes whose job failed."""
    from difixcli.evaluation.evaluate import evaluate_run, evaluate_runs
    from difixcli.evaluation.run_folders import is_run

    first = runs[0].absolute()
    alone = len(runs) == 1 and request.cluster is None  # jobs are never kept in a run
    folder = request.output or (first if alone else Path("outputs") / "comparisons" / _joined(runs))
    if request.cluster is not None and is_run(folder):
        raise InputError(f"{folder} is a run, where no jobs are kept; choose another --output.")
    make_folder(folder)
    if request.cluster is not None:
        if "fid" in (plan.metrics or ()):
            console.warn("Jobs measure a scene each, so FID is a mean over scenes, and not of their images as one set.")
        return folder, *_by_jobs(request, runs, folder)
    if len(runs) == 1:
        unsharp = request.metrics is None
        return folder, evaluate_run(first, plan.device, unsharp, plan, folder, console.progress), []
    return folder, evaluate_runs(runs, plan, folder, console.progress), []


def _by_jobs(request: EvaluateRequest, runs: Sequence[Path], folder: Path) -> tuple[dict[str, Any], list[str]]:
    """What jobs, one a scene, have measured of runs, and the scenes whose job failed."""
    from difixcli.cluster.jobs import DONE, Jobs
    from difixcli.evaluation.evaluate import by_scene, over_scenes, read_evaluated

    folder = folder.absolute()
    named = by_scene([run.absolute() for run in runs])
    scenes = {file_name(scene): scene for scene in named}
    common = request.words(_OWN)
    lines = {
        key: ["eval", *map(str, named[scene]), *common, f"--output={folder / key}"] for key, scene in scenes.items()
    }
    jobs = Jobs(folder)
    jobs.add(lines, str(Path.cwd()), anew=True)  # what was measured before may have changed since
    outcome = work(folder, lines, "eval", request) or []
    bad = [job for job in outcome if job.state != DONE]
    tell_failures(jobs, bad)
    done = {job.name for job in outcome if job.state == DONE}
    made = {scene: read_evaluated(folder / key / "eval.json") for key, scene in scenes.items() if key in done}
    if not made:
        raise InputError("Not one of the scenes could be measured; see the lines above.")
    return {**over_scenes(made), "scenes": made}, [scenes[job.name] for job in bad]


def _tell(made: Measured) -> None:
    """Say how the figures were made, what of them is not to be relied on, and where the report is."""
    from difixcli.evaluation.metrics import METRICS

    evaluated, scenes = made.evaluated, made.scenes
    if evaluated.get("partial"):
        console.warn(f"Not in every scene, so without a mean over scenes: {', '.join(evaluated['partial'])}.")
    for row, few in evaluated.get("fewer", {}).items():
        for key, count in few.items():
            console.warn(
                f"{METRICS[key].name} of {row}: {count} of {counted(len(scenes), 'scene')} "
                f"{'has' if count == 1 else 'have'} a finite one, and the mean is over these."
            )
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
    console.say(f"Report: {made.report}")


def _both(row: str, rows: Collection[str]) -> bool:
    """Whether a row is of distilled renders, beside that of the same renders enhanced."""
    return row.endswith("distilled") and f"{row.removesuffix('distilled')}enhanced" in rows


def _joined(folders: Sequence[Path]) -> str:
    """A folder's name for a comparison of runs: their names and what tells such comparisons apart."""
    paths = [str(path.absolute()) for path in folders]
    digest = hashlib.sha256(json.dumps(paths).encode()).hexdigest()[:8]
    return "-".join([*(file_name(path.absolute().name) for path in folders[:3]), digest])
