"""Memory that a process frees and soon needs again."""

import ctypes
import os
import sys

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # of mallopt, from malloc.h


def keep_freed_memory() -> None:
    """Large blocks, once freed, stay with the process: fresh tensors find them instead of new pages.

    By default glibc maps every block over 32 MB afresh and gives it back at once, and the kernel has to clear each page
    at its first use: 14% of the demo's CPU time. For glibc alone; elsewhere nothing happens. Call it before the first
    tensor is made: only then are pages of 2 MB asked for too,
    on whose bounds freed blocks fit new ones once the heap has grown.
    """
    if sys.platform != "linux":
        return
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # PyTorch's own switch
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # another C library
    if mallopt(MMAP_THRESHOLD, 2**30) or mallopt(MMAP_THRESHOLD, 2**25):  # an older glibc takes no more than that
        mallopt(TRIM_THRESHOLD, 2**31 - 1)
