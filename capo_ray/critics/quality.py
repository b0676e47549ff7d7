"""How good critics are, against known wrong steps, and how far they agree: numbers in, numbers out.

    flagged, wrong   frozensets of 0-based steps of one response, K its number of steps

Step figures pool the steps of all responses (micro average). An undefined figure is nan, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Flags = frozenset[int]


@dataclass(frozen=True, slots=True)
class StepQuality:
    """Counts of steps: flagged and wrong, flagged but right, wrong but passed, passed and right."""

    hits: int
    false_alarms: int
    misses: int
    passes: int

    @property
    def precision(self) -> float:
        return _ratio(self.hits, self.hits + self.false_alarms)

    @property
    def recall(self) -> float:
        return _ratio(self.hits, self.hits + self.misses)

    @property
    def f1(self) -> float:
        return _ratio(2 * self.hits, 2 * self.hits + self.false_alarms + self.misses)

    @property
    def accuracy(self) -> float:
        return _ratio(self.hits + self.passes, self.hits + self.false_alarms + self.misses + self.passes)


def step_quality(flagged: Sequence[Flags], wrong: Sequence[Flags], num_steps: Sequence[int]) -> StepQuality:
    """The counts over the steps of all responses."""
    hits = sum(len(f & w) for f, w in zip(flagged, wrong, strict=True))
    false_alarms = sum(len(f - w) for f, w in zip(flagged, wrong, strict=True))
    misses = sum(len(w - f) for f, w in zip(flagged, wrong, strict=True))
    return StepQuality(hits, false_alarms, misses, sum(num_steps) - hits - false_alarms - misses)


def first_error_accuracy(flagged: Sequence[Flags], wrong: Sequence[Flags]) -> tuple[float, float, float]:
    """ProcessBench's measure (2412.06559): accuracy on responses with an error, on those without, and their F1.

    With an error: the first flagged step is the first wrong one. Without: nothing is flagged. F1 is the harmonic mean.
    """
    bad = [min(f, default=-1) == min(w) for f, w in zip(flagged, wrong, strict=True) if w]
    good = [not f for f, w in zip(flagged, wrong, strict=True) if not w]
    on_bad, on_good = _ratio(sum(bad), len(bad)), _ratio(sum(good), len(good))
    if on_bad + on_good == 0:
        return on_bad, on_good, 0.0
    return on_bad, on_good, 2 * on_bad * on_good / (on_bad + on_good)


def vote_agreement(flagged: Sequence[Flags], num_steps: int) -> float:
    """The share of (step, pair of votes) on which the two votes say the same; nan below two votes or one step."""
    n = len(flagged)
    if n < 2 or num_steps < 1:
        return math.nan
    counts = [sum(step in f for f in flagged) for step in range(num_steps)]
    same = sum(c * (c - 1) + (n - c) * (n - c - 1) for c in counts)
    return same / (num_steps * n * (n - 1))


def fleiss_kappa(votes: Sequence[tuple[Sequence[Flags], int]]) -> float:
    """Fleiss' kappa of the votes on all steps, 1 for full agreement and 0 for chance; nan where chance is certain.

    `votes` holds for each response its valid votes and its number of steps. Responses may have different numbers of
    votes (each step then weighs the same; those with fewer than two votes are left out).
    """
    agreements: list[float] = []
    flagged_share: list[float] = []
    for flags, num_steps in votes:
        n = len(flags)
        if n < 2:
            continue
        for step in range(num_steps):
            c = sum(step in f for f in flags)
            agreements.append((c * (c - 1) + (n - c) * (n - c - 1)) / (n * (n - 1)))
            flagged_share.append(c / n)
    if not agreements:
        return math.nan
    p = sum(flagged_share) / len(flagged_share)
    chance = p * p + (1 - p) * (1 - p)
    if chance >= 1.0:
        return math.nan
    return (sum(agreements) / len(agreements) - chance) / (1 - chance)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
