"""RLSD: the verifier fixes the sign, the policy under a hint the size (arXiv 2604.03128).

    d_t = log pi(y_t | x, hint, y_<t) - log pi(y_t | x, y_<t)              hint: the reference answer
    A_t = A ((1 - m) + m clip(exp(sign(A) d_t), 1 - e, 1 + e))             A: GRPO's advantage of the response

m falls linearly from `mix` to 0 at `mix_until` of the run (the paper: from 0.5 over 50 updates). A token that the hint
makes likelier is praised more in a right response and blamed less in a wrong one. Our choices: the teacher is the
policy of the moment, not one refreshed every 20 updates; population deviation; both log-probabilities at temperature 1.
"""

from __future__ import annotations

import numpy as np

from capo_ray.arrays import Runs
from capo_ray.config.credit import RlsdConfig
from capo_ray.credit import rows as r
from capo_ray.credit.statistics import standardise_scalars
from capo_ray.types import Group, GroupCredit


def rlsd(group: Group, config: RlsdConfig, progress: float = 0.0) -> GroupCredit:
    """The credit of a group whose valid members all have `hint_gains` [T]."""
    outcomes = r.outcome_rewards(group)
    scores = standardise_scalars(outcomes, r.response_weights(group))
    mix = mix_at(config, progress)
    advantages = []
    for member, ok, score in zip(group.members, r.included(group), scores, strict=True):
        if not ok or not score or not mix:
            advantages.append(Runs.constant(score if ok else 0.0, member.num_tokens))
            continue
        gains = r.require(member.evidence.hint_gains, member.num_tokens, "hinted_logprobs", "rlsd")
        # Clipped before the power: e^d of a token that the hint all but forbids has no more digits than its bound.
        bounds = np.log1p(-config.clip), np.log1p(config.clip)
        sizes = np.exp(np.clip(np.sign(score) * np.asarray(gains, np.float64), *bounds))
        advantages.append(Runs.of(score * ((1.0 - mix) + mix * sizes)))
    return r.to_group_credit(group, advantages, r.spread_over_responses(group, outcomes))


def mix_at(config: RlsdConfig, progress: float) -> float:
    """How far the size of an advantage follows the hint at this share of the run."""
    if not config.mix_until:
        return config.mix
    return config.mix * max(0.0, 1.0 - progress / config.mix_until)
