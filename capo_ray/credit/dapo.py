"""DAPO: GRPO on a reward that punishes responses near the length limit (arXiv 2503.14476, eq. 13).

Its other parts live where they belong: clip-higher and the token mean in the loss preset, dynamic sampling in the
pipeline, which draws on until it has groups with credit. By the paper (eq. 11) those are the groups with 0 < number
right < G: in a group that is all right or all wrong lengths alone would differ, and a deviation blows the least
difference up to whole units.
"""

from __future__ import annotations

from capo_ray.config.credit import DapoConfig
from capo_ray.credit import rows as r
from capo_ray.credit.statistics import standardise_scalars
from capo_ray.types import Group, GroupCredit


def dapo(group: Group, config: DapoConfig, progress: float = 0.0) -> GroupCredit:
    """A_i = (R_i - mean) / std with R_i = +1 or -1 for right or wrong, plus the overlong punishment.

    Zeros for a group whose valid outcomes are all alike.
    """
    rewards = [
        2.0 * reward - 1.0 + punish_length(member.num_tokens, config.overlong_max_tokens, config.overlong_buffer_tokens)
        for reward, member in zip(r.outcome_rewards(group), group.members, strict=True)
    ]
    weights = r.response_weights(group)
    if len({member.verdict.reward for member in group.members if member.verdict.valid}) < 2:
        weights = [0.0] * len(weights)
    return r.to_outcome_credit(group, standardise_scalars(rewards, weights), rewards)


def punish_length(num_tokens: int, max_tokens: int, buffer_tokens: int) -> float:
    """0 up to max - buffer, then linearly down to -1 at max and -1 beyond; 0 where max_tokens is 0 (eq. 13)."""
    if not max_tokens or num_tokens <= max_tokens - buffer_tokens:
        return 0.0
    if num_tokens >= max_tokens:
        return -1.0
    return (max_tokens - buffer_tokens - num_tokens) / buffer_tokens
