"""The policy's learner group: batches to its ranks, weights out of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ray.actor import ActorHandle

from capo_ray.config import TrainConfig
from capo_ray.place.cluster import is_own
from capo_ray.place.ranks import Limits, RankActors
from capo_ray.protocols import RunFailed, WeightsHandle
from capo_ray.types import Batch, UpdateReport, WrittenFile
from capo_ray.weights import Apart


class LearnerActors(RankActors):
    """`LearnerGroup` over actors."""

    def __init__(
        self, config: TrainConfig, spawn: Callable[[int], ActorHandle], build_spec: Callable[..., Any]
    ) -> None:
        limits = Limits(config.learner.deadline_s, config.run.checkpoint_deadline_s)
        super().__init__("learner", spawn, config.learner.num_ranks, limits, alone=is_own(config))
        self._config, self._build_spec = config, build_spec
        self._num_publishes = 0
        self.allowed: Apart | None = None

    async def start(self, canary_ids: Sequence[int]) -> None:
        """Returns once all ranks have met and built the model."""
        await self._start(lambda rank, meeting: (self._build_spec(rank, meeting), canary_ids))

    async def update(self, batch: Batch) -> UpdateReport:
        """As `LearnerGroup.update`; figures are already summed over ranks, samples are each rank's own."""
        reports = await self._all("update", lambda rank: (batch.column(rank), batch.kl_scale))
        self.version = reports[0].version
        return replace(reports[0], nonfinite=tuple(key for report in reports for key in report.nonfinite))

    async def refresh_reference(self) -> None:
        """As `LearnerGroup.refresh_reference`."""
        await self._all("refresh_reference", lambda _: ())

    async def publishable(self, ahead: Callable[[WeightsHandle], None] | None = None) -> WeightsHandle:
        """A handle whose payload refers to rank 0's own handle: the bytes go from node to node, not by here.

        The bytes come before their seal: while engines read and load them the ranks score the canary.
        """
        every = self._config.weights.canary_every
        allowed = self.allowed if every and self._num_publishes % every == 0 else None
        self._num_publishes += 1
        gathered: list[Any] = [rank.gather.options(num_returns=2).remote() for rank in self._ranks]
        sealed: list[Any] = [rank.seal.options(num_returns=2).remote(allowed, [gathered[0][1]]) for rank in self._ranks]
        if ahead is not None:
            ahead(WeightsHandle(self.version, "", gathered[0][1]))
        calls = [("gather", ref) for ref, _ in gathered] + [("seal", ref) for ref, _ in sealed]
        ranks = [*range(len(self._ranks))] * 2
        answers = await self._gather(
            [(ref, f"learner rank {i} (publish: {what})") for i, (what, ref) in zip(ranks, calls, strict=True)]
        )
        told = answers[len(self._ranks) :]
        versions = {version for version, _, _ in told}
        if versions != {self.version}:
            raise RunFailed(
                f"expected version {self.version} of the weights from every learner rank, got {sorted(versions)}; go "
                f"on from the last checkpoint with resume=RUN"
            )
        _, fingerprint, num_bytes = told[0]
        return WeightsHandle(self.version, "", sealed[0][1], fingerprint, num_bytes)

    async def logprobs(
        self, token_ids: Sequence[Sequence[int]], starts: Sequence[int]
    ) -> tuple[tuple[float, ...], ...]:
        """As `LearnerGroup.logprobs`."""
        return (await self._all("logprobs", lambda _: (token_ids, starts)))[0]

    async def export(self, path: str) -> tuple[WrittenFile, ...]:
        """As `LearnerGroup.export`; the ranks then let go of their snapshots."""
        written = await self._beside("export", path)
        return tuple(file for files in written for file in files)
