"""Q-RM: the token rewards of a discriminative reward model, scaled but not centred (arXiv 2505.23363).

A_t = Z_t / std of Z over the valid tokens of the group; all zero where Z does not vary
"""

from __future__ import annotations

from capo_ray.config.credit import CreditBase
from capo_ray.credit import rows as r
from capo_ray.credit.statistics import std
from capo_ray.types import Group, GroupCredit


def qrm(group: Group, config: CreditBase, progress: float = 0.0) -> GroupCredit:
    """The credit of a group whose valid members all have `token_rewards` [T]; population std over the group is ours."""
    weights = r.row_weights(group, "token")
    rows = [
        list(r.require(m.evidence.token_rewards, m.num_tokens, "token_rewards", "qrm")) if w else [0.0] * m.num_tokens
        for m, w in zip(group.members, weights, strict=True)
    ]
    scale = std(rows, weights)
    return r.to_group_credit(group, [[x / scale if scale else 0.0 for x in row] for row in rows], rows)
