"""The loops that train: a fixer (pairs on disk or made from photos, the paper's losses), a super-resolver (photos) and
view-conditioned diffusion (scenes)."""

from difixcli.training.finetune import finetune
from difixcli.training.options import SuperResolutionOptions, TrainingOptions, ViewDiffusionOptions
from difixcli.training.super_resolution import train_super_resolver
from difixcli.training.view_diffusion import train_view_diffusion

__all__ = [
    "SuperResolutionOptions",
    "TrainingOptions",
    "ViewDiffusionOptions",
    "finetune",
    "train_super_resolver",
    "train_view_diffusion",
]
