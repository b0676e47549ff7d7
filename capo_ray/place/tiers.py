"""The pools of each role behind the doors that the flow knows."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, cast

from ray.actor import ActorHandle

from capo_ray.config import TrainConfig
from capo_ray.critics.panel import was_not_answered
from capo_ray.critics.retries import RetryBudget
from capo_ray.place.calls import await_ref
from capo_ray.place.face import send
from capo_ray.place.placement import shares_devices
from capo_ray.place.pool import WorkerPool
from capo_ray.place.store import StoreTier
from capo_ray.place.workers import CriticWorker, RolloutWorker, VerifierWorker
from capo_ray.protocols import JudgeRequest, PartLost, PartTimeout, RunFailed, Sampling, WeightsHandle
from capo_ray.sizing import transfer_deadline_s
from capo_ray.types import Completion, Critique, Problem, Verdict

Critiques = tuple[tuple[Critique, ...], ...]
Asked = tuple[Problem, tuple[JudgeRequest, ...], int]
TRY_SHARE = 1.25
"""A worker's time for a group, in tier deadlines; what is left of two of them is for another worker."""


class RolloutPool:
    """Engines that all hold the same announced version (`TextEngine`)."""

    def __init__(self, config: TrainConfig, spawn: Callable[[int], ActorHandle[RolloutWorker]]) -> None:
        self._config = config
        self._weights: WeightsHandle | None = None
        self.pool = WorkerPool(
            "rollout",
            spawn,
            config.engine.num_workers,
            start_deadline_s=config.engine.start_deadline_s,
            prepare=self._bring_to_version,
            in_turn=shares_devices(config),
        )

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> tuple[Completion, ...]:
        """As `TextEngine.generate`, on the least loaded worker."""
        deadline_s = self._config.rollout.deadline_s
        completions = await self.pool.call(RolloutWorker.generate, tuple(prompt_ids), sampling, deadline_s=deadline_s)
        # Ray's arrays lie in its object store and would keep a group's place there until it is trained.
        return tuple(completion.owned() for completion in completions)

    async def stream(self, prompt_ids: Sequence[int], sampling: Sampling) -> AsyncIterator[Completion]:
        """As `TextEngine.stream`, though all completions come at the end: a group is the unit of flow."""
        for completion in await self.generate(prompt_ids, sampling):
            yield completion

    async def score(self, token_ids: Sequence[Sequence[int]], starts: Sequence[int]) -> tuple[tuple[float, ...], ...]:
        """As `TextEngine.score`, on the least loaded worker."""
        return await self.pool.call(RolloutWorker.score, token_ids, starts, deadline_s=self._config.rollout.deadline_s)

    def expect_weights(self, handle: WeightsHandle) -> None:
        """As `TextEngine.expect_weights`, on every ready worker."""
        self.pool.tell(RolloutWorker.expect_weights, _sent(handle))

    async def load_weights(self, handle: WeightsHandle) -> int:
        """The version held by every ready worker; one that refuses or is lost is replaced by one that holds it.

        One that answers with another version is replaced as well: its tokens would all be dropped as too old.
        """
        self._weights = handle
        results = await self.pool.broadcast(
            RolloutWorker.load_weights,
            *(_sent(handle), handle.version, handle.fingerprint),
            deadline_s=self._deadline_s(handle),
            accept=lambda held: _require_version(held, handle),
        )
        refusals = [r for r in results if isinstance(r, Exception) and not isinstance(r, PartLost | PartTimeout)]
        if refusals:
            first = refusals[0]
            raise RunFailed(f"an engine refused version {handle.version} of the weights: {first}") from first
        return handle.version

    async def scores_at_start(self, token_ids: Sequence[int]) -> list[tuple[float, ...]]:
        """The logprobs of tokens [1, end) by every worker; raises what a worker raised."""
        results = await self.pool.broadcast(
            RolloutWorker.score, [token_ids], [1], deadline_s=self._config.engine.start_deadline_s
        )
        scores: list[tuple[float, ...]] = []
        for result in results:
            if isinstance(result, Exception):
                raise RunFailed(f"an engine could not score the canary at its start: {result}") from result
            scores += result
        return scores

    def _deadline_s(self, handle: WeightsHandle) -> float:
        """The seconds for an engine to hold a version."""
        return self._config.weights.deadline_s or transfer_deadline_s(handle.num_bytes)

    async def _bring_to_version(self, worker: ActorHandle[RolloutWorker]) -> None:
        """Load the announced weights into a fresh worker, again if a newer version was announced meanwhile."""
        while (handle := self._weights) is not None:
            ref = send(worker, RolloutWorker.load_weights, _sent(handle), handle.version, handle.fingerprint)
            held = await await_ref(ref, self._deadline_s(handle), "rollout worker (first weights)")
            _require_version(held, handle)
            if handle is self._weights:
                return


