"""`difix eval`: figures, pictures, comparisons."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from difixcli import console
from difixcli.cli.options import Device, DeviceOption, JsonOption, OutputOption
from difixcli.cli.requests import filling, working
from difixcli.cli.several import ClusterRequest, finished_runs, none_finished
from difixcli.cluster.worker import JOB
from difixcli.errors import InputError, unknown
from difixcli.runs import check_folder

if TYPE_CHECKING:
    from difixcli.cli.evaluating import Measured
    from difixcli.evaluation.evaluate import Plan


@dataclass(frozen=True)
class EvaluateRequest(ClusterRequest):
    """What `difix eval` is asked for: each option of the line by its name, None where it is not given.

    `EvaluateRequest([Path("run")], metrics="psnr,ssim").run()` is `difix eval run --metrics psnr,ssim`.
    """

    prediction: Annotated[
        list[Path],
        typer.Argument(
            help="A run, or several to compare (the --output of difix distill over scenes stands for all of its runs, "
            "@LIST for those of a file's lines); or a folder of images, then the true ones."
        ),
    ]
    metrics: Annotated[
        str | None,
        typer.Option(
            help="psnr, ssim, st-lpips, st-lpips-alex, lpips, lpips-vgg, fid, tsed, warped, cross-view, pose-auc; the "
            "quick ones by default."
        ),
    ] = None
    protocol: Annotated[
        str | None,
        typer.Option(
            help="How to measure: nerfbusters, dl3dv, rds, llff-sr, mip360-sr, co3d-2view, re10k-2view, "
            "re10k-2view:large, dl3dv-K, sparse:K or every:N; by default as the run is."
        ),
    ] = None
    color_correct: Annotated[
        str | None,
        typer.Option(help="Also measure after fitting each image's colours to its truth: affine, quadratic."),
    ] = None
    masks: Annotated[Path | None, typer.Option(help="Folder of masks NAME.png; only white pixels count.")] = None
    inception: Annotated[Path | None, typer.Option(help="Inception's weights for FID (torch-fidelity's file).")] = None
    geometry: Annotated[
        list[Path] | None,
        typer.Option(
            help="A run on all photos of a scene (--split all), or on those of several, whose depth counts for "
            "nerfbusters' masks and cross-view; repeatable."
        ),
    ] = None
    device: DeviceOption = Device.auto
    output: OutputOption = None

    @property
    def plan(self) -> Plan:
        """What to measure and how, but for the device. Raises InputError as `validate` does."""
        from difixcli.evaluation.evaluate import Plan
        from difixcli.evaluation.metrics import parse_metrics
        from difixcli.evaluation.protocols import OWN, parse_protocol
        from difixcli.posing.known_lenses import found_poses

        return Plan(
            metrics=None if self.metrics is None else parse_metrics(self.metrics),
            correction=self.color_correct,  # type: ignore[arg-type]
            protocol=OWN if self.protocol is None else parse_protocol(self.protocol),
            masks=self.masks,
            inception=self.inception,
            geometry=self.geometry_runs[0],
            find_poses=found_poses,
        )

    @cached_property  # read once: a run may end, or be begun anew, before it is measured
    def predicted(self) -> tuple[list[Path], list[str]]:
        """What is measured, and the scenes whose runs are not finished (see `finished_runs`)."""
        return finished_runs(self.prediction)

    @cached_property
    def geometry_runs(self) -> tuple[list[Path], list[str]]:
        """The same for --geometry."""
        return finished_runs(self.geometry or [])

    def _check(self) -> None:
        from difixcli.evaluation.color_correction import CORRECTIONS
        from difixcli.scenes.unposed import is_video

        predictions, missing = self.predicted
        if not predictions:
            raise none_finished(missing)
        geometry, _ = self.geometry_runs
        for path in filter(None, [*predictions, self.masks, self.inception, *geometry]):
            if not path.exists():
                raise InputError(f"There is no {path}; check its name.")
        if self.color_correct is not None and self.color_correct not in CORRECTIONS:
            raise unknown("colour correction", self.color_correct, CORRECTIONS)
        plan = self.plan
        if self.inception is not None and not self.inception.is_file():
            raise InputError(f"{self.inception} is a folder; --inception takes the file of Inception's weights.")
        if self.inception is not None and "fid" not in (plan.metrics or ()):
            raise InputError("--inception is of FID alone, which is measured where --metrics names fid.")
        if geometry and "cross_view" not in (plan.metrics or ()) and self.protocol != "nerfbusters":
            raise InputError("--geometry is for --protocol nerfbusters and the figure cross-view alone; leave it out.")
        if self.output is not None:
            check_folder(self.output)
        if films := [path for path in predictions if is_video(path)]:
            raise InputError(f"{films[0]} is a video; difix eval takes images: name the folder of its frames.")
        self._check_predictions(predictions, plan)

    def _check_predictions(self, predictions: list[Path], plan: Plan) -> None:
        """InputError for what is neither runs nor two folders of images, or cannot be measured, or not so."""
        from difixcli.evaluation.evaluate import check_folders
        from difixcli.evaluation.run_folders import RunFolder, is_run

        runs = [is_run(path) for path in predictions]
        if not all(runs) and (any(runs) or len(predictions) != 2):
            raise InputError(
                f"{predictions[runs.index(False)]} is no run; difix eval takes runs, or a folder of images and then "
                "the folder of the true ones."
            )
        if self.cluster is None and self.max_failed is not None:
            raise InputError(
                "--max-failed counts the scenes that a cluster could not measure; name one with --cluster."
            )
        if self.cluster is not None and (not all(runs) or not self.wait):
            raise InputError("--cluster measures runs, and their one table is made at the end: add --wait.")
        if not all(runs):
            check_folders(predictions[0], predictions[1], plan)
        elif self.cluster is None and JOB not in os.environ:  # of several one that cannot be measured stops no other
            for path in predictions:
                RunFolder.read(path)

    def run(self) -> Measured:
        """Measure, and write the report. Raises InputError as `validate` does, and for what turns out to be wrong
        later; runs that are not finished, or that a cluster could not measure, are told in what is returned.
        """
        with working():
            self.validate()
            from difixcli.cli.evaluating import measured

            return measured(self)


@console.handled
@filling(EvaluateRequest)
def evaluate(request: EvaluateRequest, as_json: JsonOption = False) -> None:
    """Measure renders against photos, or compare runs: figures, pictures, and how each number was made."""
    made = request.run()
    if not made.missing:
        console.finish(made.told(), as_json, *made.tables())
        return
    message = f"Missing in this: {', '.join(made.missing)}."
    console.finish({**made.told(), "error": message}, as_json, *made.tables())
    console.fail(message)
    raise typer.Exit(2 if made.too_many else 3)
