"""Cliff: right responses as in GRPO, wrong ones from their first wrong step on (arXiv 2609.02817).

    right   A+ = (1 - mu) / sigma                        mu, sigma: mean and deviation of the group's outcomes
    wrong   lambda A+ before the first wrong step, A- = -mu / sigma from it on
    A_t     less the token mean of the group, so that the advantages of a group sum to 0

A wrong response that was cut off at the length limit is wrong from its first token on. A group that is all right or all
wrong gets zeros. Population deviation (our choice, as everywhere here).
"""

from __future__ import annotations

from capo_ray.config.credit import CliffConfig
from capo_ray.credit import rows as r
from capo_ray.credit.first_error import good_prefix, weigh_steps
from capo_ray.credit.statistics import mean, standardise_scalars
from capo_ray.types import Group, GroupCredit


def cliff(group: Group, config: CliffConfig, progress: float = 0.0) -> GroupCredit:
    """The credit of a judged group."""
    weights = r.response_weights(group)
    outcomes = r.outcome_rewards(group)
    scores = standardise_scalars(outcomes, weights)
    blame = [weigh_steps(member, config) for member in group.members]
    best = max(scores, default=0.0)
    rows: list[list[float]] = []
    for member, score, outcome, flags in zip(group.members, scores, outcomes, blame, strict=True):
        cut_off = member.trajectory.response.finish == "length"
        prefix = 0 if outcome or cut_off else good_prefix(member, flags)
        rows.append([config.prefix_frac * best] * prefix + [score] * (member.num_tokens - prefix))
    if not any(scores):
        return r.to_group_credit(group, rows, r.spread_over_responses(group, outcomes), blame)
    middle = mean(rows, weights)
    advantages = [[x - middle for x in row] for row in rows]
    return r.to_group_credit(group, advantages, r.spread_over_responses(group, outcomes), blame)
