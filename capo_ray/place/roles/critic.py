"""Critic workers: judges, with the vLLM engine that holds their critic where there is one, and the pool of them."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from ray.actor import ActorHandle

from capo_ray.config import TrainConfig
from capo_ray.config.credit import Critiques
from capo_ray.config.sections import CriticConfig
from capo_ray.critics.panel import was_not_answered
from capo_ray.engines import EngineSpec
from capo_ray.place.face import spawn
from capo_ray.place.judging import engine_spec, open_judge
from capo_ray.place.placement import shares_devices
from capo_ray.place.pool import MANY_AT_ONCE, WorkerPool
from capo_ray.place.role import Role, Site, Tier
from capo_ray.place.room import room_of
from capo_ray.place.store import RemoteStore, StoreKeeper, StoreTier
from capo_ray.protocols import JudgeRequest, PartLost, PartTimeout
from capo_ray.runs.layout import CRITIQUES_FILE
from capo_ray.served.retries import RetryBudget
from capo_ray.types import Critique, Problem

Votes = tuple[tuple[Critique, ...], ...]
Asked = tuple[Problem, tuple[JudgeRequest, ...], int]
TRY_SHARE = 1.25
"""A worker's time for a group, in tier deadlines; what is left of two of them is for another worker."""


class CriticWorker:
    """A judge, and the vLLM engine that holds its critic where its backend is one."""

    def __init__(
        self,
        spec: EngineSpec | None,
        config: CriticConfig,
        vote: str,
        quorum: int,
        keeper: ActorHandle[StoreKeeper] | None,
    ) -> None:
        self._spec, self._config, self._vote, self._quorum = spec, config, vote, quorum
        self._keeper, self._began = keeper, time.monotonic()

    async def start(self) -> int:
        """Load the model, if any; the process id."""
        store = RemoteStore(self._keeper) if self._keeper is not None else None
        self._judge, self._engine = await open_judge(self._spec, self._config, self._vote, self._quorum, store)
        self._began = time.monotonic()
        return os.getpid()

    async def ping(self) -> dict[str, float]:
        """The figures of the judge and of its engine's queue; raises if the engine is broken."""
        if self._engine is None:
            return self._judge.stats()
        self._engine.ping()
        engine = self._engine.stats()
        return self._judge.stats() | {
            "critic/running_requests": engine["running_requests"],
            "critic/waiting_requests": engine["waiting_requests"],
            "critic/engine_busy_s_total": engine["busy_s_total"],
            "critic/engine_up_s_total": time.monotonic() - self._began,
            "critic/prefix_hit_tokens_total": engine["cached_prompt_tokens_total"],
        }

    async def critique(
        self, problem: Problem, responses: Sequence[JudgeRequest], num_votes: int
    ) -> tuple[tuple[Critique, ...], ...]:
        """As `Judge.critique`."""
        return await self._judge.critique(problem, responses, num_votes)


class CriticPool(Tier[CriticWorker]):
    """Critic workers (`Judge`), and the store of what they said. Raises `PartTimeout` where none judged a group.

    call -> a worker --late--> another one, out of a budget of retries --late--> PartTimeout
                  \\--slow (hedge_after_s)--> a second one beside it, out of the same budget
    """

    def __init__(
        self, config: TrainConfig, spawn: Callable[[int], ActorHandle[CriticWorker]], store: StoreTier | None = None
    ) -> None:
        self._critic = config.critic
        self._budget = RetryBudget()
        self._store = store
        self.counts = Counter({"retried_groups": 0, "hedged_groups": 0})
        self.pool = WorkerPool(
            "critic",
            spawn,
            config.critic.num_workers,
            start_deadline_s=config.engine.start_deadline_s,
            in_turn=shares_devices(config),
            room=room_of(config, "critic"),
        )

    async def start(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Returns once workers and store are ready."""
        await asyncio.gather(self.pool.start(on_ready), *([self._store.start()] if self._store is not None else []))

    async def critique(
        self, problem: Problem, responses: Sequence[JudgeRequest], num_votes: int
    ) -> tuple[tuple[Critique, ...], ...]:
        """As `Judge.critique`, on the least loaded worker; within twice the tier's deadline."""
        return await self._ask((problem, tuple(responses), num_votes))

    def stats(self) -> dict[str, float]:
        """The figures of pool and store, and how often a group was sent again or sent twice."""
        figures = super().stats() | {f"critic/{name}_total": float(count) for name, count in self.counts.items()}
        for name, count in (self._store.figures() if self._store is not None else {}).items():
            figures[name] = figures.get(name, 0.0) + count
        return figures

    def close(self) -> None:
        """Kill the workers and let go of the store."""
        super().close()
        if self._store is not None:
            self._store.close()

    async def _ask(self, asked: Asked) -> Votes:
        """The first answer of any worker; raises the last failure when tries, budget or time are over."""
        ends = time.monotonic() + 2 * self._critic.deadline_s
        retries, used = self._critic.max_retries, set[int]()
        hedge_s = self._critic.hedge_after_s or None
        tries = {asyncio.ensure_future(self._try(ends, used, asked))}
        self._budget.earn()
        try:
            while True:
                done, tries = await asyncio.wait(tries, timeout=hedge_s, return_when=asyncio.FIRST_COMPLETED)
                good = [task.result() for task in done if not isinstance(task.exception(), PartTimeout | PartLost)]
                if good:
                    return good[0]
                hedge_s = None if not done else hedge_s
                if retries and self._budget.spend():
                    retries -= 1
                    self.counts["retried_groups" if done else "hedged_groups"] += 1
                    tries.add(asyncio.ensure_future(self._try(ends, used, asked)))
                elif not tries:
                    return done.pop().result()
        finally:
            for task in tries:
                task.cancel()
            await asyncio.gather(*tries, return_exceptions=True)

    async def _try(self, ends: float, used: set[int], asked: Asked) -> Votes:
        """One worker's answer; `PartTimeout` where it is late or holds no vote at all."""
        # The worker cuts at its own deadline; the margin is for one that hangs.
        left_s = max(0.01, ends - time.monotonic())
        answer: Votes = await self.pool.call(
            CriticWorker.critique, *asked, deadline_s=min(left_s, TRY_SHARE * self._critic.deadline_s), used=used
        )
        critiques = [critique for votes in answer for critique in votes]
        if critiques and all(was_not_answered(critique) for critique in critiques):
            raise PartTimeout(f"no vote on any response ({critiques[0].reason})")
        return answer


def build(site: Site) -> CriticPool:
    """Critic workers, not started."""
    config = site.config
    asked = config.credit.asked(Critiques)
    assert asked is not None, "only a method that reads critiques has critics"
    arguments = (engine_spec(config), config.critic, asked.stops_by, asked.quorum)
    store = _build_store(config, site.run_dir)

    def make(index: int) -> ActorHandle[CriticWorker]:
        keeper = store.keeper if store is not None else None
        return spawn(CriticWorker, site.places.of("critic", index) | MANY_AT_ONCE, *arguments, keeper)

    return CriticPool(config, make, store)


def _build_store(config: TrainConfig, run_dir: Path) -> StoreTier | None:
    """The critique store, not opened; None for a critic that costs nothing to ask again."""
    if config.critic.backend in ("calculator", "oracle"):
        return None
    path = Path(config.critic.store).expanduser() if config.critic.store else run_dir / CRITIQUES_FILE
    return StoreTier(path, asked_for=bool(config.critic.store))


CRITIC = Role("critic", build)
