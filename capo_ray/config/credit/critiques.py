"""Methods that read the critics' critiques."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from capo_ray.config.base import Idle
from capo_ray.config.credit.base import Beside, CreditBase, FormatBase
from capo_ray.config.credit.requests import Critiques, Vote
from capo_ray.config.critic import SAME_VOTES


class VotedBase(CreditBase):
    """What the methods share for which the critics' votes become one weight per step."""

    vote: Vote = "majority"
    """How the valid critiques of a response become one weight per step."""
    quorum: int = Field(1, ge=1)
    """Valid critiques that a response needs; below it, it gets outcome-only credit."""

    def evidence(self) -> tuple[Critiques, ...]:
        """The critics' votes."""
        return (Critiques(self.vote, self.quorum),)

    def idle_beside(self, config: Beside) -> tuple[Idle, ...]:
        """How votes are counted, where there is one in as many copies as are asked for."""
        same = Idle(("credit.vote", "credit.quorum"), config.critic.backend == "calculator", SAME_VOTES)
        return (same, *super().idle_beside(config))


class CapoConfig(VotedBase, FormatBase):
    """CAPO (2508.02298): the critics' vote on each step is taken off the outcome reward of its tokens."""

    source: ClassVar[str] = "2508.02298"
    rule: ClassVar[str] = "capo_ray.credit.capo:capo"
    method: Literal["capo"] = "capo"
    w_whole: float = Field(2.0, gt=0)
    """Reward of every token of a right answer (W_whole of eq. 1)."""
    w_process: float = Field(1.0, ge=0)
    """Penalty of every token of a wrong step (W_process of eq. 1)."""
    normalisation: Literal["pooled", "separate", "leave_one_out"] = "pooled"
    """How token rewards become advantages: pooled is eq. 2; the others are ours."""
    min_std: float = Field(0.0, ge=0)
    """pooled, separate: least deviation that a group's token rewards are divided by (ours; 0: eq. 2). One flagged step
    of 5 tokens among 315 clean ones of right answers has a deviation of 0.12, so an advantage of -8."""
    weighting: Literal["token", "trajectory"] = "token"
    """Whether each token or each response counts the same in the group's mean and deviation (token: eq. 2)."""
    ramp_frac: float = Field(0.0, ge=0, le=1)
    """Share of the run over which the process part of the credit grows linearly from 0 to its whole; 0: whole from the
    start."""
    keep_outcome_sign: bool = False
    """Set to 0 what would lower a token of a right answer or raise a token of a wrong one."""


class GenormConfig(FormatBase):
    """GRPO-GenORM (baseline of 2508.02298): the critics' overall verdict beside the rule's, one number a response."""

    source: ClassVar[str] = "2508.02298"
    rule: ClassVar[str] = "capo_ray.credit.grpo_genorm:grpo_genorm"
    method: Literal["grpo_genorm"] = "grpo_genorm"
    alpha: float = Field(1.0, gt=0)
    """Scale of the critics' verdict inside the sigmoid (our choice)."""
    beta: float = Field(2.0, ge=0)
    """Weight of the rule's reward (our choice: 2 makes that part -1 or 1)."""

    def evidence(self) -> tuple[Critiques, ...]:
        """All votes, since every overall verdict counts: an average is never decided early."""
        return (Critiques("average", 1, overall=True),)


class PureConfig(VotedBase):
    """PURE (2504.15275): a response is worth its worst step (min-form), here judged by critics."""

    source: ClassVar[str] = "2504.15275"
    rule: ClassVar[str] = "capo_ray.credit.pure:pure"
    method: Literal["pure"] = "pure"
    vote: Vote = "average"
    """How the valid critiques of a response become one weight per step."""
    temperature: float = Field(0.1, gt=0)
    """Of the soft minimum; towards 0 it becomes the minimum."""
    w_process: float = Field(1.0, ge=0)
    """Weight of the process return beside the outcome (our choice)."""
