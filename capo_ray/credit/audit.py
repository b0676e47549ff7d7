"""What a group's credit did: the figures to read before believing in a method."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np

from capo_ray.arrays import Runs, exact_sum
from capo_ray.credit.quoted import evidence_figures
from capo_ray.credit.rows import spread_over_tokens
from capo_ray.credit.statistics import correlation
from capo_ray.credit.turns import sampled_only
from capo_ray.types import Group, GroupCredit, Judged

AuditRow = tuple[Judged, Runs, tuple[float, ...]]  # advantages [T], step weights [K]
Token = tuple[float, float, float]  # advantage, step weight, +1 right / -1 wrong


def audit(group: Group, credit: GroupCredit) -> dict[str, float]:
    """Figures named `credit/...`; one that is not defined for this group (a correlation of constants) is absent.

    `_frac` figures are shares of the sampled tokens of valid responses unless they say otherwise.
    """
    group = sampled_only(group)
    rows = [
        (member, advantages, weights)
        for member, advantages, weights, ok in zip(
            group.members, credit.advantages, credit.step_weights, credit.included, strict=True
        )
        if ok and member.num_tokens
    ]
    figures = {"credit/invalid_frac": 1.0 - sum(credit.included) / max(1, len(credit.included))}
    figures.update(_signal(group, credit))
    if not rows:
        return figures
    figures.update(evidence_figures(group.problem, [member for member, _, _ in rows]))
    figures.update(_token_figures(_count_tokens(rows)))
    figures.update(_correlations(rows))
    if credit.imitation_weights:
        imitated = [row.any() for row, ok in zip(credit.imitation_weights, credit.included, strict=True) if ok]
        figures["credit/imitated_frac"] = sum(imitated) / len(imitated)
    sums = [float(member.trajectory.response.logprobs.sum(dtype=np.float64)) for member, _, _ in rows]
    # The mean surprisal of sampled tokens is the entropy of the sampler, estimated from its own samples.
    figures["credit/sampler_entropy_nats"] = -math.fsum(sums) / sum(member.num_tokens for member, _, _ in rows)
    critiqued = [member for member, _, _ in rows if member.evidence.critiques]
    if critiqued:
        counts = [len(member.evidence.critiques) for member in critiqued]
        valid = [sum(critique.valid for critique in member.evidence.critiques) for member in critiqued]
        figures["credit/valid_critiques_frac"] = sum(valid) / sum(counts)
        figures["credit/no_valid_critique_frac"] = sum(v == 0 for v in valid) / len(valid)
    return figures


def _signal(group: Group, credit: GroupCredit) -> dict[str, float]:
    """Whether the outcomes of a group differ, and whether it has credit although they do not."""
    outcomes = {member.verdict.reward for member in group.members if member.verdict.valid}
    differ = len(outcomes) > 1
    return {
        "credit/outcome_signal_frac": float(differ),
        "credit/saved_by_process_frac": float(credit.has_signal and not differ),
    }


def _count_tokens(rows: list[AuditRow]) -> Counter[Token]:
    """How many tokens have each (advantage, step weight, +1 right / -1 wrong)."""
    tokens: Counter[Token] = Counter()
    for member, advantages, weights in rows:
        sign = 1.0 if member.verdict.reward else -1.0
        for a, w, size in advantages.beside(spread_over_tokens(member.steps, weights)):
            tokens[a, w, sign] += size
    return tokens


def _token_figures(tokens: Counter[Token]) -> dict[str, float]:
    """Shares over all tokens; sums take each as often as it is counted, and are exactly rounded."""
    count = tokens.total()
    wrong = sum(n for (_, _, sign), n in tokens.items() if sign < 0)
    mass = exact_sum((abs(a), n) for (a, _, _), n in tokens.items())
    figures = {
        "credit/sign_flip_frac": sum(n for (a, _, sign), n in tokens.items() if a * sign < 0) / count,
        "credit/flagged_frac": exact_sum((w, n) for (_, w, _), n in tokens.items()) / count,
        "credit/advantage_abs_mean": mass / count,
    }
    if mass > 0:
        blamed = exact_sum((-a, n) for (a, w, _), n in tokens.items() if w > 0 and a < 0)
        figures["credit/penalty_mass_frac"] = blamed / mass
    if wrong:
        raised = sum(n for (a, _, sign), n in tokens.items() if sign < 0 and a > 0)
        figures["credit/positive_on_wrong_frac"] = raised / wrong
    return figures


def _correlations(rows: list[AuditRow]) -> dict[str, float]:
    """Over responses: mean advantage against length and against step count, where both vary."""
    means = [exact_sum(advantages.counts().items()) / len(advantages) for _, advantages, _ in rows]
    pairs = {
        "credit/length_corr": correlation(means, [float(member.num_tokens) for member, _, _ in rows]),
        "credit/num_steps_corr": correlation(means, [float(len(member.steps)) for member, _, _ in rows]),
    }
    return {name: value for name, value in pairs.items() if value is not None}
