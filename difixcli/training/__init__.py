"""Training a fixer (pairs on disk or made from photos, the paper's losses) and a super-resolver (photos): the loops."""

from difixcli.training.finetune import finetune
from difixcli.training.options import SuperResolutionOptions, TrainingOptions
from difixcli.training.super_resolution import train_super_resolver

__all__ = ["SuperResolutionOptions", "TrainingOptions", "finetune", "train_super_resolver"]
