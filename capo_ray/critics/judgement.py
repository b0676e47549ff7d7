"""What critics made of a solution whose wrong steps may be known, and how good that is.

critiques of a solution -> the first k of them -> vote -> flagged steps | None: nothing could be read
                                                               |
                                    truth of the labelled steps -> StepQuality, FirstErrors
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from capo_ray.critics.layouts import Solution
from capo_ray.critics.quality import FirstErrors, Flags, StepQuality, first_errors, step_quality
from capo_ray.types import Critique
from capo_ray.votes import voted_steps


@dataclass(frozen=True, slots=True)
class Judgement:
    """One solution and the critiques of it."""

    solution: Solution
    critiques: tuple[Critique, ...]

    @property
    def num_labelled(self) -> int:
        """Steps of which it is known whether they are wrong."""
        labelled = self.solution.num_labelled
        return len(self.solution.steps) if labelled is None else labelled

    def voted(self, k: int, vote: str) -> Flags | None:
        """The steps held to be wrong by a vote over the first k critiques (weight >= 1/2); None: no valid one."""
        valid = [c.flagged for c in self.critiques[:k] if c.flagged is not None]
        return voted_steps(valid, len(self.solution.steps), vote) if valid else None


@dataclass(frozen=True, slots=True)
class Quality:
    """Of a vote on labelled solutions: its steps, its first errors, and how many it could not read."""

    steps: StepQuality
    first: FirstErrors
    num_unread: int


def vote_quality(judgements: Sequence[Judgement], truth: Sequence[Flags], k: int, vote: str) -> Quality:
    """The quality of a vote over the first k critiques.

    Step figures count a response without a valid critique as one in which nothing is flagged: that is what training
    makes of it. Steps that nobody labelled count neither way.
    """
    voted = [j.voted(k, vote) for j in judgements]
    labelled = [
        None if flagged is None else frozenset(step for step in flagged if step < j.num_labelled)
        for j, flagged in zip(judgements, voted, strict=True)
    ]
    return Quality(
        step_quality([flagged or frozenset() for flagged in labelled], truth, [j.num_labelled for j in judgements]),
        first_errors(labelled, truth),
        sum(flagged is None for flagged in voted),
    )
