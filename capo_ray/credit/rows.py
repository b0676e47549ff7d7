"""From a judged group to rows of numbers, and from rows to `GroupCredit`: what all credit rules share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from capo_ray.arrays import FloatArray, Runs
from capo_ray.types import Group, GroupCredit, Judged, Span

Weighting = Literal["token", "trajectory"]

NOISE_NATS = 1e-5
"""Answer logprobs of steps or siblings that deviate by no more do not differ (our choice): a policy that is sure of the
answer from the start scores it by float32's rounding, which a z-score would blow up to whole units."""


class EvidenceError(ValueError):
    """A response lacks the evidence that its credit rule needs, or has it in another shape."""


def included(group: Group) -> list[bool]:
    """[G]: whether the verdict is valid; the others are left out of every mean and get zeros."""
    return [member.verdict.reward is not None for member in group.members]


def row_weights(group: Group, weighting: Weighting) -> list[float]:
    """[G]: weight of each token of a response in the group's statistics, 0 for invalid ones.

    `token`: every token counts the same. `trajectory`: every response counts the same (1/T per token).
    """
    return [
        0.0 if not ok or not member.num_tokens else 1.0 if weighting == "token" else 1.0 / member.num_tokens
        for ok, member in zip(included(group), group.members, strict=True)
    ]


def outcome_rewards(group: Group) -> list[float]:
    """[G]: the verdict's reward; 0.0 stands in for an invalid one, which has no weight anywhere."""
    return [float(member.verdict.reward or 0) for member in group.members]


def format_rewards(group: Group, w_format: float) -> list[float]:
    """[G]: `w_format` for each response from which an answer could be extracted, else 0."""
    return [w_format if member.verdict.extracted is not None else 0.0 for member in group.members]


def spread_over_tokens(steps: Sequence[Span], per_step: Sequence[float]) -> Runs:
    """[T]: each token gets the number of its step."""
    return Runs.over(steps, per_step)


def spread_over_responses(group: Group, per_response: Sequence[float]) -> list[Runs]:
    """[G][T]: each token gets the number of its response."""
    return [Runs.constant(x, member.num_tokens) for x, member in zip(per_response, group.members, strict=True)]


def response_weights(group: Group) -> list[float]:
    """[G]: 1 for a response with a valid verdict, 0 otherwise: the weights of statistics over responses."""
    return [float(ok) for ok in included(group)]


def require(values: Sequence[float] | FloatArray, count: int, name: str, method: str) -> list[float]:
    """`values` as Python numbers; raises `EvidenceError` unless there are `count` of them, all finite."""
    values = values.tolist() if isinstance(values, np.ndarray) else list(values)
    if len(values) != count:
        raise EvidenceError(f"credit={method} reads {name}: expected {count} numbers, got {len(values)}")
    if not all(map(math.isfinite, values)):
        raise EvidenceError(f"credit={method} reads {name}: expected finite numbers, got {values}")
    return values


def valid_flags(member: Judged) -> list[frozenset[int]]:
    """The flagged steps of the valid critiques of a response, in vote order."""
    return [critique.flagged for critique in member.evidence.critiques if critique.flagged is not None]


def to_outcome_credit(group: Group, advantages: Sequence[float], rewards: Sequence[float]) -> GroupCredit:
    """The credit of a group in which every token has its response's advantage and reward."""
    return to_group_credit(group, spread_over_responses(group, advantages), spread_over_responses(group, rewards))


def to_group_credit(
    group: Group,
    advantages: Sequence[Sequence[float]],
    token_rewards: Sequence[Sequence[float]],
    step_weights: Sequence[Sequence[float]] | None = None,
) -> GroupCredit:
    """The credit of a group, invalid members zeroed; without `step_weights` no step is held wrong."""
    ok = included(group)
    weights = step_weights if step_weights is not None else [[0.0] * len(member.steps) for member in group.members]

    def kept(rows: Sequence[Sequence[float]]) -> tuple[Runs, ...]:
        return tuple(Runs.of(row) if use else Runs.constant(0.0, len(row)) for use, row in zip(ok, rows, strict=True))

    return GroupCredit(
        advantages=kept(advantages),
        token_rewards=kept(token_rewards),
        step_weights=tuple(tuple(row) if use else (0.0,) * len(row) for use, row in zip(ok, weights, strict=True)),
        valid_critiques=tuple(len(valid_flags(member)) for member in group.members),
        included=tuple(ok),
    )
