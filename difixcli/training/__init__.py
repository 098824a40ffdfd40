"""The loops that train: a fixer (pairs on disk or made from photos, the paper's losses), a super-resolver (photos),
view-conditioned diffusion (scenes) and a video model (clips).

What takes long to import is imported when it is first used: options are checked without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from difixcli.training.options import SuperResolutionOptions, TrainingOptions, VideoOptions, ViewDiffusionOptions

if TYPE_CHECKING:
    from difixcli.training.fixer import finetune
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

_MODULES = {
    "finetune": "fixer",
    "train_super_resolver": "super_resolution",
    "train_video": "video",
    "train_view_diffusion": "view_diffusion",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
