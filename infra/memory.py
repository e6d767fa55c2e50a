"""What a process does with the memory that it frees."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed() -> None:
    """Let this process keep what it frees, for its next large blocks. Does nothing where the C library is not glibc.

    glibc gives each large block back to the system at once and has the next one faulted in anew, page by page: a
    training step on a CPU, which makes the same tensors every time, spends up to a fifth of its time so. The price is
    that the process stays as large as it ever was.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)  # never
