"""PURE: a response is worth its worst step, in place of the sum of its steps (arXiv 2504.15275, min-form).

    r_k  = 1 - 2 w_k                                w_k: how wrong the critics hold step k to be
    r*_k = r_k softmax_k(-r / temperature)          all but the worst steps count for next to nothing
    b    = (the others' sum of r*) / (the others' number of tokens)
    A_t  = (outcome, leave-one-out) + w_process * sum over j >= step(t) of (r*_j - b L_j)      L_j: tokens of step j

The baseline per token and its place before the sum are the authors' code: with steps of one length an all-clean group
comes to exactly 0. Ours: critics in place of the trained reward model; w_process; a group in which every judged step
has the same reward has no process part, where the authors keep what unequal lengths of steps leave of it. A response
without a quorum of critiques has no process part and is in nobody's baseline. The authors also add the KL to the
reward (1e-3) and leave the tokens that separate steps out; here KL is the loss's, with that coefficient in the preset.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

from capo_ray.config.credit import PureConfig
from capo_ray.credit import rows as r
from capo_ray.credit.statistics import leave_one_out_scalars
from capo_ray.types import Group, GroupCredit
from capo_ray.votes import step_weights


def pure(group: Group, config: PureConfig, progress: float = 0.0) -> GroupCredit:
    """The credit of a judged group."""
    weights = r.response_weights(group)
    flagged = [r.valid_flags(member) for member in group.members]
    judged = [
        bool(w and m.steps and len(f) >= config.quorum) for w, f, m in zip(weights, flagged, group.members, strict=True)
    ]
    blame = [
        step_weights(flags if use else [], len(member.steps), config.vote)
        for flags, use, member in zip(flagged, judged, group.members, strict=True)
    ]
    shares = [min_form([1.0 - 2.0 * w for w in row], config.temperature) for row in blame]
    process = _centre(group, blame, shares, judged)
    outcomes = r.outcome_rewards(group)
    outcome_advantages = leave_one_out_scalars(outcomes, weights)
    advantages, rewards = [], []
    for i, member in enumerate(group.members):
        to_go = list(accumulate(reversed(process[i])))[::-1]
        process_part = [outcome_advantages[i] + config.w_process * x for x in to_go]
        advantages.append(r.spread_over_tokens(member.steps, process_part))
        own = [config.w_process * x if judged[i] else 0.0 for x in list(accumulate(reversed(shares[i])))[::-1]]
        rewards.append(r.spread_over_tokens(member.steps, [outcomes[i] + x for x in own]))
    return r.to_group_credit(group, advantages, rewards, blame)


def min_form(rewards: Sequence[float], temperature: float) -> list[float]:
    """[K]: r_k softmax(-r / temperature)_k, which sum to the soft minimum of the rewards."""
    if not rewards:
        return []
    lowest = min(rewards)
    weights = [math.exp((lowest - x) / temperature) for x in rewards]
    total = math.fsum(weights)
    return [x * w / total for x, w in zip(rewards, weights, strict=True)]


def _centre(
    group: Group, blame: Sequence[Sequence[float]], shares: Sequence[Sequence[float]], judged: Sequence[bool]
) -> list[list[float]]:
    """[G][K]: r*_k less the tokens of the step times the others' mean per token; zeros where nothing differs."""
    seen = {w for row, use in zip(blame, judged, strict=True) if use for w in row}
    centred: list[list[float]] = []
    for i, member in enumerate(group.members):
        others = [j for j, use in enumerate(judged) if use and j != i]
        if not judged[i] or not others or len(seen) == 1:
            centred.append([0.0] * len(member.steps))
            continue
        total = math.fsum(x for j in others for x in shares[j])
        baseline = total / sum(group.members[j].num_tokens for j in others)
        centred.append([x - baseline * (end - start) for x, (start, end) in zip(shares[i], member.steps, strict=True)])
    return centred
