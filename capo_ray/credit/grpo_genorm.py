"""GRPO-GenORM: the critics' overall verdict beside the rule's, one number a response (baseline of arXiv 2508.02298).

    R_i = sigmoid(alpha * m_i) + (beta * r_i - 1) (+ w_format)

r_i and m_i lie in {0, 1} (eq. 3). Our choices, where the paper is silent: of k critiques m_i is the mean of the overall
verdicts, and 1/2 without any; alpha and beta. A verdict counts also where the list of wrong steps cannot be read: only
a "no" needs a list, so that leaving such critiques out would raise the mean.
"""

from __future__ import annotations

import math

from capo_ray.config.credit import GenormConfig
from capo_ray.credit import rows as r
from capo_ray.credit.statistics import standardise_scalars
from capo_ray.types import Group, GroupCredit, Judged


def grpo_genorm(group: Group, config: GenormConfig, progress: float = 0.0) -> GroupCredit:
    """A_i = (R_i - mean) / std over the valid responses."""
    bonuses = r.format_rewards(group, config.w_format)
    rewards = [
        sigmoid(config.alpha * mean_overall(member)) + config.beta * reward - 1.0 + bonus
        for reward, member, bonus in zip(r.outcome_rewards(group), group.members, bonuses, strict=True)
    ]
    return r.to_outcome_credit(group, standardise_scalars(rewards, r.response_weights(group)), rewards)


def sigmoid(x: float) -> float:
    """1 / (1 + e^-x), without overflow for any finite x."""
    small = math.exp(-abs(x))
    return (1.0 if x >= 0 else small) / (1.0 + small)


def mean_overall(member: Judged) -> float:
    """The mean of the critiques' overall verdicts, right as 1 and wrong as 0; 0.5 without any."""
    words = [c.overall for c in member.evidence.critiques if c.overall is not None]
    return sum(words) / len(words) if words else 0.5
