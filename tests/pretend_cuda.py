"""A CUDA device that is not there, so that a machine without one can find tensors left on the wrong device.

Inside `pretend_cuda()` tensors may be moved to and made on "cuda". They say that they are there, compute on the CPU,
and refuse what CUDA's tensors refuse: arguments from both devices, generators of the other device, NumPy. Whatever
waits for a real GPU (`.item()`, `.cpu()`, boolean indexing…) is counted. Kernels that CUDA lacks, its speed and its
rounding are hardly known here: `tests/gpu` is for those.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

aten = torch.ops.aten
_CUDA, _CPU = torch.device("cuda", 0), torch.device("cpu")
# Arguments may lie on two devices: copies by their nature, and indices that lie on the CPU are moved.
_COPIES = {aten.copy_.default, aten._foreach_copy_.default}
_INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
# Results whose values or sizes the CPU has to wait for.
_WAITS = {aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default, aten.masked_select.default}
# What has no kernel for half precision on CUDA, by the beginning of its name.
_NO_HALF = ("linalg_", "_linalg", "_fft", "histc", "quantile", "triangular_solve", "cholesky", "geqrf")
# Made of parts that make tensors of their own, where no device can be told: run whole.
_WHOLE = {torch.quantile, Tensor.quantile, torch.nanquantile, Tensor.nanquantile}
_MAKES_TENSORS = {torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy}

waits: Counter[str] = Counter()
"""What a real GPU's queue would have been emptied for, by operation."""


class PretendTensor(Tensor):
    """A tensor that says it is on CUDA; `held`, on the CPU, has its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> PretendTensor:
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype
        )
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @property
    def device(self) -> torch.device:
        return _CUDA

    @property
    def is_cuda(self) -> bool:
        return True

    @property
    def is_cpu(self) -> bool:
        return False

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        flat = tree_flatten((args, kwargs))[0]
        wrapped = [x for x in flat if isinstance(x, PretendTensor)]
        plain = [x for x in flat if _bare(x)]
        name = func._schema.name.removeprefix("aten::")
        indices = [x for x in args[1] if x is not None] if func in _INDEXED else []
        if func not in _COPIES:
            _check_devices(func, args, plain, indices)
        if name.startswith(_NO_HALF) and any(x.dtype in (torch.half, torch.bfloat16) for x in wrapped):
            raise RuntimeError(f"{func} has no kernel for half precision on CUDA")
        if func in _WAITS or any(x.dtype in (torch.bool, torch.uint8) for x in indices):
            waits[name] += 1
        owners = {id(x.held): x for x in wrapped}
        inner, named = tree_map(lambda x: x.held if isinstance(x, PretendTensor) else x, (args, kwargs))
        made = func(*inner, **named)
        if any(x.shape != x.held.shape for x in wrapped):
            raise NotImplementedError(f"{func} changes a tensor's shape in place")
        if func is aten.copy_.default and not isinstance(args[0], PretendTensor):
            waits["to the CPU"] += 1
            return args[0]
        return tree_map(lambda x: (owners[id(x)] if id(x) in owners else PretendTensor(x)) if _bare(x) else x, made)

    def numpy(self, *, force: bool = False) -> Any:
        if force:
            return _moved(self.detach(), _CPU).numpy()
        raise TypeError("can't convert cuda:0 device type tensor to numpy; use Tensor.cpu() first")

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    def tolist(self) -> Any:
        return _moved(self.detach(), _CPU).tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.detach().held.__reduce_ex__(protocol)

    def __repr__(self, *_: Any, **__: Any) -> str:
        return f"PretendTensor({tuple(self.shape)}, {self.dtype})"


class _Up(torch.autograd.Function):
    """From the CPU to CUDA."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return PretendTensor(values.detach().clone(memory_format=torch.preserve_format))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.held if isinstance(gradient, PretendTensor) else gradient


class _Down(torch.autograd.Function):
    """From CUDA to the CPU."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        assert isinstance(values, PretendTensor)
        return values.held.detach().clone(memory_format=torch.preserve_format)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return PretendTensor(gradient)


class _PretendCuda(TorchFunctionMode):
    """Gives every function of torch the device that it is asked for."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.to:
            return _to(*args, **kwargs)
        if func in (Tensor.cuda, Tensor.cpu):
            return _moved(args[0], _CUDA if func is Tensor.cuda else _CPU)
        if func is torch._C._nn._parse_to:  # of modules; their tensors come one by one
            return func(*args, **kwargs)
        if func in _WHOLE and isinstance(args[0], PretendTensor):
            return _Up.apply(func(_Down.apply(args[0]), *args[1:], **kwargs))
        wanted = kwargs.pop("device", None)
        device = None if wanted is None else torch.device(wanted)
        kwargs.pop("pin_memory", None)
        generator = kwargs.get("generator")
        if device is not None and generator is not None and generator.device.type != device.type:
            raise RuntimeError(f"Expected a '{device.type}' device type for generator but found another one's")
        if func is Tensor.new_tensor:
            device = device or args[0].device
            args = (getattr(args[0], "held", args[0]), *args[1:])
        elif func in _MAKES_TENSORS and args and isinstance(args[0], PretendTensor):
            device = device or _CUDA
        made = func(*args, **kwargs)
        if device is None:
            return made
        return tree_map(lambda x: _moved(x, device) if isinstance(x, Tensor) else x, made)


def _to(values: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`Tensor.to` in all its forms."""
    device: Any = kwargs.pop("device", None)
    other = kwargs.pop("other", None)
    rest = []
    for value in args:
        if isinstance(value, Tensor):
            other = value
        elif isinstance(value, (str, torch.device, int)) and not isinstance(value, bool):
            device = value
        else:
            rest.append(value)
    if other is not None:
        device = other.device
        rest = [other.dtype, *rest]
    rest = [x for x in rest if x is not None]
    if rest and not isinstance(rest[0], torch.dtype):  # (device, dtype, non_blocking, copy) without a dtype
        kwargs |= dict(zip(("non_blocking", "copy"), rest, strict=False))
        rest = []
    values = Tensor.to(values, *rest, **kwargs) if rest or kwargs else values
    return values if device is None else _moved(values, torch.device(device))


def _moved(values: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda" and not isinstance(values, PretendTensor):
        return _Up.apply(values)
    if device.type == "cpu" and isinstance(values, PretendTensor):
        waits["to the CPU"] += 1
        return _Down.apply(values)
    return values


def _bare(value: Any) -> bool:
    return isinstance(value, Tensor) and not isinstance(value, PretendTensor)


def _check_devices(func: Any, args: Any, plain: list[Tensor], indices: list[Tensor]) -> None:
    """RuntimeError where CUDA would have one; numbers (no dimensions) and indices may come from the CPU.

    What gradients are made of is torch's own business: where one is missing it puts zeros, of which it cannot know that
    they belong on CUDA.
    """
    if torch._C._current_graph_task_id() != -1:
        return
    if indices and not isinstance(args[0], PretendTensor):
        raise RuntimeError(f"{func}: indices should be on the device of what they index, or on the CPU")
    known = {id(x) for x in indices}
    if any(x.ndim for x in plain if id(x) not in known):
        raise RuntimeError(f"{func}: Expected all tensors to be on the same device, but found cuda:0 and cpu")


@contextmanager
def pretend_cuda() -> Iterator[Counter[str]]:
    """Inside the block "cuda" is a device, and modules may be moved there and back; gives `waits`, emptied."""
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    waits.clear()
    try:
        with _PretendCuda():
            yield waits
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swaps)
