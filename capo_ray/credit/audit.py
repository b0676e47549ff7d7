"""What a group's credit did: the figures to read before believing in a method."""

from __future__ import annotations

import math

from capo_ray.credit.rows import spread_over_tokens
from capo_ray.credit.statistics import correlation
from capo_ray.types import Group, GroupCredit, Judged


def audit(group: Group, credit: GroupCredit) -> dict[str, float]:
    """Figures named `credit/...`; one that is not defined for this group (a correlation of constants) is absent.

    `_frac` figures are shares of the tokens of valid responses unless they say otherwise.
    """
    rows = [
        (member, advantages, weights)
        for member, advantages, weights, ok in zip(
            group.members, credit.advantages, credit.step_weights, credit.included, strict=True
        )
        if ok and member.num_tokens
    ]
    figures = {"credit/invalid_frac": 1.0 - sum(credit.included) / max(1, len(credit.included))}
    figures.update(_signal(group, credit))
    if not rows:
        return figures
    tokens = [
        (a, w, 1.0 if member.verdict.reward else -1.0)
        for member, advantages, weights in rows
        for a, w in zip(advantages, spread_over_tokens(member.steps, weights), strict=True)
    ]
    figures.update(_token_figures(tokens))
    figures.update(_correlations(rows))
    if credit.imitation_weights:
        imitated = [any(row) for row, ok in zip(credit.imitation_weights, credit.included, strict=True) if ok]
        figures["credit/imitated_frac"] = sum(imitated) / len(imitated)
    logprobs = [lp for member, _, _ in rows for lp in member.trajectory.response.logprobs]
    # The mean surprisal of sampled tokens is the entropy of the sampler, estimated from its own samples.
    figures["credit/sampler_entropy_nats"] = -math.fsum(logprobs) / len(logprobs)
    critiqued = [member for member, _, _ in rows if member.evidence.critiques]
    if critiqued:
        counts = [len(member.evidence.critiques) for member in critiqued]
        valid = [sum(critique.valid for critique in member.evidence.critiques) for member in critiqued]
        figures["credit/valid_critiques_frac"] = sum(valid) / sum(counts)
        figures["credit/no_valid_critique_frac"] = sum(v == 0 for v in valid) / len(valid)
    return figures


def _signal(group: Group, credit: GroupCredit) -> dict[str, float]:
    """Whether the outcomes of a group differ, and whether it has credit although they do not."""
    outcomes = {member.verdict.reward for member in group.members if member.verdict.valid}
    differ = len(outcomes) > 1
    return {
        "credit/outcome_signal_frac": float(differ),
        "credit/saved_by_process_frac": float(credit.has_signal and not differ),
    }


def _token_figures(tokens: list[tuple[float, float, float]]) -> dict[str, float]:
    """Shares over (advantage, step weight, +1 right / -1 wrong) of each token."""
    count = len(tokens)
    mass = math.fsum(abs(a) for a, _, _ in tokens)
    wrong = [a for a, _, sign in tokens if sign < 0]
    figures = {
        "credit/sign_flip_frac": sum(a * sign < 0 for a, _, sign in tokens) / count,
        "credit/flagged_frac": math.fsum(w for _, w, _ in tokens) / count,
        "credit/advantage_abs_mean": mass / count,
    }
    if mass > 0:
        figures["credit/penalty_mass_frac"] = math.fsum(-a for a, w, _ in tokens if w > 0 and a < 0) / mass
    if wrong:
        figures["credit/positive_on_wrong_frac"] = sum(a > 0 for a in wrong) / len(wrong)
    return figures


def _correlations(rows: list[tuple[Judged, tuple[float, ...], tuple[float, ...]]]) -> dict[str, float]:
    """Over responses: mean advantage against length and against step count, where both vary."""
    means = [math.fsum(advantages) / len(advantages) for _, advantages, _ in rows]
    pairs = {
        "credit/length_corr": correlation(means, [float(member.num_tokens) for member, _, _ in rows]),
        "credit/num_steps_corr": correlation(means, [float(len(member.steps)) for member, _, _ in rows]),
    }
    return {name: value for name, value in pairs.items() if value is not None}
