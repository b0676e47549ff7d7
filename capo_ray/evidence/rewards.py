"""The rewards that a second model gives to each token (PRIME, iStar, Q-RM, ETPO-like)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from capo_ray.config import TrainConfig
from capo_ray.config.credit import TokenRewards
from capo_ray.evidence.lines import ResponseLine
from capo_ray.evidence.source import Doors, EvidenceSource
from capo_ray.types import Evidence, Judged, Problem


class RewardSource(EvidenceSource):
    """The token rewards [T] of each member.

    They are those of the reward model's weights at this moment, so of weights that have not seen the group.
    """

    def __init__(self, asked: TokenRewards, doors: Doors) -> None:
        assert doors.reward_model is not None, "the credit rule reads token rewards, so the run has a reward model"
        self._model = doors.reward_model

    @classmethod
    def deadline_s(cls, config: TrainConfig) -> float:
        """One call of the reward model, in turn with its updates."""
        return config.learner.deadline_s

    async def gather(self, problem: Problem, members: Sequence[Judged], progress: float) -> Sequence[Evidence]:
        """Rewarded in one call."""
        rewards = await self._model.token_rewards([m.trajectory for m in members])
        return [Evidence(token_rewards=row) for row in rewards]

    @classmethod
    def read(cls, line: ResponseLine, asked: TokenRewards | None) -> Evidence:
        """The field `token_rewards` [T]."""
        return Evidence(token_rewards=np.array(line.per_token("token_rewards", asked)))
