"""Methods that read how likely the policy finds the reference answer after each step."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from capo_ray.config.credit.base import CreditBase, Segmenter


class AcpoConfig(CreditBase):
    """ACPO after 2510.08899, by our own definition: steps weighed by what they add to the answer's likelihood."""

    needs: ClassVar[frozenset[str]] = frozenset({"answer_logprobs"})
    source: ClassVar[str] = "2510.08899"
    method: Literal["acpo"] = "acpo"
    segmenter: Segmenter = "entropy"
    """Where a response is cut into steps."""
    answer_cue: str = "\\boxed{"
    """Text put before the reference answer where it is scored after each step."""
    beta: float = Field(0.5, ge=0)
    """How far a step's attribution moves its weight from 1."""
    stage2_from: float = Field(0.5, ge=0, le=1)
    """Share of the run after which rewards are weighed by confidence; 1: at the very end only."""
    kappa: float = Field(0.5, ge=0, le=1)
    """Weight of that confidence."""


class MigConfig(CreditBase):
    """MIG (2602.01034): new heights of the answer's likelihood are rewarded on the reasoning, beside the outcome."""

    needs: ClassVar[frozenset[str]] = frozenset({"answer_logprobs"})
    source: ClassVar[str] = "2602.01034"
    method: Literal["mig"] = "mig"
    answer_cue: str = "\\boxed{"
    """Text put before the reference answer where it is scored after each step."""
    w_gain: float = Field(1.0, ge=0)
    """Weight of the gain's advantage beside the outcome's (our choice)."""
