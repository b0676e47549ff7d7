"""A group of ranks: one actor per rank, called alike, in the same order, by one caller at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, TypeVarTuple

import ray
from ray import ObjectRef
from ray.actor import ActorHandle

from capo_ray.config import Job
from capo_ray.place.calls import await_ref, end_actor, one_line
from capo_ray.place.cluster import is_own
from capo_ray.place.face import send
from capo_ray.place.last_resort import where_others_are
from capo_ray.protocols import PartLost, PartTimeout, RunFailed
from capo_ray.types import WrittenFile
from capo_ray.work import working

if TYPE_CHECKING:
    from capo_ray.learners import Learner, RewardLearner

WRITING = "writing"
"""The concurrency group of a rank's actor that writes checkpoints; everything else is served in turn by its own."""

PINGS = "pings"
"""The concurrency group of a rank's actor that answers pings."""
PING_EVERY_S = 5.0
SILENT_S = 40.0
"""Without an answer to a ping for this long a rank counts as lost, though its process may be there (stopped, or deep
in a call that lets nobody else run). Longer than for a worker: a rank cannot be replaced."""
START_SILENT_S = 120.0
"""The same while ranks start: on a busy machine the loading of a library lets nobody else run for a while."""
WHERE_S = 5.0
"""What ranks have to say where they stand, once one of them is late, or that they are there, once one has failed."""


class GroupRank:
    """One rank of a group; every rank is called alike and in the same order."""

    _learner: Learner | RewardLearner

    def __init__(self, rank: int) -> None:
        self._rank = rank

    def ping(self) -> None:
        """Answers while another call is under way, if this process runs at all."""

    def where(self) -> str:
        """Where the calls under way are in our code; asked once they are late."""
        return where_others_are()

    def rendezvous(self, alone: bool) -> str:
        """An address of this node that rank 0 listens on from now on; loopback if there is no other node."""
        from capo_ray.learners.store import reserve_meeting

        return reserve_meeting("127.0.0.1" if alone else ray.util.get_node_ip_address())

    def snapshot(self) -> int:
        """Copy what a checkpoint holds; the version."""
        self._snapshot = self._learner.snapshot()
        return self._learner.version

    def save(self, path: str) -> tuple[WrittenFile, ...]:
        """Write this rank's shard of the snapshot."""
        return self._snapshot.save(path)

    def load(self, path: str) -> int:
        """Read this rank's shard; the version."""
        return self._learner.load(path)


RankT = TypeVar("RankT", bound=GroupRank)
R = TypeVar("R")
Ts = TypeVarTuple("Ts")


