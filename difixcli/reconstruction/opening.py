"""How nerfstudio's own commands open a run that was trained on a CPU.

Its `config.yml` names `open_pipeline` where nerfstudio's would name a class, so that ns-viewer, ns-render, ns-eval and
ns-export have what our own calls have: compiled splats and hash grids, and no download of perceptual weights. A run
that was trained on a GPU names nerfstudio's classes and opens where this package is not installed, too.
"""

from __future__ import annotations

import copy
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch

from difixcli.reconstruction.patches import no_perceptual_download, on_device, read_in_process

_surroundings = ExitStack()
"""Those of pipelines that were opened; they last as long as the process."""


def openable(config: Any) -> Any:
    """A copy of a run's configuration that `open_pipeline` opens."""
    opened = copy.copy(config)
    opened.pipeline = copy.copy(config.pipeline)
    opened.pipeline.pipeline_class = config.pipeline._target
    opened.pipeline._target = open_pipeline
    return opened


def open_pipeline(config: Any, **arguments: Any) -> Any:
    """What the pipeline's class makes of its configuration and `arguments`, which works on the device it is made for.

    Where LPIPS's weights are not on this machine its figure is "not a number".
    """
    model = config.model._target
    read_in_process(config.datamanager)  # nerfstudio's tools put the registered class back
    _surroundings.enter_context(on_device(torch.device(arguments["device"]).type, model))
    with nullcontext() if _has_perceptual_weights() else no_perceptual_download(model):
        return config.pipeline_class(config, **arguments)


def _has_perceptual_weights() -> bool:
    """Whether torchvision's AlexNet, which LPIPS looks through, was downloaded before."""
    from torchvision.models import AlexNet_Weights

    return (Path(torch.hub.get_dir()) / "checkpoints" / Path(AlexNet_Weights.IMAGENET1K_V1.url).name).is_file()
