"""GRPO: the outcome standardised over the group, the same for every token of a response (arXiv 2402.03300, eq. 3)."""

from __future__ import annotations

from capo_ray.config.credit import CreditBase
from capo_ray.credit import rows as r
from capo_ray.credit.statistics import standardise_scalars
from capo_ray.types import Group, GroupCredit


def grpo(group: Group, config: CreditBase, progress: float = 0.0) -> GroupCredit:
    """A_i = (r_i - mean) / std over the valid responses; population std (our choice, the paper does not say)."""
    rewards = r.outcome_rewards(group)
    return r.to_outcome_credit(group, standardise_scalars(rewards, r.response_weights(group)), rewards)
