"""Ranks of the reward model, and the group of them: token rewards for walking groups, updates from trained ones."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ray.actor import ActorHandle

from capo_ray.arrays import FloatArray
from capo_ray.config import TrainConfig
from capo_ray.config.credit import TokenRewards
from capo_ray.config.lora import LoraConfig
from capo_ray.demand import policy_model, reward_model
from capo_ray.learners import RewardSpec
from capo_ray.place.face import spawn
from capo_ray.place.ranks import GroupRank, RankActors, rank_options
from capo_ray.place.role import Role, Site, path_of
from capo_ray.protocols import RunFailed
from capo_ray.types import Batch, Group, Trajectory, UpdateReport, WrittenFile

if TYPE_CHECKING:
    from capo_ray.engines import HfTokenizer
    from capo_ray.learners import RewardLearner
    from capo_ray.learners.reward import Column
    from capo_ray.learners.reward_batch import Label


class RewardModelRank(GroupRank):
    """One rank of the reward model's group."""

    _learner: RewardLearner

    def start(self, spec: RewardSpec) -> int:
        """Build the model; the process id."""
        from capo_ray.learners import RewardLearner  # it imports torch, which a driver of other methods does without

        self._learner = RewardLearner(spec)
        return os.getpid()

    def token_rewards(self, column: Column) -> tuple[FloatArray, ...]:
        """The rewards of this rank's responses."""
        return self._learner.token_rewards(column)

    def update(self, column: Column, labels: Sequence[Label]) -> UpdateReport:
        """The report of one batch."""
        return self._learner.update(column, labels)

    def save(self, path: str) -> tuple[WrittenFile, ...]:
        """Write this rank's shard of the snapshot, and let go of it."""
        written = super().save(path)
        del self._snapshot
        return written


class RewardModelActors(RankActors[RewardModelRank]):
    """`RewardModel` over actors, the responses dealt over the ranks.

    One call at a time is with the ranks, so that a call's deadline counts its own work and not the queue before it.
    """

    def __init__(
        self, config: TrainConfig, spawn: Callable[[int], ActorHandle[RewardModelRank]], run_dir: Path
    ) -> None:
        super().__init__("reward model", spawn, config.reward_model.num_ranks, config, run_dir)
        self._config = config
        self._turn = asyncio.Lock()

    async def start(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Returns once all ranks have met and built the model."""
        await self._start(RewardModelRank.start, lambda rank, meeting: (spec_of(self._config, rank, meeting),))
        on_ready()

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
        from capo_ray.learners.reward_batch import to_lesson

        lesson = to_lesson(groups, self._config.credit.asked(TokenRewards))
        batch = self._to_batch(lesson.trajectories)
        async with self._turn:
            reports = await self._all(RewardModelRank.update, lambda rank: (batch.column(rank), lesson.labels))
        self.version = reports[0].version
        return replace(reports[0], metrics=reports[0].metrics | lesson.figures)

    async def snapshot(self) -> int:
        """As `RewardModel.snapshot`."""
        async with self._turn:
            return await super().snapshot()

    def _to_batch(self, trajectories: Sequence[Trajectory]) -> Batch:
        from capo_ray.learners.reward_batch import to_batch

        config = self._config
        return to_batch(
            trajectories,
            num_ranks=config.reward_model.num_ranks,
            microbatch_tokens=config.learner.microbatch_tokens,
            packing=config.learner.packing,
        )


def spec_of(config: TrainConfig, rank: int, meeting: str) -> RewardSpec:
    """What a rank is made from; `meeting` is where the ranks meet."""
    asked = config.credit.asked(TokenRewards)
    assert asked is not None, "only a method that reads token rewards has a reward model"
    return RewardSpec(
        method=asked.objective,
        model_path=path_of(reward_model(config)),
        reference_path=path_of(policy_model(config)),
        dtype=config.model.dtype,
        reward_model=config.reward_model,
        # Trained whole whatever the policy is: no adapter of it would be in its checkpoint's layout.
        learner=config.learner.model_copy(update={"lora": LoraConfig()}),
        temperature=config.rollout.temperature,
        kl_coef=config.loss.kl_coef,
        trace_decay=asked.trace_decay,
        turn_discount=asked.turn_discount,
        rank=rank,
        world_size=config.reward_model.num_ranks,
        init_method=meeting if config.reward_model.num_ranks > 1 else "",
        seed=config.run.seed,
        device="auto" if config.reward_model.num_gpus > 0 else "cpu",
    )


def require_policys_tokens(config: TrainConfig, tokenizer: HfTokenizer) -> None:
    """Raises RunFailed where the reward model would read the policy's token ids as other tokens."""
    if not config.credit.asked(TokenRewards) or not config.reward_model.path:
        return
    from capo_ray.engines import HfTokenizer

    theirs = HfTokenizer(path_of(reward_model(config))).hf.get_vocab()
    for token, index in sorted(tokenizer.hf.get_vocab().items(), key=lambda pair: pair[1]):
        if theirs.get(token) != index:
            raise RunFailed(
                f"reward_model.path must hold a model with the policy's tokenizer: {token!r} is {index} there and "
                f"{theirs.get(token, 'no token')} in {config.reward_model.path}; train one from model.path's tokenizer"
            )


def build(site: Site) -> RewardModelActors:
    """The ranks of the model that rewards tokens, not started."""

    def make(rank: int) -> ActorHandle[RewardModelRank]:
        return spawn(RewardModelRank, rank_options(site.places.of("reward_model", rank), site.config), rank)

    return RewardModelActors(site.config, make, site.run_dir)


REWARD_MODEL = Role("reward_model", build)
