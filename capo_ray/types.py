"""The nouns that travel between the rooms: frozen, complete when made, standard library and numpy only.

    Problem -> Trajectory -> Judged -> Group -> GroupCredit -> Sample -> Batch -> UpdateReport

A stage returns a new noun and never fills a field of an old one later.

Axis letters: P prompt tokens, T response tokens, A of them sampled by the policy (all, unless an environment's words
stand between its turns: `response`), L = P + T, K reasoning steps, G siblings of a group.
All spans are half-open `[start, end)`; all indices start at 0; all log-probabilities are in nats.

What there is one of per token is a read-only array (or `Runs`, where neighbours are equal), made of whatever sequence
is given: a Python number takes 32 bytes. Beware that `+` adds arrays; `concatenate` puts one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeAlias

import numpy as np

from capo_ray.arrays import NO_RUNS, ByValue, FloatArray, IntArray, Runs, freeze_fields
from capo_ray.response import Completion as Completion
from capo_ray.response import Finish as Finish
from capo_ray.response import Span as Span
from capo_ray.response import Turn as Turn
from capo_ray.response import VersionRun as VersionRun


@dataclass(frozen=True, slots=True)
class Problem:
    """One question with a checkable answer; `prompt` is the bare question, before any template."""

    id: str
    prompt: str
    answer: str
    solution: str | None = None
    source: str = ""


@dataclass(frozen=True, slots=True)
class TrajectoryKey:
    """The name of one response in the ledger, unique inside a run."""

    problem: str
    group: int
    sample: int
    attempt: int = 0

    def __str__(self) -> str:
        return f"{self.problem}/{self.group}/{self.sample}/{self.attempt}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verifier's word on a final answer: reward 1 or 0, or None when it could not be decided (invalid)."""

    reward: int | None
    reason: str
    extracted: str | None = None

    @property
    def valid(self) -> bool:
        return self.reward is not None


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory(ByValue):
    """A prompt (P tokens) and the policy's response to it; an environment that played says `turns` and `told`."""

    key: TrajectoryKey
    prompt_ids: IntArray
    response: Completion
    turns: tuple[Turn, ...] = ()  # one for each of response.turns
    told: Verdict | None = None  # its word on how it ended; None: the verifier has it
    thinking: int = 0  # how many of the prompt's last tokens are the policy's own, left out of its response

    def __post_init__(self) -> None:
        freeze_fields(self, prompt_ids=(np.int32,))

    @property
    def question_tokens(self) -> int:
        """The tokens of the prompt that the policy was given."""
        return len(self.prompt_ids) - self.thinking

    @property
    def token_ids(self) -> IntArray:
        """[L]: prompt and response."""
        return np.concatenate((self.prompt_ids, self.response.token_ids))

    @property
    def acted(self) -> tuple[Span, ...]:
        """The sampled tokens as spans of [0, L), one a turn; () in one turn, where they are all of the response."""
        start = len(self.prompt_ids)
        return tuple((start + a, start + b) for a, b in self.response.acted)


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a critique comes from: enough to find it again and to know what it cost."""

    model: str
    prompt_hash: str
    vote_index: int
    seed: int | None = None
    cached: bool = False
    prompt_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Critique:
    """One vote on one response: the 0-based indices of the steps it calls wrong, or None when invalid (it abstains)."""

    flagged: frozenset[int] | None
    overall: bool | None
    text: str
    reason: str
    provenance: Provenance

    @property
    def valid(self) -> bool:
        return self.flagged is not None


@dataclass(frozen=True, slots=True, eq=False)
class Evidence(ByValue):
    """What a credit rule may read beside the verdict; each kind is empty unless the rule declared that it needs it."""

    critiques: tuple[Critique, ...] = ()
    answer_logprobs: tuple[float, ...] = ()  # [K+1]: mean logprob of the reference answer after 0..K steps
    step_values: tuple[float, ...] = ()  # [K+1]: Monte-Carlo value of each prefix
    token_rewards: FloatArray = ()  # type: ignore[assignment]  # [A]: implicit or token-level rewards of a second model
    entropies: FloatArray = ()  # type: ignore[assignment]  # [A]: sampler entropy of each token
    num_value_tokens: int = 0  # sampled for the step values, and not for a sibling before
    hint_gains: FloatArray = ()  # type: ignore[assignment]  # [A]: logprob of each token under a hint, less without it
    more: Mapping[str, Any] = field(default_factory=dict)  # by kind: what a method from outside this package asked for

    def __post_init__(self) -> None:
        # What comes from a model is float32; what a file gives keeps all its digits.
        either = (np.float64, np.float32)
        freeze_fields(self, token_rewards=either, entropies=(np.float32,), hint_gains=either)

    def __or__(self, other: Evidence) -> Evidence:
        """Both kinds of evidence of one response; of a kind that both tell, the other's."""
        told = {f.name: getattr(other, f.name) for f in fields(other)}
        kept = {name: value for name, value in told.items() if (value if isinstance(value, int) else len(value))}
        return replace(self, **(kept | {"more": {**self.more, **other.more}}))

    @property
    def votes(self) -> tuple[int, int]:
        """How many of the critiques that came back are valid, and how many came back."""
        return sum(critique.valid for critique in self.critiques), len(self.critiques)


