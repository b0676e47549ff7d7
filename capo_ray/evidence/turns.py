"""What the environment said of each turn: with the response already, where one played."""

from __future__ import annotations

from collections.abc import Sequence

from capo_ray.config.credit import Turns
from capo_ray.evidence.lines import LARGEST, ResponseLine
from capo_ray.evidence.source import EvidenceSource
from capo_ray.types import Evidence, Judged, Problem


class TurnSource(EvidenceSource):
    """[state, reward, legal] of each turn."""

    async def gather(self, problem: Problem, members: Sequence[Judged], progress: float) -> Sequence[Evidence]:
        """Nobody is asked: they came with the response."""
        return [
            Evidence(more={Turns.name: [[t.state, t.reward, t.legal] for t in m.trajectory.turns]}) for m in members
        ]

    @classmethod
    def read(cls, line: ResponseLine, asked: Turns | None) -> Evidence:
        """The field `turns` [K]: a list of [state, reward, legal], one for each step."""
        given = line.given(Turns.name, asked)
        if given is None:
            return Evidence()
        count = len(line.steps)
        if not isinstance(given, list) or len(given) != count or not all(map(_is_turn, given)):
            line.refuse(Turns.name, f"a [state, reward, legal] for each of the {count} steps", given)
        return Evidence(more={Turns.name: given})


def _is_turn(item: object) -> bool:
    if not isinstance(item, list) or len(item) != 3:
        return False
    state, reward, legal = item
    number = isinstance(reward, int | float) and not isinstance(reward, bool) and abs(reward) <= LARGEST
    return isinstance(state, str) and number and isinstance(legal, bool)
