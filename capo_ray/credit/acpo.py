"""ACPO: steps weighed by what they add to the answer's likelihood; the outcome alone fixes the sign.

    I_k = l_k - l_(k-1)                       l_k: mean logprob of the reference answer after k steps
    c_k = clip(1 + beta z(I_k), 0.1, 2), rescaled so that sum_k |s_k| c_k = T
    R_t = r c_step(t);  A_t = (R_t - mean) / std of the outcomes, never across the sign of the response's own advantage
    stage 1: entropy bonus on the steps of the largest c_k

This is our own definition: only the abstract of arXiv 2510.08899 could be read, which names a factorised reward, an
attribution by mutual information and two stages but gives no formula that we know of. z is taken over the steps of one
response, and is 0 where they deviate by no more than `rows.NOISE_NATS`. A wrong answer has R_t = 0 everywhere, so its
blame is even: a step that made the right answer likelier must not be blamed more for it. From `stage2_from` on, R is
multiplied by 1 + kappa (p - mean p of the group), p = exp(l_K) being the likelihood per token of the reference answer
after the whole response; the entropy bonus ends there, and KL to the policy of that moment begins
(`AcpoConfig.reference_from`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from capo_ray.config.credit import AcpoConfig
from capo_ray.credit import rows as r
from capo_ray.credit.statistics import centre_scalars, mean, standardise_scalars, std
from capo_ray.types import Group, GroupCredit, Judged, Span

LOWEST, HIGHEST = 0.1, 2.0


def acpo(group: Group, config: AcpoConfig, progress: float = 0.0) -> GroupCredit:
    """The credit of a group whose valid members all have `answer_logprobs` [K+1]."""
    weights = r.response_weights(group)
    plain = r.outcome_rewards(group)
    signs = centre_scalars(plain, weights)
    outcomes = [o * c for o, c in zip(plain, confidences(group, config, progress), strict=True)]
    factors = [
        weigh_steps(m, config) if w else [0.0] * len(m.steps) for m, w in zip(group.members, weights, strict=True)
    ]
    rewards = [
        r.spread_over_tokens(member.steps, [outcome * c for c in row])
        for outcome, member, row in zip(outcomes, group.members, factors, strict=True)
    ]
    scalars = [[outcome] for outcome in outcomes]
    centre, scale = mean(scalars, weights), std(scalars, weights)
    advantages = [
        row.map(lambda x, sign=sign: _same_sign(x - centre, sign) / scale if sign else 0.0)  # type: ignore[misc]
        for sign, row in zip(signs, rewards, strict=True)
    ]
    shares = [bonus_shares(row, config, progress) for row in factors]
    bonus = tuple(r.spread_over_tokens(m.steps, row) for m, row in zip(group.members, shares, strict=True))
    return replace(r.to_group_credit(group, advantages, rewards), entropy_weights=bonus)


def bonus_shares(factors: Sequence[float], config: AcpoConfig, progress: float) -> list[float]:
    """[K]: 1 for the ceil(entropy_frac K) steps of the largest c_k (of equal ones the first), else 0; 0 in stage 2."""
    if config.in_stage2(progress):
        return [0.0] * len(factors)
    count = math.ceil(config.entropy_frac * len(factors))
    largest = sorted(range(len(factors)), key=lambda k: (-factors[k], k))[:count]
    return [float(k in largest) for k in range(len(factors))]


def weigh_steps(member: Judged, config: AcpoConfig) -> list[float]:
    """[K]: c_k, of mean 1 over the tokens of the response."""
    scores = r.require(member.evidence.answer_logprobs, len(member.steps) + 1, "answer_logprobs", "acpo")
    gains = [after - before for before, after in pairwise(scores)]
    return factors_of(gains, member.steps, config.beta)


def factors_of(gains: Sequence[float], steps: Sequence[Span], beta: float) -> list[float]:
    """clip(1 + beta z(gain), 0.1, 2) per step, rescaled to mean 1 over the tokens."""
    lengths = [end - start for start, end in steps]
    scores = standardise_scalars(gains, [1.0] * len(gains), r.NOISE_NATS)
    raw = [min(HIGHEST, max(LOWEST, 1.0 + beta * z)) for z in scores]
    total = math.fsum(n * c for n, c in zip(lengths, raw, strict=True))
    return [c * sum(lengths) / total for c in raw]


def confidences(group: Group, config: AcpoConfig, progress: float) -> list[float]:
    """[G]: what stage 2 multiplies each outcome by; 1 in stage 1."""
    weights = r.response_weights(group)
    if not config.in_stage2(progress) or not config.kappa:
        return [1.0] * len(weights)
    likelihoods = [
        math.exp(r.require(m.evidence.answer_logprobs, len(m.steps) + 1, "answer_logprobs", "acpo")[-1]) if w else 0.0
        for m, w in zip(group.members, weights, strict=True)
    ]
    average = mean([[p] for p in likelihoods], weights)
    return [1.0 + config.kappa * (p - average) for p in likelihoods]


def _same_sign(value: float, reference: float) -> float:
    """`value`, or 0 where its sign is not that of `reference`."""
    return value if value * reference > 0 else 0.0
