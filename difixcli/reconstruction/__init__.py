"""nerfstudio behind one small interface, and the CPU splat rasteriser."""

from difixcli.reconstruction.methods import known_methods
from difixcli.reconstruction.presets import PRESETS, default_iterations
from difixcli.reconstruction.reconstruction import Reconstruction, latest_checkpoint
from difixcli.reconstruction.views import PseudoView, Render

__all__ = [
    "PRESETS",
    "PseudoView",
    "Reconstruction",
    "Render",
    "default_iterations",
    "known_methods",
    "latest_checkpoint",
]
