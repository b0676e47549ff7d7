"""iStar: implicit step rewards beside the episode's, each with its own group advantage (arXiv 2509.19199).

r_k = sum of the token rewards of step k        token rewards: beta (log pi_phi - log pi_old), from a trained model
A_t = (outcome, leave-one-out) + w_step N/(N-1) (r_step(t) - mean over all N steps of the group)

The step baseline is what the authors' code says of itself: each step against all other steps of the group, those of its
own response included (its loop, as published, takes one step of each response into the mean). They also divide the
rewards by the largest return of the batch, which is left out here, and have no KL.
"""

from __future__ import annotations

import math

from capo_ray.config.credit import IstarConfig
from capo_ray.credit import rows as r
from capo_ray.credit.statistics import leave_one_out_scalars
from capo_ray.types import Group, GroupCredit


def istar(group: Group, config: IstarConfig, progress: float = 0.0) -> GroupCredit:
    """The credit of a group whose valid members all have `token_rewards` [T]."""
    weights = r.response_weights(group)
    step_rewards: list[list[float]] = []
    for member, w in zip(group.members, weights, strict=True):
        if not w:
            step_rewards.append([0.0] * len(member.steps))
            continue
        tokens = r.require(member.evidence.token_rewards, member.num_tokens, "token_rewards", "istar")
        step_rewards.append([math.fsum(tokens[start:end]) for start, end in member.steps])
    shifted = _against_all_other_steps(step_rewards, weights)
    outcomes = r.outcome_rewards(group)
    advantages, rewards = [], []
    parts = zip(group.members, leave_one_out_scalars(outcomes, weights), shifted, outcomes, step_rewards, strict=True)
    for member, outcome_advantage, step_advantages, outcome, own in parts:
        process = [outcome_advantage + config.w_step * x for x in step_advantages]
        advantages.append(r.spread_over_tokens(member.steps, process))
        rewards.append(r.spread_over_tokens(member.steps, [outcome + config.w_step * x for x in own]))
    return r.to_group_credit(group, advantages, rewards)


def _against_all_other_steps(rows: list[list[float]], weights: list[float]) -> list[list[float]]:
    """[G][K]: each step's reward less the mean of the group's other steps; zeros for responses without weight."""
    flat = leave_one_out_scalars(
        [x for row in rows for x in row], [w for row, w in zip(rows, weights, strict=True) for _ in row]
    )
    shifted = iter(flat)
    return [[next(shifted) for _ in row] for row in rows]
