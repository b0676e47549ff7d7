r"""EAPO: what a response quotes as evidence is credited apart from how it reasons (after arXiv 2601.10306).

    f_i   1 where the response has one evidence block, and each sentence in it is one of the context's; else 0
    e_i   what the quotes are worth, in [0, 1]:    exp(mean logprob of the answer | question, quoted sentences alone)
                                                   or the share of critiques that do not flag the block
                                                   or sigmoid(sum of the block's token rewards), of a reward model
    A_t   z(r + w_format f)                        on all tokens
          + w_evidence z(e f)                      on those of the evidence block, the first step

*All formulas are ours*: of the paper's only the idea could be read, that evidence comes first and is rewarded by group.
z is over the valid siblings, 0 where all are equal (e of the likelihood: up to `NOISE_NATS`). Reasoning never sees e. A
response without a block has e f = 0 on its first step. Below the quorum of critiques a response is in no mean of e f.
The paper also trains its scorer on responses whose evidence and outcome agree: that is the third, `scorer=learned`
(`learners.reward_batch.consistent`).
"""

from __future__ import annotations

import math

from capo_ray.arrays import Runs
from capo_ray.config.credit import Critiques, EvidenceScore, TokenRewards
from capo_ray.config.credit.context import EapoConfig
from capo_ray.credit import rows as r
from capo_ray.credit.statistics import standardise_scalars
from capo_ray.steps.quotes import quoted, read_context
from capo_ray.types import Group, GroupCredit, Judged
from capo_ray.votes import step_weights


def eapo(group: Group, config: EapoConfig, progress: float = 0.0) -> GroupCredit:
    """The credit of a group whose question has a context, and whose steps begin with the evidence block."""
    sentences, _ = read_context(group.problem.prompt)
    if not sentences:
        raise r.EvidenceError(
            "credit=eapo reads the numbered sentences before a question ([1] …, a line each): expected at least one, "
            f"got {group.problem.prompt[:60]!r}"
        )
    valid = r.response_weights(group)
    in_format = [float(quoted(m.trajectory.response.text, sentences) is not None) for m in group.members]
    rewards = [o + config.w_format * f for o, f in zip(r.outcome_rewards(group), in_format, strict=True)]
    whole = standardise_scalars(rewards, valid)
    worths = [
        worth_of(member, config) if w and config.w_evidence else None
        for member, w in zip(group.members, valid, strict=True)
    ]
    scores = [(e or 0.0) * f for e, f in zip(worths, in_format, strict=True)]
    heard = [float(e is not None) for e in worths]
    noise = r.NOISE_NATS if config.asked(EvidenceScore) else 0.0
    beside = standardise_scalars(scores, heard, noise)
    first = [config.w_evidence * z for z in beside]
    return r.to_group_credit(
        group,
        [_spread(*row) for row in zip(group.members, whole, first, strict=True)],
        [
            _spread(member, reward, config.w_evidence * score)
            for member, reward, score in zip(group.members, rewards, scores, strict=True)
        ],
        [
            _blame(member, e if config.asked(Critiques) else None)
            for member, e in zip(group.members, worths, strict=True)
        ],
    )


def _blame(member: Judged, worth: float | None) -> list[float]:
    """[K]: how wrong critics hold the block to be; the other steps are not asked about."""
    return [1.0 - worth if worth is not None and k == 0 else 0.0 for k in range(len(member.steps))]


def worth_of(member: Judged, config: EapoConfig) -> float | None:
    """e of one response; None where too few critics could be understood."""
    if config.asked(Critiques):
        flags = r.valid_flags(member)
        if len(flags) < config.quorum or not member.steps:
            return None
        return 1.0 - step_weights(flags, len(member.steps), "average")[0]
    if config.asked(TokenRewards):
        rewards = r.require(member.evidence.token_rewards, member.num_tokens, "token_rewards", "eapo")
        start, end = member.steps[0] if member.steps else (0, 0)
        return 1.0 / (1.0 + math.exp(-math.fsum(rewards[start:end])))
    score = member.evidence.more.get(EvidenceScore.name)
    if not isinstance(score, int | float) or not math.isfinite(score):
        raise r.EvidenceError(f"credit=eapo reads evidence_score: expected a finite number, got {score!r}")
    return float(score)


def _spread(member: Judged, everywhere: float, first: float) -> Runs:
    """[T]: one number for all tokens, and one that is added on those of the first step."""
    return r.spread_over_tokens(member.steps, [everywhere + first * (k == 0) for k in range(len(member.steps))])
