"""How a process on a CPU keeps the memory that it has had."""

from __future__ import annotations

import ctypes
import sys

# glibc's names for what `mallopt` sets
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_TENSOR = 2**30  # bytes; what is larger is rare
_MOST = 2**31 - 1


def keep_freed_memory() -> None:
    """Have the C library hand freed memory out again instead of giving it back to the system.

    A network on a CPU frees and takes the same tensors of tens of megabytes hundreds of times a frame; each time the
    system would empty their pages first, which takes a quarter of a fixer's time. The most memory that a process holds
    stays the same. Does nothing where the C library is not glibc.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # musl has none
        mallopt(_MMAP_THRESHOLD, _LARGEST_TENSOR)
        mallopt(_TRIM_THRESHOLD, _MOST)
