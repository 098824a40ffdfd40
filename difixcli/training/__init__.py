"""Training a fixer: pairs on disk or made from photos, the paper's losses, the loop."""

from difixcli.training.finetune import finetune
from difixcli.training.options import TrainingOptions

__all__ = ["TrainingOptions", "finetune"]
