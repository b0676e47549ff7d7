"""A pool of interchangeable actors: calls go to the least loaded ready one, the dead and the hung are replaced.

Invariants
- A call ends with a result, the actor's own exception, `PartTimeout` or `PartLost`, within `deadline_s`.
- An actor serves only after `prepare` has succeeded on it (a rollout worker: holds the announced weights).
- More than `max_restarts` replacements in `RESTART_WINDOW_S` end the run: something kills them faster than they start.
  Parts that break by themselves (not killed from outside) end it sooner, with the last one's own words.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError

from capo_ray.protocols import PartLost, PartTimeout, RunFailed

PING_EVERY_S = 5.0
PING_DEADLINE_S = 30.0
RESTART_WINDOW_S = 300.0
MAX_BROKEN = 3


class ActorGone(PartLost):
    """The actor's process died."""


async def await_ref(ref: ray.ObjectRef, deadline_s: float, what: str) -> Any:
    """The value behind a reference; `PartTimeout` names `what` after `deadline_s`, `PartLost` when its actor died."""
    try:
        return await asyncio.wait_for(asyncio.wrap_future(ref.future()), deadline_s)
    except RayTaskError as error:
        cause = error.cause if isinstance(error.cause, Exception) else error
        if cause is not error:
            cause.add_note(str(error))  # where in the actor it was raised
        raise cause from None
    except TimeoutError as error:
        ray.cancel(ref, force=False)
        raise PartTimeout(f"{what} did not answer within {deadline_s:.0f} s") from error
    except (RayActorError, ActorUnavailableError) as error:
        raise ActorGone(f"{what} was lost: {str(error).splitlines()[0]}") from error


@dataclass(eq=False)
class _Worker:
    index: int
    handle: ActorHandle
    ready: bool = False
    in_flight: int = 0
    pid: int = 0
    figures: dict[str, float] = field(default_factory=dict)


