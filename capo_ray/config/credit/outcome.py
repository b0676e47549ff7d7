"""Methods that read the outcome alone: one number per response."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from capo_ray.config.base import Idle
from capo_ray.config.credit.base import Beside, CreditBase, FormatBase


class GrpoConfig(FormatBase):
    """GRPO (2402.03300): the group-normalised outcome, the same for every token of a response."""

    source: ClassVar[str] = "2402.03300"
    rule: ClassVar[str] = "capo_ray.credit.grpo:grpo"
    method: Literal["grpo"] = "grpo"


class DrGrpoConfig(CreditBase):
    """Dr. GRPO (2503.20783): outcome minus the group's mean, undivided; the loss divides by a constant length."""

    source: ClassVar[str] = "2503.20783"
    rule: ClassVar[str] = "capo_ray.credit.dr_grpo:dr_grpo"
    method: Literal["dr_grpo"] = "dr_grpo"


class RlooConfig(CreditBase):
    """RLOO (2402.14740): outcome minus the mean of the other responses."""

    source: ClassVar[str] = "2402.14740"
    rule: ClassVar[str] = "capo_ray.credit.rloo:rloo"
    method: Literal["rloo"] = "rloo"


class ReinforcePpConfig(CreditBase):
    """REINFORCE++ with baseline (2501.03262): outcome minus the group's mean, on one scale for all groups."""

    source: ClassVar[str] = "2501.03262"
    rule: ClassVar[str] = "capo_ray.credit.reinforce_pp:reinforce_pp"
    method: Literal["reinforce_pp"] = "reinforce_pp"

    @property
    def whitens_batch(self) -> bool:
        """The paper's own scale."""
        return True


class DapoConfig(CreditBase):
    """DAPO (2503.14476): GRPO with overlong shaping; clip-higher and the token mean stand in its loss preset."""

    source: ClassVar[str] = "2503.14476"
    rule: ClassVar[str] = "capo_ray.credit.dapo:dapo"
    method: Literal["dapo"] = "dapo"
    overlong_max_tokens: int = Field(0, ge=0)
    """Length from which on a response loses a whole point (L_max); 0: no shaping. Of use up to the sampling limit."""
    overlong_buffer_tokens: int = Field(0, ge=0)
    """Tokens before that over which the loss grows linearly from 0 (L_cache)."""

    @model_validator(mode="after")
    def _refuse_combinations(self) -> DapoConfig:
        if self.overlong_buffer_tokens > self.overlong_max_tokens:
            raise ValueError(
                f"overlong_buffer_tokens must be <= overlong_max_tokens "
                f"(got {self.overlong_buffer_tokens} > {self.overlong_max_tokens})"
            )
        return self

    def idle_beside(self, config: Beside) -> tuple[Idle, ...]:
        """A punishment that is 0 for every length that sampling allows."""
        unpunished = self.overlong_max_tokens - self.overlong_buffer_tokens
        return (
            Idle(
                ("credit.overlong_max_tokens", "credit.overlong_buffer_tokens"),
                self.overlong_max_tokens > 0 and config.rollout.max_response_tokens <= unpunished,
                "with this rollout.max_response_tokens, which no response exceeds; let overlong_max_tokens less "
                "overlong_buffer_tokens be below it",
            ),
        )


class GspoConfig(CreditBase):
    """GSPO (2507.18071): GRPO's credit under a sequence-level ratio."""

    source: ClassVar[str] = "2507.18071"
    required_loss: ClassVar[dict[str, str]] = {"ratio": "sequence"}
    rule: ClassVar[str] = "capo_ray.credit.grpo:grpo"
    method: Literal["gspo"] = "gspo"


class CispoConfig(CreditBase):
    """CISPO (2506.13585): GRPO's credit under a clipped ratio that is a constant weight of the log-probability."""

    source: ClassVar[str] = "2506.13585"
    required_loss: ClassVar[dict[str, str]] = {"ratio": "cispo"}
    rule: ClassVar[str] = "capo_ray.credit.grpo:grpo"
    method: Literal["cispo"] = "cispo"
