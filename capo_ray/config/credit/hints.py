"""Methods that read how likely the policy finds its own tokens once it has been given a hint."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from capo_ray.config.credit.base import CreditBase
from capo_ray.config.credit.requests import HintedLogprobs

ANSWER_SLOT = "{answer}"


class RlsdConfig(CreditBase):
    """RLSD (2604.03128): the outcome's sign, and a size that follows what a hint changes in each token."""

    source: ClassVar[str] = "2604.03128"
    rule: ClassVar[str] = "capo_ray.credit.rlsd:rlsd"
    method: Literal["rlsd"] = "rlsd"
    hint: str = " (The answer is {answer}.)"
    """What is put behind the question to make the hint; holds {answer} once (the wording is ours)."""
    mix: float = Field(0.5, ge=0, le=1)
    """How far the size of an advantage follows the hint at the start of the run (lambda)."""
    mix_until: float = Field(1.0, ge=0, le=1)
    """Share of the run at which that has fallen to 0; 0: it stays as it is."""
    clip: float = Field(0.2, gt=0, lt=1)
    """A token's advantage is changed by at most this share (epsilon)."""

    def evidence(self) -> tuple[HintedLogprobs, ...]:
        """What the hint changes."""
        return (HintedLogprobs(self.hint),)

    @field_validator("hint")
    @classmethod
    def _holds_the_answer_once(cls, value: str) -> str:
        if value.count(ANSWER_SLOT) != 1:
            raise ValueError(f"credit.hint must hold {ANSWER_SLOT} exactly once (got {value!r})")
        return value
