"""PRIME: implicit token rewards summed to the end, each part with its leave-one-out baseline (arXiv 2502.01456, eq. 5).

    A_t = sum over s >= t of (r_s - mean of the others' mean token reward) + (outcome, leave-one-out)

r_s = beta (log pi_phi - log pi_ref) comes as `token_rewards` [T] from a model that someone else trains.
"""

from __future__ import annotations

import math
from itertools import accumulate

from capo_ray.config.credit import CreditBase
from capo_ray.credit import rows as r
from capo_ray.credit.statistics import leave_one_out_scalars
from capo_ray.types import Group, GroupCredit


def prime(group: Group, config: CreditBase, progress: float = 0.0) -> GroupCredit:
    """The credit of a group whose valid members all have `token_rewards` [T]."""
    weights = [w if m.num_tokens else 0.0 for w, m in zip(r.response_weights(group), group.members, strict=True)]
    rewards = [
        list(r.require(m.evidence.token_rewards, m.num_tokens, "token_rewards", "prime")) if w else [0.0] * m.num_tokens
        for m, w in zip(group.members, weights, strict=True)
    ]
    # The mean of equal rewards is that reward; rounded, it would leave credit in a group without any.
    means = [row[0] if len(set(row)) == 1 else math.fsum(row) / max(1, len(row)) for row in rewards]
    # x - mean of others = shifted x, so the baseline is x minus it; without a sibling there is no process part.
    shifted = leave_one_out_scalars(means, weights)
    alone = sum(map(bool, weights)) < 2
    outcomes = r.outcome_rewards(group)
    outcome_advantages = leave_one_out_scalars(outcomes, r.response_weights(group))
    advantages = []
    for row, own, shift, outcome in zip(rewards, means, shifted, outcome_advantages, strict=True):
        centred = [0.0 if alone else x - (own - shift) for x in row]
        to_go = list(accumulate(reversed(centred)))[::-1]
        advantages.append([outcome + x for x in to_go])
    totals = [[outcome + x for x in row] for outcome, row in zip(outcomes, rewards, strict=True)]
    return r.to_group_credit(group, advantages, totals)