class RankActors(Generic[RankT]):
    """A lost or late rank ends the run: its shard is gone, the checkpoint is not.

    Every call is sent to all ranks before anything is awaited, and an actor serves one caller's calls in the order they
    were sent: so all ranks see the same order, whoever calls meanwhile. Two things run beside them, each on a thread of
    its own in the actor: what writes a snapshot, since no other rank is needed for it, and the answer to a ping, which
    a rank gives while it works or waits for the others in a collective.
    """

    def __init__(
        self,
        role: str,
        spawn: Callable[[int], ActorHandle[RankT]],
        num_ranks: int,
        config: Job,
        run_dir: Path,
    ) -> None:
        self._role, self._spawn, self._num_ranks = role, spawn, num_ranks
        self._run_dir, self._alone = run_dir, is_own(config)
        self.deadline_s = config.learner.deadline_s
        self._files_deadline_s = config.run.checkpoint_deadline_s
        self._ranks: list[ActorHandle[RankT]] = []
        self._lost: asyncio.Future[str] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._pids: list[int] = []
        self._silent_s = START_SILENT_S
        """Seconds without an answer to a ping."""
        self.version = 0

    async def _start(self, method: Callable[[RankT, *Ts], int], arguments: Callable[[int, str], tuple[*Ts]]) -> None:
        """Returns once all ranks have met and built the model; `arguments` are of (rank, meeting place)."""
        await self._all(GroupRank.ping, lambda _: ())  # their processes are there
        self._watch = asyncio.ensure_future(self._ping_all())
        rendezvous = send(self._ranks[0], GroupRank.rendezvous, self._alone)
        meeting = await await_ref(rendezvous, self.deadline_s, f"{self._role} rank 0 (rendezvous)")
        self._pids = await self._all(method, lambda rank: arguments(rank, meeting))
        self._silent_s = SILENT_S

    async def snapshot(self) -> int:
        """The version of which every rank now holds a copy in host memory; updates may go on from here."""
        versions = await self._all(GroupRank.snapshot, lambda _: ())
        if len(set(versions)) != 1:
            raise RunFailed(f"expected {self._role} ranks of one version for a checkpoint, got {versions}")
        return versions[0]

    async def save(self, path: str) -> tuple[WrittenFile, ...]:
        """The files of all ranks' snapshots, written under `path` while their updates go on."""
        written = await self._beside(GroupRank.save, path)
        if empty := [rank for rank, files in enumerate(written) if not files]:
            raise RunFailed(f"expected a shard of every {self._role} rank in {path}, got none of rank {empty[0]}")
        return tuple(file for files in written for file in files)

    async def load(self, path: str) -> int:
        """The version restored from `path`."""
        limit_s = max(self.deadline_s, self._files_deadline_s)  # shards may come from a slow and cold file system
        self.version = (await self._all(GroupRank.load, lambda _: (path,), limit_s))[0]
        return self.version

    def stats(self) -> dict[str, float]:
        """Nothing: what a group does is in the reports of its updates."""
        return {}

    def pids(self) -> list[int]:
        """The process ids of the ranks, once they have started."""
        return self._pids

    def close(self) -> None:
        """Kill every rank."""
        if self._watch is not None:
            self._watch.cancel()
        for rank in self._ranks:
            end_actor(rank)

    async def _all(
        self,
        method: Callable[[RankT, *Ts], R],
        arguments: Callable[[int], tuple[*Ts]],
        deadline_s: float | None = None,
    ) -> list[R]:
        """The results of every rank, each called with its own arguments, within the learner's deadline or this one."""
        self._come()
        with working(self._role, range(self._num_ranks)):
            return await self._gather(
                [
                    (send(rank, method, *arguments(i)), f"{self._role} rank {i} ({method.__name__})")
                    for i, rank in enumerate(self._ranks)
                ],
                deadline_s,
            )

    def _come(self) -> None:
        """Make the actors; nothing if they are there. Not before the first call: their places are reserved by then."""
        if not self._ranks:
            self._ranks = [self._spawn(rank) for rank in range(self._num_ranks)]
            self._lost = asyncio.get_running_loop().create_future()

    async def _beside(self, method: Callable[[RankT, str], R], path: str) -> list[R]:
        """As `_all`, on the thread that writes: not in turn with updates, and for as long as a checkpoint may take."""
        self._come()
        return await self._gather(
            [
                (send(rank, method, path, lane=WRITING), f"{self._role} rank {i} ({method.__name__})")
                for i, rank in enumerate(self._ranks)
            ],
            self._files_deadline_s,
        )

    async def _gather(self, calls: Sequence[tuple[ObjectRef[R], str]], deadline_s: float | None = None) -> list[R]:
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
            where = await self._where() if isinstance(error, PartTimeout) else ""
            raise RunFailed(f"{error}{where}; go on from the last checkpoint with resume={self._run_dir}") from error
        except Exception as error:
            # A rank whose partner died in a collective may be heard before the death: that is the cause.
            if (lost := await self._find_lost()) is None:
                raise
            raise RunFailed(f"{lost}; go on from the last checkpoint with resume={self._run_dir}") from error
        finally:
            work.cancel()

    async def _find_lost(self) -> PartLost | None:
        """Of a rank whose process is gone; None where all are there, busy or not."""
        pings = (self._ping(rank, WHERE_S) for rank in range(self._num_ranks))
        told = await asyncio.gather(*pings, return_exceptions=True)
        return next((error for error in told if isinstance(error, PartLost)), None)

    async def _ping(self, rank: int, silent_s: float) -> None:
        """Returns once the rank has answered."""
        ping = send(self._ranks[rank], GroupRank.ping, lane=PINGS)
        await await_ref(ping, silent_s, f"{self._role} rank {rank} (ping)")

    async def _where(self) -> str:
        """Where each rank stands, in brackets: a late one may wait for another."""

        async def ask(rank: int) -> str:
            try:
                told = await await_ref(send(self._ranks[rank], GroupRank.where, lane=PINGS), WHERE_S, "where")
            except Exception:  # noqa: BLE001 - it only adds to the words of a failure
                return f"rank {rank} does not say where it is"
            return f"rank {rank} is at {told}" if told else f"rank {rank} is in no call of ours"

        return f" ({', '.join(await asyncio.gather(*map(ask, range(self._num_ranks))))})"

    async def _ping_all(self) -> None:
        """Ask every rank now and then whether it is there; returns once one is not, whose loss ends every call."""
        assert self._lost is not None

        try:
            while True:
                await asyncio.sleep(PING_EVERY_S)
                await asyncio.gather(*(self._ping(rank, self._silent_s) for rank in range(self._num_ranks)))
        except Exception as error:  # noqa: BLE001 - told to whoever calls the ranks, now or next
            self._lost.set_result(one_line(error))


def rank_options(place: Mapping[str, Any], config: Job) -> dict[str, Any]:
    """Of a rank's actor: one thread that serves in turn, one beside it that writes checkpoints, one for pings."""
    hidden = place.get("runtime_env", {}).get("env_vars", {})
    threads = {"OMP_NUM_THREADS": str(config.learner.num_threads)}
    lanes = {"concurrency_groups": {PINGS: 1, WRITING: 1}}
    return {**place, **lanes, "runtime_env": {"env_vars": hidden | threads}}


def _see(work: asyncio.Future[Any]) -> None:
    """Where nobody waits for it any more: asyncio would print its failure as never retrieved."""
    if not work.cancelled():
        work.exception()
