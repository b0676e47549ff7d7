"""A pool of interchangeable actors: calls go to the least loaded ready one, the dead and the hung are replaced.

Invariants
- A call ends with a result, the actor's own exception, `PartTimeout` or `PartLost`, within `deadline_s`.
- An actor serves only after `prepare` has succeeded on it (a rollout worker: holds the announced weights).
- A worker is replaced when its process is lost, when it does not answer a ping or answers with an exception, and when
  `MAX_LATE` of its calls in a row pass their deadline with none answered between: it may answer pings and do nothing.
- A place is filled again, whatever its last worker raised, until `Restarts` says that the run must end, or no node has
  `room` for the only worker of its role.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar, TypeVarTuple

from ray import ObjectRef
from ray.actor import ActorHandle

from capo_ray.metrics.register import merge
from capo_ray.place.calls import ActorGone, await_ref, end_actor, one_line
from capo_ray.place.face import PoolWorker, send
from capo_ray.place.member import Member
from capo_ray.place.restarts import MAX_BROKEN, Restarts
from capo_ray.place.room import NoRoom, Room
from capo_ray.protocols import PartLost, PartTimeout, RunFailed
from capo_ray.work import working

PING_EVERY_S = 5.0
PING_DEADLINE_S = 30.0
MAX_LATE = 3
MANY_AT_ONCE = {"max_concurrency": 1000}
"""Of workers that wait more than they work: as many calls at once as are sent."""


W = TypeVar("W", bound=PoolWorker)
R = TypeVar("R")
Ts = TypeVarTuple("Ts")


class WorkerPool(Generic[W]):
    """Actors of one class; `in_turn`: each starts when the one before it is ready (they share a device)."""

    def __init__(
        self,
        role: str,
        spawn: Callable[[int], ActorHandle[W]],
        num_workers: int,
        *,
        start_deadline_s: float,
        prepare: Callable[[ActorHandle[W]], Awaitable[None]] | None = None,
        in_turn: bool = False,
        room: Room | None = None,
        max_restarts: int = 20,
    ) -> None:
        self.role = role
        self.start_deadline_s = start_deadline_s
        self.num_resent = 0
        self._spawn, self._prepare, self._in_turn, self._room = spawn, prepare, in_turn, room
        self._restarts = Restarts(role, max(max_restarts, 4 * num_workers))
        self._workers: dict[int, Member[W]] = {index: Member(index) for index in range(num_workers)}
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._last_loss = ""
        self._failure: RunFailed | None = None
        self._closed = False

    async def start(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Returns once every worker is ready; a worker that cannot start is a `RunFailed` with its cause.

        `on_ready` is called whenever a worker is ready, now and later.
        """
        self._on_ready = on_ready
        try:
            if self._in_turn:
                for worker in self._workers.values():
                    await self._make_ready(worker)
            else:
                await asyncio.gather(*(self._make_ready(worker) for worker in self._workers.values()))
        except RunFailed:
            raise
        except Exception as error:
            raise RunFailed(f"the {self.role} worker could not start: {one_line(error)}") from error
        self._keep(self._supervise())

    async def call(
        self,
        method: Callable[[W, *Ts], Coroutine[Any, Any, R]],
        *args: *Ts,
        deadline_s: float,
        used: set[int] | None = None,
    ) -> R:
        """The result of `method` on some ready worker; lost calls are sent again while time is left.

        Workers in `used` (indices) are asked only where no other is ready; those asked are added to it. Cancelling the
        call cancels it on the worker. A call that breaks more than `MAX_BROKEN` workers raises what it did to the last.
        """
        ends = time.monotonic() + deadline_s
        num_broken = 0
        while True:
            worker = await self._pick(ends, method.__name__, deadline_s, used or set())
            if used is not None:
                used.add(worker.index)
            try:
                return await self._ask(worker, method, *args, deadline_s=max(0.01, ends - time.monotonic()))
            except PartLost as error:
                self._replace(worker, error)
                num_broken += not isinstance(error, ActorGone)
                if num_broken > MAX_BROKEN and self._failure is None:
                    raise
                self.num_resent += 1

    async def broadcast(
        self,
        method: Callable[[W, *Ts], Coroutine[Any, Any, R]],
        *args: *Ts,
        deadline_s: float,
        accept: Callable[[R], None] = lambda _: None,
    ) -> list[R | Exception]:
        """The results of `method` on every ready worker; one that is lost is replaced and has no result here.

        A worker that raises or does not answer in time is replaced too and its exception is among the results; so is
        one whose answer `accept` raises at.
        """

        async def one(worker: Member[W]) -> R | Exception:
            try:
                answer = await self._ask(worker, method, *args, deadline_s=deadline_s)
                accept(answer)
                return answer
            except Exception as error:  # noqa: BLE001 - the worker is replaced for it, which is counted
                self._replace(worker, error)
                return error

        ready = [worker for worker in self._workers.values() if worker.ready]
        return list(await asyncio.gather(*(one(worker) for worker in ready)))

    def tell(self, method: Callable[[W, *Ts], Coroutine[Any, Any, object]], *args: *Ts) -> None:
        """Send `method` to every ready worker and wait for no answer: a hint, whose failure nobody needs to hear of."""
        for worker in self._workers.values():
            if worker.ready:
                send(worker.actor, method, *args).future()  # Ray prints errors that nobody takes

    @property
    def num_ready(self) -> int:
        return sum(worker.ready for worker in self._workers.values())

    @property
    def num_restarts(self) -> int:
        return self._restarts.total

    def pids(self) -> list[int]:
        """The process ids of the ready workers."""
        return [worker.pid for worker in self._workers.values() if worker.ready]

    def stats(self) -> dict[str, float]:
        """Queue depth, ready workers, restarts, calls sent again, and the parts' own figures as of their last ping."""
        own: dict[str, list[float]] = {}
        for worker in self._workers.values():
            for name, value in worker.figures.items():
                own.setdefault(name if "/" in name else f"{self.role}/{name}", []).append(value)
        return {name: merge(name, values) for name, values in own.items()} | {
            f"{self.role}/in_flight_calls": float(sum(w.in_flight for w in self._workers.values())),
            f"{self.role}/ready_workers": float(self.num_ready),
            f"{self.role}/restarts_total": float(self.num_restarts),
            f"{self.role}/calls_resent_total": float(self.num_resent),
        }

    def close(self) -> None:
        """Kill every worker; calls in flight end with `PartLost`."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        for worker in self._workers.values():
            end_actor(worker.handle)

    # --- calls -------------------------------------------------------------------------------------------------------

    async def _ask(
        self,
        worker: Member[W],
        method: Callable[[W, *Ts], Coroutine[Any, Any, R]],
        *args: *Ts,
        deadline_s: float,
    ) -> R:
        """The worker's answer, with the account kept of what it answers and what it lets pass."""
        worker.in_flight += 1
        try:
            with working(self.role, [worker.index]):
                ref = send(worker.actor, method, *args)
                answer = await await_ref(ref, deadline_s, self._name(worker, method.__name__))
        except PartTimeout as error:
            worker.num_late += 1
            if worker.num_late >= MAX_LATE:
                self._replace(worker, PartTimeout(f"{worker.num_late} calls in a row were late: {error}"))
            raise
        finally:
            worker.in_flight -= 1
        worker.num_late = 0
        self._restarts.answered(worker.index)
        return answer

    async def _pick(self, ends: float, method: str, deadline_s: float, used: set[int]) -> Member[W]:
        while True:
            if self._failure is not None:
                raise self._failure
            ready = [worker for worker in self._workers.values() if worker.ready]
            if ready:
                return min(ready, key=lambda worker: (worker.index in used, worker.in_flight))
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), max(0.01, ends - time.monotonic()))
            except TimeoutError as error:
                why = f"; the last one was lost: {self._last_loss}" if self._last_loss else ""
                raise PartTimeout(
                    f"no {self.role} worker was ready for {method} within {deadline_s:.0f} s{why}"
                ) from error

    def _name(self, worker: Member[W], method: str) -> str:
        return f"{self.role} worker {worker.index} ({method})"

    # --- supervision -------------------------------------------------------------------------------------------------

    async def _make_ready(self, worker: Member[W], room: Room | None = None) -> None:
        given = room is not None and await room.free()
        worker.handle = self._spawn(worker.index)
        there: ObjectRef[Any] = worker.actor.__ray_ready__.remote()
        start: ObjectRef[int] = worker.actor.start.remote()
        if room is not None:
            await room.found(there, lambda: not self.num_ready, given)
        worker.pid = await await_ref(start, self.start_deadline_s, self._name(worker, "start"))
        if self._prepare is not None:
            await self._prepare(worker.actor)
        worker.ready = True
        self._changed.set()
        self._on_ready()

    def _replace(self, worker: Member[W], cause: Exception) -> None:
        """Put a new actor in a lost worker's place; nothing if that has been done already."""
        if self._closed or self._workers.get(worker.index) is not worker:
            return
        worker.ready = False
        end_actor(worker.handle)
        self._last_loss = one_line(cause)
        sentence = self._restarts.lost(worker.index, cause, time.monotonic())
        if sentence:
            self._fail(sentence)
            return
        fresh: Member[W] = Member(worker.index)
        self._workers[worker.index] = fresh
        self._keep(self._bring_up(fresh))

    async def _bring_up(self, worker: Member[W]) -> None:
        """Start a successor; one that cannot start, whatever it raises, is replaced in its turn.

        Where it finds no room and is the last of its role, the run ends.
        """
        await asyncio.sleep(self._restarts.wait_s(worker.index))
        try:
            await self._make_ready(worker, self._room)
        except NoRoom as error:
            self._fail(
                f"{error} ({self.role} worker {worker.index}, the last of its role, was lost: {self._last_loss})"
            )
        except Exception as error:  # noqa: BLE001 - counted by `Restarts`, which ends the run with it
            self._replace(worker, error)

    async def _supervise(self) -> None:
        """Replace workers that do not answer a ping, or answer with an exception of any kind."""

        async def check(worker: Member[W]) -> None:
            try:
                ping: ObjectRef[dict[str, float]] = worker.actor.ping.remote()
                worker.figures = await await_ref(ping, PING_DEADLINE_S, self._name(worker, "ping"))
            except Exception as error:  # noqa: BLE001 - as in `_bring_up`
                self._replace(worker, error)

        while True:
            await asyncio.sleep(PING_EVERY_S)
            await asyncio.gather(*(check(worker) for worker in list(self._workers.values()) if worker.ready))

    def _fail(self, sentence: str) -> None:
        self._failure = RunFailed(f"{sentence}; see the worker logs of the Ray session, or `capo-ray doctor`")
        self._changed.set()

    def _keep(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run beside everything else until it ends or the pool is closed; what it raises ends the run."""

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                self._fail(f"the supervision of {self.role} workers ended: {one_line(error)}")

        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(ended)
