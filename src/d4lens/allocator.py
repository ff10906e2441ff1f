"""Memory freed is memory kept: what glibc gives back to the system after each step it must ask for again page by page."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Have this process keep what it frees, for the allocations to come; whether it could (glibc only).

    A training step on a CPU allocates and frees the same hundreds of megabytes each time. Given back and asked for anew,
    they cost tens of thousands of page faults a step, 10 to 15 % of its time (TRAINING.md); kept, none, and no more
    memory at the peak.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(set_option(_MMAP_THRESHOLD, _LARGEST) and set_option(_TRIM_THRESHOLD, _LARGEST))
