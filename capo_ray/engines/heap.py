"""What an engine's process does with memory: what it frees it keeps, what it imports it never looks through.

glibc returns large blocks to the kernel as they are freed, and the next ones come page by page, each zeroed and, in a
virtual machine, fetched from the host: dearer by far than what is written there. An engine frees a set of packed
weights at every publish, a moment after it took as much.

vLLM's modules make some million objects that live as long as the process. Looking for garbage among them, while they
are imported and at each of vLLM's own collections after, takes a quarter of what a small engine's start costs.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Iterator

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


@contextlib.contextmanager
def imported_for_good() -> Iterator[None]:
    """Nothing is looked through for garbage meanwhile, and what there is afterwards never again."""
    watched = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if watched:
            gc.enable()
