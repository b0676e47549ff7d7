"""A learner in this very process: one rank behind the door of a group, without actors.

    caller's loop --call--> one thread that owns the learner (in turn)      update, snapshot, load
                  --call--> another                                         save, export: of a snapshot alone

One thread, since torch's number of threads belongs to the thread that set it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, TypeVarTuple

from capo_ray.learners.learner import Learner
from capo_ray.learners.spec import LearnerSpec
from capo_ray.types import Batch, UpdateReport, WrittenFile

R = TypeVar("R")
Ts = TypeVarTuple("Ts")


class LearnerAlone:
    """`protocols.Trainer` over one `Learner`. Nothing can end a call that hangs here but the end of the process."""

    _learner: Learner

    def __init__(self, spec: LearnerSpec) -> None:
        self._spec = spec
        self._thread = ThreadPoolExecutor(1, "learner")

    async def start(self) -> None:
        """Returns once the model is built."""
        self._learner = await self._in_turn(Learner, self._spec)

    async def update(self, batch: Batch) -> UpdateReport:
        """As `Trainer.update`."""
        return await self._in_turn(self._learner.update, batch.column(0), batch.kl_scale, batch.watched)

    async def snapshot(self) -> int:
        """As `Trainer.snapshot`."""
        self._snapshot = await self._in_turn(self._learner.snapshot)
        return self._learner.version

    async def save(self, path: str) -> tuple[WrittenFile, ...]:
        """As `Trainer.save`."""
        return await asyncio.to_thread(self._snapshot.save, path)

    async def load(self, path: str) -> int:
        """As `Trainer.load`."""
        return await self._in_turn(self._learner.load, path)

    async def export(self, path: str) -> tuple[WrittenFile, ...]:
        """As `Trainer.export`."""
        written = await asyncio.to_thread(self._snapshot.export, path)
        del self._snapshot
        return written

    def close(self) -> None:
        """Let go of the thread, which ends with what it is at."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _in_turn(self, work: Callable[[*Ts], R], *arguments: *Ts) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)