class WorkerPool:
    """Actors of one role."""

    def __init__(
        self,
        role: str,
        spawn: Callable[[int], ActorHandle],
        num_workers: int,
        *,
        start_deadline_s: float,
        prepare: Callable[[ActorHandle], Awaitable[None]] | None = None,
        max_restarts: int = 20,
    ) -> None:
        self.role = role
        self.on_ready: Callable[[], None] = lambda: None
        self.num_restarts = 0
        self.num_resent = 0
        self._spawn, self._prepare = spawn, prepare
        self._num_workers, self._start_deadline_s = num_workers, start_deadline_s
        self._max_restarts = max_restarts
        self._restarts: deque[float] = deque()
        self._num_broken = 0
        self._workers: dict[int, _Worker] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._failure: RunFailed | None = None
        self._closed = False

    async def start(self) -> None:
        """Returns once every worker is ready; a worker that cannot start is a `RunFailed` with its cause."""
        for index in range(self._num_workers):
            self._workers[index] = _Worker(index, self._spawn(index))
        try:
            await asyncio.gather(*(self._make_ready(worker) for worker in self._workers.values()))
        except (PartTimeout, PartLost) as error:
            raise RunFailed(f"the {self.role} worker could not start: {error}") from error
        self._keep(self._supervise())

    async def call(self, method: str, *args: Any, deadline_s: float, used: set[int] | None = None) -> Any:
        """The result of `method` on some ready worker; lost calls are sent again while time is left.

        Workers in `used` (indices) are asked only where no other is ready; those asked are added to it. Cancelling the
        call cancels it on the worker.
        """
        ends = time.monotonic() + deadline_s
        while True:
            worker = await self._pick(ends, method, deadline_s, used or set())
            worker.in_flight += 1
            if used is not None:
                used.add(worker.index)
            try:
                ref = getattr(worker.handle, method).remote(*args)
                return await await_ref(ref, max(0.01, ends - time.monotonic()), self._name(worker, method))
            except asyncio.CancelledError:
                ray.cancel(ref, force=False)
                raise
            except PartLost as error:
                self._replace(worker, error)
                self.num_resent += 1
            finally:
                worker.in_flight -= 1

    async def broadcast(
        self, method: str, *args: Any, deadline_s: float, accept: Callable[[Any], None] = lambda _: None
    ) -> list[Any]:
        """The results of `method` on every ready worker; one that is lost is replaced and has no result here.

        A worker that raises or does not answer in time is replaced too and its exception is among the results; so is
        one whose answer `accept` raises at.
        """

        async def one(worker: _Worker) -> Any:
            try:
                ref = getattr(worker.handle, method).remote(*args)
                answer = await await_ref(ref, deadline_s, self._name(worker, method))
                accept(answer)
                return answer
            except (PartLost, PartTimeout, RuntimeError) as error:
                self._replace(worker, error)
                return error

        ready = [worker for worker in self._workers.values() if worker.ready]
        return list(await asyncio.gather(*(one(worker) for worker in ready)))

    @property
    def num_ready(self) -> int:
        return sum(worker.ready for worker in self._workers.values())

    def pids(self) -> list[int]:
        """The process ids of the ready workers."""
        return [worker.pid for worker in self._workers.values() if worker.ready]

    def stats(self) -> dict[str, float]:
        """Queue depth, ready workers, restarts, calls sent again, and the parts' own figures as of their last ping.

        Names that end in `_total` are summed over workers, others averaged.
        """
        own: dict[str, list[float]] = {}
        for worker in self._workers.values():
            for name, value in worker.figures.items():
                own.setdefault(name if "/" in name else f"{self.role}/{name}", []).append(value)
        merged = {n: sum(v) if n.endswith("_total") else sum(v) / len(v) for n, v in own.items()}
        return merged | {
            f"{self.role}/calls_in_flight": float(sum(w.in_flight for w in self._workers.values())),
            f"{self.role}/workers_ready": float(self.num_ready),
            f"{self.role}/restarts": float(self.num_restarts),
            f"{self.role}/calls_resent": float(self.num_resent),
        }

    def close(self) -> None:
        """Kill every worker; calls in flight end with `PartLost`."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        for worker in self._workers.values():
            ray.kill(worker.handle)

    # --- supervision -----------------------------------------------------------------------------------------------

    def _name(self, worker: _Worker, method: str) -> str:
        return f"{self.role} worker {worker.index} ({method})"

    async def _pick(self, ends: float, method: str, deadline_s: float, used: set[int]) -> _Worker:
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
                raise PartTimeout(f"no {self.role} worker was ready for {method} within {deadline_s:.0f} s") from error

    async def _make_ready(self, worker: _Worker) -> None:
        start: Any = worker.handle.start.remote()
        worker.pid = await await_ref(start, self._start_deadline_s, self._name(worker, "start"))
        if self._prepare is not None:
            await self._prepare(worker.handle)
        worker.ready = True
        self._changed.set()
        self.on_ready()

    def _replace(self, worker: _Worker, cause: Exception) -> None:
        """Put a new actor in a lost worker's place; nothing if that has been done already."""
        if self._closed or self._workers.get(worker.index) is not worker:
            return
        worker.ready = False
        ray.kill(worker.handle)
        now = time.monotonic()
        self._restarts.append(now)
        while self._restarts[0] < now - RESTART_WINDOW_S:
            self._restarts.popleft()
        self.num_restarts += 1
        if len(self._restarts) > self._max_restarts:
            self._fail(f"{self.role} workers died {len(self._restarts)} times in {RESTART_WINDOW_S:.0f} s")
            return
        self._num_broken += not isinstance(cause, ActorGone)
        if self._num_broken > MAX_BROKEN:
            self._fail(f"{self.role} workers broke {self._num_broken} times, the last with: {_one_line(cause)}")
            return
        fresh = _Worker(worker.index, self._spawn(worker.index))
        self._workers[worker.index] = fresh
        self._keep(self._bring_up(fresh))

    async def _bring_up(self, worker: _Worker) -> None:
        try:
            await self._make_ready(worker)
        except (PartLost, PartTimeout, RuntimeError) as error:
            await asyncio.sleep(1.0)
            self._replace(worker, error)

    def _fail(self, sentence: str) -> None:
        self._failure = RunFailed(f"{sentence}; see the worker logs of the Ray session, or `capo-ray doctor`")
        self._changed.set()

    def _keep(self, coroutine: Any) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _supervise(self) -> None:
        """Replace workers that no longer answer a ping."""

        async def check(worker: _Worker) -> None:
            try:
                ping: Any = worker.handle.ping.remote()
                worker.figures = await await_ref(ping, PING_DEADLINE_S, self._name(worker, "ping"))
            except (PartLost, PartTimeout, RuntimeError) as error:
                self._replace(worker, error)

        while True:
            await asyncio.sleep(PING_EVERY_S)
            await asyncio.gather(*(check(worker) for worker in list(self._workers.values()) if worker.ready))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
