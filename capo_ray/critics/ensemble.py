"""Several critics as one: their votes on a response stand side by side, in the order of the critics."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from capo_ray.critics.panel import Panel
from capo_ray.protocols import JudgeRequest
from capo_ray.types import Critique, Problem


class EnsembleJudge:
    """`protocols.Judge`: a first critic with k votes and others that add `extra_votes` each.

    A vote that abstains (a calculator with nothing to check) is left out of the others' way: it is invalid. The first
    critic must not stop early (`early_stop=false`): what is decided among its own votes is open with those of others.
    """

    def __init__(self, first: Panel, others: Sequence[Panel], extra_votes: int = 1) -> None:
        self._first, self._others, self._extra_votes = first, tuple(others), extra_votes

    async def critique(
        self, problem: Problem, responses: Sequence[JudgeRequest], num_votes: int
    ) -> tuple[tuple[Critique, ...], ...]:
        """The critics' votes, renumbered; raises `PartLost` when any of them is lost."""
        asked = [self._first.critique(problem, responses, num_votes)]
        asked += [other.critique(problem, responses, self._extra_votes) for other in self._others]
        answers = await asyncio.gather(*asked)
        return tuple(_renumbered([c for answer in answers for c in answer[i]]) for i in range(len(responses)))

    def stats(self) -> dict[str, float]:
        """The first critic's figures; the others' under their place: `critic_1/…`."""
        out = self._first.stats()
        for place, other in enumerate(self._others, start=1):
            out |= {name.replace("critic/", f"critic_{place}/", 1): x for name, x in other.stats().items()}
        return out


def _renumbered(critiques: Sequence[Critique]) -> tuple[Critique, ...]:
    return tuple(replace(c, provenance=replace(c.provenance, vote_index=index)) for index, c in enumerate(critiques))
