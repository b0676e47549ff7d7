"""REINFORCE++ with baseline: the group gives the baseline, the batch gives the scale (arXiv 2501.03262)."""

from __future__ import annotations

from capo_ray.config.credit import CreditBase
from capo_ray.credit import rows as r
from capo_ray.credit.statistics import centre_scalars
from capo_ray.types import Group, GroupCredit


def reinforce_pp(group: Group, config: CreditBase, progress: float = 0.0) -> GroupCredit:
    """A_i = r_i - mean over the valid responses; `credit.batch` scales it."""
    rewards = r.outcome_rewards(group)
    return r.to_outcome_credit(group, centre_scalars(rewards, r.response_weights(group)), rewards)
