"""RLOO: outcome minus the mean of the other responses, an unbiased baseline (arXiv 2402.14740, eq. 8)."""

from __future__ import annotations

from capo_ray.config.credit import CreditBase
from capo_ray.credit import rows as r
from capo_ray.credit.statistics import leave_one_out_scalars
from capo_ray.types import Group, GroupCredit


def rloo(group: Group, config: CreditBase, progress: float = 0.0) -> GroupCredit:
    """A_i = r_i - mean of r_j, j != i, over the valid responses."""
    rewards = r.outcome_rewards(group)
    return r.to_outcome_credit(group, leave_one_out_scalars(rewards, r.response_weights(group)), rewards)
