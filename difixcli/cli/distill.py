"""`difix distill`: fixed views back into the 3D model while it trains."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from difixcli import console
from difixcli.cli import checking
from difixcli.cli.inputs import check_fixer
from difixcli.cli.options import (
    ITERATIONS,
    MOST_DENOISE_STEPS,
    MOST_ITERATIONS,
    MOST_TIMES_LARGER,
    FixerOption,
    JsonOption,
    SceneArgument,
    SplitOption,
)
from difixcli.cli.requests import ReconstructionRequest, filling, working
from difixcli.cli.several import over_scenes
from difixcli.errors import InputError
from difixcli.runs import check_output, file_name

if TYPE_CHECKING:
    from difixcli.cli.distilling import Distilled

ROUNDS = "Rounds of fixing"
LARGER = "Super-resolution"
FEW = "Few photos"
FILM = "Films between photos"


@dataclass(frozen=True)
class DistillRequest(ReconstructionRequest):
    """What `difix distill` is asked for: each option of the line by its name, None where it is not given.

    `DistillRequest(scene="scenes/garden", size=480).run()` is `difix distill scenes/garden --size 480`.
    """

    scene: SceneArgument = "."
    method: Annotated[
        str | None,
        typer.Option(help="Any nerfstudio method: nerfacto, splatfacto (the default; with --start the run's own)."),
    ] = None
    split: SplitOption = None
    views: Annotated[
        int | None,
        typer.Option(
            help="Train on that many mutually farthest photos that overlap: short for --split views:K.", min=2
        ),
    ] = None
    targets: Annotated[
        list[str] | None,
        typer.Option(
            help="Views to improve: test (the split's, the default), spiral, orbit:60, shift:2m, shift:0.1, or "
            "PATH.json of nerfstudio's viewer; repeatable."
        ),
    ] = None
    start: Annotated[
        Path | None, typer.Option(help="Go on from this: a nerfstudio run's folder, or a .ply of Gaussians.")
    ] = None
    fixer: FixerOption = "bundled"
    iterations: Annotated[
        int | None,
        typer.Option(help=f"{ITERATIONS} View-diffusion: a tenth of those of the rounds.", min=1, max=MOST_ITERATIONS),
    ] = None
    schedule: Annotated[
        str,
        typer.Option(
            help="progressive, one-shot (straight at the targets), or none (plain training).", rich_help_panel=ROUNDS
        ),
    ] = "progressive"
    further: Annotated[
        int | None,
        typer.Option(
            help="Iterations of all rounds together; as many as on photos (super-resolution: a sixth a round, on a "
            "CPU 500 at most; view-diffusion and video: as many as photos have by default with other priors).",
            min=1,
            max=MOST_ITERATIONS,
            rich_help_panel=ROUNDS,
        ),
    ] = None
    rounds: Annotated[
        int | None,
        typer.Option(
            help="How often views are proposed anew; 3 on a CPU, one per 2,000 iterations on a GPU "
            "(super-resolution: 4; view-diffusion: 6; video: 1).",
            rich_help_panel=ROUNDS,
        ),
    ] = None
    profile: Annotated[
        str,
        typer.Option(
            help="difix, or published: how Difix3D's release trains with its weights. Other options come before it.",
            rich_help_panel=ROUNDS,
        ),
    ] = "difix"
    step: Annotated[
        float | None,
        typer.Option(
            help="How far pseudo-views move in a round, in normalised units; by default even parts of the way.",
            rich_help_panel=ROUNDS,
        ),
    ] = None
    share: Annotated[
        float | None,
        typer.Option(
            help="Share of what the rounds train on that is pseudo-views; 0.2 on a CPU, 0.4 on a GPU "
            "(super-resolution: 0.8 of rays, all of images; view-diffusion: 0.5; video: 0.2 on a CPU, 0.5 on a GPU).",
            rich_help_panel=ROUNDS,
        ),
    ] = None
    prior: Annotated[
        str,
        typer.Option(
            help="What proposes views: fixer, super-resolution, view-diffusion (two to four photos), video (films "
            "between a few photos), or an installed package's.",
            rich_help_panel=ROUNDS,
        ),
    ] = "fixer"
    references: Annotated[
        int | None,
        typer.Option(help="Photos beside a render; as many as the fixer takes.", min=0, rich_help_panel=ROUNDS),
    ] = None
    trust: Annotated[
        str | None,
        typer.Option(
            help="supported (default): a fix changes what references and render support, a film's pictures weigh as "
            "they agree; all: everything.",
            rich_help_panel=ROUNDS,
        ),
    ] = None
    drop_below: Annotated[
        float | None,
        typer.Option(
            help="A fix supported by less than this, 0 to 1, is not trained on (default 0.7).",
            min=0,
            max=1,
            rich_help_panel=ROUNDS,
        ),
    ] = None
    loss: Annotated[
        list[str] | None,
        typer.Option(
            help="A loss term of pseudo-views and its weight: method=1 (default), l2=1, perceptual=0.1, "
            "low_resolution:4=1; repeatable. Super-resolution: method=0.25 and low_resolution:4=1; view-diffusion and "
            "video: pixels and perceptual.",
            rich_help_panel=ROUNDS,
        ),
    ] = None
    guard: Annotated[
        bool,
        typer.Option(
            "--guard/--no-guard",
            help="Take a round back that makes the views less like the photos brought into them.",
            rich_help_panel=ROUNDS,
        ),
    ] = True
    from_round: Annotated[
        int | None,
        typer.Option(help="Go back to the beginning of this round of the same run.", min=1, rich_help_panel=ROUNDS),
    ] = None
    upscale: Annotated[
        int | None,
        typer.Option(
            help="How many times larger than the photos (default 4).",
            min=2,
            max=MOST_TIMES_LARGER,
            rich_help_panel=LARGER,
        ),
    ] = None
    sr: Annotated[
        str | None,
        typer.Option(
            help="bundled (default), a file of weights that spandrel reads, a folder, or a hub name as "
            "stabilityai/stable-diffusion-x4-upscaler.",
            rich_help_panel=LARGER,
        ),
    ] = None
    reduce: Annotated[
        int | None,
        typer.Option(
            help="First make the photos so many times smaller; what they were is the truth.",
            min=2,
            rich_help_panel=LARGER,
        ),
    ] = None
    downscale: Annotated[
        str | None,
        typer.Option(help="How photos are made smaller: area (default) or bicubic.", rich_help_panel=LARGER),
    ] = None
    sr_update: Annotated[
        str | None,
        typer.Option(
            help="How a diffusing super-resolver goes on from a render: posterior (default, 3DSR's release) or paper.",
            rich_help_panel=LARGER,
        ),
    ] = None
    view_diffusion: Annotated[
        str | None,
        typer.Option(
            help="The networks: a folder of difix finetune --task view-diffusion; this version brings none.",
            rich_help_panel=FEW,
        ),
    ] = None
    seek: Annotated[
        str | None,
        typer.Option(
            help="mode (default): x̂₀ in several denoising steps; sds: in one; mean: EFT's pictures alone.",
            rich_help_panel=FEW,
        ),
    ] = None
    denoise_steps: Annotated[
        int | None,
        typer.Option(
            help="Denoising steps from pure noise; 20 on a CPU, 50 on a GPU.",
            min=1,
            max=MOST_DENOISE_STEPS,
            rich_help_panel=FEW,
        ),
    ] = None
    reuse: Annotated[
        int | None,
        typer.Option(
            help="How many draws of a view one x̂₀ serves; 4 on a CPU, 1 on a GPU.", min=1, rich_help_panel=FEW
        ),
    ] = None
    anneal: Annotated[
        bool,
        typer.Option("--anneal", help="Let the highest noise level fall from round to round.", rich_help_panel=FEW),
    ] = False
    frames: Annotated[
        int | None,
        typer.Option(
            help="Pictures from one photo to the next, both among them; 8 on a CPU, 32 on a GPU.", rich_help_panel=FILM
        ),
    ] = None
    points: Annotated[
        str | None,
        typer.Option(
            help="The point cloud: auto (default) from the photos; what DUSt3R, MASt3R or VGGT say as .npz, or a .ply; "
            "none: the scene's seed points.",
            rich_help_panel=FILM,
        ),
    ] = None
    video: Annotated[
        str | None,
        typer.Option(
            help="The video model: bundled (default), a folder of difix finetune --task video, or a published one's "
            "folder or hub name.",
            rich_help_panel=FILM,
        ),
    ] = None
    confidence: Annotated[
        bool,
        typer.Option(
            "--confidence",
            help="Also write beside each fix what of it photos know (green: seen by a photo, blue: agreed, red: "
            "invented): NAME.confidence.png of the renders, NAME.target.confidence.png of the rounds'.",
        ),
    ] = False
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Also train as long on photos alone (super-resolution: on other enlargements too; view-diffusion: on "
            "EFT's pictures too, and draw the networks' own; video: also from the point cloud).",
        ),
    ] = False

    @property
    def split_rule(self) -> str | None:
        """The rule of --split or --views, if either is given."""
        return self.split if self.views is None else f"views:{self.views}"

    def _check(self) -> None:
        from difixcli.distillation.prior import check_prior
        from difixcli.distillation.schedule import check_schedule
        from difixcli.distillation.targets import check_targets
        from difixcli.scenes import check_rule, check_scene, scene_root

        check_scene(self.scene)
        if self.start is not None and not self.start.exists():
            raise InputError(f"There is no {self.start} to start from; check its name.")
        if self.from_round is not None and self.force:
            raise InputError("--force begins anew, --from-round goes back in a run; leave one of them out.")
        if not checking.are_alone():  # of several scenes each has a folder in the output
            if self.output is not None:
                check_output(self.output, "distill", self.force)
            if self.from_round is not None:
                self._check_round(self.from_round)
        if self.views is not None and self.split is not None:
            raise InputError(
                f"--views {self.views} and --split {self.split} both say which photos train; leave one out."
            )
        if self.split_rule is not None:
            check_rule(self.split_rule, scene_root(self.scene))
        check_targets(self.targets or ["test"])
        check_schedule(self.schedule, self.rounds, self.step, self.share, self.further)
        check_prior(self.prior)
        self._check_heeded()
        check_fixer(self.fixer)
        if self.start is not None and self.iterations is not None and self.schedule != "none":
            raise InputError("With --start training on photos is done; say with --further how long the rounds are.")
        self._check_prior_s_own()
        self._check_names()

    def _check_round(self, number: int) -> None:
        """InputError where there is no run to go back in, or it has not begun the round."""
        from difixcli.distillation.rounds import Rounds
        from difixcli.scenes import scene_name

        if self.output is not None:
            found = (self.output.expanduser() / "run.json").is_file()
        else:
            found = any((Path("outputs") / file_name(scene_name(self.scene))).glob("*/*/run.json"))
        if not found:
            raise InputError("--from-round goes back in a run of the very same line; there is none yet. Leave it out.")
        if self.output is not None:
            Rounds(self.output.expanduser()).check(number)

    def _check_heeded(self) -> None:
        """InputError for an option that another prior heeds, not the one that is asked for."""
        from difixcli.distillation.prior import SUPER_RESOLUTION, VIDEO, VIEW_DIFFUSION

        if self.prior in (SUPER_RESOLUTION, VIEW_DIFFUSION, VIDEO):
            unheard = ["schedule", "profile", "fixer", "step", "references", "drop_below", "guard"]
            unheard += [] if self.prior == VIDEO else ["trust", "confidence"]
            # views are the photos' or between them, and films begin from the point cloud
            unheard += ["targets"] if self.prior in (SUPER_RESOLUTION, VIDEO) else []
            unheard += ["start"] if self.prior == VIDEO else []
            if said := self.given(*unheard):
                raise InputError(f"{said[0]} says nothing to the prior {self.prior}; leave it out.")
        for other, names in (
            (SUPER_RESOLUTION, ("upscale", "sr", "reduce", "downscale", "sr_update")),
            (VIEW_DIFFUSION, ("view_diffusion", "seek", "denoise_steps", "reuse", "anneal")),
            (VIDEO, ("frames", "points", "video")),
        ):
            if self.prior != other and (said := self.given(*names)):
                raise InputError(f"{said[0]} belongs to --prior {other}; name that, or leave it out.")

    def _check_prior_s_own(self) -> None:
        """InputError for what the prior that is asked for does not take."""
        from difixcli.distillation.prior import SUPER_RESOLUTION, VIDEO, VIEW_DIFFUSION

        if self.prior == SUPER_RESOLUTION:
            from difixcli.cli.super_resolution import check_larger

            check_larger(self)
        elif self.prior == VIEW_DIFFUSION:
            from difixcli.cli.view_diffusion import check_few

            check_few(self)
        elif self.prior == VIDEO:
            from difixcli.cli.video import check_filmed

            check_filmed(self)
        else:
            from difixcli.cli.fixes import check_fixes

            check_fixes(self)

    def _check_names(self) -> None:
        """InputError for a method, setting, loss term or start that cannot be, as far as that is told cheaply."""
        from difixcli.distillation.prior import OWN_PRIORS
        from difixcli.distillation.settings import read_terms
        from difixcli.reconstruction.method_names import check_method_name, plug_ins
        from difixcli.reconstruction.overrides import read_override, read_own_settings
        from difixcli.reconstruction.run_files import check_start
        from difixcli.reconstruction.terms import check_known, check_parameters, check_weights

        if self.method is not None:
            check_method_name(self.method)
        for setting in self.settings or ():
            read_override(setting)
        read_own_settings(self.settings or (), "cpu")
        if terms := read_terms(self.loss or ()):
            # packages add theirs when they are imported, and so does a Python caller
            added = plug_ins() or self.prior not in OWN_PRIORS or "difixcli.reconstruction.objective" in sys.modules
            (check_parameters if added else check_known)(terms)
            check_weights(terms)
        if self.start is not None:
            check_start(self.start, self.method)

    def run(self) -> Distilled:
        """Distil the scene, or go on with it where it was stopped. Raises InputError as `validate` does, and for what
        turns out to be wrong later.
        """
        from difixcli.cli.distilling import distilled

        with working():
            self.validate()
            return distilled(self)


@console.handled
@over_scenes("scene", ".", several_methods=True)
@filling(DistillRequest)
def distill(request: DistillRequest, as_json: JsonOption = False) -> None:
    """Make a better 3D reconstruction: train, render, fix, train on the fixes, round by round."""
    made = request.run()
    console.finish(made.told(), as_json, *made.tables())
