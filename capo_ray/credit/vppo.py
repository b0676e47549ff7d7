"""VPPO: what a wrong response got right before its first wrong step is rewarded (arXiv 2601.18984).

    right   R_t = 1
    wrong   R_t = alpha on its good prefix, shortened by c tokens, and 0 on the rest      c: tokens of the prompt
    A_t   = R_t - mean over the responses of the mean of R over their tokens

No deviation. Offline c is `prompt_tokens` of the line, or 0. A wrong response without a flagged step has no good
prefix (our choice).
"""

from __future__ import annotations

import math

from capo_ray.config.credit import VppoConfig
from capo_ray.credit import rows as r
from capo_ray.credit.first_error import good_prefix, weigh_steps
from capo_ray.types import Group, GroupCredit


def vppo(group: Group, config: VppoConfig, progress: float = 0.0) -> GroupCredit:
    """The credit of a judged group."""
    weights = r.response_weights(group)
    outcomes = r.outcome_rewards(group)
    blame = [weigh_steps(member, config) for member in group.members]
    prefixes = []
    for member, outcome, flags in zip(group.members, outcomes, blame, strict=True):
        cut = config.shorten_tokens if config.shorten_tokens >= 0 else member.trajectory.question_tokens
        prefixes.append(0 if outcome else max(0, good_prefix(member, flags) - cut))
    rewards = [
        [1.0] * member.num_tokens if outcome else [config.prefix_reward] * prefix + [0.0] * (member.num_tokens - prefix)
        for member, outcome, prefix in zip(group.members, outcomes, prefixes, strict=True)
    ]
    scores = [
        outcome or config.prefix_reward * prefix / max(1, member.num_tokens)
        for member, outcome, prefix in zip(group.members, outcomes, prefixes, strict=True)
    ]
    counted = [score for score, w in zip(scores, weights, strict=True) if w]
    middle = math.fsum(counted) / len(counted) if counted else 0.0
    if len(counted) > 1 and min(counted) == max(counted) and not any(prefixes):
        middle = counted[0]  # equal outcomes alone: exactly no credit, whatever the mean rounds to
    advantages = [[x - middle for x in row] for row in rewards]
    if config.keep_prefix_sign:
        for row, prefix in zip(advantages, prefixes, strict=True):
            row[:prefix] = [max(0.0, x) for x in row[:prefix]]
    return r.to_group_credit(group, advantages, rewards, blame)
