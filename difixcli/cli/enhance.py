"""`difix enhance`: final renders, videos and camera paths of runs through the fixer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from difixcli import console
from difixcli.cli import checking
from difixcli.cli.inputs import check_fixer, check_source
from difixcli.cli.options import (
    BatchOption,
    CompileOption,
    ConfidenceOption,
    Device,
    DeviceOption,
    FixerOption,
    ForceOption,
    JsonOption,
    OutputOption,
    Precision,
    PrecisionOption,
    ReferenceOption,
    ReferencesOption,
    SeedOption,
    SizeOption,
    TileOption,
)
from difixcli.cli.outputs import Made
from difixcli.cli.requests import Request, filling, working
from difixcli.cli.several import over_scenes
from difixcli.errors import InputError
from difixcli.runs import check_output

if TYPE_CHECKING:
    from difixcli.enhancement import Film


@dataclass(frozen=True)
class EnhanceRequest(Request):
    """What `difix enhance` is asked for: each option of the line by its name, None where it is not given.

    `EnhanceRequest(Path("film.mp4"), steady=True).run()` is `difix enhance film.mp4 --steady`.
    """

    source: Annotated[
        Path,
        typer.Argument(
            help="A folder of frames, a video, or a run of difix distill; the --output of several stands for them all."
        ),
    ]
    trajectory: Annotated[
        str | None,
        typer.Option(
            help="A run's camera path: spiral, orbit or interpolate (:N frames), shift:2m or shift:0.1, or PATH.json "
            "of nerfstudio's viewer; its test views by default."
        ),
    ] = None
    steady: Annotated[
        bool, typer.Option("--steady", help="Average the fixes of consecutive frames along their motion.")
    ] = False
    side_by_side: Annotated[
        bool, typer.Option("--side-by-side", help="Also a video of before and after beside each other.")
    ] = False
    split_screen: Annotated[
        bool, typer.Option("--split-screen", help="Also a video of before and after with a moving divider.")
    ] = False
    fps: Annotated[
        float | None,
        typer.Option(help="Frames a second of the videos; by default the source's, 24 of a folder.", min=0.1, max=1000),
    ] = None
    reference: ReferenceOption = None
    references: ReferencesOption = None
    fixer: FixerOption = "bundled"
    size: SizeOption = None
    tile: TileOption = None
    batch: BatchOption = None
    confidence: ConfidenceOption = False
    dtype: PrecisionOption = Precision.auto
    compiled: CompileOption = False
    seed: SeedOption = 0
    device: DeviceOption = Device.auto
    output: OutputOption = None
    force: ForceOption = False

    @property
    def film(self) -> Film:
        """How frames become videos."""
        from difixcli.enhancement import Film

        return Film(self.fps, self.side_by_side, self.split_screen, self.steady)

    @property
    def arguments(self) -> dict[str, Any]:
        """What a run is known by, as far as the request alone says it."""
        said: dict[str, Any] = {"source": self.source.absolute(), "steady": self.steady, "fixer": self.fixer}
        said |= {"tile": self.tile, "confidence": self.confidence, "compiled": self.compiled}
        if self._of_a_run:
            return said | ({} if self.trajectory is None else {"trajectory": self.trajectory})  # or the run says it
        return said | {"size": self.size}

    @property
    def _of_a_run(self) -> bool:
        return (self.source / "reconstruction.json").is_file()

    def _check(self) -> None:
        if self._of_a_run:  # first: what is larger than its photos takes no fixer at all
            self._check_run()
        check_fixer(self.fixer)
        if not self._of_a_run:
            self._check_images()
        if self.output is not None and not checking.are_alone():  # of several each has a folder in the output
            check_output(self.output, "enhance", self.force, self.arguments)

    def _check_images(self) -> None:
        """InputError for options of runs, and for what is no image."""
        if self.trajectory is not None:
            raise InputError(
                f"{self.source} is no run of difix distill, so there is nothing to render along a path; name a run, or "
                "leave out --trajectory."
            )
        if self.references is not None and not self.reference:
            raise InputError("--references says how many photos count; name them with --reference.")
        check_source(self.source, self.output)

    def _check_run(self) -> None:
        """InputError for options that a run has decided, for a path that is none, and for a run that is not whole."""
        from difixcli.cli.enhancing import distilled_as
        from difixcli.scenes.trajectories import check_trajectory

        if said := self.given("reference", "references", "size", "batch", "seed"):
            raise InputError(
                f"{self.source} is a run of difix distill: its own photos stand beside its renders, at the size that "
                f"it was trained at; leave out {said[0]}."
            )
        if self.trajectory is not None:
            check_trajectory(self.trajectory)
        held = distilled_as(self.source)
        if held.get("enlargement") is not None and (
            said := self.given("fixer", "tile", "confidence", "dtype", "compiled")
        ):
            raise InputError(
                f"{self.source} is larger than its photos: its super-resolver enhances it; leave {said[0]} out."
            )

    def run(self) -> Made:
        """Enhance, or go on with it where it was stopped. Raises InputError as `validate` does, and for what turns out
        to be wrong later.
        """
        with working():
            self.validate()
            from difixcli.cli.enhancing import enhanced_images, enhanced_run

            return enhanced_run(self) if self._of_a_run else enhanced_images(self)


@console.handled
@over_scenes("source", None)
@filling(EnhanceRequest)
def enhance(request: EnhanceRequest, as_json: JsonOption = False) -> None:
    """Clean final renders, and write them as frames and a video."""
    console.finish(request.run().told(), as_json)
