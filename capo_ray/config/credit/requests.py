"""Evidence asked for by value: what a credit method wants to know of each response beside the verdict, and how.

    CreditBase.evidence() -> (Critiques(vote, quorum), …)        all of it; the pipeline gathers exactly that
    CreditBase.asked(Critiques) -> the request, or None          for whoever must know how one kind is asked for

Every number in a request comes from the method's own configuration: whoever reads it has no default of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

Vote = Literal["intersection", "majority", "union", "average", "greedy"]
RewardObjective = Literal["prime", "istar", "qrm", "etpo", "eapo"]


@dataclass(frozen=True, slots=True)
class Request:
    """One kind of evidence."""

    name: ClassVar[str]
    """Of the kind, as the documentation and the lines of `capo-ray credit` call it."""
    source: ClassVar[str]
    """Who gathers it: `package.module:Class` of an `EvidenceSource`, found when a run asks, so that this room needs
    nobody's code."""
    continues_prompt: ClassVar[bool] = False
    """Whether the policy goes on from the one prompt that all siblings share."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The fields of a response that are read."""
        return (self.name,)


@dataclass(frozen=True, slots=True)
class Critiques(Request):
    """The critics' votes on the steps of a response, and on the whole where `overall` is read."""

    name: ClassVar[str] = "critiques"
    source: ClassVar[str] = "capo_ray.evidence.critiques:CritiqueSource"
    vote: Vote
    quorum: int
    """Valid critiques that a response needs."""
    overall: bool = False

    def __post_init__(self) -> None:
        if asks_once(self.vote) and self.quorum > 1:
            raise ValueError(f"vote={self.vote} asks for one critique, so quorum must be 1 (got {self.quorum})")

    @property
    def stops_by(self) -> Vote:
        """The vote by which asking stops: an average, never decided early, where every overall verdict counts."""
        return "average" if self.overall and not asks_once(self.vote) else self.vote

    @property
    def reads(self) -> tuple[str, ...]:
        """The fields of a response that are read."""
        return ("critiques", "overall") if self.overall else ("critiques",)


@dataclass(frozen=True, slots=True)
class AnswerLogprobs(Request):
    """How likely the policy finds the reference answer, put behind `cue`, after each step."""

    name: ClassVar[str] = "answer_logprobs"
    source: ClassVar[str] = "capo_ray.evidence.answers:AnswerSource"
    cue: str


@dataclass(frozen=True, slots=True)
class StepValues(Request):
    """How often the policy ends right from each prefix on, in so many `rollouts`."""

    name: ClassVar[str] = "step_values"
    source: ClassVar[str] = "capo_ray.evidence.values:ValueSource"
    continues_prompt: ClassVar[bool] = True
    rollouts: int


@dataclass(frozen=True, slots=True)
class TokenRewards(Request):
    """What a second model, trained beside the policy for the `objective` of that method, gives each token.

    `trace_decay`: how far ahead its targets look, and `turn_discount` what the next turn counts in them; of etpo.
    """

    name: ClassVar[str] = "token_rewards"
    source: ClassVar[str] = "capo_ray.evidence.rewards:RewardSource"
    objective: RewardObjective
    trace_decay: float = 0.0
    turn_discount: float = 1.0


@dataclass(frozen=True, slots=True)
class HintedLogprobs(Request):
    """What a `hint` behind the question, which holds `{answer}` once, changes in the logprob of each token."""

    name: ClassVar[str] = "hinted_logprobs"
    source: ClassVar[str] = "capo_ray.evidence.hints:HintSource"
    continues_prompt: ClassVar[bool] = True
    hint: str


@dataclass(frozen=True, slots=True)
class EvidenceScore(Request):
    """How likely the policy finds the reference answer, put behind `cue`, given the sentences that a response quotes
    and no others."""

    name: ClassVar[str] = "evidence_score"
    source: ClassVar[str] = "capo_ray.evidence.quotes:QuoteSource"
    cue: str


@dataclass(frozen=True, slots=True)
class Entropies(Request):
    """The entropy of the distribution that each token was drawn from."""

    name: ClassVar[str] = "entropies"
    source: ClassVar[str] = "capo_ray.evidence.entropies:EntropySource"


@dataclass(frozen=True, slots=True)
class Turns(Request):
    """What the environment said of each turn: the state it was taken in, its reward, whether it was a move."""

    name: ClassVar[str] = "turns"
    source: ClassVar[str] = "capo_ray.evidence.turns:TurnSource"


KINDS: tuple[type[Request], ...] = (
    Critiques,
    AnswerLogprobs,
    StepValues,
    TokenRewards,
    HintedLogprobs,
    EvidenceScore,
    Entropies,
    Turns,
)
"""Those of this package; a request from outside it is a kind too."""


def asks_once(vote: str) -> bool:
    """Whether a vote is one critique at temperature 0, whatever `critic.num_votes` and `critic.temperature` say."""
    return vote == "greedy"
