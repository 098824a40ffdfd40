"""nerfstudio behind one small interface, and the CPU splat rasteriser.

What takes long to import is imported when it is first used: options are checked without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from difixcli.reconstruction.methods import draws_images, has_gaussians, is_splat, known_methods, method_config
    from difixcli.reconstruction.presets import PRESETS, default_iterations
    from difixcli.reconstruction.reconstruction import Reconstruction
    from difixcli.reconstruction.run_files import latest_checkpoint
    from difixcli.reconstruction.start import start_from
    from difixcli.reconstruction.views import PseudoView, Render, Wanted

__all__ = [
    "PRESETS",
    "PseudoView",
    "Reconstruction",
    "Render",
    "Wanted",
    "default_iterations",
    "draws_images",
    "has_gaussians",
    "is_splat",
    "known_methods",
    "latest_checkpoint",
    "method_config",
    "start_from",
]

_MODULES = {
    "methods": ("draws_images", "has_gaussians", "is_splat", "known_methods", "method_config"),
    "presets": ("PRESETS", "default_iterations"),
    "reconstruction": ("Reconstruction",),
    "run_files": ("latest_checkpoint",),
    "start": ("start_from",),
    "views": ("PseudoView", "Render", "Wanted"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
