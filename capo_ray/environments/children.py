"""Replies from killable child processes: the verifier's lanes, which ask an environment in place of a comparison."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from queue import SimpleQueue
from typing import Self

from capo_ray.config.environment import PlayedBase
from capo_ray.environments.reply import Reply, Task
from capo_ray.types import Problem
from capo_ray.verifiers.jobs import Job, Limit, Outcome
from capo_ray.verifiers.lane import Lane

CLOSE_DEADLINE_S = 5.0
REPLIES_PER_PROCESS = 10_000
_log = logging.getLogger(__name__)
LATE = Outcome(None, "timeout: no process was free within environment.deadline_s")


class Children:
    """The processes of one environment."""

    def __init__(self, config: PlayedBase) -> None:
        self._config, self._settings = config, config.model_dump(mode="json")
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._counts: Counter[str] = Counter()
        settings = {
            "kind": "environment",
            "path": "capo_ray.environments.reply:serve",
            "preload": config.rule,
            "prepare": config.prepare,
            "of_environment": self._settings,
            "confined": config.confined,
            "timeout_s": config.timeout_s,
            "memory_mib": config.memory_mib,
            "checks": REPLIES_PER_PROCESS,
        }
        count, limit = config.num_processes, Limit.of_function(config.timeout_s)
        self._lanes = [Lane(f"environment-{i}", settings, self._jobs, limit, count) for i in range(count)]

    def __enter__(self) -> Self:
        for lane in self._lanes:
            lane.start()
        return self

    def __exit__(self, *_: object) -> None:
        for lane in self._lanes:
            lane.stop()
        for lane in self._lanes:
            lane.join(CLOSE_DEADLINE_S)

    async def ask(self, problem: Problem, said: Sequence[str]) -> Reply | str:
        """The reply to what the policy has said; a text where there is none: why.

        Raises `PartLost` where its process cannot be started.
        """
        task = Task(problem.id, problem.prompt, problem.answer, self._settings)
        job = Job(json.dumps({"rule": self._config.rule, "task": asdict(task)}), json.dumps(list(said)))
        self._jobs.put(job)
        self._counts["replies"] += 1
        try:
            outcome = await asyncio.wait_for(asyncio.wrap_future(job.future), self._config.deadline_s)
        except TimeoutError:
            outcome = LATE
        if outcome.value is None:
            self._note_failure(outcome.reason)
            return outcome.reason
        return Reply(**outcome.value)

    def _note_failure(self, reason: str) -> None:
        """Count it; the policy reads its kind alone, so the first cause is logged for whoever wrote it."""
        kind = reason.partition(":")[0]
        self._counts["failures"] += 1
        self._counts[kind] += 1
        if self._counts[kind] == 1:
            _log.warning("environment.kind=%s failed, the first of its kind: %s", self._config.kind, ascii(reason))

    def stats(self) -> dict[str, float]:
        """Their figures, names as in metrics."""
        return {
            "environment/replies_total": float(self._counts["replies"]),
            "environment/failures_total": float(self._counts["failures"]),
            "environment/process_starts_total": float(sum(lane.counts["starts"] for lane in self._lanes)),
        }
