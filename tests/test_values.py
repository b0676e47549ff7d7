"""Monte-Carlo step values over a scripted engine: who is asked what, and what comes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from capo_ray.config import TrainConfig
from capo_ray.flow import GroupWay, Parts
from capo_ray.protocols import PartTimeout, Sampling
from capo_ray.types import Completion, Evidence, Judged, Problem, Trajectory, TrajectoryKey, Verdict
from tests.fakes import FakeEngine, FakeTokenizer, FakeVerifier, completion, fake_parts

PROBLEM = Problem("p", "digit 7", "7")
PROMPT = (1, 2)


class ScriptedEngine(FakeEngine):
    """Continues each prefix by the endings that `endings` names for its text."""

    def __init__(self, endings: Callable[[str], Sequence[str]]) -> None:
        super().__init__()
        self.endings = endings
        self.asked: list[tuple[str, Sampling]] = []

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> tuple[Completion, ...]:
        text = "".join(map(chr, prompt_ids[len(PROMPT) :]))
        self.asked.append((text, sampling))
        return tuple(completion(ending) for ending in self.endings(text))


class PickyVerifier(FakeVerifier):
    """Cannot judge an answer of `?`."""

    async def verify(self, answer: str, responses: Sequence[str]) -> tuple[Verdict, ...]:
        verdicts = await super().verify(answer, responses)
        return tuple(
            Verdict(None, "unreadable") if text.endswith("?") else verdict
            for text, verdict in zip(responses, verdicts, strict=True)
        )


def member(text: str, steps: Sequence[tuple[int, int]], sample: int = 0) -> Judged:
    response = completion(text)
    return Judged(
        Trajectory(TrajectoryKey("p", 0, sample), PROMPT, response),
        Verdict(int(text.endswith("7")), ""),
        tuple(steps),
    )


def make_config(num_rollouts: int, limit: int = 20) -> TrainConfig:
    credit = {"method": "vineppo", "rollouts_per_prefix": num_rollouts}
    return TrainConfig.model_validate({"credit": credit, "rollout": {"max_response_tokens": limit}})


def gather(parts: Parts, members: Sequence[Judged]) -> Sequence[Evidence]:
    (source,) = GroupWay(parts).sources
    found = asyncio.run(asyncio.wait_for(source.gather(PROBLEM, members, 0.0), 10))
    assert found is not None
    return found


def estimate(tmp_path: Path, engine: FakeEngine, members: Sequence[Judged], limit: int = 20) -> Sequence[Evidence]:
    parts = fake_parts(tmp_path, make_config(4, limit), engine=engine, verifier=PickyVerifier(), judge=None)
    return gather(parts, members)


def test_the_value_of_a_prefix_is_the_share_of_its_continuations_that_end_right(tmp_path: Path) -> None:
    endings = {"": ["7", "1", "1", "1"], "ab\n\n": ["c7", "7", "7", "1"]}
    engine = ScriptedEngine(endings.__getitem__)
    (found,) = estimate(tmp_path, engine, [member("ab\n\n7", [(0, 4), (4, 6)])])
    assert found.step_values == (0.25, 0.75, 1.0)
    assert found.num_value_tokens == 4 * 2 + 3 + 3 * 2
    assert {text: (s.n, s.max_tokens, s.temperature) for text, s in engine.asked} == {
        "": (4, 20, 1.0),
        "ab\n\n": (4, 16, 1.0),
    }


def test_a_continuation_is_judged_with_the_space_before_its_first_word(tmp_path: Path) -> None:
    class Stripping(FakeTokenizer):
        def decode(self, token_ids: Sequence[int]) -> str:
            return super().decode(token_ids).removeprefix(" ")

    class Continuing(FakeEngine):
        async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> tuple[Completion, ...]:
            spoken = completion(" is 7")  # as an engine gives it: the tokens hold the space, their own text does not
            return (replace(spoken, text="is 7", char_ends=(0, *(end - 1 for end in spoken.char_ends[1:]))),)

    class Reading(FakeVerifier):
        async def verify(self, answer: str, responses: Sequence[str]) -> tuple[Verdict, ...]:
            read.extend(responses)
            return await super().verify(answer, responses)

    read: list[str] = []
    fakes = {"engine": Continuing(), "verifier": Reading(), "tokenizer": Stripping(), "judge": None}
    parts = fake_parts(tmp_path, make_config(1), **fakes)
    gather(parts, [member("a. b 7", [(0, 4), (4, 7)])])
    assert sorted(read) == ["a. b is 7", "is 7"]


def test_equal_prefixes_of_siblings_are_continued_once(tmp_path: Path) -> None:
    engine = ScriptedEngine(lambda text: ["7"] * 4)
    members = [member("a\n\n7", [(0, 3), (3, 5)], 0), member("a\n\n1", [(0, 3), (3, 5)], 1)]
    first, second = estimate(tmp_path, engine, members)
    assert sorted(text for text, _ in engine.asked) == ["", "a\n\n"]
    assert (first.step_values, second.step_values) == ((1.0, 1.0, 1.0), (1.0, 1.0, 0.0))
    assert (first.num_value_tokens, second.num_value_tokens) == (16, 0)


def test_invalid_verdicts_are_left_out_and_an_unknown_value_is_no_change(tmp_path: Path) -> None:
    endings = {"": ["7", "?", "1", "?"], "ab\n\n": ["?"] * 4}
    (found,) = estimate(tmp_path, ScriptedEngine(endings.__getitem__), [member("ab\n\n1", [(0, 4), (4, 6)])])
    assert found.step_values == (0.5, 0.5, 0.0)


def test_a_prefix_without_room_for_another_token_is_worth_its_outcome(tmp_path: Path) -> None:
    engine = ScriptedEngine(lambda text: ["1"] * 4)
    (found,) = estimate(tmp_path, engine, [member("ab\n\n7", [(0, 4), (4, 6)])], limit=4)
    assert found.step_values == (0.0, 1.0, 1.0)
    assert [text for text, _ in engine.asked] == [""]


def test_a_lost_continuation_ends_the_others(tmp_path: Path) -> None:
    ended: list[str] = []

    class Losing(FakeEngine):
        async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> tuple[Completion, ...]:
            if len(prompt_ids) == len(PROMPT):
                raise PartTimeout("rollout worker 0 (generate) did not answer within 1 s")
            try:
                await asyncio.sleep(5)
            finally:
                ended.append("cancelled")
            return ()

    with pytest.raises(PartTimeout):
        estimate(tmp_path, Losing(), [member("ab\n\n7", [(0, 4), (4, 6)])])
    assert ended == ["cancelled"]
