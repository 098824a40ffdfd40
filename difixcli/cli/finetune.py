"""`difix finetune`: a fixer trained on pairs, a super-resolver on photos, view-conditioned diffusion on scenes, a video
model on clips."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from difixcli import console
from difixcli.cli.inputs import check_fixer, check_model
from difixcli.cli.options import (
    MOST_AT_ONCE,
    MOST_ITERATIONS,
    RUNNING,
    Device,
    DeviceOption,
    ForceOption,
    JsonOption,
    OutputOption,
    SeedOption,
)
from difixcli.cli.requests import Request, filling, working
from difixcli.cli.several import CLUSTER
from difixcli.errors import InputError
from difixcli.runs import check_output

if TYPE_CHECKING:
    from difixcli.cli.finetuning import Trained

WHAT = "What is trained"
STEPS = "Steps"
_MOST_RANK = 512  # as many as the channels of SD-Turbo's decoder
_MOST_CROP = 8192  # pixels
_OF_FIXERS = (
    "track",
    "push_to_hub",
    "stream",
    "train",
    "lora_rank",
    "gram_weight",
    "accumulate",
    "gradient_checkpointing",
)
# options that mean nothing to other tasks
_STRANGE = {
    "super-resolution": (*_OF_FIXERS, "dtype"),
    "view-diffusion": (*_OF_FIXERS, "crop", "patience"),
    "video": (*_OF_FIXERS, "crop", "patience", "dtype"),
}
_TRAINING = (
    "iterations",
    "batch",
    "accumulate",
    "crop",
    "train",
    "lora_rank",
    "learning_rate",
    "warm_up",
    "perceptual",
    "perceptual_weight",
    "gram_weight",
    "ema",
    "patience",
    "dtype",
    "gradient_checkpointing",
)
"""Fields of the request that are options of training."""


class Task(str, Enum):
    fixer = "fixer"
    super_resolution = "super-resolution"
    view_diffusion = "view-diffusion"
    video = "video"


@dataclass(frozen=True)
class FinetuneRequest(Request):
    """What `difix finetune` is asked for: each option of the line by its name, None where it is not given.

    `FinetuneRequest(pairs=["pairs"], base="small").run()` is `difix finetune pairs --base small`.
    """

    pairs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Folders made by difix curate, data.json files, or addresses of tars (streamed); "
            "for super-resolution, scenes, and runs of difix distill --prior super-resolution --reduce N; "
            "for view-diffusion, scenes; for video, what difix curate --strategy clips made."
        ),
    ] = None
    task: Annotated[
        Task,
        typer.Option(
            help="fixer; super-resolution, which learns from photos; view-diffusion, from scenes; video, from clips."
        ),
    ] = Task.fixer
    base: Annotated[
        str,
        typer.Option(
            help="tiny, small or medium from scratch (for other tasks, scratch), or the weights to go on from; "
            "for video, a video model or a fixer."
        ),
    ] = "bundled"
    photos: Annotated[Path | None, typer.Option(help="Folder of any photos, to make samples from.")] = None
    stream: Annotated[bool, typer.Option("--stream", help="Read tars one after another, for very large sets.")] = False
    train: Annotated[
        str | None, typer.Option(help="What trains: all, unet, decoder or skips.", rich_help_panel=WHAT)
    ] = None
    lora_rank: Annotated[
        int | None,
        typer.Option(help="Rank of the decoder's adapters (SD-Turbo: 4).", min=1, max=_MOST_RANK, rich_help_panel=WHAT),
    ] = None
    perceptual: Annotated[
        str | None,
        typer.Option(
            help="The loss's network: lpips-vgg (default for SD-Turbo's layout), st-lpips-vgg or st-lpips-alex.",
            rich_help_panel=WHAT,
        ),
    ] = None
    perceptual_weight: Annotated[
        float | None, typer.Option(help="Weight of the perceptual loss.", min=0, rich_help_panel=WHAT)
    ] = None
    gram_weight: Annotated[float | None, typer.Option(help="Weight of the Gram loss.", min=0, rich_help_panel=WHAT)] = (
        None
    )
    iterations: Annotated[
        int | None,
        typer.Option(
            help="Training steps (default 10000; super-resolution 3000; view-diffusion 6000 of each network, 3000 of "
            "its autoencoder; video 1500, after 500 of the structure's attention).",
            min=1,
            max=MOST_ITERATIONS,
            rich_help_panel=STEPS,
        ),
    ] = None
    batch: Annotated[
        int | None, typer.Option(help="Samples a step and process.", min=1, max=MOST_AT_ONCE, rich_help_panel=STEPS)
    ] = None
    accumulate: Annotated[
        int | None, typer.Option(help="Batches added up for a step.", min=1, rich_help_panel=STEPS)
    ] = None
    crop: Annotated[
        int | None,
        typer.Option(
            help="Pixels of the random square crops (SD-Turbo's layout: whole frames).",
            min=16,
            max=_MOST_CROP,
            rich_help_panel=STEPS,
        ),
    ] = None
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.", rich_help_panel=STEPS)] = None
    warm_up: Annotated[
        int | None, typer.Option(help="Steps until the learning rate's peak.", min=0, rich_help_panel=STEPS)
    ] = None
    ema: Annotated[
        float | None, typer.Option(help="Decay of the weights' running average; 0 for none.", rich_help_panel=STEPS)
    ] = None
    patience: Annotated[
        int | None, typer.Option(help="Validations without a better one, then stop.", min=1, rich_help_panel=STEPS)
    ] = None
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other training option, as validate_every=200.", rich_help_panel=STEPS),
    ] = None
    dtype: Annotated[
        str | None,
        typer.Option(help="fp32, bf16 or fp16 (default bf16 on a GPU at full width).", rich_help_panel=RUNNING),
    ] = None
    gradient_checkpointing: Annotated[
        bool | None,
        typer.Option("--gradient-checkpointing", help="Less memory, a third slower.", rich_help_panel=RUNNING),
    ] = None
    track: Annotated[
        list[str] | None,
        typer.Option(help="Also log to wandb, comet_ml, mlflow, …; TensorBoard always.", rich_help_panel=RUNNING),
    ] = None
    push_to_hub: Annotated[
        str | None,
        typer.Option(
            metavar="OWNER/NAME", help="Upload the fixer and its model card at the end.", rich_help_panel=RUNNING
        ),
    ] = None
    max_failed: Annotated[
        int | None,
        typer.Option(
            help="Train on the others, and end with exit code 3, when no more scenes than this cannot be read; "
            "without it, one is enough to refuse.",
            min=0,
            rich_help_panel=CLUSTER,
        ),
    ] = None
    seed: SeedOption = 0
    device: DeviceOption = Device.auto
    output: OutputOption = None
    force: ForceOption = False

    def chosen(self) -> dict[str, Any]:
        """The training's options that are asked for, by their names in the task's options (see `training.options`).

        Raises InputError for a --set that is none of the task's.
        """
        from difixcli.training.options import VIEW_DIFFUSION_NETWORKS, parsed_options

        own = {name: value for name in _TRAINING if (value := getattr(self, name)) is not None}
        other = parsed_options(self.settings or [], _options_of(self.task))
        for name in other:
            if name in _TRAINING or name == "seed":
                raise InputError(f"{name} has an option of its own; write --{name.replace('_', '-')} instead of --set.")
        if self.task is Task.view_diffusion and (count := own.pop("iterations", None)) is not None:
            if twice := [name for name in VIEW_DIFFUSION_NETWORKS if name in other]:
                raise InputError(f"--iterations is every network's; leave it out beside --set {twice[0]}.")
            own |= dict.fromkeys(VIEW_DIFFUSION_NETWORKS, count)
        return own | other | {"seed": self.seed}

    def _check(self) -> None:
        from difixcli.training.sources import check_photos

        if not self.pairs and self.photos is None:
            what = "folders made by difix curate" if self.task in (Task.fixer, Task.video) else "scenes"
            raise InputError(f"Nothing to train on; name {what}, or --photos.")
        if self.output is not None:
            check_output(self.output, "finetune", self.force)
        for name in _STRANGE.get(self.task.value, ()):
            if said := self.given(name):
                whose = "fixers" if name in _OF_FIXERS else "other tasks"
                raise InputError(f"{said[0]} is for {whose}; leave it out with --task {self.task.value}.")
        if self.max_failed is not None and self.task in (Task.fixer, Task.video):
            raise InputError(
                "--max-failed is for tasks that learn from scenes; difix curate has left out those that failed, so "
                f"leave it out with --task {self.task.value}."
            )
        check = {
            Task.fixer: self._check_fixer,
            Task.super_resolution: self._check_super_resolver,
            Task.view_diffusion: self._check_view_diffusion,
            Task.video: self._check_video,
        }
        check[self.task](self.chosen())
        if self.photos is not None:
            check_photos(self.photos)

    def _check_fixer(self, chosen: dict[str, Any]) -> None:
        from difixcli.model_folders import SMALL_SIZES, looks_like_hub_name
        from difixcli.training.options import TrainingOptions, check_photo_share, with_options
        from difixcli.training.sources import check_pairs, check_small, is_remote, split_sources
        from difixcli.training.trackers import check_installed

        if self.base not in SMALL_SIZES:
            check_small(self.base)
            check_fixer(self.base)
        if self.push_to_hub is not None and not looks_like_hub_name(self.push_to_hub):
            raise InputError(f"--push-to-hub {self.push_to_hub} is no name on the hub; write OWNER/NAME.")
        check_installed(self.track or [])
        small = TrainingOptions.for_small()
        # what other names hold is known once it is read: nothing that either kind takes is refused before
        kinds = [small] if self.base in (*SMALL_SIZES, "bundled") else [TrainingOptions.for_published(), small]
        refused = []
        for defaults in kinds:
            try:
                with_options(defaults, chosen, self._trained_on())
            except InputError as error:
                refused.append(error)
        if len(refused) == len(kinds):
            raise refused[0]
        check_photo_share(chosen, self.photos is not None)
        sources = [one if is_remote(one) else str(Path(one).expanduser()) for one in self.pairs or []]
        for source in split_sources(sources, self.stream)[0]:
            check_pairs(source)

    def _check_super_resolver(self, chosen: dict[str, Any]) -> None:
        from difixcli.priors.super_resolution.files import check_own
        from difixcli.scenes import check_scene
        from difixcli.training.options import (
            OF_NEW_RESOLVERS,
            SCRATCH,
            SuperResolutionOptions,
            check_of_new,
            check_photo_share,
            with_options,
        )
        from difixcli.training.sources import is_super_resolution_run

        for spec in self.pairs or []:
            if not self.max_failed and not is_super_resolution_run(Path(spec).expanduser()):
                check_scene(spec)
        if self.base != SCRATCH:
            check_own(self.base)
            check_of_new(self.base, OF_NEW_RESOLVERS, chosen)
        with_options(SuperResolutionOptions(), chosen, self._trained_on())
        check_photo_share(chosen, self.photos is not None, bool(self.pairs))

    def _check_view_diffusion(self, chosen: dict[str, Any]) -> None:
        from difixcli.priors.view_diffusion.files import check_view_diffusion, is_published
        from difixcli.scenes import check_scene
        from difixcli.training.options import (
            OF_NEW_AROUND_PUBLISHED,
            OF_NEW_VIEW_DIFFUSION,
            SCRATCH,
            ViewDiffusionOptions,
            check_of_new,
            with_options,
        )

        if not self.pairs:
            raise InputError("View-conditioned diffusion learns from posed photos; name scenes beside --photos.")
        for spec in self.pairs if not self.max_failed else ():
            check_scene(spec)
        if is_published(self.base):
            check_of_new(self.base, OF_NEW_AROUND_PUBLISHED, chosen)
        elif self.base != SCRATCH:
            check_of_new(self.base, OF_NEW_VIEW_DIFFUSION, chosen)
            check_view_diffusion(self.base)
        with_options(ViewDiffusionOptions(), chosen, self._trained_on())

    def _check_video(self, chosen: dict[str, Any]) -> None:
        from difixcli.model_folders import kind_of
        from difixcli.training.options import VideoOptions, with_options
        from difixcli.training.sources import check_pairs

        if self.photos is not None:
            raise InputError("--photos says nothing to video models, which learn from clips; leave it out.")
        for source in self.pairs or []:
            check_pairs(Path(source).expanduser())
        if kind_of(Path(self.base).expanduser()) == "video":
            check_model(self.base, "video")
        else:
            check_fixer(self.base)
        with_options(VideoOptions(), chosen, self._trained_on())

    def _trained_on(self) -> str:
        """The device as far as it is known before torch is imported: auto may turn out to be cuda."""
        return "cpu" if self.device is Device.cpu else "cuda"

    def run(self) -> Trained | None:
        """Train, or go on where it was stopped; None in other processes than the first that accelerate launched.

        Raises InputError as `validate` does, and for what turns out to be wrong later.
        """
        from difixcli.cli.finetuning import trained

        with working():
            self.validate()
            return trained(self)


@console.handled
@filling(FinetuneRequest)
def finetune(request: FinetuneRequest, as_json: JsonOption = False) -> None:
    """Train a fixer on pairs, a super-resolver on photos, view-conditioned diffusion on scenes, or video on clips.

    Fixers train on several GPUs and machines with accelerate launch -m difixcli finetune …
    """
    made = request.run()
    if made is None:
        return
    if not made.failed:
        console.finish(made.told(), as_json, *made.tables())
        return
    message = f"Not trained on, as they cannot be read: {', '.join(made.failed)}."
    console.finish({**made.told(), "error": message}, as_json, *made.tables())
    console.fail(message)
    raise typer.Exit(3)


def _options_of(task: Task) -> type:
    """The options that a task trains with."""
    from difixcli.training.options import SuperResolutionOptions, TrainingOptions, VideoOptions, ViewDiffusionOptions

    kinds: dict[Task, type] = {
        Task.fixer: TrainingOptions,
        Task.super_resolution: SuperResolutionOptions,
        Task.view_diffusion: ViewDiffusionOptions,
        Task.video: VideoOptions,
    }
    return kinds[task]
