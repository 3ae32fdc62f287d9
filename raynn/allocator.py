"""What the C library does with memory that tensors have freed."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
LARGEST_KEPT = 32 << 20  # bytes of one tensor: glibc takes no higher threshold
MOST_KEPT = 1 << 30  # bytes


def keep_freed_memory() -> None:
    """Tensors of a step find the memory of those before: up to 32 MiB each and 1 GiB in all stay with this process.

    Otherwise glibc gives it back to the system at every step, which clears it page by page when it is asked for again:
    a sixth of a CNN's step on a CPU (mallopt(3)). Where there is no glibc nothing happens.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return
    mallopt(_MMAP_THRESHOLD, LARGEST_KEPT)
    mallopt(_TRIM_THRESHOLD, MOST_KEPT)
