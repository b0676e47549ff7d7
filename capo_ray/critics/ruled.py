"""A critic beside a rule: every critique flags also what the rule sees to be wrong, which needs no model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from capo_ray.critics.canary import JudgeWithStats
from capo_ray.protocols import JudgeRequest
from capo_ray.types import Critique, Problem

Rule = Callable[[Problem, Sequence[str]], frozenset[int]]
"""The 0-based steps of a response that are wrong whatever a critic says."""


class RuledJudge:
    """`protocols.Judge`: the critiques of another judge, each with the rule's steps flagged as well.

    The rule says the same to every vote, so a vote that the other judge holds decided stays so. What it flags is
    flagged where a critique cannot be read as well: or a policy learns to write what the critic cannot judge.
    """

    def __init__(self, judge: JudgeWithStats, rule: Rule) -> None:
        self._judge, self._rule = judge, rule

    async def critique(
        self, problem: Problem, responses: Sequence[JudgeRequest], num_votes: int
    ) -> tuple[tuple[Critique, ...], ...]:
        """As the other judge's."""
        critiques = await self._judge.critique(problem, responses, num_votes)
        return tuple(
            tuple(_with(critique, self._rule(problem, response.steps)) for critique in row)
            for row, response in zip(critiques, responses, strict=True)
        )

    def stats(self) -> dict[str, float]:
        """The other judge's figures."""
        return self._judge.stats()


def _with(critique: Critique, wrong: frozenset[int]) -> Critique:
    if not wrong:
        return critique
    return replace(critique, flagged=(critique.flagged or frozenset()) | wrong, overall=False)
