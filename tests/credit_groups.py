"""Judged groups made by hand for the credit tests: a response is its reward, its steps' lengths and its evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from capo_ray.types import (
    Completion,
    Critique,
    Evidence,
    Group,
    Judged,
    Problem,
    Provenance,
    Trajectory,
    TrajectoryKey,
    Verdict,
    VersionRun,
)

QUESTION = "[1] a\n[2] b\n1+1"


@dataclass(frozen=True)
class Member:
    """One response: `flags` holds one entry per critique, None for an invalid one."""

    reward: int | None
    lengths: Sequence[int]
    flags: Sequence[Sequence[int] | None] = ()
    overall: Sequence[bool | None] = ()
    extracted: str | None = "1"
    answer_logprobs: Sequence[float] = ()
    step_values: Sequence[float] = ()
    token_rewards: Sequence[float] = ()
    hint_gains: Sequence[float] = ()
    turns: Sequence[tuple[str, float, bool]] = ()
    evidence_score: float | None = None
    text: str = ""
    logprob: float = -0.5
    finish: str = "stop"


def judged(member: Member, sample: int = 0) -> Judged:
    """A member with tokens of one character each, the first of which has what `text` is longer."""
    count = sum(member.lengths)
    ends = [0]
    for length in member.lengths:
        ends.append(ends[-1] + length)
    text = member.text or "x" * count
    response = Completion(
        token_ids=tuple(range(count)),
        logprobs=(member.logprob,) * count,
        char_ends=tuple(range(len(text) - count + 1, len(text) + 1)),
        text=text,
        versions=(VersionRun(0, count),),
        finish=member.finish,  # type: ignore[arg-type]
    )
    overall = member.overall or (None,) * len(member.flags)
    critiques = tuple(
        Critique(
            flagged=None if flag is None else frozenset(flag),
            overall=word,
            text="",
            reason="",
            provenance=Provenance("critic", "", vote),
        )
        for vote, (flag, word) in enumerate(zip(member.flags, overall, strict=True))
    )
    more: dict[str, object] = {"turns": [list(turn) for turn in member.turns]} if member.turns else {}
    if member.evidence_score is not None:
        more["evidence_score"] = member.evidence_score
    evidence = Evidence(
        critiques=critiques,
        answer_logprobs=tuple(member.answer_logprobs),
        step_values=tuple(member.step_values),
        token_rewards=tuple(member.token_rewards),
        hint_gains=np.array(member.hint_gains),
        more=more,
    )
    return Judged(
        trajectory=Trajectory(TrajectoryKey("p", 0, sample), (1, 2), response),
        verdict=Verdict(member.reward, "", member.extracted),
        steps=tuple(pairwise(ends)),
        evidence=evidence,
    )


def group(*members: Member) -> Group:
    """The members as siblings of one problem."""
    return Group(0, Problem("p", QUESTION, "2"), tuple(judged(member, i) for i, member in enumerate(members)))
