"""Arithmetic over many tokens runs in a thread, so that the loop, and every group on it, goes on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from capo_ray.config.base import OURS, RuledSection

T = TypeVar("T")

LARGE_TOKENS = 16_384
"""From here on a thread is worth its 0.1 ms: the work takes a millisecond or more."""

RULE_S = 60.0
"""For the function of another package on one group, which is a matter of milliseconds."""


async def by_rule(section: RuledSection, work: Callable[..., T], *arguments: Any, num_tokens: int) -> T:
    """As `off_loop`, for work that calls the section's function.

    Another package's has a thread and `RULE_S`, then a `RuleError`: on the loop, one that never returns could not even
    be interrupted.
    """
    if section.rule.startswith(OURS):
        return await off_loop(work, *arguments, num_tokens=num_tokens)
    try:
        return await asyncio.wait_for(_left_alone(work, *arguments), RULE_S)
    except TimeoutError:
        raise section.wrong(f"did not return within {RULE_S:g} s") from None


def _left_alone(work: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
    """What `work(*arguments)` returns, from a thread that no end waits for, as it would for one of the loop's own."""
    result: Future[T] = Future()
    result.set_running_or_notify_cancel()  # so that whoever gives up waiting leaves it to be set

    def run() -> None:
        try:
            result.set_result(work(*arguments))
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is awaited
            result.set_exception(error)

    threading.Thread(target=run, name="a rule of another package", daemon=True).start()
    return asyncio.wrap_future(result)


async def off_loop(work: Callable[..., T], *arguments: Any, num_tokens: int) -> T:
    """What `work(*arguments)` returns, from a thread where it is about that many tokens."""
    if num_tokens < LARGE_TOKENS:
        return work(*arguments)
    return await asyncio.to_thread(work, *arguments)
