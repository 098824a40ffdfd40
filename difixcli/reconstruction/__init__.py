"""nerfstudio behind one small interface, and the CPU splat rasteriser."""

from difixcli.reconstruction.checkpoints import latest_checkpoint
from difixcli.reconstruction.methods import draws_images, has_gaussians, is_splat, known_methods, method_config
from difixcli.reconstruction.presets import PRESETS, default_iterations
from difixcli.reconstruction.reconstruction import Reconstruction
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