@dataclass(frozen=True, slots=True)
class Judged:
    """A trajectory with its verdict, its steps (K spans tiling [0, T)) and the evidence gathered for it."""

    trajectory: Trajectory
    verdict: Verdict
    steps: tuple[Span, ...]
    evidence: Evidence = field(default_factory=Evidence)

    @property
    def num_tokens(self) -> int:
        """A: what lengths are to the credit, the means and the metrics."""
        return self.trajectory.response.num_sampled


@dataclass(frozen=True, slots=True)
class Group:
    """All siblings of one problem: the unit of credit and of flow."""

    id: int
    problem: Problem
    members: tuple[Judged, ...]


@dataclass(frozen=True, slots=True)
class GroupCredit:
    """Credit of the sampled tokens of a group, aligned with `Group.members`.

    Invalid members have zeros and `included` False.
    """

    advantages: tuple[Runs, ...]  # [G][A]
    token_rewards: tuple[Runs, ...]  # [G][A]
    step_weights: tuple[tuple[float, ...], ...]  # [G][K]: how wrong each step is held to be, 0..1
    valid_critiques: tuple[int, ...]  # [G]
    included: tuple[bool, ...]  # [G]: False where the verdict was invalid
    # [G][A]: share of the entropy bonus that loss.entropy_control gives to each token; (): 1 everywhere
    entropy_weights: tuple[Runs, ...] = ()
    imitation_weights: tuple[Runs, ...] = ()  # [G][A]: tokens to imitate beside the policy gradient

    def __post_init__(self) -> None:
        for name in ("advantages", "token_rewards", "entropy_weights", "imitation_weights"):
            object.__setattr__(self, name, tuple(map(Runs.of, getattr(self, name))))

    @property
    def has_signal(self) -> bool:
        """Whether any token has an advantage other than zero."""
        return any(row.any() for row in self.advantages)


@dataclass(frozen=True, slots=True, eq=False)
class Sample(ByValue):
    """All the learner ever knows of a response: tokens [L], and logprobs and advantages of A of them.

    `entropy_weights` and `imitation_weights` are [A], or empty for none: factors of -H_t and of -log pi_t in the loss.
    """

    key: TrajectoryKey
    token_ids: IntArray
    sampler_logprobs: FloatArray
    advantages: Runs
    versions: tuple[VersionRun, ...]
    entropy_weights: Runs = NO_RUNS
    imitation_weights: Runs = NO_RUNS
    acted: tuple[Span, ...] = ()
    """Which tokens, as spans of [0, L), those A are: the others are context; (): the last A."""

    def __post_init__(self) -> None:
        freeze_fields(self, token_ids=(np.int32,), sampler_logprobs=(np.float32,))
        for name in ("advantages", "entropy_weights", "imitation_weights"):
            object.__setattr__(self, name, Runs.of(getattr(self, name)))

    @property
    def num_response_tokens(self) -> int:
        """A."""
        return len(self.advantages)

    @property
    def spans(self) -> tuple[Span, ...]:
        """The A tokens, as spans of [0, L)."""
        return self.acted or ((len(self.token_ids) - len(self.advantages), len(self.token_ids)),)


@dataclass(frozen=True, slots=True)
class WeightedSample:
    """A sample and the weight [A] of each of its tokens in the batch loss: 0 for those that are not trained.

    Over the whole batch they sum to 1, save with constant_length.
    """

    sample: Sample
    loss_weights: Runs

    def __post_init__(self) -> None:
        object.__setattr__(self, "loss_weights", Runs.of(self.loss_weights))


@dataclass(frozen=True, slots=True)
class Batch:
    """One update's samples, laid out as grid[microbatch][rank]; every rank has the same number of microbatches.

    A cell may be empty; its rank then runs a forward pass of weight zero so that collectives stay matched. `kl_scale`
    multiplies loss.kl_coef in this update. Of the samples in `watched` the report tells tokens, for people to look at.
    """

    grid: tuple[tuple[tuple[WeightedSample, ...], ...], ...]
    kl_scale: float = 1.0
    watched: frozenset[TrajectoryKey] = frozenset()

    def column(self, rank: int) -> tuple[tuple[WeightedSample, ...], ...]:
        """The microbatches of one rank."""
        return tuple(row[rank] for row in self.grid)


Watched: TypeAlias = Mapping[TrajectoryKey, Mapping[str, FloatArray]]


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """What one update did: the version it made and the figures of its loss (names as in metrics: `loss/…`).

    A move whose loss or gradient is not finite is not made: then `skipped` is true, and `nonfinite` names the samples
    whose own loss is not finite, or so large that no gradient could be. `moved` is false where no move was made at all:
    the version's weights are those of the one before. `watched` has of each watched sample `policy_logprobs` and
    `policy_entropies` [A], of the weights before the update.
    """

    version: int
    metrics: dict[str, float]
    seconds: float
    moved: bool = True
    skipped: bool = False
    nonfinite: tuple[TrajectoryKey, ...] = ()
    watched: Watched = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file as its writer wrote it: `name` relative to the directory it was asked to fill, bytes, sha256 in hex."""

    name: str
    num_bytes: int
    sha256: str
