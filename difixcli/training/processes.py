"""This process among those that `accelerate launch` started; one of one where it did not."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from difixcli.errors import InputError
from difixcli.torchvision_cure import cure
from difixcli.training.options import Precision

if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState

T = TypeVar("T")
_PATIENCE = timedelta(hours=12)
_patient: list[Any] = []  # the group of processes that wait for the first one's long work


def join(device: str) -> PartialState:
    """Join the other processes, through NCCL on CUDA and gloo on a CPU."""
    cure()
    from accelerate import PartialState

    state = PartialState(cpu=device == "cpu")
    if state.num_processes > 1 and not _patient:
        import torch.distributed

        # NCCL gives up after ten minutes, and would busy a GPU with waiting; gloo waits on the CPU
        _patient.append(torch.distributed.new_group(backend="gloo", timeout=_PATIENCE))
    return state


def from_first(make: Callable[[], T]) -> T:
    """What the first process makes, in all of them; it may take hours, while the others wait.

    What is made is carried by pickling. An error of the first process is raised there; the launcher ends the others.
    """
    from accelerate import PartialState

    state = PartialState()
    made: list[Any] = [make() if state.is_main_process else None]
    if _patient:
        import torch.distributed

        torch.distributed.broadcast_object_list(made, src=0, group=_patient[0])
    return made[0]  # type: ignore[no-any-return]


def wait() -> None:
    """Wait for all processes, for hours if need be."""
    if _patient:
        import torch.distributed

        torch.distributed.barrier(group=_patient[0])


def first_goes_first(make: Callable[[], T]) -> T:
    """What each process makes, the first one before all others: what it has downloaded they find."""
    from accelerate import PartialState

    if PartialState().is_main_process:
        made = make()
        wait()
        return made
    wait()
    return make()


def accelerator(device: str, dtype: Precision, unused: bool = False) -> Accelerator:
    """Accelerate's face of this process: gradients of all processes are averaged, each holds the whole network.

    `unused` says that there are steps that some of the weights have no part in.

    Raises InputError when the launcher was told to cut the network up (FSDP, DeepSpeed): fixers fit on one device.
    """
    state = join(device)
    from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType
    from accelerate.state import AcceleratorState, GradientState

    # these are one a process; another training in it may want another precision or device
    AcceleratorState._reset_state(reset_partial_state=state.distributed_type == DistributedType.NO)
    GradientState._reset_state()
    names = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
    parallel = DistributedDataParallelKwargs(find_unused_parameters=unused)
    made = Accelerator(mixed_precision=names[dtype], cpu=device == "cpu", kwargs_handlers=[parallel])
    plain = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
    if made.distributed_type not in plain:
        raise InputError(
            f"The launcher was told to use {made.distributed_type.value}; a fixer trains with plain data parallelism: "
            "run accelerate config again and leave FSDP and DeepSpeed out."
        )
    return made
