"""What of nerfstudio and the libraries under it is changed for our use of them, each with its reason, in one table.

Changes are made for the time that our own calls run, on the objects of one run, or in a configuration; only what a
damaged installation needs lasts as long as the process. Nothing here imports nerfstudio before it is called.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class Patch:
    """One thing that is other than its library made it.

    `what` is its full name, `by` the full name of what changes it, `why` what would be without, and `requirement` the
    library with the versions that this was seen in: those that the project asks for. Whoever widens them looks here.
    """

    what: str
    by: str
    why: str
    requirement: str


_NERFSTUDIO = "nerfstudio==1.1.5"
_GSPLAT = "gsplat>=1.4,<1.5"
_TORCH = "torch>=2.5,<=2.13.0"

PATCHES = (
    Patch(
        "nerfstudio.utils.rich_utils.CONSOLE.quiet",
        "difixcli.reconstruction.patches.quiet",
        "it talks on stdout, which is for results",
        _NERFSTUDIO,
    ),
    Patch(
        "inspect.stack",
        "difixcli.reconstruction.patches.stacks_without_source",
        "the registry asks it once for every method that is not installed, two fifths of the time it takes to import",
        _NERFSTUDIO,
    ),
    Patch(
        "torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity",
        "difixcli.reconstruction.patches.no_perceptual_download",
        "every model builds one when it is set up, which downloads weights and without a network fails",
        "torchmetrics>=1.4,<2",
    ),
    Patch(
        "torch.Tensor.cuda",
        "difixcli.reconstruction.patches.on_device",
        "splatfacto calls it wherever it is trained",
        _TORCH,
    ),
    Patch(
        "torch.Tensor.pin_memory",
        "difixcli.reconstruction.patches.on_device",
        "photos that are cached beside the device are pinned, which fails without an accelerator",
        _TORCH,
    ),
    Patch(
        "nerfstudio.models.splatfacto.get_viewmat",
        "difixcli.reconstruction.patches.on_device",
        "compiling it and its like (torch.compile) takes longer on a CPU than a short training",
        _NERFSTUDIO,
    ),
    Patch(
        "nerfstudio.field_components.encodings.HashEncoding.pytorch_fwd",
        "difixcli.reconstruction.hash_encoding.encode",
        "it takes most of nerfacto's time on a CPU; `on_device` puts the compiled function there",
        _NERFSTUDIO,
    ),
    Patch(
        "nerfstudio.models.splatfacto.rasterization",
        "difixcli.reconstruction.rasteriser.rasterization",
        "gsplat's needs CUDA; `on_device` puts ours in the modules of any model that has it",
        _NERFSTUDIO,
    ),
    Patch(
        "nerfstudio.models.splatfacto.SSIM",
        "difixcli.reconstruction.ssim.CpuSsim",
        "as convolutions it costs more than rendering on a CPU; the trainer changes the model's own",
        _NERFSTUDIO,
    ),
    Patch(
        "nerfstudio.data.datamanagers.parallel_datamanager.ParallelDataManager",
        "difixcli.reconstruction.patches.read_in_process",
        "its worker processes draw random numbers that no seed decides",
        _NERFSTUDIO,
    ),
    Patch(
        "nerfstudio.data.dataparsers.nerfstudio_dataparser.Nerfstudio._generate_dataparser_outputs",
        "difixcli.reconstruction.patches.seeded",
        "it reads seed points with open3d and knows none but those of a file",
        _NERFSTUDIO,
    ),
    Patch(
        "nerfstudio.data.datamanagers.base_datamanager.DataManager.next_train",
        "difixcli.reconstruction.trainer.Trainer.next_train",
        "it knows photos alone, neither pseudo-views nor rays through seed points",
        _NERFSTUDIO,
    ),
    Patch(
        "nerfstudio.models.base_model.Model.get_loss_dict",
        "difixcli.reconstruction.trainer.Trainer",
        "it heeds neither how far a pixel is trusted nor what is known of depth",
        _NERFSTUDIO,
    ),
    Patch(
        "nerfstudio.pipelines.base_pipeline.VanillaPipelineConfig",
        "difixcli.reconstruction.opening.openable",
        "nerfstudio's own commands open a run that was trained on a CPU with none of the above",
        _NERFSTUDIO,
    ),
    Patch(
        "gsplat.strategy.DefaultStrategy",
        "difixcli.reconstruction.bounded_strategy.bound_strategy",
        "it adds Gaussians without an upper bound",
        _GSPLAT,
    ),
    Patch(
        "torchvision.ops.nms",
        "difixcli.torchvision_cure.cure",
        "a torchvision that was built for CUDA cannot be imported beside a torch that was not",
        "torchvision>=0.20,<=0.28.0",
    ),
)

_ABSENT = object()


@contextlib.contextmanager
def swapped(owner: Any, name: str, value: Any) -> Iterator[None]:
    """`owner.name` is `value` inside the block and what it was outside."""
    before = vars(owner).get(name, _ABSENT)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is _ABSENT:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """nerfstudio talks on stdout, which is for results; inside the block it is silent.

    So are its warnings, which are about its own use of its libraries.
    """
    with contextlib.ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w", encoding="utf-8"))))
        from nerfstudio.utils.rich_utils import CONSOLE

        stack.enter_context(swapped(CONSOLE, "quiet", True))
        yield


@contextlib.contextmanager
def stacks_without_source() -> Iterator[None]:
    """`inspect.stack` looks for the source of every frame in all modules; inside the block it does not.

    What it gives has no lines of source (as with `context=0`) and calls files what their code calls them.
    """

    def stack(context: int = 0) -> list[inspect.FrameInfo]:
        frames, frame = [], inspect.currentframe()
        while frame is not None and (frame := frame.f_back) is not None:
            code = frame.f_code
            frames.append(inspect.FrameInfo(frame, code.co_filename, frame.f_lineno, code.co_name, None, None))
        return frames

    with swapped(inspect, "stack", stack):
        yield


@contextlib.contextmanager
def no_perceptual_download(model: type) -> Iterator[None]:
    """Models build an LPIPS network for their own metrics and download its weights; inside the block they do not.

    Figures are computed by `difixcli.evaluation`, so nothing of ours ever calls that network; ns-eval gets "not a
    number" from a model that was built here.
    """
    from torchmetrics.image import lpip

    original = lpip.LearnedPerceptualImagePatchSimilarity
    with contextlib.ExitStack() as stack:
        for module in (lpip, *_modules_of(model)):
            if vars(module).get(original.__name__) is original:
                stack.enter_context(swapped(module, original.__name__, NoMetric))
        yield


class NoMetric(nn.Module):
    """Stands where a model keeps a metric of its own that nobody reads, and knows no figure."""

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__()

    def forward(self, *_: object) -> torch.Tensor:
        return torch.tensor(float("nan"))


@contextlib.contextmanager
def on_device(device: str, model: type) -> Iterator[None]:
    """Lets `model` run on `device`; for CUDA there is nothing to do.

    On a CPU: Gaussians are rasterised and hash grids looked up by our own compiled code, `.cuda()` and `.pin_memory()`
    leave tensors where they are, functions that were wrapped in torch.compile run as written (compiling takes longer
    than a short training), and torch uses one thread, since on a busy machine more of them spend their time waiting
    for each other.
    """
    if device != "cpu":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
        return
    from nerfstudio.field_components.encodings import HashEncoding

    from difixcli.reconstruction.hash_encoding import encode

    threads = torch.get_num_threads()
    with contextlib.ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stack.callback(torch.set_num_threads, threads)
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
        stack.enter_context(swapped(torch.Tensor, "cuda", _stay))
        stack.enter_context(swapped(torch.Tensor, "pin_memory", _stay))
        stack.enter_context(swapped(HashEncoding, "pytorch_fwd", encode))
        for module in _modules_of(model):
            for name, value in list(vars(module).items()):
                if name == "rasterization" and getattr(value, "__module__", "").startswith("gsplat"):
                    from difixcli.reconstruction.rasteriser import rasterization

                    stack.enter_context(swapped(module, name, rasterization))
                elif hasattr(value, "_torchdynamo_orig_callable"):
                    stack.enter_context(swapped(module, name, value._torchdynamo_orig_callable))
        yield


def _stay(tensor: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    return tensor


def _modules_of(model: type) -> list[ModuleType]:
    """The modules that define `model` and the classes it derives from."""
    names = dict.fromkeys(base.__module__ for base in model.__mro__)
    return [sys.modules[name] for name in names if name.split(".")[0] not in {"torch", "builtins", "typing", "abc"}]


def read_in_process(manager: Any) -> None:
    """Let a datamanager's configuration make one that reads photos in this process.

    Worker processes draw their own random numbers; in this process the seed decides.
    """
    from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager
    from nerfstudio.data.datamanagers.parallel_datamanager import ParallelDataManager

    target = manager._target
    if getattr(target, "__origin__", target) is ParallelDataManager:
        datasets = getattr(target, "__args__", ())
        in_process: Any = VanillaDataManager
        manager._target = in_process[datasets] if datasets else in_process


@contextlib.contextmanager
def seeded(parser_config: Any, seeds: tuple[np.ndarray, np.ndarray] | None) -> Iterator[None]:
    """Inside the block the parser also gives out seed points, which splatfacto looks for in the metadata."""
    if seeds is None:
        yield
        return
    original = parser_config._target
    points, colors = (torch.from_numpy(array) for array in seeds)

    class _WithSeeds(original):  # type: ignore[misc, valid-type]
        def _generate_dataparser_outputs(self, split: str = "train", **kwargs: Any) -> Any:
            outputs = super()._generate_dataparser_outputs(split, **kwargs)
            outputs.metadata["points3D_xyz"] = points
            outputs.metadata["points3D_rgb"] = colors
            return outputs

    parser_config._target = _WithSeeds
    try:
        yield
    finally:
        parser_config._target = original
