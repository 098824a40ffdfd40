"""This process among those that `accelerate launch` started; one of one where it did not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from difixcli.errors import InputError
from difixcli.torchvision_cure import cure
from difixcli.training.options import Precision

if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState


def join(device: str) -> PartialState:
    """Join the other processes, through NCCL on CUDA and gloo on a CPU."""
    cure()
    from accelerate import PartialState

    return PartialState(cpu=device == "cpu")


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
