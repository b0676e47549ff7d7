"""The run's critique store: one actor beside the driver holds the file, and the critic workers of all nodes ask it.

critic worker -> RemoteStore --one call per group--> StoreKeeper (driver's node) -> GuardedStore -> the file

Invariant: whatever becomes of file or actor, a critique is asked for and judged as if there were no store.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from capo_ray.critics.guarded import GuardedStore
from capo_ray.critics.store import StoreHeld
from capo_ray.place.calls import await_ref, end_actor
from capo_ray.place.face import send, spawn
from capo_ray.protocols import PartLost, PartTimeout, RunFailed
from capo_ray.served.retries import Breaker
from capo_ray.types import Critique

ASK_S = 10.0
"""What a group waits for its held critiques, or for its new ones to be kept."""
OPEN_S = 120.0
LOOK_EVERY_S = 5.0
CLOSE_S = 10.0
_log = logging.getLogger(__name__)

R = TypeVar("R")
Ts = TypeVarTuple("Ts")


class StoreKeeper:
    """The actor that holds the file."""

    def __init__(self, path: str) -> None:
        self._store = GuardedStore(path)

    async def open(self) -> str:
        """Open the file; the sentence of what is wrong with it, or nothing. Raises `StoreHeld`."""
        await self._store.open()
        return self._store.trouble

    async def read(self, keys: Sequence[str], num_votes: int) -> dict[str, list[Critique]]:
        """As `StoreDoor.read`."""
        return await self._store.read(keys, num_votes)

    async def write(self, votes: Mapping[str, Sequence[Critique]]) -> None:
        """As `StoreDoor.write`."""
        await self._store.write(votes)

    async def ping(self) -> tuple[dict[str, float], str]:
        """The store's figures, and the first trouble's sentence."""
        return self._store.figures(), self._store.trouble

    async def close(self) -> None:
        """Release the file, its write-ahead log folded in."""
        await self._store.close()


class RemoteStore:
    """`StoreDoor` from a critic worker, on whichever node; a keeper that is gone or late is left alone for a while."""

    def __init__(self, keeper: ActorHandle[StoreKeeper]) -> None:
        self._keeper = keeper
        self._breaker = Breaker(3, 60.0)
        self._num_errors = 0

    async def read(self, keys: Sequence[str], num_votes: int) -> dict[str, list[Critique]]:
        """As `StoreDoor.read`."""
        return await self._call(StoreKeeper.read, list(keys), num_votes) or {}

    async def write(self, votes: Mapping[str, Sequence[Critique]]) -> None:
        """As `StoreDoor.write`."""
        await self._call(StoreKeeper.write, dict(votes))

    def figures(self) -> dict[str, float]:
        """Calls that the keeper did not answer; its own figures come from itself."""
        return {"critic/store_errors_total": float(self._num_errors)}

    async def _call(self, method: Callable[[StoreKeeper, *Ts], Coroutine[Any, Any, R]], *arguments: *Ts) -> R | None:
        """The keeper's answer; None where there is none."""
        if not self._breaker.allows():
            return None
        try:
            ref = send(self._keeper, method, *arguments)
            answer = await await_ref(ref, ASK_S, f"critique store ({method.__name__})")
        except (PartLost, PartTimeout, RayError, StoreHeld):
            self._num_errors += 1
            self._breaker.failed()
            return None
        except BaseException:
            self._breaker.abandoned()
            raise
        self._breaker.succeeded()
        return answer


class StoreTier:
    """The driver's end: starts the keeper, watches it, and lets go of the file at the end.

    `asked_for`: the file was named by the user, so that a run must not go on without it where another run holds it.
    """

    def __init__(self, path: Path, *, asked_for: bool) -> None:
        self._path, self._asked_for = path.absolute(), asked_for
        self._figures: dict[str, float] = {}
        self._said = False
        self._watch: asyncio.Task[None] | None = None

    @cached_property
    def keeper(self) -> ActorHandle[StoreKeeper]:
        """The actor, made when first asked for: what is only built starts no Ray."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {"num_cpus": 0, "max_restarts": 3, "max_concurrency": 1000, "scheduling_strategy": here}
        return spawn(StoreKeeper, options, str(self._path))

    async def start(self) -> None:
        """Returns once the file is open, or known not to be; `RunFailed` where it is another run's."""
        try:
            self._say(await await_ref(send(self.keeper, StoreKeeper.open), OPEN_S, "critique store (open)"))
        except StoreHeld as error:
            if self._asked_for:
                raise RunFailed(str(error)) from error
            self._say(f"{error}; critics are asked without it")
        except (PartLost, PartTimeout) as error:
            self._say(f"the critique store {self._path} could not be opened ({error}); critics are asked without it")
        self._watch = asyncio.ensure_future(self._look())

    def figures(self) -> dict[str, float]:
        """The keeper's, as of its last ping."""
        return self._figures

    def close(self) -> None:
        """Let go of the file within `CLOSE_S`, then end the keeper."""
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(RayError, TimeoutError, ValueError, RuntimeError):  # as `end_actor`
                ray.get(send(self.keeper, StoreKeeper.close), timeout=CLOSE_S)
        if "keeper" in self.__dict__:
            end_actor(self.keeper)

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            with contextlib.suppress(PartLost, PartTimeout, RayError):  # the workers count what they do not get
                ping = send(self.keeper, StoreKeeper.ping)
                self._figures, trouble = await await_ref(ping, ASK_S, "critique store (ping)")
                self._say(trouble)

    def _say(self, trouble: str) -> None:
        if trouble and not self._said:
            self._said = True
            _log.warning(trouble)
