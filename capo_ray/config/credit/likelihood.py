"""Methods that read how likely the policy finds the reference answer after each step."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from capo_ray.config.base import Idle
from capo_ray.config.credit.base import Beside, CreditBase
from capo_ray.config.credit.requests import AnswerLogprobs


class AcpoConfig(CreditBase):
    """ACPO after 2510.08899, by our own definition: steps weighed by what they add to the answer's likelihood."""

    source: ClassVar[str] = "2510.08899"
    rule: ClassVar[str] = "capo_ray.credit.acpo:acpo"
    method: Literal["acpo"] = "acpo"
    answer_cue: str = "\\boxed{"
    """Text put before the reference answer where it is scored after each step."""
    beta: float = Field(0.5, ge=0)
    """How far a step's attribution moves its weight from 1."""
    entropy_frac: float = Field(0.25, ge=0, le=1)
    """Stage 1: share of a response's steps, those of the largest weight, that get the entropy bonus (q; our choice)."""
    stage2_from: float = Field(0.5, ge=0, le=1)
    """Share of the run after which stage 2 begins: KL to the policy of that moment, rewards weighed by confidence, no
    entropy bonus; 1: never."""
    kappa: float = Field(0.5, ge=0, le=1)
    """Stage 2: weight of that confidence."""

    def evidence(self) -> tuple[AnswerLogprobs, ...]:
        """The answer's likelihood."""
        return (AnswerLogprobs(self.answer_cue),)

    def idle_beside(self, config: Beside) -> tuple[Idle, ...]:
        """The share of a bonus where there is none, and a KL that never begins."""
        return (
            Idle(
                ("credit.entropy_frac",),
                config.loss.entropy_control == "none",
                "with loss.entropy_control=none, which gives no bonus to share out; remove it or choose a control",
            ),
            Idle(
                ("loss.kl_coef",),
                self.stage2_from == 1,
                "with credit.stage2_from=1, which never comes to a second stage; remove it or lower credit.stage2_from",
            ),
        )

    @property
    def reference_from(self) -> float | None:
        """KL is measured from the policy at the end of stage 1."""
        return self.stage2_from

    def kl_scale(self, progress: float) -> float:
        """No KL in stage 1."""
        return float(self.in_stage2(progress))

    def in_stage2(self, progress: float) -> bool:
        """Whether this share of the run lies in stage 2."""
        return self.stage2_from < 1 and progress >= self.stage2_from


class MigConfig(CreditBase):
    """MIG (2602.01034): new heights of the answer's likelihood are rewarded on the reasoning, beside the outcome."""

    source: ClassVar[str] = "2602.01034"
    rule: ClassVar[str] = "capo_ray.credit.mig:mig"
    method: Literal["mig"] = "mig"
    answer_cue: str = "\\boxed{"
    """Text put before the reference answer where it is scored after each step."""
    w_gain: float = Field(1.0, ge=0)
    """Weight of the gain's advantage beside the outcome's (our choice)."""
    w_sft: float = Field(0.1, ge=0)
    """Weight of -log pi on the own responses that are right and have a gain (our choice); 0: no such term."""

    def evidence(self) -> tuple[AnswerLogprobs, ...]:
        """The answer's likelihood."""
        return (AnswerLogprobs(self.answer_cue),)
