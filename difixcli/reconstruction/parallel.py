"""How our compiled loops share the cores.

A loop's work is cut into jobs that do not depend on the number of threads, and each thread takes the next job as it
gets free: on a busy machine a thread that has to wait holds up one job, not its whole share. What a job computes and
where it writes is fixed, so the result is the same bits whoever does it.
"""

# numba's types are not Python's: what the compiler checks here, a Python type checker cannot.
# mypy: ignore-errors

from __future__ import annotations

import os
import threading
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

if "NUMBA_THREADING_LAYER" not in os.environ:
    # OpenMP's spinning threads cost ten times the work where the cores are shared.
    numba.config.THREADING_LAYER = "workqueue"

one_at_a_time = threading.Lock()
"""To be held around every call of a compiled function that runs in parallel: numba's workqueue serves one caller."""

# What `prange` says is made parallel and nothing else: looking for more takes numba seconds to compile.
LOOPS_ONLY = {
    "prange": True,
    "comprehension": False,
    "fusion": False,
    "inplace_binop": False,
    "numpy": False,
    "reduction": False,
    "setitem": False,
    "stencil": False,
}


def workers() -> int:
    """Threads that the next parallel loop may use."""
    return numba.get_num_threads()


def jobs_taken(loops: int) -> np.ndarray:
    """Counters for `loops` loops, from which `take` draws."""
    return np.zeros(8 * loops, np.int64)


@intrinsic
def take(typingctx: Any, counters: Any, loop: Any) -> Any:
    """The number of the next job of a loop that nobody has taken yet, from 0 on; `counters` is what `jobs_taken` made.

    For numba-compiled code only.
    """

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        view = context.make_array(sig.args[0])(context, builder, args[0])
        # a cache line for each counter
        place = builder.mul(args[1], ir.Constant(args[1].type, 8))
        return builder.atomic_rmw("add", builder.gep(view.data, [place]), ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(counters, types.intp), codegen


@intrinsic
def floats_at(typingctx: Any, address: Any) -> Any:
    """A pointer to float32 values at an address (int64), for `numba.carray`; for numba-compiled code only."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return builder.inttoptr(args[0], ir.FloatType().as_pointer())

    return types.CPointer(types.float32)(types.int64), codegen
