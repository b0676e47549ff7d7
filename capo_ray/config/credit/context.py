"""Methods that ask which sentences of a context a response rests on."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from capo_ray.config.base import Idle
from capo_ray.config.credit.base import Beside, CreditBase
from capo_ray.config.credit.requests import Critiques, EvidenceScore, Request, TokenRewards


class EapoConfig(CreditBase):
    """EAPO (after 2601.10306, all formulas ours): what is quoted before the reasoning has credit of its own."""

    source: ClassVar[str] = "2601.10306"
    reads_context: ClassVar[bool] = True
    rule: ClassVar[str] = "capo_ray.credit.eapo:eapo"
    method: Literal["eapo"] = "eapo"
    scorer: Literal["likelihood", "critic", "learned"] = "likelihood"
    """Who says what quotes are worth. likelihood: the policy itself, by how likely the reference answer is behind the
    quoted sentences alone; critic: the critics, by the share of critiques that do not flag the first step; learned: the
    reward model, trained beside the policy on the quotes of responses whose outcome and likelihood agree."""
    w_evidence: float = Field(0.5, ge=0)
    """Weight of the quotes' advantage on the tokens of the evidence block; 0: nobody is asked."""
    w_format: float = Field(0.1, ge=0)
    """Reward of a response that quotes sentences of the context and nothing else, beside the outcome."""
    answer_cue: str = "\\boxed{"
    """scorer=likelihood, learned: text put before the reference answer."""
    quorum: int = Field(1, ge=1)
    """scorer=critic: valid critiques below which a response's quotes are neither praised nor blamed."""

    def evidence(self) -> tuple[Request, ...]:
        """The worth of the quotes, or critiques or a reward model to tell it."""
        if not self.w_evidence:
            return ()
        if self.scorer == "critic":
            return (Critiques("average", self.quorum),)
        score = EvidenceScore(self.answer_cue)
        return (score, TokenRewards("eapo")) if self.scorer == "learned" else (score,)

    def idle_beside(self, config: Beside) -> tuple[Idle, ...]:
        """What the other scorer reads, and both where nobody is asked."""
        nobody = not self.w_evidence
        other = "with credit.scorer={}; remove it, or choose the other scorer".format
        return (
            Idle(("credit.scorer",), nobody, "with credit.w_evidence=0, which asks nobody; remove it"),
            Idle(("credit.answer_cue",), nobody or self.scorer == "critic", other("critic, or w_evidence=0")),
            Idle(("credit.quorum",), nobody or self.scorer != "critic", other(f"{self.scorer}, or w_evidence=0")),
        )
