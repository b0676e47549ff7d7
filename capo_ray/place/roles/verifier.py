"""Verifier workers: killable child processes that compare answers, and the pool of them behind `Verifier`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from ray.actor import ActorHandle

from capo_ray.config import TrainConfig
from capo_ray.config.sections import VerifierConfig
from capo_ray.place.face import spawn
from capo_ray.place.placement import GRAIN
from capo_ray.place.pool import MANY_AT_ONCE, WorkerPool
from capo_ray.place.role import Role, Site, Tier
from capo_ray.types import Verdict
from capo_ray.verifiers import VerifierPool


class VerifierWorker:
    """Killable child processes that compare answers."""

    def __init__(self, config: VerifierConfig) -> None:
        self._pool = VerifierPool(config)

    async def start(self) -> int:
        """Start the children; the process id."""
        self._pool.start()
        return os.getpid()

    async def ping(self) -> dict[str, float]:
        """The pool's figures."""
        return self._pool.stats()

    async def verify(self, answer: str, responses: Sequence[str]) -> tuple[Verdict, ...]:
        """As `Verifier.verify`."""
        return await self._pool.verify(answer, responses)


class VerifierTier(Tier[VerifierWorker]):
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


def build(site: Site) -> VerifierTier:
    """Verifier workers, not started."""
    config = site.config.verifier
    return VerifierTier(site.config, lambda _: spawn(VerifierWorker, options_of(config), config))


def options_of(config: VerifierConfig) -> dict[str, Any]:
    """What Ray is asked for each worker: no whole core, since it mostly waits, and its fence."""
    fence = {config.node_resource: GRAIN} if config.node_resource else {}
    return {"num_cpus": 0, "resources": fence} | MANY_AT_ONCE


VERIFIER = Role("verifier", build)
