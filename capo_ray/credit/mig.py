"""MIG: new heights of the answer's likelihood are rewarded on the reasoning, beside the outcome (arXiv 2602.01034).

    h_0 = l_0;  g_k = max(0, l_k - h_(k-1));  h_k = max(h_(k-1), l_k)      l_k: mean logprob of the answer after k steps
    A_t = z(outcome) + w_gain z(sum_k g_k) [t in a reasoning step]
    - w_sft log pi is added to the loss of every token of a response that is right and has sum_k g_k > 0

Our choices: population std; the reasoning is every step but the last, which states the answer; w_gain and w_sft; gains
count above the noise of the scores alone (`rows.NOISE_NATS`). The SFT term stands on the rollout's own tokens beside
the policy gradient, weighed as these are; a group that `stream.replace_creditless` replaces is not imitated either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from capo_ray.config.credit import MigConfig
from capo_ray.credit import rows as r
from capo_ray.credit.statistics import standardise_scalars
from capo_ray.types import Group, GroupCredit


def mig(group: Group, config: MigConfig, progress: float = 0.0) -> GroupCredit:
    """The credit of a group whose valid members all have `answer_logprobs` [K+1]."""
    weights = r.response_weights(group)
    gains = [
        math.fsum(watermark_gains(r.require(m.evidence.answer_logprobs, len(m.steps) + 1, "answer_logprobs", "mig")))
        if w
        else 0.0
        for m, w in zip(group.members, weights, strict=True)
    ]
    outcomes = r.outcome_rewards(group)
    spread_gains = standardise_scalars(gains, weights, r.NOISE_NATS)
    pairs = zip(standardise_scalars(outcomes, weights), spread_gains, strict=True)
    shares = [[1.0] * (len(m.steps) - 1) + [0.0] * bool(m.steps) for m in group.members]
    spread = [r.spread_over_tokens(m.steps, share) for m, share in zip(group.members, shares, strict=True)]
    advantages = [
        row.map(lambda x, o=outcome, g=gain: o + config.w_gain * g * x)  # type: ignore[misc]
        for (outcome, gain), row in zip(pairs, spread, strict=True)
    ]
    rewards = [
        row.map(lambda x, o=outcome, g=gain: o + config.w_gain * g * x)  # type: ignore[misc]
        for outcome, gain, row in zip(outcomes, gains, spread, strict=True)
    ]
    credit = r.to_group_credit(group, advantages, rewards)
    if not config.w_sft:
        return credit
    gates = [
        config.w_sft * (w * outcome > 0 and gain > r.NOISE_NATS)
        for w, outcome, gain in zip(weights, outcomes, gains, strict=True)
    ]
    return replace(credit, imitation_weights=tuple(r.spread_over_responses(group, gates)))


def watermark_gains(scores: Sequence[float]) -> list[float]:
    """[K]: how far each step lifts the answer's logprob above its highest so far; 0 where it does not."""
    highest, gains = scores[0], []
    for score in scores[1:]:
        gains.append(max(0.0, score - highest))
        highest = max(highest, score)
    return gains
