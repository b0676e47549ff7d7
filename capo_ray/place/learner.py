"""The learner group: one actor per rank, called alike, in the same order, by one caller at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.actor import ActorHandle

from capo_ray.config import TrainConfig
from capo_ray.place.pool import await_ref
from capo_ray.protocols import PartLost, PartTimeout, RunFailed, WeightsHandle
from capo_ray.types import Batch, UpdateReport


class LearnerActors:
    """`LearnerGroup` over actors. A lost or late rank ends the run: its shard is gone, the checkpoint is not."""

    def __init__(
        self, config: TrainConfig, spawn: Callable[[int], ActorHandle], build_spec: Callable[..., Any]
    ) -> None:
        self._config, self._build_spec = config, build_spec
        self._ranks = [spawn(rank) for rank in range(config.learner.num_ranks)]
        self._num_publishes = 0
        self.pids: list[int] = []
        self.version = 0

    async def start(self, canary_ids: Sequence[int]) -> None:
        """Returns once all ranks have met and built the model."""
        deadline_s = self._config.learner.deadline_s
        meeting = await await_ref(self._ranks[0].rendezvous.remote(), deadline_s, "learner rank 0 (rendezvous)")
        tolerance = self._config.weights.canary_tolerance
        self.pids = await self._all("start", lambda rank: (self._build_spec(rank, meeting), canary_ids, tolerance))

    async def update(self, batch: Batch) -> UpdateReport:
        """As `LearnerGroup.update`; the report of rank 0 (figures are already summed over ranks)."""
        reports = await self._all("update", lambda rank: (batch.column(rank), batch.kl_scale))
        self.version = reports[0].version
        return reports[0]

    async def refresh_reference(self) -> None:
        """As `LearnerGroup.refresh_reference`."""
        await self._all("refresh_reference", lambda _: ())

    async def publishable(self) -> WeightsHandle:
        """A handle whose payload refers to rank 0's own handle: the bytes go from node to node, not by here."""
        every = self._config.weights.canary_every
        with_canary = bool(every) and self._num_publishes % every == 0
        self._num_publishes += 1
        refs: list[Any] = [rank.publish.options(num_returns=2).remote(with_canary) for rank in self._ranks]
        await self._gather([(ref, f"learner rank {i} (publish)") for i, (ref, _handle) in enumerate(refs)])
        return WeightsHandle(self.version, "", refs[0][1])

    async def logprobs(
        self, token_ids: Sequence[Sequence[int]], starts: Sequence[int]
    ) -> tuple[tuple[float, ...], ...]:
        """As `LearnerGroup.logprobs`."""
        return (await self._all("logprobs", lambda _: (token_ids, starts)))[0]

    async def save(self, path: str) -> None:
        """As `LearnerGroup.save`; `path` is on a file system that every rank sees."""
        await self._all("save", lambda _: (path,))

    async def load(self, path: str) -> int:
        """As `LearnerGroup.load`."""
        self.version = (await self._all("load", lambda _: (path,)))[0]
        return self.version

    async def export(self, path: str) -> None:
        """As `LearnerGroup.export`."""
        await self._all("export", lambda _: (path,))

    def close(self) -> None:
        """Kill every rank."""
        for rank in self._ranks:
            ray.kill(rank)

    async def _all(self, method: str, arguments: Callable[[int], tuple[Any, ...]]) -> list[Any]:
        """The results of every rank, each called with its own arguments."""
        return await self._gather(
            [
                (getattr(rank, method).remote(*arguments(i)), f"learner rank {i} ({method})")
                for i, rank in enumerate(self._ranks)
            ]
        )

    async def _gather(self, calls: Sequence[tuple[ray.ObjectRef, str]]) -> list[Any]:
        """The results; the first failure ends the wait, since the other ranks then hang in a collective."""
        deadline_s = self._config.learner.deadline_s
        try:
            return list(await asyncio.gather(*(await_ref(ref, deadline_s, what) for ref, what in calls)))
        except (PartLost, PartTimeout) as error:
            raise RunFailed(f"{error}; go on from the last checkpoint with resume=RUN") from error
