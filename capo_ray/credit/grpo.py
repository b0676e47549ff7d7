"""GRPO: the outcome standardised over the group, the same for every token of a response (arXiv 2402.03300, eq. 3)."""

from __future__ import annotations

from capo_ray.config.credit import CreditBase, GrpoConfig
from capo_ray.credit import rows as r
from capo_ray.credit.statistics import standardise_scalars
from capo_ray.types import Group, GroupCredit


def grpo(group: Group, config: CreditBase, progress: float = 0.0) -> GroupCredit:
    """A_i = (r_i - mean) / std over the valid responses; population std (our choice, the paper does not say)."""
    w_format = config.w_format if isinstance(config, GrpoConfig) else 0.0
    rewards = [
        reward + bonus
        for reward, bonus in zip(r.outcome_rewards(group), r.format_rewards(group, w_format), strict=True)
    ]
    return r.to_outcome_credit(group, standardise_scalars(rewards, r.response_weights(group)), rewards)
