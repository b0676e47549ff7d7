"""ETPO: per-token soft Bellman backups within an utterance (arXiv 2402.06700), on values of a trained model.

    Q(s_t, w_t) = V(s_t+1), and the outcome for the last token          A_t = Q(s_t, w_t) - V(s_t)

V(s_t) comes as `token_rewards` [T]: the soft value of the prefix before token t. The discount counts across turns
alone, and a response is one turn. The token's own KL cost is the loss's (loss.kl_coef), and `trace_decay` sums the
differences ahead: both are our choices, as is the value head in place of one over the vocabulary.
"""

from __future__ import annotations

from capo_ray.config.credit import EtpoConfig
from capo_ray.credit import rows as r
from capo_ray.types import Group, GroupCredit


def etpo(group: Group, config: EtpoConfig, progress: float = 0.0) -> GroupCredit:
    """The credit of a group whose valid members all have `token_rewards` [T]."""
    advantages: list[list[float]] = []
    rewards: list[list[float]] = []
    for member, ok, outcome in zip(group.members, r.included(group), r.outcome_rewards(group), strict=True):
        if not ok:
            advantages.append([0.0] * member.num_tokens)
            rewards.append([0.0] * member.num_tokens)
            continue
        values = r.require(member.evidence.token_rewards, member.num_tokens, "token_rewards", "etpo")
        backups = [*values, outcome][1:]
        rewards.append(backups)
        advantages.append(_sum_ahead([q - v for q, v in zip(backups, values, strict=True)], config.trace_decay))
    return r.to_group_credit(group, advantages, rewards)


def _sum_ahead(differences: list[float], decay: float) -> list[float]:
    """sum over l >= 0 of decay^l d_(t+l)."""
    total, sums = 0.0, []
    for difference in reversed(differences):
        total = difference + decay * total
        sums.append(total)
    return sums[::-1]
