"""A credit method of one's own: the outcome, less a price for every token of a step that most critics call wrong.

    R_t = r - price * [step of t is flagged by at least half of the valid critiques];  A_t = R_t - mean over the group

The package's pyproject.toml offers it as `credit=priced`, by the entry point group `capo_ray.credit_methods`.
"""

from __future__ import annotations

from operator import add
from typing import ClassVar, Literal

from pydantic import Field

from capo_ray.config.credit import CreditBase, Critiques, Request
from capo_ray.credit import rows
from capo_ray.types import Group, GroupCredit
from capo_ray.votes import step_weights


class PricedConfig(CreditBase):
    """The outcome, less a price for every token of a wrong step."""

    rule: ClassVar[str] = "own_credit:priced"
    method: Literal["priced"] = "priced"
    price: float = Field(0.5, gt=0)

    def evidence(self) -> tuple[Request, ...]:
        """Votes of the critic."""
        return (Critiques("majority", 1),)


def priced(group: Group, config: PricedConfig, progress: float = 0.0) -> GroupCredit:
    """The credit of a judged group; zeros for invalid responses, which stand outside the mean."""
    blame = [step_weights(rows.valid_flags(m), len(m.steps), "majority") for m in group.members]
    outcomes = rows.spread_over_responses(group, rows.outcome_rewards(group))
    prices = [
        rows.spread_over_tokens(m.steps, [-config.price * w for w in weights])
        for m, weights in zip(group.members, blame, strict=True)
    ]
    rewards = [outcome.with_each(price, add) for outcome, price in zip(outcomes, prices, strict=True)]
    counted = [
        value for row, ok in zip(rewards, rows.included(group), strict=True) if ok for value in row.expand().tolist()
    ]
    mean = sum(counted) / len(counted) if counted else 0.0
    return rows.to_group_credit(group, [row.map(lambda r: r - mean) for row in rewards], rewards, blame)
