"""The credit methods' configs. Each names the evidence it needs; the pipeline gathers exactly that."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from capo_ray.config.base import Section

Needs = Literal["critiques", "answer_logprobs", "step_values", "token_rewards", "entropies", "overall"]
Vote = Literal["intersection", "majority", "union", "average", "greedy"]


class CreditBase(Section):
    """What all credit methods share."""

    needs: ClassVar[frozenset[str]] = frozenset()
    """Kinds of evidence that the method reads, beside the verdict."""


class CapoConfig(CreditBase):
    """CAPO (2508.02298): the critics' vote on each step is taken off the outcome reward of its tokens."""

    needs: ClassVar[frozenset[str]] = frozenset({"critiques"})
    method: Literal["capo"] = "capo"
    vote: Vote = "majority"
    """How the valid critiques of a response become one weight per step."""
    quorum: int = Field(1, ge=1)
    """Valid critiques that a response needs; below it, it gets outcome-only credit."""
    w_whole: float = Field(2.0, gt=0)
    """Reward of every token of a right answer (W_whole of eq. 1)."""
    w_process: float = Field(1.0, ge=0)
    """Penalty of every token of a wrong step (W_process of eq. 1)."""
    w_format: float = Field(0.0, ge=0)
    """Reward of every token of a response in the asked-for format (our reading of the paper's "format reward")."""
    normalisation: Literal["pooled", "separate", "leave_one_out"] = "pooled"
    """How token rewards become advantages: pooled is eq. 2; the others are ours."""


class GrpoConfig(CreditBase):
    """GRPO (2402.03300): the group-normalised outcome, the same for every token of a response."""

    method: Literal["grpo"] = "grpo"


CreditConfig = Annotated[CapoConfig | GrpoConfig, Field(discriminator="method")]
CREDIT_METHODS: dict[str, type[CreditBase]] = {"capo": CapoConfig, "grpo": GrpoConfig}
