"""A group of ranks: one actor per rank, called alike, in the same order, by one caller at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.actor import ActorHandle

from capo_ray.place.pool import await_ref
from capo_ray.protocols import PartLost, PartTimeout, RunFailed


class RankActors:
    """A lost or late rank ends the run: its shard is gone, the checkpoint is not.

    Every call is sent to all ranks before anything is awaited, and an actor serves one caller's calls in the order they
    were sent: so all ranks see the same order, whoever calls meanwhile.
    """

    def __init__(self, role: str, ranks: Sequence[ActorHandle], deadline_s: float) -> None:
        self._role, self._ranks, self._deadline_s = role, ranks, deadline_s
        self.pids: list[int] = []
        self.version = 0

    async def _start(self, arguments: Callable[[int, str], tuple[Any, ...]]) -> None:
        """Returns once all ranks have met and built the model; `arguments` are of (rank, meeting place)."""
        meeting = await await_ref(
            self._ranks[0].rendezvous.remote(), self._deadline_s, f"{self._role} rank 0 (rendezvous)"
        )
        self.pids = await self._all("start", lambda rank: arguments(rank, meeting))

    async def save(self, path: str) -> None:
        """Write all shards; `path` is on a file system that every rank sees."""
        await self._all("save", lambda _: (path,))

    async def load(self, path: str) -> int:
        """The version restored from `path`."""
        self.version = (await self._all("load", lambda _: (path,)))[0]
        return self.version

    def close(self) -> None:
        """Kill every rank."""
        for rank in self._ranks:
            ray.kill(rank)

    async def _all(self, method: str, arguments: Callable[[int], tuple[Any, ...]]) -> list[Any]:
        """The results of every rank, each called with its own arguments."""
        return await self._gather(
            [
                (getattr(rank, method).remote(*arguments(i)), f"{self._role} rank {i} ({method})")
                for i, rank in enumerate(self._ranks)
            ]
        )

    async def _gather(self, calls: Sequence[tuple[ray.ObjectRef, str]]) -> list[Any]:
        """The results; the first failure ends the wait, since the other ranks then hang in a collective."""
        try:
            return list(await asyncio.gather(*(await_ref(ref, self._deadline_s, what) for ref, what in calls)))
        except (PartLost, PartTimeout) as error:
            raise RunFailed(f"{error}; go on from the last checkpoint with resume=RUN") from error
