r"""Figures of responses to problems, each with a 95% interval over problems: numbers in, numbers out.

    avg@k       mean over problems of the share of right responses
    pass@k      1 - C(n-c, k) / C(n, k), n responses of which c are right        (arXiv 2107.03374, eq. 1: no bias)
    majority@k  whether the commonest answer is right; ties count as one of them drawn by chance

An invalid verdict is neither right nor wrong: its response is in no mean. Of a problem with fewer than k valid ones
pass@k says whether any is right, a lower bound.
Intervals are percentile bootstraps over problems. Where all n have one value that would have no width: then a share of
1 - 0.025^(1/n) of all problems may have any other value, which for 0 or n right ones of n is Clopper and Pearson's.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from capo_ray.answers import normalise, number_of

RESAMPLES = 10_000
ALPHA = 0.05


@dataclass(frozen=True, slots=True)
class Judgement:
    """What an evaluation keeps of a response: its reward (None: invalid), answer (None: none found) and length."""

    reward: int | None
    answer: str | None
    truncated: bool
    num_tokens: int

    @property
    def valid(self) -> bool:
        return self.reward is not None


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over problems and its 95% interval; all nan where no problem has a value."""

    value: float
    low: float
    high: float

    @property
    def ci95(self) -> list[float]:
        return [self.low, self.high]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two policies on the same problems: mean of second - first, problems that went up and down, sign-test p."""

    num_problems: int
    difference: Estimate
    num_up: int
    num_down: int
    p_value: float


def estimate(values: Sequence[float], low: float = 0.0, high: float = 1.0) -> Estimate:
    """The mean of one value per problem, which lie in [low, high], with its bootstrap interval."""
    if not values:
        return Estimate(math.nan, math.nan, math.nan)
    levels, counts = np.unique(np.asarray(values, float), return_counts=True)
    n = len(values)
    mean = float(levels @ counts) / n
    if len(levels) == 1:
        unseen = 1 - (ALPHA / 2) ** (1 / n)
        return Estimate(mean, mean - unseen * (mean - low), mean + unseen * (high - mean))
    # To draw n problems is to draw how often each value comes: one multinomial for each resample.
    drawn = np.random.default_rng(0).multinomial(n, counts / n, size=RESAMPLES) @ levels / n
    return Estimate(mean, *map(float, np.quantile(drawn, (ALPHA / 2, 1 - ALPHA / 2))))


def pass_at(num: int, right: int, k: int) -> float:
    """The chance that k of `num` responses, `right` of which are right, hold a right one (k <= num)."""
    if not 1 <= k <= num or not 0 <= right <= num:
        raise ValueError(f"expected 1 <= k <= n and 0 <= right <= n, got k={k}, n={num}, right={right}")
    return 1.0 - math.comb(num - right, k) / math.comb(num, k)


def majority(responses: Sequence[Judgement]) -> float:
    """The chance that the commonest answer is right, a tie broken by chance; 0 where no response has an answer.

    Right answers are one answer however they are written; wrong ones are one where they spell the same value.
    """
    counts = Counter(
        "right" if r.reward else f"wrong {spelt(r.answer or '')}" for r in responses if r.reward or r.answer
    )
    most = max(counts.values(), default=0)
    return float(counts["right"] == most) / sum(count == most for count in counts.values()) if most else 0.0


def spelt(answer: str) -> str:
    """An answer in the one spelling that equal values have, as far as numbers go."""
    text = normalise(answer)
    value = number_of(text)
    return text if value is None else str(value)


def figures(problems: Mapping[str, Sequence[Judgement]], greedy: Mapping[str, Judgement]) -> dict[str, object]:
    """The figures of a suite by name: k sampled responses of each problem, and a greedy one where there are any."""
    valid = [judged for rs in problems.values() if (judged := [r for r in rs if r.reward is not None])]
    right = [sum(r.reward or 0 for r in rs) for rs in valid]
    k = max(map(len, problems.values()), default=0)
    everything = [r for rs in problems.values() for r in rs] or list(greedy.values())

    def passed(at: int) -> Estimate:
        pairs = zip(valid, right, strict=True)
        return estimate([pass_at(len(rs), c, at) if at <= len(rs) else float(c > 0) for rs, c in pairs])

    means = {
        "avg_at_k": estimate([c / len(rs) for rs, c in zip(valid, right, strict=True)]),
        "pass_at_k": passed(k) if k else estimate([]),
        "majority_at_k": estimate([majority(rs) for rs in valid]),
        "greedy_accuracy": estimate([float(r.reward) for r in greedy.values() if r.reward is not None]),
    }
    told: dict[str, object] = {"num_problems": len(problems.keys() | greedy.keys()), "num_samples": k}
    for name, mean in means.items():
        if not math.isnan(mean.value):
            told |= {name: mean.value, f"{name}_ci95": mean.ci95}
    first = next((m for m in means.values() if not math.isnan(m.value)), means["avg_at_k"])
    told |= {"ci95": first.ci95, "pass_at": {str(2**i): passed(2**i).value for i in range(k.bit_length())}}
    return told | shares(everything)


def shares(responses: Sequence[Judgement]) -> dict[str, float]:
    """The shares of responses that were cut, gave no answer and were not decided, and their mean length in tokens."""
    n = max(1, len(responses))
    return {
        "truncated_frac": sum(r.truncated for r in responses) / n,
        "no_answer_frac": sum(r.answer is None for r in responses) / n,
        "invalid_frac": sum(r.reward is None for r in responses) / n,
        "mean_tokens": sum(r.num_tokens for r in responses) / n,
    }


def mean_reward(responses: Sequence[Judgement]) -> float | None:
    """The share of right ones among those with a verdict; None where there is none."""
    rewards = [r.reward for r in responses if r.reward is not None]
    return sum(rewards) / len(rewards) if rewards else None


def compare(first: Mapping[str, float], second: Mapping[str, float]) -> Comparison:
    """The paired comparison on the problems that both have a value in [0, 1] of."""
    changes = [second[name] - first[name] for name in first if name in second]
    up, down = sum(c > 0 for c in changes), sum(c < 0 for c in changes)
    return Comparison(len(changes), estimate(changes, -1.0, 1.0), up, down, sign_test(up, down))


def sign_test(up: int, down: int) -> float:
    """The two-sided exact chance of so uneven a split where up and down are alike; of single verdicts, McNemar's."""
    n = up + down
    tail = sum(math.comb(n, i) for i in range(min(up, down) + 1))
    return min(1.0, 2 * tail / 2**n)
