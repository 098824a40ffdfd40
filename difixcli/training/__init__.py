"""The loops that train: a fixer (pairs on disk or made from photos, the paper's losses), a super-resolver (photos),
view-conditioned diffusion (scenes) and a video model (clips)."""

from difixcli.training.finetune import finetune
from difixcli.training.options import SuperResolutionOptions, TrainingOptions, VideoOptions, ViewDiffusionOptions
from difixcli.training.super_resolution import train_super_resolver
from difixcli.training.video import train_video
from difixcli.training.view_diffusion import train_view_diffusion

__all__ = [
    "SuperResolutionOptions",
    "TrainingOptions",
    "VideoOptions",
    "ViewDiffusionOptions",
    "finetune",
    "train_super_resolver",
    "train_video",
    "train_view_diffusion",
]
