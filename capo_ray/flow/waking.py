"""Waiting for one thing while others may call away."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def unless_woken(work: Coroutine[Any, Any, T], *calls: asyncio.Event) -> T | None:
    """The result of `work`; None where one of `calls` is set before, and `work` is then cancelled."""
    task = asyncio.ensure_future(work)
    woken = [asyncio.ensure_future(call.wait()) for call in calls]
    try:
        await asyncio.wait({task, *woken}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for future in (task, *woken):
            future.cancel()
