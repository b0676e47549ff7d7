"""The credit rule of each method, as its config class names it, and what is asked of what a rule returns."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from capo_ray.config.credit import CreditBase
from capo_ray.credit.rows import EvidenceError
from capo_ray.credit.turns import sampled_only
from capo_ray.steps import check_spans
from capo_ray.types import Group, GroupCredit

Rule = Callable[[Group, Any, float], GroupCredit]


@cache
def rule_of(kind: type[CreditBase]) -> Rule:
    """The function of (group, config of that kind, progress 0..1)."""
    return kind.find_rule()


def assign_credit(group: Group, config: CreditBase, progress: float = 0.0) -> GroupCredit:
    """The per-token credit of a judged group under `config.method`; `progress` is the share of the run done, 0..1.

    A rule never meets a token that the policy did not sample. Raises `SpanError` where the steps of a member do not
    tile its tokens, `EvidenceError` and `OverflowError` as the rule does, and `RuleError` where that raises anything
    else or returns no credit of this group: a row that is too short would be laid on other tokens than it is meant for.
    """
    for member in group.members:
        check_spans(member.steps, len(member.trajectory.response.token_ids))
    rule, sampled = rule_of(type(config)), sampled_only(group)
    with config.blamed(EvidenceError, OverflowError):
        credit = rule(sampled, config, progress)
    if misfit := _misfit(sampled, credit):
        raise config.wrong(f"must return {misfit}")
    return credit


def _misfit(group: Group, credit: Any) -> str:
    """What was expected of a group's credit, and what was got; nothing where it fits. Numbers may be any."""
    if not isinstance(credit, GroupCredit):
        return f"a GroupCredit (got {type(credit).__name__}); capo_ray.credit.rows.to_group_credit makes one"
    size, tokens = len(group.members), [member.num_tokens for member in group.members]
    steps = [len(member.steps) for member in group.members]
    wanted = {"advantages": tokens, "token_rewards": tokens, "step_weights": steps}
    wanted |= {name: tokens for name in ("entropy_weights", "imitation_weights") if len(getattr(credit, name))}
    for name in (*wanted, "included", "valid_critiques"):
        if (got := len(getattr(credit, name))) != size:
            return f"{name} of {size} responses (got {got})"
    for name, counts in wanted.items():
        for i, (row, count) in enumerate(zip(getattr(credit, name), counts, strict=True)):
            if len(row) != count:
                return f"{name}[{i}] of {count} {'steps' if name == 'step_weights' else 'tokens'} (got {len(row)})"
    for i, (member, row) in enumerate(zip(group.members, credit.advantages, strict=True)):
        if not member.verdict.valid and (credit.included[i] or row.any()):
            return f"included[{i}]=False and advantages of 0 for a response without a verdict (got others)"
    return ""
