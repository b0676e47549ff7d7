"""PURE: a response is worth its worst step, in place of the sum of its steps (arXiv 2504.15275, min-form).

    r_k  = 1 - 2 w_k                                w_k: how wrong the critics hold step k to be
    r*_k = r_k softmax_k(-r / temperature)          all but the worst steps count for next to nothing
    G_k  = sum of r*_j, j >= k                      what is still to come
    A_t  = (outcome, leave-one-out) + w_process (G_step(t) - mean of the other responses' G_0)

The paper's step rewards are a trained reward model's; critics in its place, the baseline and w_process are our choice.
A response without a quorum of critiques has no process part and is in nobody's baseline.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from capo_ray.config.credit import PureConfig
from capo_ray.credit import rows as r
from capo_ray.credit.statistics import leave_one_out_scalars
from capo_ray.types import Group, GroupCredit
from capo_ray.votes import step_weights


def pure(group: Group, config: PureConfig, progress: float = 0.0) -> GroupCredit:
    """The credit of a judged group."""
    weights = r.response_weights(group)
    flagged = [r.valid_flags(member) for member in group.members]
    judged = [
        bool(w and m.steps and len(f) >= config.quorum) for w, f, m in zip(weights, flagged, group.members, strict=True)
    ]
    blame = [
        step_weights(flags if use else [], len(member.steps), config.vote)
        for flags, use, member in zip(flagged, judged, group.members, strict=True)
    ]
    returns = [returns_to_go([1.0 - 2.0 * w for w in row], config.temperature) for row in blame]
    totals = [row[0] if row else 0.0 for row in returns]
    shifted = leave_one_out_scalars(totals, [float(use) for use in judged])
    outcomes = r.outcome_rewards(group)
    advantages, rewards = [], []
    for i, member in enumerate(group.members):
        has_sibling = judged[i] and sum(judged) > 1
        process = [config.w_process * (g - totals[i] + shifted[i]) if has_sibling else 0.0 for g in returns[i]]
        advantages.append(r.spread_over_tokens(member.steps, process))
        own = [config.w_process * g if judged[i] else 0.0 for g in returns[i]]
        rewards.append([outcomes[i] + x for x in r.spread_over_tokens(member.steps, own)])
    outcome_advantages = leave_one_out_scalars(outcomes, weights)
    advantages = [[a + x for x in row] for a, row in zip(outcome_advantages, advantages, strict=True)]
    return r.to_group_credit(group, advantages, rewards, blame)


def returns_to_go(rewards: Sequence[float], temperature: float) -> list[float]:
    """[K]: sums from each step to the last of r_k softmax(-r / temperature)_k."""
    if not rewards:
        return []
    lowest = min(rewards)
    weights = [math.exp((lowest - x) / temperature) for x in rewards]
    total = math.fsum(weights)
    parts = [x * w / total for x, w in zip(rewards, weights, strict=True)]
    return [math.fsum(parts[k:]) for k in range(len(parts))]
