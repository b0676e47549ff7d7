"""A clock for asyncio that jumps to the next timer; work in threads is waited for while it stands still."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar

R = TypeVar("R")


class Deadlock(AssertionError):
    """Everyone waits and no timer runs."""


class SkippingSelector(selectors.SelectSelector):
    """Turns waiting into moving the clock."""

    now = 0.0
    num_threads = 0

    def select(self, timeout: float | None = None) -> list[Any]:
        if self.num_threads and timeout != 0:
            return super().select(0.01)
        if timeout is None:
            raise Deadlock("every task waits for another one")
        self.now += max(0.0, timeout)
        return super().select(0)


class SkippingLoop(asyncio.SelectorEventLoop):
    """An event loop on that clock."""

    def __init__(self) -> None:
        self._skipping = SkippingSelector()
        super().__init__(self._skipping)

    def time(self) -> float:
        return self._skipping.now

    def run_in_executor(self, executor: Executor | None, func: Callable[..., R], *args: Any) -> asyncio.Future[R]:  # type: ignore[override]
        self._skipping.num_threads += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(self._count_down)
        return future

    def _count_down(self, _: asyncio.Future[Any]) -> None:
        self._skipping.num_threads -= 1


def simulate(main: Coroutine[Any, Any, R]) -> R:
    """The result of `main` on a clock that jumps to the next timer."""
    loop = SkippingLoop()
    try:
        return loop.run_until_complete(main)
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
