"""PRIME: implicit token rewards summed to the end, each part with its leave-one-out baseline (arXiv 2502.01456, eq. 5).

    form=paper   A_t = sum over s >= t of (r_s - mean of the others' mean token reward) + (outcome, leave-one-out)
    form=code    A_t = sum over s >= t of (n r'_s - S) / (n - 1) + (outcome, leave-one-out)
                 r' = r / max |sum over s >= t of r|      S: sum of the n means of r' of all responses, own included

r_s = beta (log pi_phi - log pi_ref) comes as `token_rewards` [T] from a model that someone else trains. Both forms are
then standardised over the batch (`credit.whiten`). verl's copy of the authors' program weighs both parts by 5, which
that takes out again (their own neither); it takes the largest return of the batch, ours of the group. It also draws 4
times the prompts and keeps those with a pass rate of .2 to .8, and has no KL (the preset's loss.kl_coef=0).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

from capo_ray.config.credit import PrimeConfig
from capo_ray.credit import rows as r
from capo_ray.credit.statistics import leave_one_out_scalars
from capo_ray.types import Group, GroupCredit

_SMALLEST_RETURN = 1e-6  # added to the largest return, as in the authors' program


def prime(group: Group, config: PrimeConfig, progress: float = 0.0) -> GroupCredit:
    """The credit of a group whose valid members all have `token_rewards` [T]."""
    weights = [w if m.num_tokens else 0.0 for w, m in zip(r.response_weights(group), group.members, strict=True)]
    rewards = [
        list(r.require(m.evidence.token_rewards, m.num_tokens, "token_rewards", "prime")) if w else [0.0] * m.num_tokens
        for m, w in zip(group.members, weights, strict=True)
    ]
    centred = _centre_by_paper(rewards, weights) if config.form == "paper" else _centre_by_code(rewards, weights)
    outcomes = r.outcome_rewards(group)
    outcome_advantages = leave_one_out_scalars(outcomes, r.response_weights(group))
    advantages = [[outcome + x for x in _to_go(row)] for outcome, row in zip(outcome_advantages, centred, strict=True)]
    totals = [[outcome + x for x in row] for outcome, row in zip(outcomes, rewards, strict=True)]
    return r.to_group_credit(group, advantages, totals)


def _centre_by_paper(rewards: Sequence[Sequence[float]], weights: Sequence[float]) -> list[list[float]]:
    """[G][T]: each reward less the mean of the others' means; zeros where there is no other."""
    # x - mean of others = shifted x, so the baseline is x minus it; without a sibling there is no process part.
    means = [_mean(row) for row in rewards]
    shifted = leave_one_out_scalars(means, weights)
    alone = sum(map(bool, weights)) < 2
    return [
        [0.0 if alone else x - (own - shift) for x in row]
        for row, own, shift in zip(rewards, means, shifted, strict=True)
    ]


def _centre_by_code(rewards: Sequence[Sequence[float]], weights: Sequence[float]) -> list[list[float]]:
    """[G][T]: (n r' - S) / (n - 1) for the rows with weight; zeros where there is no other or all rewards are equal."""
    used = [row for row, w in zip(rewards, weights, strict=True) if w]
    count = len(used)
    if count < 2 or len({x for row in used for x in row}) == 1:
        return [[0.0] * len(row) for row in rewards]
    largest = max(abs(x) for row in used for x in _to_go(row)) + _SMALLEST_RETURN
    scaled = [[x / largest for x in row] for row in rewards]
    total = math.fsum(_mean(row) for row, w in zip(scaled, weights, strict=True) if w)
    return [
        [(count * x - total) / (count - 1) if w else 0.0 for x in row] for row, w in zip(scaled, weights, strict=True)
    ]


def _mean(row: Sequence[float]) -> float:
    """The mean; of equal rewards exactly that reward: rounded, it would leave credit in a group without any."""
    return row[0] if len(set(row)) == 1 else math.fsum(row) / max(1, len(row))


def _to_go(row: Sequence[float]) -> list[float]:
    """[T]: sums from each token to the last."""
    return list(accumulate(reversed(row)))[::-1]
