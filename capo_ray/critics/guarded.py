"""A critique store that may fail: what goes wrong there costs new calls, never a critique and never a run.

read, write -> the file --error--> counted, said once with the file's name; after some in a row left alone a while
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from capo_ray.critics.store import HELD_S, CritiqueStore
from capo_ray.served.retries import Breaker
from capo_ray.types import Critique

ERRORS_IN_A_ROW = 3
LEFT_ALONE_S = 60.0
_log = logging.getLogger(__name__)
T = TypeVar("T")


class StoreDoor(Protocol):
    """Where a judge finds critiques that were paid for and leaves new ones. Neither raises, whatever befalls it."""

    async def read(self, keys: Sequence[str], num_votes: int) -> dict[str, list[Critique]]:
        """The held critiques 0, 1, … of each request, at most `num_votes`; requests without any are left out."""

    async def write(self, votes: Mapping[str, Sequence[Critique]]) -> None:
        """Keep the critiques of each request under their vote index."""

    def figures(self) -> dict[str, float]:
        """`critic/store_…`: what went wrong since the start."""


class GuardedStore:
    """`StoreDoor` over a file, opened with the first use or by `open`; `trouble` is the first error's sentence."""

    def __init__(
        self, path: str | Path, *, held_s: float = HELD_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path, self._held_s = path, held_s
        self._store: CritiqueStore | None = None
        self._opening = threading.Lock()
        self._breaker = Breaker(ERRORS_IN_A_ROW, LEFT_ALONE_S, clock)
        self._num_errors = 0
        self.trouble = ""

    @classmethod
    def around(cls, store: CritiqueStore, name: str = "a critique store") -> GuardedStore:
        """The same over a store that is open."""
        guarded = cls(name)
        guarded._store = store
        return guarded

    async def open(self) -> None:
        """Open the file now; raises `StoreHeld`, and nothing else."""
        await self._do(lambda store: None)

    async def read(self, keys: Sequence[str], num_votes: int) -> dict[str, list[Critique]]:
        """As `StoreDoor.read`; raises `StoreHeld` where the file was not opened and is another's."""

        def look(store: CritiqueStore) -> dict[str, list[Critique]]:
            found = {key: store.read(key, num_votes) for key in keys}
            return {key: critiques for key, critiques in found.items() if critiques}

        return await self._do(look) or {}

    async def write(self, votes: Mapping[str, Sequence[Critique]]) -> None:
        """As `StoreDoor.write`; raises as `read`."""
        await self._do(lambda store: store.write_all(votes))

    def figures(self) -> dict[str, float]:
        """Errors of the file, and rows dropped because their content was not what had been written."""
        damaged = self._store.num_damaged if self._store is not None else 0
        return {"critic/store_errors_total": float(self._num_errors), "critic/store_damaged_total": float(damaged)}

    async def close(self) -> None:
        """Release the file, if it is open."""
        if self._store is not None:
            await asyncio.to_thread(self._store.close)

    async def _do(self, work: Callable[[CritiqueStore], T]) -> T | None:
        """What `work` gives, in a thread of its own; None where the file failed or is left alone."""
        if not self._breaker.allows():
            return None

        def call() -> T:
            with self._opening:
                if self._store is None:
                    self._store = CritiqueStore(self._path, self._held_s)
            return work(self._store)

        try:
            result = await asyncio.to_thread(call)
        except (sqlite3.Error, OSError) as error:
            self._breaker.failed()
            self._note(error)
            return None
        except BaseException:
            self._breaker.abandoned()
            raise
        self._breaker.succeeded()
        return result

    def _note(self, error: Exception) -> None:
        self._num_errors += 1
        if not self.trouble:
            self.trouble = (
                f"the critique store {self._path} failed ({type(error).__name__}: {error}); critics are asked without "
                f"it; move a damaged file away, or make room, to have one again"
            )
            _log.warning(self.trouble)
