"""ETPO-like: soft backups per token within a turn, discounted across turns (after arXiv 2402.06700), on trained values.

    Q(s_t, w_t) = V(s_t+1)           within a turn                        A_t = Q(s_t, w_t) - V(s_t)
                  gamma V(s_t+1)     at a turn's last token: s_t+1 is what the policy read, and its next turn's start
                  outcome            at the last token of all

V(s_t) comes as `token_rewards` [A]: the soft value of all that stands before sampled token t. The token's own KL cost
is the loss's (loss.kl_coef), and `trace_decay` sums the differences ahead, discounted as the values are: both are our
choices, as is the value head in place of a soft Q over the vocabulary with a target network. The backups charge the KL
of later tokens and the summed differences do not: the two agree exactly at `trace_decay` 0 alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from capo_ray.config.credit import EtpoConfig
from capo_ray.credit import rows as r
from capo_ray.types import Group, GroupCredit, Judged


def etpo(group: Group, config: EtpoConfig, progress: float = 0.0) -> GroupCredit:
    """The credit of a group whose valid members all have `token_rewards` [A]."""
    advantages: list[list[float]] = []
    rewards: list[list[float]] = []
    for member, ok, outcome in zip(group.members, r.included(group), r.outcome_rewards(group), strict=True):
        if not ok:
            advantages.append([0.0] * member.num_tokens)
            rewards.append([0.0] * member.num_tokens)
            continue
        values = r.require(member.evidence.token_rewards, member.num_tokens, "token_rewards", "etpo")
        discounts = _discounts(member, config.turn_discount)
        backups = [d * q for d, q in zip(discounts, [*values, outcome][1:], strict=True)]
        rewards.append(backups)
        differences = [q - v for q, v in zip(backups, values, strict=True)]
        advantages.append(_sum_ahead(differences, [d * config.trace_decay for d in discounts]))
    return r.to_group_credit(group, advantages, rewards)


def _discounts(member: Judged, gamma: float) -> list[float]:
    """[A]: gamma at the last token of each turn but the last, else 1."""
    discounts = [1.0] * member.num_tokens
    for _, end in member.trajectory.response.turns[:-1]:
        discounts[end - 1] = gamma
    return discounts


def _sum_ahead(differences: Sequence[float], decays: Sequence[float]) -> list[float]:
    """s_t = d_t + decay_t s_(t+1)."""
    total, sums = 0.0, []
    for difference, decay in zip(reversed(differences), reversed(decays), strict=True):
        total = difference + decay * total
        sums.append(total)
    return sums[::-1]
