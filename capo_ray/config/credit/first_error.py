"""Methods that read where the critics see the first wrong step of a wrong response."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from capo_ray.config.base import Idle
from capo_ray.config.credit.base import Beside
from capo_ray.config.credit.critiques import VotedBase
from capo_ray.config.credit.requests import Critiques

DecidedVote = Literal["intersection", "majority", "union", "greedy"]


class FirstErrorBase(VotedBase):
    """What Cliff and VPPO share: how critiques become one first wrong step."""

    vote: DecidedVote = "majority"
    """How the valid critiques decide that a step is wrong; majority: at least half of them."""
    quorum: int = Field(1, ge=1)
    """Valid critiques that a wrong response needs; below it, its first wrong step is its first."""
    trust: Literal["always", "verdict"] = "always"
    """verdict: only critiques whose overall verdict agrees with the verifier's count (our stand-in for Cliff's rule, by
    which a critic's mark counts where its own solution of the problem is right)."""

    def evidence(self) -> tuple[Critiques, ...]:
        """The votes; all of them where their verdicts decide which count, or a vote could end on one that does not."""
        return (Critiques(self.vote, self.quorum, overall=self.trust == "verdict"),)

    def idle_beside(self, config: Beside) -> tuple[Idle, ...]:
        """Votes that give no verdict, beside a rule that believes none without."""
        trusts = self.trust == "verdict"
        return (
            Idle(
                ("credit.trust",),
                trusts and config.critic.backend == "calculator",
                "with critic.backend=calculator, which says nothing of the answer; remove it or choose another backend",
            ),
            Idle(
                ("critic.with_calculator",),
                trusts,
                "with credit.trust=verdict, since a calculator says nothing of the answer; remove one of the two",
            ),
            *super().idle_beside(config),
        )


class CliffConfig(FirstErrorBase):
    """Cliff (2609.02817): a wrong response is blamed from its first wrong step on."""

    source: ClassVar[str] = "2609.02817"
    rule: ClassVar[str] = "capo_ray.credit.cliff:cliff"
    method: Literal["cliff"] = "cliff"
    prefix_frac: float = Field(0.0, ge=0, le=1)
    """Share of a right response's advantage that the tokens before the first wrong step get (lambda; the paper: 0)."""


class VppoConfig(FirstErrorBase):
    """VPPO (2601.18984): what a wrong response got right before its first wrong step is rewarded."""

    source: ClassVar[str] = "2601.18984"
    rule: ClassVar[str] = "capo_ray.credit.vppo:vppo"
    method: Literal["vppo"] = "vppo"
    prefix_reward: float = Field(0.5, ge=0, le=1)
    """Reward of the tokens of a good prefix, a right response's being 1 (alpha)."""
    shorten_tokens: int = Field(-1, ge=-1)
    """Tokens taken off the end of a good prefix; -1: as many as the prompt has, as in the paper."""
    keep_prefix_sign: bool = False
    """Set to 0 what would lower a token of a good prefix (the paper's advice for instruct models)."""
