"""What an engine's process does with memory: what it frees it keeps.

glibc returns large blocks to the kernel as they are freed, and the next ones come page by page, each zeroed and, in a
virtual machine, fetched from the host: dearer by far than what is written there. An engine frees a set of packed
weights at every publish, a moment after it took as much.
"""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
"""Of malloc.h."""


def keep_freed_memory() -> bool:
    """Whether from now on what is freed is used again, and not returned; False where the C library is not glibc.

    The process then stays as large as it ever was.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # One heap for all threads, which grows at its end: no block of its own for what is large, nothing cut off.
    return all([mallopt(_ARENA_MAX, 1), mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, 2**31 - 1)])
