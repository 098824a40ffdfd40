"""`difix fix`: images through the fixer, and fixers exported."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from difixcli import console
from difixcli.cli.inputs import check_fixer, check_source
from difixcli.cli.options import (
    MOST_DENOISE_STEPS,
    MOST_TIMES_LARGER,
    SPLIT_RULES,
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
    Resize,
    SeedOption,
    SizeOption,
    TileOption,
)
from difixcli.cli.outputs import Made
from difixcli.cli.requests import Request, filling, working
from difixcli.errors import InputError, unknown
from difixcli.runs import check_output

VIEWS = "Novel views"
IMAGES, NOVEL_VIEW = TASKS = ("images", "novel-view")


class Layout(str, Enum):
    ours = "ours"
    diffusers = "diffusers"


@dataclass(frozen=True)
class FixRequest(Request):
    """What `difix fix` is asked for: each option of the line by its name, None where it is not given.

    `FixRequest(Path("renders"), reference=[Path("photos")]).run()` is `difix fix renders --reference photos`.
    """

    source: Annotated[
        Path | None, typer.Argument(help="An image or a folder of images; with --task novel-view a scene.")
    ] = None
    task: Annotated[
        str,
        typer.Option(
            help="images (default), or novel-view: views of a SCENE of two to four photos, straight from view "
            "diffusion's networks."
        ),
    ] = IMAGES
    reference: ReferenceOption = None
    scene: Annotated[
        str | None, typer.Option(help="Posed scene whose frames the images are named after: nearest photos by pose.")
    ] = None
    references: ReferencesOption = None
    fixer: FixerOption = "bundled"
    size: SizeOption = None
    resize: Annotated[Resize | None, typer.Option(help="release: work at 1024×576, as Difix3D's release does.")] = None
    tile: TileOption = None
    batch: BatchOption = None
    fill_unseen: Annotated[
        bool, typer.Option("--fill-unseen", help="Invent what is transparent, from noise (raw references only).")
    ] = False
    upscale: Annotated[
        int | None,
        typer.Option(
            help="Make the images so many times larger instead (default 4 with --sr).", min=2, max=MOST_TIMES_LARGER
        ),
    ] = None
    sr: Annotated[
        str | None,
        typer.Option(help="With --upscale, what does it: bundled, a file that spandrel reads, a folder, a hub name."),
    ] = None
    split: Annotated[
        str | None,
        typer.Option(
            help="Of a --scene the photos that may stand beside images, with --task novel-view those to look at. "
            f"{SPLIT_RULES}."
        ),
    ] = None
    trajectory: Annotated[
        str | None,
        typer.Option(
            help="Where to look from: spiral, orbit, interpolate, around (:N frames), shift:0.1, or PATH.json of "
            "nerfstudio's viewer; the split's test views by default.",
            rich_help_panel=VIEWS,
        ),
    ] = None
    camera: Annotated[
        Path | None,
        typer.Option(
            help="Where to look from: JSON with a transform_matrix (4×4, as in the scene's transforms.json), or frames "
            "with one each.",
            rich_help_panel=VIEWS,
        ),
    ] = None
    view_diffusion: Annotated[
        str | None,
        typer.Option(
            help="The networks: a folder of difix finetune --task view-diffusion; this version brings none.",
            rich_help_panel=VIEWS,
        ),
    ] = None
    denoise_steps: Annotated[
        int | None,
        typer.Option(
            help="Denoising steps of a view (default 25).", min=1, max=MOST_DENOISE_STEPS, rich_help_panel=VIEWS
        ),
    ] = None
    confidence: ConfidenceOption = False
    export: Annotated[Path | None, typer.Option(help="Write the fixer to a folder; needs no images.")] = None
    layout: Annotated[
        Layout | None, typer.Option(help="With --export: ours (default), or diffusers, as Difix is published.")
    ] = None
    merge_lora: Annotated[bool, typer.Option("--merge-lora", help="With --export: work adapters into the weights.")] = (
        False
    )
    dtype: PrecisionOption = Precision.auto
    compiled: CompileOption = False
    seed: SeedOption = 0
    device: DeviceOption = Device.auto
    output: OutputOption = None
    force: ForceOption = False

    def _check(self) -> None:
        if self.task not in TASKS:
            raise unknown("task", self.task, TASKS)
        self._check_task()
        if self.output is not None:
            check_output(self.output, "fix", self.force, self.arguments)

    def _check_task(self) -> None:
        of_views = ("trajectory", "camera", "view_diffusion", "denoise_steps")
        if self.task == IMAGES and (said := self.given(*of_views)):
            raise InputError(f"{said[0]} belongs to --task novel-view; name that, or leave it out.")
        if self.task == IMAGES and self.split is not None and self.scene is None:
            raise InputError("--split belongs to --scene or --task novel-view; name one of them, or leave it out.")
        if self.task == NOVEL_VIEW:
            self._check_views()
            return
        check_fixer(self.fixer)
        if self.export is not None:
            from difixcli.cli.fixing import check_export

            check_export(self.fixer, self.export, self.layout)
        if self.merge_lora and self.export is None:
            raise InputError("--merge-lora belongs to --export DIR; for images adapters are always merged.")
        if self.layout is not None and self.export is None:
            raise InputError("--layout belongs to --export DIR; name a folder, or leave it out.")
        if self.source is None:
            self._check_lone_export()
        elif self._enlarges:
            self._check_larger(self.source)
        else:
            self._check_images(self.source)

    @property
    def arguments(self) -> dict[str, Any]:
        """What a run is known by, as far as the request alone says it."""
        if self.task == NOVEL_VIEW:
            return {"task": self.task, "size": self.size, "seed": self.seed}
        source: dict[str, Any] = {"source": self.source and self.source.absolute(), "size": self.size}
        if self._enlarges:
            return source | {"sr": self.sr or "bundled", "seed": self.seed}
        return source | {"fixer": self.fixer, "tile": self.tile, "compiled": self.compiled}

    @property
    def _enlarges(self) -> bool:
        return self.upscale is not None or self.sr is not None

    def _check_views(self) -> None:
        """InputError for options of images, and for views that there cannot be."""
        from difixcli.cli.view_diffusion import check_views

        if said := self.given(
            *("reference", "scene", "references", "resize", "tile", "fill_unseen", "confidence", "export"),
            *("batch", "upscale", "sr", "merge_lora", "compiled", "layout", "fixer", "dtype"),
        ):
            raise InputError(f"{said[0]} says nothing to --task novel-view, which fixes no image; leave it out.")
        check_views(self)

    def _check_lone_export(self) -> None:
        """InputError for options that say how images are made, where there are none."""
        if self.export is None:
            raise InputError("Nothing to fix; name an image or a folder of images, or a folder to --export to.")
        if said := self.given(
            *("reference", "scene", "references", "size", "resize", "tile", "batch", "fill_unseen"),
            *("confidence", "upscale", "sr", "compiled", "seed", "device", "output"),
        ):
            raise InputError(
                f"Without images {', '.join(said)} would say nothing: a lone --export writes the fixer alone. Name an "
                "image or a folder of images too, or leave that out."
            )

    def _check_larger(self, source: Path) -> None:
        """InputError for options of fixes, and for what cannot be made larger."""
        from difixcli.priors.super_resolution.files import check_resolver
        from difixcli.scenes.unposed import is_video

        if said := self.given(
            *("reference", "scene", "references", "resize", "tile", "fill_unseen", "confidence", "export"),
            *("batch", "compiled", "fixer", "dtype"),
        ):
            raise InputError(f"{said[0]} belongs to fixing, not to --upscale; leave one of them out.")
        if is_video(source):
            raise InputError(f"{source} is a video; make its frames images first.")
        check_source(source, self.output)
        check_resolver(self.sr or "bundled")

    def _check_images(self, source: Path) -> None:
        """InputError for photos that are chosen in two ways or in none, and for what is no image."""
        from difixcli.scenes import check_rule, check_scene, scene_root
        from difixcli.scenes.unposed import is_video

        if self.scene is not None and self.reference:
            raise InputError("--scene and --reference both choose the photos; leave one of them out.")
        if self.references is not None and self.scene is None and not self.reference:
            raise InputError("--references says how many photos count; name them with --reference, or a --scene.")
        if is_video(source):
            raise InputError(f"{source} is a video; use difix enhance for it.")
        check_source(source, self.output)
        if self.scene is not None:
            check_scene(self.scene)
            if self.split is not None:
                check_rule(self.split, scene_root(self.scene))

    def run(self) -> Made:
        """Do it, or go on with it where it was stopped. Raises InputError as `validate` does, and for what turns out to
        be wrong later.
        """
        with working():
            self.validate()
            if self.task == NOVEL_VIEW:
                from difixcli.cli.view_diffusion import novel_views

                return novel_views(self)
            if self.source is not None and self._enlarges:
                from difixcli.cli.super_resolution import larger_images

                return larger_images(self, self.source)
            from difixcli.cli.fixing import exported, fixed_images

            if self.source is not None:
                return fixed_images(self, self.source)
            return Made(exported=exported(self))


@console.handled
@filling(FixRequest)
def fix(request: FixRequest, as_json: JsonOption = False) -> None:
    """Clean images, with clean photos of the same scene beside them; make them larger; or make views of a scene."""
    console.finish(request.run().told(), as_json)
