"""A group of ranks: one actor per rank, called alike, in the same order, by one caller at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray.actor import ActorHandle

from capo_ray.checkpoint import sight
from capo_ray.place.calls import await_ref, end_actor, one_line
from capo_ray.protocols import PartLost, PartTimeout, RunFailed
from capo_ray.types import WrittenFile

WRITING = "writing"
"""The concurrency group of a rank's actor that writes checkpoints; everything else is served in turn by its own."""

PINGS = "pings"
"""The concurrency group of a rank's actor that answers pings."""
PING_EVERY_S = 5.0
SILENT_S = 40.0
"""Without an answer to a ping for this long a rank counts as lost, though its process may be there (stopped, or deep
in a call that lets nobody else run). Longer than for a worker: a rank cannot be replaced."""


class Limits(NamedTuple):
    """How long a group's calls may take, in seconds."""

    deadline_s: float
    write_deadline_s: float
    """For what writes a checkpoint."""


class RankActors:
    """A lost or late rank ends the run: its shard is gone, the checkpoint is not.

    Every call is sent to all ranks before anything is awaited, and an actor serves one caller's calls in the order they
    were sent: so all ranks see the same order, whoever calls meanwhile. Two things run beside them, each on a thread of
    its own in the actor: what writes a snapshot, since no other rank is needed for it, and the answer to a ping, which
    a rank gives while it works or waits for the others in a collective.
    """

    def __init__(
        self, role: str, spawn: Callable[[int], ActorHandle], num_ranks: int, limits: Limits, *, alone: bool
    ) -> None:
        self._role, self._spawn, self._num_ranks = role, spawn, num_ranks
        self.deadline_s, self._write_deadline_s = limits
        self._alone = alone
        self._ranks: list[ActorHandle] = []
        self._lost: asyncio.Future[str] | None = None
        self._watch: asyncio.Task[None] | None = None
        self.pids: list[int] = []
        self.version = 0

    async def _start(self, arguments: Callable[[int, str], tuple[Any, ...]]) -> None:
        """Returns once all ranks have met and built the model; `arguments` are of (rank, meeting place)."""
        self._come()
        rendezvous: Any = self._ranks[0].rendezvous.remote(self._alone)
        meeting = await await_ref(rendezvous, self.deadline_s, f"{self._role} rank 0 (rendezvous)")
        self.pids = await self._all("start", lambda rank: arguments(rank, meeting))
        self._watch = asyncio.ensure_future(self._ping_all())

    async def require_sight(self, directory: Path) -> None:
        """Raises `RunFailed` unless every rank writes where the driver reads: a checkpoint is filled by both."""
        with sight.meeting_place(directory) as place:
            hosts = await self._all("show", lambda rank: (str(place), f"{self._role} rank {rank}".replace(" ", "-")))
            await asyncio.to_thread(sight.require_seen, place, hosts)

    async def snapshot(self) -> int:
        """The version of which every rank now holds a copy in host memory; updates may go on from here."""
        versions = await self._all("snapshot", lambda _: ())
        if len(set(versions)) != 1:
            raise RunFailed(f"expected {self._role} ranks of one version for a checkpoint, got {versions}")
        return int(versions[0])

    async def save(self, path: str) -> tuple[WrittenFile, ...]:
        """The files of all ranks' snapshots, written under `path` while their updates go on."""
        written = await self._beside("save", path)
        if empty := [rank for rank, files in enumerate(written) if not files]:
            raise RunFailed(f"expected a shard of every {self._role} rank in {path}, got none of rank {empty[0]}")
        return tuple(file for files in written for file in files)

    async def load(self, path: str) -> int:
        """The version restored from `path`."""
        self.version = (await self._all("load", lambda _: (path,)))[0]
        return self.version

    def close(self) -> None:
        """Kill every rank."""
        if self._watch is not None:
            self._watch.cancel()
        for rank in self._ranks:
            end_actor(rank)

    async def _all(self, method: str, arguments: Callable[[int], tuple[Any, ...]]) -> list[Any]:
        """The results of every rank, each called with its own arguments."""
        self._come()
        return await self._gather(
            [
                (getattr(rank, method).remote(*arguments(i)), f"{self._role} rank {i} ({method})")
                for i, rank in enumerate(self._ranks)
            ]
        )

    def _come(self) -> None:
        """Make the actors; nothing if they are there. Not before the first call: their places are reserved by then."""
        if not self._ranks:
            self._ranks = [self._spawn(rank) for rank in range(self._num_ranks)]
            self._lost = asyncio.get_running_loop().create_future()

    async def _beside(self, method: str, path: str) -> list[Any]:
        """As `_all`, on the thread that writes: not in turn with updates, and for as long as a checkpoint may take."""
        self._come()
        calls = []
        for i, rank in enumerate(self._ranks):
            ref = getattr(rank, method).options(concurrency_group=WRITING).remote(path)
            calls.append((ref, f"{self._role} rank {i} ({method})"))
        return await self._gather(calls, self._write_deadline_s)

    async def _gather(self, calls: Sequence[tuple[ray.ObjectRef, str]], deadline_s: float | None = None) -> list[Any]:
        """The results; the first failure ends the wait, since the other ranks then hang in a collective."""
        assert self._lost is not None
        limit_s = self.deadline_s if deadline_s is None else deadline_s
        work = asyncio.gather(*(await_ref(ref, limit_s, what) for ref, what in calls))
        work.add_done_callback(_see)
        try:
            either: set[asyncio.Future[Any]] = {work, self._lost}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise PartLost(self._lost.result())
            return list(work.result())
        except (PartLost, PartTimeout) as error:
            raise RunFailed(f"{error}; go on from the last checkpoint with resume=RUN") from error
        finally:
            work.cancel()

    async def _ping_all(self) -> None:
        """Ask every rank now and then whether it is there; returns once one is not, whose loss ends every call."""
        assert self._lost is not None

        async def check(rank: int) -> None:
            ping: Any = self._ranks[rank].ping.options(concurrency_group=PINGS).remote()
            await await_ref(ping, SILENT_S, f"{self._role} rank {rank} (ping)")

        try:
            while True:
                await asyncio.sleep(PING_EVERY_S)
                await asyncio.gather(*(check(rank) for rank in range(self._num_ranks)))
        except Exception as error:  # noqa: BLE001 - told to whoever calls the ranks, now or next
            self._lost.set_result(one_line(error))


def _see(work: asyncio.Future[Any]) -> None:
    """Where nobody waits for it any more: asyncio would print its failure as never retrieved."""
    if not work.cancelled():
        work.exception()
