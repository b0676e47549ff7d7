"""The policy's learner group: batches to its ranks, weights out of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ray import ObjectRef
from ray.actor import ActorHandle

from capo_ray.config import TrainConfig
from capo_ray.learners import LearnerSpec
from capo_ray.place.cluster import is_own
from capo_ray.place.face import send_for_two
from capo_ray.place.ranks import Limits, RankActors
from capo_ray.place.workers import LearnerRank
from capo_ray.protocols import RunFailed, WeightsHandle
from capo_ray.types import Batch, UpdateReport, WrittenFile
from capo_ray.weights import Apart


class LearnerActors(RankActors[LearnerRank]):
    """`LearnerGroup` over actors."""

    def __init__(
        self,
        config: TrainConfig,
        spawn: Callable[[int], ActorHandle[LearnerRank]],
        build_spec: Callable[[int, str], LearnerSpec],
    ) -> None:
        limits = Limits(config.learner.deadline_s, config.run.checkpoint_deadline_s)
        super().__init__("learner", spawn, config.learner.num_ranks, limits, alone=is_own(config))
        self._config, self._build_spec = config, build_spec
        self._num_publishes = 0
        self.allowed: Apart | None = None

    async def start(self, canary_ids: Sequence[int]) -> None:
        """Returns once all ranks have met and built the model."""
        await self._start(LearnerRank.start, lambda rank, meeting: (self._build_spec(rank, meeting), canary_ids))

    async def update(self, batch: Batch) -> UpdateReport:
        """As `LearnerGroup.update`; figures are already summed over ranks, samples are each rank's own."""
        reports = await self._all(LearnerRank.update, lambda rank: (batch.column(rank), batch.kl_scale))
        self.version = reports[0].version
        return replace(reports[0], nonfinite=tuple(key for report in reports for key in report.nonfinite))

    async def refresh_reference(self) -> None:
        """As `LearnerGroup.refresh_reference`."""
        await self._all(LearnerRank.refresh_reference, lambda _: ())

    async def publishable(self, ahead: Callable[[WeightsHandle], None] | None = None) -> WeightsHandle:
        """A handle whose payload refers to rank 0's own handle: the bytes go from node to node, not by here.

        The bytes come before their seal: while engines read and load them the ranks score the canary.
        """
        every = self._config.weights.canary_every
        allowed = self.allowed if every and self._num_publishes % every == 0 else None
        self._num_publishes += 1
        gathered = [send_for_two(rank, LearnerRank.gather) for rank in self._ranks]
        payload = gathered[0][1]
        sealed = [send_for_two(rank, LearnerRank.seal, allowed, [payload]) for rank in self._ranks]
        if ahead is not None:
            ahead(WeightsHandle(self.version, "", payload))
        calls: list[tuple[ObjectRef[Any], str]] = [
            *((ref, f"learner rank {i} (publish: gather)") for i, (ref, _) in enumerate(gathered)),
            *((ref, f"learner rank {i} (publish: seal)") for i, (ref, _) in enumerate(sealed)),
        ]
        told: list[tuple[int, str, int]] = (await self._gather(calls))[len(self._ranks) :]
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
        return (await self._all(LearnerRank.logprobs, lambda _: (token_ids, starts)))[0]

    async def export(self, path: str) -> tuple[WrittenFile, ...]:
        """As `LearnerGroup.export`; the ranks then let go of their snapshots."""
        written = await self._beside(LearnerRank.export, path)
        return tuple(file for files in written for file in files)
