"""VinePPO: a step's advantage is the change of the Monte-Carlo value across it (arXiv 2410.01679, eq. 7, gamma 1).

The authors' runs standardise it over the batch (`credit.whiten`): bare, values differ by less than the KL term weighs.
"""

from __future__ import annotations

from itertools import pairwise

from capo_ray.arrays import Runs
from capo_ray.config.credit import CreditBase
from capo_ray.credit import rows as r
from capo_ray.types import Group, GroupCredit


def vineppo(group: Group, config: CreditBase, progress: float = 0.0) -> GroupCredit:
    """A_t = V_(k+1) - V_k for the tokens of step k; every valid member has `step_values` [K+1], V_K its outcome."""
    advantages: list[Runs] = []
    for member, ok in zip(group.members, r.included(group), strict=True):
        if not ok:
            advantages.append(Runs.constant(0.0, member.num_tokens))
            continue
        values = r.require(member.evidence.step_values, len(member.steps) + 1, "step_values", "vineppo")
        changes = [after - before for before, after in pairwise(values)]
        advantages.append(r.spread_over_tokens(member.steps, changes))
    return r.to_group_credit(group, advantages, r.spread_over_responses(group, r.outcome_rewards(group)))
