"""How well step credit finds the wrong steps: numbers in, numbers out.

A step's credit is the mean advantage of its tokens; low credit is blame. Figures that are not defined are nan.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from capo_ray.credit.statistics import correlation
from capo_ray.types import Group, GroupCredit, Span

Rows = Sequence[Sequence[float]]  # [responses][K]


def step_credit(groups: Sequence[Group], credits: Sequence[GroupCredit]) -> list[list[float]]:
    """[responses][K] over the steps of `groups`, whatever steps the credit was given to."""
    return [
        means_of(member.steps, advantages)
        for group, credit in zip(groups, credits, strict=True)
        for member, advantages in zip(group.members, credit.advantages, strict=True)
    ]


def means_of(steps: Sequence[Span], values: Sequence[float]) -> list[float]:
    """[K]: the mean of the token values of each step."""
    return [statistics.fmean(values[start:end]) for start, end in steps]


def auc(blame: Sequence[float], wrong: Sequence[bool]) -> float:
    """The probability that a wrong step has more blame than a right one, ties counting half."""
    positives = sum(wrong)
    negatives = len(wrong) - positives
    if not positives or not negatives:
        return float("nan")
    above = sum(rank for rank, is_wrong in zip(ranks(blame), wrong, strict=True) if is_wrong)
    return (above - positives * (positives + 1) / 2) / (positives * negatives)


def ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1; equal values share their mean rank. Differences below 1e-9 are rounding, not order."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    out = [0.0] * len(values)
    at = 0
    while at < len(order):
        end = at + 1
        while end < len(order) and values[order[end]] - values[order[end - 1]] < 1e-9:
            end += 1
        for i in order[at:end]:
            out[i] = (at + 1 + end) / 2
        at = end
    return out


def spearman(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Spearman's rank correlation."""
    value = correlation(ranks(xs), ranks(ys))
    return float("nan") if value is None else value


def measure(credit: Rows, wrong: Sequence[frozenset[int]], values: Rows | None) -> dict[str, float]:
    """The figures of a method: against the planted errors, and against Monte-Carlo value changes where given.

    within: mean over the responses that have wrong and right steps. over_all: all steps of all responses in one pool.
    A step counts as blamed where its credit is negative: what an update pushes down.
    """
    labels = [[k in bad for k in range(len(row))] for row, bad in zip(credit, wrong, strict=True)]
    within = [auc([-x for x in row], marks) for row, marks in zip(credit, labels, strict=True) if any(marks)]
    flat = [x for row in credit for x in row]
    marks = [mark for row in labels for mark in row]
    blamed = [x < -1e-9 for x in flat]
    hits = sum(b and m for b, m in zip(blamed, marks, strict=True))
    figures = {
        "auc_within": statistics.fmean(within),
        "auc_over_all": auc([-x for x in flat], marks),
        "blamed_precision": hits / sum(blamed) if any(blamed) else float("nan"),
        "blamed_recall": hits / sum(marks),
    }
    if values is not None:
        figures["value_rank_corr"] = spearman(flat, [v for row in values for v in row])
    return figures


def calibration(weights: Rows, wrong: Sequence[frozenset[int]]) -> tuple[list[dict[str, float]], float]:
    """For each weight that `vote=average` gave: how many steps have it and how many of them are wrong; and the ECE."""
    seen: dict[float, list[bool]] = {}
    for row, bad in zip(weights, wrong, strict=True):
        for k, w in enumerate(row):
            seen.setdefault(round(w, 4), []).append(k in bad)
    total = sum(map(len, seen.values()))
    bins = [
        {"weight": w, "steps": len(marks), "wrong_frac": round(statistics.fmean(marks), 4)}
        for w, marks in sorted(seen.items())
    ]
    return bins, sum(abs(w - statistics.fmean(marks)) * len(marks) for w, marks in seen.items()) / total