def _sent(handle: WeightsHandle) -> WeightsHandle:
    """The sealed handle: what is announced refers to it, and Ray puts it in the reference's place."""
    reference: Any = handle.payload
    return cast(WeightsHandle, reference)


def _require_version(held: int, handle: WeightsHandle) -> None:
    """Raises `PartLost` for an engine that answered a publish without holding what was published."""
    if held != handle.version:
        raise PartLost(f"the engine answered version {handle.version} of the weights with version {held}")


class CriticPool:
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
        )

    async def start(self) -> None:
        """Returns once workers and store are ready."""
        await asyncio.gather(self.pool.start(), *([self._store.start()] if self._store is not None else []))

    async def critique(
        self, problem: Problem, responses: Sequence[JudgeRequest], num_votes: int
    ) -> tuple[tuple[Critique, ...], ...]:
        """As `Judge.critique`, on the least loaded worker; within twice the tier's deadline."""
        return await self._ask((problem, tuple(responses), num_votes))

    def stats(self) -> dict[str, float]:
        """The figures of pool and store, and how often a group was sent again or sent twice."""
        figures = self.pool.stats() | {f"critic/{name}_total": float(count) for name, count in self.counts.items()}
        for name, count in (self._store.figures() if self._store is not None else {}).items():
            figures[name] = figures.get(name, 0.0) + count
        return figures

    def close(self) -> None:
        """Kill the workers and let go of the store."""
        self.pool.close()
        if self._store is not None:
            self._store.close()

    async def _ask(self, asked: Asked) -> Critiques:
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

    async def _try(self, ends: float, used: set[int], asked: Asked) -> Critiques:
        """One worker's answer; `PartTimeout` where it is late or holds no vote at all."""
        # The worker cuts at its own deadline; the margin is for one that hangs.
        left_s = max(0.01, ends - time.monotonic())
        answer: Critiques = await self.pool.call(
            CriticWorker.critique, *asked, deadline_s=min(left_s, TRY_SHARE * self._critic.deadline_s), used=used
        )
        critiques = [critique for votes in answer for critique in votes]
        if critiques and all(was_not_answered(critique) for critique in critiques):
            raise PartTimeout(f"no vote on any response ({critiques[0].reason})")
        return answer


class VerifierTier:
    """Verifier workers (`Verifier`)."""

    def __init__(self, config: TrainConfig, spawn: Callable[[int], ActorHandle[VerifierWorker]]) -> None:
        self._verifier = config.verifier
        self.pool = WorkerPool(
            "verifier", spawn, config.verifier.num_workers, start_deadline_s=config.engine.start_deadline_s
        )

    async def verify(self, answer: str, responses: Sequence[str]) -> tuple[Verdict, ...]:
        """As `Verifier.verify`, on the least loaded worker."""
        return await self.pool.call(
            VerifierWorker.verify, answer, tuple(responses), deadline_s=self._verifier.deadline_s
        )
