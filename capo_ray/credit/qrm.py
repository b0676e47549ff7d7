"""Q-RM: the token rewards of a discriminative reward model, scaled but not centred (arXiv 2505.23363).

A_t = Z_t / std of Z over the valid tokens of the group; all zero where Z hardly varies

Nothing is subtracted, so a Z that is nearly one number is divided by next to nothing: where its deviation is less than
a hundredth of its root mean square it tells no tokens apart, and |A_t| would be near a hundred or above (our choice).

The paper's model has been trained before. One that is trained beside the policy knows nothing at first, and since Z is
not centred its noise would praise or blame whole responses: up to `outcome_until` of the run the outcome is the credit
(our choice).
"""

from __future__ import annotations

import math

from capo_ray.config.credit import QrmConfig
from capo_ray.credit import rows as r
from capo_ray.credit.statistics import mean, standardise_scalars, std
from capo_ray.types import Group, GroupCredit

LEAST_SPREAD = 0.01  # deviation over root mean square of Z below which it tells nothing apart


def qrm(group: Group, config: QrmConfig, progress: float = 0.0) -> GroupCredit:
    """The credit of a group whose valid members all have `token_rewards` [T]; population std over the group is ours."""
    if progress < config.outcome_until:
        outcomes = r.outcome_rewards(group)
        return r.to_outcome_credit(group, standardise_scalars(outcomes, r.response_weights(group)), outcomes)
    weights = r.row_weights(group, "token")
    rows = [
        list(r.require(m.evidence.token_rewards, m.num_tokens, "token_rewards", "qrm")) if w else [0.0] * m.num_tokens
        for m, w in zip(group.members, weights, strict=True)
    ]
    scale = std(rows, weights)
    if scale < LEAST_SPREAD * math.hypot(scale, mean(rows, weights)):
        scale = 0.0
    return r.to_group_credit(group, [[x / scale if scale else 0.0 for x in row] for row in rows], rows)
