"""How good critics are, against known wrong steps, and how far they agree: numbers in, numbers out.

    flagged, wrong   frozensets of 0-based steps of one response, K its number of steps

Step figures pool the steps of all responses (micro average). An undefined figure is nan, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 10_000
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


@dataclass(frozen=True, slots=True)
class FirstErrors:
    """ProcessBench's measure (2412.06559, section 3.3), as counts of responses.

    `found` of `num_bad` responses with a wrong step: the first flagged step is the first wrong one. `passed` of
    `num_good` without: nothing is flagged. A response that no critique could be read of matches neither way.
    """

    found: int
    num_bad: int
    passed: int
    num_good: int

    @property
    def on_bad(self) -> float:
        return _ratio(self.found, self.num_bad)

    @property
    def on_good(self) -> float:
        return _ratio(self.passed, self.num_good)

    @property
    def f1(self) -> float:
        """The harmonic mean of both accuracies; 0 where both are, nan where either has no response."""
        return float(_harmonic(np.array(self.on_bad), np.array(self.on_good)))

    @property
    def f1_ci95(self) -> tuple[float, float]:
        """Between which F1 lies with 95%, each accuracy drawn from its Jeffreys posterior."""
        if not self.num_bad or not self.num_good:
            return math.nan, math.nan
        rng = np.random.default_rng(0)
        drawn = [
            rng.beta(hits + 0.5, of - hits + 0.5, DRAWS)
            for hits, of in ((self.found, self.num_bad), (self.passed, self.num_good))
        ]
        low, high = np.quantile(_harmonic(*drawn), (0.025, 0.975))
        return float(low), float(high)


def first_errors(flagged: Sequence[Flags | None], wrong: Sequence[Flags]) -> FirstErrors:
    """The counts; None is a response on which every critique abstained."""
    bad = [f is not None and min(f, default=-1) == min(w) for f, w in zip(flagged, wrong, strict=True) if w]
    good = [f is not None and not f for f, w in zip(flagged, wrong, strict=True) if not w]
    return FirstErrors(sum(bad), len(bad), sum(good), len(good))


def _harmonic(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    total = a + b
    return np.where(total == 0, 0.0, 2 * a * b / np.where(total == 0, 1.0, total))


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
