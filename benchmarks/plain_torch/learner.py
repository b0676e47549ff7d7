"""The shipped learner and reward model in this process: two doors over one rank of plain torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from capo_ray.arrays import FloatArray
from capo_ray.config import TrainConfig
from capo_ray.config.credit.requests import TokenRewards
from capo_ray.learners import Learner, LearnerSpec, RewardLearner, RewardSpec
from capo_ray.learners.reward_batch import to_batch, to_lesson
from capo_ray.protocols import WeightsHandle
from capo_ray.types import Batch, Group, Trajectory, UpdateReport, WrittenFile


class _OneRank:
    """What both share: checkpoints of the one rank."""

    num_tokens = 0
    """Read so far: by one pass over each batch, or when rewarding."""

    def __init__(self, own: Learner | RewardLearner) -> None:
        self._own = own

    async def snapshot(self) -> int:
        """As `LearnerGroup.snapshot`."""
        self._held = self._own.snapshot()
        return self._own.version

    async def save(self, path: str) -> Sequence[WrittenFile]:
        """As `LearnerGroup.save`."""
        return self._held.save(path)

    async def load(self, path: str) -> int:
        """As `LearnerGroup.load`."""
        return self._own.load(path)

    async def export(self, path: str) -> Sequence[WrittenFile]:
        """As `LearnerGroup.export`."""
        return self._held.export(path)


class PlainLearner(_OneRank):
    """The policy of `config` under training."""

    def __init__(self, config: TrainConfig, path: str) -> None:
        self._learner = Learner(
            LearnerSpec(
                model_path=path,
                dtype=config.model.dtype,
                learner=config.learner,
                loss=config.loss,
                temperature=config.rollout.temperature,
                total_updates=config.run.num_updates,
                seed=config.run.seed,
            )
        )
        super().__init__(self._learner)

    async def update(self, batch: Batch) -> UpdateReport:
        """As `LearnerGroup.update`."""
        column = batch.column(0)
        self.num_tokens += sum(len(weighted.sample.token_ids) for cell in column for weighted in cell)
        return self._learner.update(column, batch.kl_scale, batch.watched)

    async def refresh_reference(self) -> None:
        """As `LearnerGroup.refresh_reference`."""
        self._learner.refresh_reference()

    async def publishable(self) -> WeightsHandle:
        """A handle whose payload is the weights by their names."""
        return WeightsHandle(self._learner.version, "", self._learner.named_tensors())

    async def logprobs(
        self, token_ids: Sequence[Sequence[int]], starts: Sequence[int]
    ) -> tuple[tuple[float, ...], ...]:
        """As `LearnerGroup.logprobs`."""
        return self._learner.logprobs(token_ids, starts)


class PlainRewardModel(_OneRank):
    """The reward model that is asked for, begun as the policy."""

    def __init__(self, config: TrainConfig, path: str, asked: TokenRewards) -> None:
        self._learner = RewardLearner(
            RewardSpec(
                method=asked.objective,
                model_path=path,
                reference_path=path,
                dtype=config.model.dtype,
                reward_model=config.reward_model,
                learner=config.learner,
                temperature=config.rollout.temperature,
                kl_coef=config.loss.kl_coef,
                trace_decay=asked.trace_decay,
                turn_discount=asked.turn_discount,
                seed=config.run.seed,
            )
        )
        super().__init__(self._learner)
        self._asked, self._budget = asked, config.learner.microbatch_tokens

    async def token_rewards(self, trajectories: Sequence[Trajectory]) -> Sequence[FloatArray]:
        """As `RewardModel.token_rewards`."""
        if not trajectories:
            return ()
        column = to_batch(trajectories, num_ranks=1, microbatch_tokens=self._budget).column(0)
        samples = [weighted.sample for cell in column for weighted in cell]
        self.num_tokens += sum(len(sample.token_ids) for sample in samples)
        rewards = dict(zip((s.key for s in samples), self._learner.token_rewards(column), strict=True))
        return tuple(rewards[trajectory.key] for trajectory in trajectories)

    async def update(self, groups: Sequence[Group]) -> UpdateReport:
        """As `RewardModel.update`."""
        lesson = to_lesson(groups, self._asked)
        batch = to_batch(lesson.trajectories, num_ranks=1, microbatch_tokens=self._budget)
        report = self._learner.update(batch.column(0), lesson.labels)
        return replace(report, metrics=report.metrics | lesson.figures)


class OwnLogprobs:
    """A `RewardModel` that knows nothing: each token's reward is the logprob that the policy itself gave it."""

    num_tokens = _version = 0

    async def token_rewards(self, trajectories: Sequence[Trajectory]) -> Sequence[FloatArray]:
        """As `RewardModel.token_rewards`."""
        return tuple(trajectory.response.logprobs for trajectory in trajectories)

    async def update(self, groups: Sequence[Group]) -> UpdateReport:
        """Nothing learnt."""
        self._version += 1
        return UpdateReport(self._version, {}, 0.0)

    async def snapshot(self) -> int:
        """As `RewardModel.snapshot`; there is nothing to keep."""
        return self._version

    async def save(self, path: str) -> Sequence[WrittenFile]:
        """One file, since a checkpoint must hold some."""
        text = str(self._version).encode()
        (Path(path) / "version").write_bytes(text)
        return (WrittenFile("version", len(text), hashlib.sha256(text).hexdigest()),)

    async def load(self, path: str) -> int:
        """Never called: no run of a benchmark is resumed."""
        raise NotImplementedError
