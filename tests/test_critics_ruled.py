"""A critic beside a rule that sees without arithmetic which steps were not asked for."""

from __future__ import annotations

import asyncio

import pytest

from capo_ray.config import TrainConfig
from capo_ray.critics import RuledJudge
from capo_ray.critics.canary import JudgeWithStats
from capo_ray.place import judging
from capo_ray.problems import unasked_steps
from capo_ray.protocols import JudgeRequest
from capo_ray.types import Critique, Problem, Provenance

CHAIN = Problem("p", "7*8+5-3", "8")


class Other:
    """Three votes on anything: a flag, none, and one that cannot be read."""

    said: tuple[frozenset[int] | None, ...] = (frozenset({0}), frozenset(), None)

    async def critique(
        self, problem: Problem, responses: list[JudgeRequest], num_votes: int
    ) -> tuple[tuple[Critique, ...], ...]:
        row = [
            Critique(f, None if f is None else not f, "", "", Provenance("", "", i)) for i, f in enumerate(self.said)
        ]
        return tuple(tuple(row) for _ in responses)

    def stats(self) -> dict[str, float]:
        return {"critic/votes_per_response": 3.0}


class Unread(Other):
    """Votes none of which can be read."""

    said = (None, None)


def critiques(judge: JudgeWithStats, *steps: str) -> list[tuple[frozenset[int] | None, bool | None]]:
    (row,) = asyncio.run(judge.critique(CHAIN, [JudgeRequest(steps)], 3))
    return [(critique.flagged, critique.overall) for critique in row]


def test_every_critique_flags_what_was_not_asked_for() -> None:
    judge = RuledJudge(Other(), unasked_steps)
    misread = ("7*8=6\n\n", "6*5=0\n\n", "0-3=7\n\n", "\\boxed{7}")
    assert critiques(judge, *misread) == [({0, 1}, False), ({1}, False), (None, None)]
    asked = ("7*8=6\n\n", "6+5=4\n\n", "4-3=1\n\n", "\\boxed{1}")
    assert critiques(judge, *asked) == [({0}, False), (set(), True), (None, None)], "results are the critic's to judge"
    assert judge.stats() == {"critic/votes_per_response": 3.0}


def test_a_response_of_which_nothing_can_be_read_is_flagged_by_the_rule_alone() -> None:
    judge = RuledJudge(Unread(), unasked_steps)
    assert critiques(judge, "7*8=6\n\n", "6*5=0\n\n", "0-3=7\n\n", "\\boxed{7}") == [({1}, False)] * 2
    assert critiques(judge, "7*8=6\n\n", "6+5=1\n\n", "1-3=8\n\n", "\\boxed{8}") == [(None, None)] * 2


@pytest.mark.parametrize("flags", [False, True])
def test_the_rule_stands_beside_the_critic_where_the_run_says_so(flags: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "build_judge", lambda *_, **__: Other())
    critic = TrainConfig().critic.model_copy(update={"flag_unasked": flags})
    judge = judging.judge_on(None, critic, "majority", 1, None)
    assert critiques(judge, "7+8=5", "5+5=0", "0-3=7", "\\boxed{7}")[1] == ({0} if flags else set(), not flags)
