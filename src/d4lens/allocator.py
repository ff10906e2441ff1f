"""Keep freed memory in the process, so that glibc need not ask the system for it again, page by page."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Have this process keep the memory that it frees, for later allocations (glibc only).

    A training step on a CPU allocates and frees the same hundreds of megabytes each time. Returning them to the system costs
    tens of thousands of page faults a step, 10 to 15 % of its time (TRAINING.md). The peak of memory stays the same.

    Returns
    -------
    bool
        Whether the C library took both options.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(set_option(_MMAP_THRESHOLD, _LARGEST) and set_option(_TRIM_THRESHOLD, _LARGEST))
