"""Options and arguments that several commands have, each described once."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

RUNNING = "Running"
"""The help's last section: where and how a command works, rather than what it makes."""


class Device(str, Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Precision(str, Enum):
    auto = "auto"
    bf16 = "bf16"
    fp16 = "fp16"
    fp32 = "fp32"


class Resize(str, Enum):
    release = "release"


class Preset(str, Enum):
    auto = "auto"
    cpu = "cpu"
    gpu = "gpu"


# more can only be a slip of the hand: it would fill the memory, or never end
MOST_TIMES_LARGER = 16
MOST_DENOISE_STEPS = 1000  # as many as the noise levels that the networks are trained at
MOST_ITERATIONS = 10_000_000
MOST_AT_ONCE = 4096  # images of a batch


def _checked_seed(seed: int) -> int:
    if not 0 <= seed < 2**32:  # which numpy takes
        raise typer.BadParameter(f"{seed} is not between 0 and {2**32 - 1}.")
    return seed


SceneArgument = Annotated[
    str,
    typer.Argument(
        help="A posed scene's folder, photos or a video (posed first, once), or sample:room, street, table, interior."
    ),
]
MethodOption = Annotated[str, typer.Option(help="Any nerfstudio method: nerfacto, splatfacto, a plug-in's.")]
SPLIT_RULES = (
    "Which frames train: test-every:N (all but every N-th), every:N, clusters, groups:K, views:K, sparse:K, "
    "co3d:K, between:K or K:N, names:PATTERN, camera:ID, file:JSON, own"
)
SPLIT_DEFAULT = "Default: the scene's own, else test-every:8."
SplitOption = Annotated[str | None, typer.Option(help=f"{SPLIT_RULES}, all. {SPLIT_DEFAULT}")]
SizeOption = Annotated[int | None, typer.Option(help="Long side to work at, in pixels.", min=16)]
SeedOption = Annotated[
    int, typer.Option(help="Seed of everything random.", callback=_checked_seed, rich_help_panel=RUNNING)
]
DeviceOption = Annotated[Device, typer.Option(help="Where to compute.", rich_help_panel=RUNNING)]
PresetOption = Annotated[
    Preset, typer.Option(help="Sizes and schedules for a laptop or a GPU.", rich_help_panel=RUNNING)
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Method setting, as pipeline.model.x=y.", rich_help_panel=RUNNING)
]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="Where to write; made if missing.", rich_help_panel=RUNNING)
]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Replace an earlier run in the output folder.", rich_help_panel=RUNNING)
]
ITERATIONS = "Training steps of a reconstruction; by default 3000 (splats) or 1000 on a CPU, 30000 on a GPU."
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object as the last line of stdout.", rich_help_panel=RUNNING)
]
FixerOption = Annotated[str, typer.Option(help="bundled, a folder, a .pkl of the release, or a hub name.")]
ReferenceOption = Annotated[
    list[Path] | None, typer.Option(help="A clean photo of the scene, or a folder of them; repeatable.")
]
ReferencesOption = Annotated[
    int | None, typer.Option(help="How many photos stand beside an image, at most (default: the fixer's).", min=1)
]

TileOption = Annotated[
    int | None, typer.Option(help="Side of the tiles for large images (default 1024, 1536 on a GPU).", min=256)
]
PrecisionOption = Annotated[
    Precision, typer.Option("--dtype", help="auto: bf16 for raw references on a GPU, else fp32.")
]
CompileOption = Annotated[bool, typer.Option("--compile", help="Compile the network first; pays on a GPU.")]
BatchOption = Annotated[
    int | None,
    typer.Option(help="Images of one size that are fixed at once (default 1, 4 on a GPU).", min=1, max=MOST_AT_ONCE),
]
ConfidenceOption = Annotated[
    bool,
    typer.Option(
        "--confidence",
        help="Also write NAME.confidence.png (green: seen by a photo, blue: agreed, red: invented); takes twice as "
        "long.",
    ),
]
