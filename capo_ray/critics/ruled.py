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

    The rule says the same to every vote, so a vote that the other judge holds decided stays so. Where no critique of a
    response can be read, what the rule flags is flagged all the same: or a policy learns to write what the critic
    cannot judge. Beside one that can, the others go on to abstain, since they would clear the steps that it flags.
    """

    def __init__(self, judge: JudgeWithStats, rule: Rule) -> None:
        self._judge, self._rule = judge, rule

    async def critique(
        self, problem: Problem, responses: Sequence[JudgeRequest], num_votes: int
    ) -> tuple[tuple[Critique, ...], ...]:
        """As the other judge's."""
        critiques = await self._judge.critique(problem, responses, num_votes)
        return tuple(
            _with(row, self._rule(problem, response.steps)) for row, response in zip(critiques, responses, strict=True)
        )

    def stats(self) -> dict[str, float]:
        """The other judge's figures."""
        return self._judge.stats()


def _with(row: tuple[Critique, ...], wrong: frozenset[int]) -> tuple[Critique, ...]:
    if not wrong:
        return row
    none_valid = not any(critique.valid for critique in row)
    return tuple(
        replace(critique, flagged=(critique.flagged or frozenset()) | wrong, overall=False)
        if critique.valid or none_valid
        else critique
        for critique in row
    )
