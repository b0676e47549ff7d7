"""Dr. GRPO: outcome minus the group's mean (arXiv 2503.20783, section 3.2).

Dividing by the deviation favours questions that are nearly always or nearly never answered; dividing by the response's
own length favours long wrong answers. The first is undone here, the second by `loss.aggregation=constant_length`.
"""

from __future__ import annotations

from capo_ray.config.credit import CreditBase
from capo_ray.credit import rows as r
from capo_ray.credit.statistics import centre_scalars
from capo_ray.types import Group, GroupCredit


def dr_grpo(group: Group, config: CreditBase, progress: float = 0.0) -> GroupCredit:
    """A_i = r_i - mean over the valid responses."""
    rewards = r.outcome_rewards(group)
    return r.to_outcome_credit(group, centre_scalars(rewards, r.response_weights(group)), rewards)
