"""CAPO: the critics' vote on each step is taken off the outcome reward of its tokens (arXiv 2508.02298).

    R_t = r * W_whole - w_step(t) * W_process (+ w_format)                                              (eq. 1)
    A_t = (R_t - mean) / std over all tokens of all valid responses of the group, population std        (eq. 2)

Our choices, where the paper is silent: population std; abstention of invalid critiques and the quorum; where w_format
enters; the ramp of W_process; a floor under the deviation (`min_std`); every normalisation but `pooled`;
`keep_outcome_sign`.
"""

from __future__ import annotations

from operator import add

from capo_ray.arrays import Runs
from capo_ray.config.credit import CapoConfig
from capo_ray.credit import rows as r
from capo_ray.credit.statistics import leave_one_out, standardise, std
from capo_ray.types import Group, GroupCredit, Judged
from capo_ray.votes import step_weights


def capo(group: Group, config: CapoConfig, progress: float = 0.0) -> GroupCredit:
    """The credit of a judged group; responses with fewer valid critiques than the quorum keep their outcome alone."""
    blame = [weigh_steps(member, config) for member in group.members]
    bonuses = r.format_rewards(group, config.w_format)
    wholes = [reward * config.w_whole for reward in r.outcome_rewards(group)]
    outcome = r.spread_over_responses(group, [whole + bonus for whole, bonus in zip(wholes, bonuses, strict=True)])
    process = [
        r.spread_over_tokens(member.steps, [-config.w_process * w for w in weights])
        for member, weights in zip(group.members, blame, strict=True)
    ]
    share = ramp_share(config, progress)
    advantages = normalise(group, config, outcome, process)
    if share < 1:
        without = normalise(group, config, outcome, [Runs.constant(0.0, len(row)) for row in process])
        advantages = [
            alone.with_each(both, lambda a, b: (1 - share) * a + share * b)
            for alone, both in zip(without, advantages, strict=True)
        ]
    if config.keep_outcome_sign:
        advantages = keep_outcome_sign(group, advantages)
    rewards = [o.with_each(p, lambda own, other: own + share * other) for o, p in zip(outcome, process, strict=True)]
    return r.to_group_credit(group, advantages, rewards, blame)


def weigh_steps(member: Judged, config: CapoConfig) -> tuple[float, ...]:
    """[K]: how wrong each step is held to be; zeros below the quorum."""
    flagged = r.valid_flags(member)
    if len(flagged) < config.quorum:
        return (0.0,) * len(member.steps)
    return step_weights(flagged, len(member.steps), config.vote)


def ramp_share(config: CapoConfig, progress: float) -> float:
    """How much of the process credit counts at this share of the run: 0 to 1 over the first `ramp_frac` of it.

    The credit with and without the process part is mixed, since a small W_process inside eq. 2 is no small credit:
    where outcomes agree, the deviation takes the scale of W_process off.
    """
    return min(1.0, max(0.0, progress) / config.ramp_frac) if config.ramp_frac else 1.0


def normalise(group: Group, config: CapoConfig, outcome: list[Runs], process: list[Runs]) -> list[Runs]:
    """[G][T]: token rewards, outcome and process part, as advantages; zeros where all of them are equal."""
    rewards = [o.with_each(p, add) for o, p in zip(outcome, process, strict=True)]
    weights = r.row_weights(group, config.weighting)
    if config.normalisation == "pooled":
        return standardise(rewards, weights, config.min_std)
    if config.normalisation == "leave_one_out":
        return leave_one_out(rewards, weights)
    # Standardising takes the scale off each part, so the ratio of the two weights is put back on the process part.
    scale = config.w_process / config.w_whole
    parts = zip(
        standardise(outcome, weights, config.min_std), standardise(process, weights, config.min_std), strict=True
    )
    total = [o.with_each(p, lambda own, other: own + scale * other) for o, p in parts]
    return total if std(total, weights) else [Runs.constant(0.0, len(row)) for row in total]


def keep_outcome_sign(group: Group, advantages: list[Runs]) -> list[Runs]:
    """[G][T]: advantages with those set to 0 that would lower a token of a right answer or raise one of a wrong one."""
    return [
        row.map(lambda a: max(a, 0.0)) if member.verdict.reward else row.map(lambda a: min(a, 0.0))
        for member, row in zip(group.members, advantages, strict=True)
    ]
