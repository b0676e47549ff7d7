"""The credit rule of each method, as its config class names it."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from functools import cache
from typing import Any

from capo_ray.config.credit import CreditBase
from capo_ray.credit.turns import sampled_only
from capo_ray.steps import check_spans
from capo_ray.types import Group, GroupCredit

Rule = Callable[[Group, Any, float], GroupCredit]


@cache
def rule_of(kind: type[CreditBase]) -> Rule:
    """The function of (group, config of that kind, progress 0..1)."""
    rule: Rule = pkgutil.resolve_name(kind.rule)
    return rule


def assign_credit(group: Group, config: CreditBase, progress: float = 0.0) -> GroupCredit:
    """The per-token credit of a judged group under `config.method`; `progress` is the share of the run done, 0..1.

    A rule never meets a token that the policy did not sample. Raises `SpanError` where the steps of a member do not
    tile its tokens.
    """
    for member in group.members:
        check_spans(member.steps, len(member.trajectory.response.token_ids))
    return rule_of(type(config))(sampled_only(group), config, progress)
