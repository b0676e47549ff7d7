"""Arithmetic over many tokens runs in a thread, so that the loop, and every group on it, goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

LARGE_TOKENS = 16_384
"""From here on a thread is worth its 0.1 ms: the work takes a millisecond or more."""


async def off_loop(work: Callable[..., T], *arguments: Any, num_tokens: int) -> T:
    """What `work(*arguments)` returns, from a thread where it is about that many tokens."""
    if num_tokens < LARGE_TOKENS:
        return work(*arguments)
    return await asyncio.to_thread(work, *arguments)
