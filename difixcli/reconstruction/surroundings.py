"""What nerfstudio takes for granted around it (CUDA, downloads, a terminal, global random numbers), made local.

Each context manager changes something for the time that our own calls into nerfstudio run, and puts it back.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

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


class RandomState:
    """The state of every global random generator, kept by one reconstruction for itself.

    Of the GPUs' generators it is the current device's: a run may go on where there are more or fewer of them.
    """

    def __init__(self, seed: int) -> None:
        with self._outside():
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.manual_seed(seed)
            self._state = self.capture()

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Random numbers inside the block go on where the last such block ended; outside nothing is disturbed."""
        with self._outside():
            self.restore(self._state)
            try:
                yield
            finally:
                self._state = self.capture()

    def state_dict(self) -> dict[str, Any]:
        """Plain Python values and tensors."""
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._state = state

    @staticmethod
    def capture() -> dict[str, Any]:
        version, words, gauss = random.getstate()
        name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
        return {
            "python": [version, list(words), gauss],
            "numpy": [str(name), [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
            "torch": torch.get_rng_state(),
            "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],
        }

    @staticmethod
    def restore(state: dict[str, Any]) -> None:
        version, words, gauss = state["python"]
        random.setstate((version, tuple(words), gauss))
        name, keys, position, has_gauss, cached = state["numpy"]
        np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
        torch.set_rng_state(state["torch"].cpu())
        if state["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"][0].cpu())

    @contextlib.contextmanager
    def _outside(self) -> Iterator[None]:
        before = self.capture()
        try:
            yield
        finally:
            self.restore(before)
