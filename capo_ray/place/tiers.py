"""The pools of each role behind the doors that the flow knows."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from ray.actor import ActorHandle

from capo_ray.config import TrainConfig
from capo_ray.place.pool import WorkerPool, await_ref
from capo_ray.protocols import JudgeRequest, PartLost, PartTimeout, RunFailed, Sampling, WeightsHandle
from capo_ray.types import Completion, Critique, Problem, Provenance, Verdict

Spawn = Callable[[int], ActorHandle]


class RolloutPool:
    """Engines that all hold the same announced version (`TextEngine`)."""

    def __init__(self, config: TrainConfig, spawn: Spawn) -> None:
        self._config = config
        self._weights: WeightsHandle | None = None
        self.pool = WorkerPool(
            "rollout",
            spawn,
            config.engine.num_workers,
            start_deadline_s=config.engine.start_deadline_s,
            prepare=self._bring_to_version,
        )

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> tuple[Completion, ...]:
        """As `TextEngine.generate`, on the least loaded worker."""
        deadline_s = self._config.rollout.deadline_s
        return await self.pool.call("generate", tuple(prompt_ids), sampling, deadline_s=deadline_s)

    async def stream(self, prompt_ids: Sequence[int], sampling: Sampling) -> AsyncIterator[Completion]:
        """As `TextEngine.stream`, though all completions come at the end: a group is the unit of flow."""
        for completion in await self.generate(prompt_ids, sampling):
            yield completion

    async def score(self, token_ids: Sequence[Sequence[int]], starts: Sequence[int]) -> tuple[tuple[float, ...], ...]:
        """As `TextEngine.score`, on the least loaded worker."""
        return await self.pool.call("score", token_ids, starts, deadline_s=self._config.rollout.deadline_s)

    async def load_weights(self, handle: WeightsHandle) -> int:
        """The version held by every ready worker; one that refuses or is lost is replaced by one that holds it.

        The call returns once at least one worker serves the version; `RunFailed` when a fresh worker refuses it too.
        """
        self._weights = handle
        deadline_s = self._config.weights.deadline_s
        results = await self.pool.broadcast("load_weights", handle.payload, deadline_s=deadline_s)
        refusals = [r for r in results if isinstance(r, BaseException) and not isinstance(r, PartLost | PartTimeout)]
        if refusals:
            raise RunFailed(f"an engine refused version {handle.version} of the weights: {refusals[0]}") from refusals[
                0
            ]
        return handle.version

    async def _bring_to_version(self, worker: ActorHandle) -> None:
        """Load the announced weights into a fresh worker, again if a newer version was announced meanwhile."""
        while (handle := self._weights) is not None:
            ref: Any = worker.load_weights.remote(handle.payload)
            await await_ref(ref, self._config.weights.deadline_s, "rollout worker (first weights)")
            if handle is self._weights:
                return


class CriticPool:
    """Critic workers (`Judge`). A tier that is lost or late gives invalid critiques, which abstain."""

    def __init__(self, config: TrainConfig, spawn: Spawn) -> None:
        self._critic = config.critic
        self.counts: Counter[str] = Counter()
        self.busy_s = 0.0
        self.pool = WorkerPool(
            "critic", spawn, config.critic.num_workers, start_deadline_s=config.engine.start_deadline_s
        )

    async def critique(
        self, problem: Problem, responses: Sequence[JudgeRequest], num_votes: int
    ) -> tuple[tuple[Critique, ...], ...]:
        """As `Judge.critique`, on the least loaded worker; within twice the tier's deadline."""
        started = time.monotonic()
        try:
            # The worker's own deadline cuts single critiques; this one covers a worker that died on the way.
            return await self.pool.call(
                "critique", problem, tuple(responses), num_votes, deadline_s=2 * self._critic.deadline_s
            )
        except (PartTimeout, PartLost) as error:
            self.counts["lost_groups"] += 1
            lost = Critique(None, None, "", f"critic lost: {error}", Provenance(self._critic.model, "", 0))
            return tuple((lost,) for _ in responses)
        finally:
            self.busy_s += time.monotonic() - started

    def stats(self) -> dict[str, float]:
        """The pool's figures, and the groups that came back without a judgement."""
        return {**self.pool.stats(), "critic/lost_groups": float(self.counts["lost_groups"])}


class VerifierTier:
    """Verifier workers (`Verifier`)."""

    def __init__(self, config: TrainConfig, spawn: Spawn) -> None:
        self._verifier = config.verifier
        self.pool = WorkerPool(
            "verifier", spawn, config.verifier.num_workers, start_deadline_s=config.engine.start_deadline_s
        )

    async def verify(self, answer: str, responses: Sequence[str]) -> tuple[Verdict, ...]:
        """As `Verifier.verify`, on the least loaded worker."""
        result: Any = await self.pool.call("verify", answer, tuple(responses), deadline_s=self._verifier.deadline_s)
        return result
