"""The reward model's group of ranks: token rewards for walking groups, updates from trained ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from ray.actor import ActorHandle

from capo_ray.arrays import FloatArray
from capo_ray.config import TrainConfig
from capo_ray.learners import RewardSpec
from capo_ray.learners.reward_batch import labelled_trajectories, to_batch, to_labels
from capo_ray.place.cluster import is_own
from capo_ray.place.ranks import Limits, RankActors
from capo_ray.place.workers import RewardModelRank
from capo_ray.types import Batch, Group, Trajectory, UpdateReport


class RewardModelActors(RankActors[RewardModelRank]):
    """`RewardModel` over actors, the responses dealt over the ranks.

    One call at a time is with the ranks, so that a call's deadline counts its own work and not the queue before it.
    """

    def __init__(
        self,
        config: TrainConfig,
        spawn: Callable[[int], ActorHandle[RewardModelRank]],
        build_spec: Callable[[int, str], RewardSpec],
    ) -> None:
        limits = Limits(config.learner.deadline_s, config.run.checkpoint_deadline_s)
        super().__init__("reward model", spawn, config.reward_model.num_ranks, limits, alone=is_own(config))
        self._config, self._build_spec = config, build_spec
        self._turn = asyncio.Lock()

    async def start(self) -> None:
        """Returns once all ranks have met and built the model."""
        await self._start(RewardModelRank.start, lambda rank, meeting: (self._build_spec(rank, meeting),))

    async def token_rewards(self, trajectories: Sequence[Trajectory]) -> Sequence[FloatArray]:
        """As `RewardModel.token_rewards`."""
        if not trajectories:
            return ()
        batch = self._to_batch(trajectories)
        async with self._turn:
            rows = await self._all(RewardModelRank.token_rewards, lambda rank: (batch.column(rank),))
        rewards = {
            weighted.sample.key: row
            for rank, own in enumerate(rows)
            for weighted, row in zip((w for cell in batch.column(rank) for w in cell), own, strict=True)
        }
        return tuple(rewards[trajectory.key] for trajectory in trajectories)

    async def update(self, groups: Sequence[Group]) -> UpdateReport:
        """As `RewardModel.update`; the report of rank 0 (all ranks have the same)."""
        labels = to_labels(groups)
        batch = self._to_batch(labelled_trajectories(groups))
        async with self._turn:
            reports = await self._all(RewardModelRank.update, lambda rank: (batch.column(rank), labels))
        self.version = reports[0].version
        return reports[0]

    async def snapshot(self) -> int:
        """As `RewardModel.snapshot`."""
        async with self._turn:
            return await super().snapshot()

    def _to_batch(self, trajectories: Sequence[Trajectory]) -> Batch:
        config = self._config
        return to_batch(
            trajectories,
            num_ranks=config.reward_model.num_ranks,
            microbatch_tokens=config.learner.microbatch_tokens,
        )
