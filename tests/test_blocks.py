"""Steps of real responses: what stays whole, what is no step of its own, what counts as thinking."""

import asyncio
import dataclasses
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capo_ray.cli.compose import compose_train
from capo_ray.cli.schema import ConfigError
from capo_ray.config.steps import SEGMENTERS, BlankLineSteps
from capo_ray.flow import GroupWay
from capo_ray.protocols import JudgeRequest, Sampling
from capo_ray.steps import check_spans, split_steps, split_text, step_ends, without_thinking
from capo_ray.steps.blocks import block_spans
from capo_ray.types import Completion, Critique, Problem, Trajectory, TrajectoryKey, VersionRun
from tests.examples import examples
from tests.fakes import FakeEngine, FakeJudge, completion, fake_parts
from tests.test_pipeline import make_config
from tests.test_steps import TEXT_CUTS, of_ends


def ends_of(text: str, segmenter: str, whole_blocks: bool = True) -> list[int]:
    return step_ends(text, TEXT_CUTS[segmenter](text), whole_blocks=whole_blocks)


def pieces(text: str, segmenter: str = "blank_line", whole_blocks: bool = True) -> list[str]:
    ends = ends_of(text, segmenter, whole_blocks)
    return [text[a:b] for a, b in pairwise([0, *ends, len(text)])]


@pytest.mark.parametrize(
    ("segmenter", "steps"),
    [
        ("blank_line", ["We write code:\n\n", "```python\ny = 1\n\nprint(y)\n```\n\n", "So 1."]),
        ("blank_line", ["~~~\na\n\n```\n\nb\n~~~\n\n", "So 1."]),
        ("blank_line", ["We have\n\n", "\\[\na = b\n\n= c\n\\]\n\n", "Done."]),
        ("blank_line", ["So $$\na\n\nb\n$$ holds.\n\n", "Done."]),
        ("blank_line", ["\\begin{cases}\na\n\n\\end{cases}\n\n", "Done."]),
        ("blank_line", ["\\begin{proof}\n\n", "Step.\n\n", "\\end{proof}"]),  # holds steps
        ("newline", ["```python\nx=1\ny=2\n```\n", "So 3."]),
        ("newline", ["Thus\n", "\\begin{align*}\na&=1\\\\[2pt]\nb&=2\n\\end{align*}\n", "Done."]),
        ("newline", ["A table:\n", "| a | b |\n|---|---|\n| 1 | 2 |\n", "Done."]),
        ("sentence", ["See \\[x = 1. \\text{ So } y.\\] then stop.", " Done."]),
        ("blank_line", ["1. Let:\n\n   x = 1\n\n", "2. Then:\n\n\ty = 2\n\n", "So 3."]),  # an item's paragraphs
        ("blank_line", ["- a\n\n", "- b\n\n", "So 3."]),  # items are steps
        ("blank_line", ["Let:\n\n", "   x = 1\n\n", "So 3."]),  # indented, but no item
        ("blank_line", ["Stray $$ sign.\n\n", "Open \\[ here.\n\n", "```\n\n", "Done."]),  # never closed
        ("blank_line", ["It costs \\$\\$ 5.\n\n", "And \\$\\$ 6."]),
        ("blank_line", ["Part one.\n\n---\n\n", "Part two."]),
        ("blank_line", ["* * *\n\nPart one.\n\n", "Part two.\n\n***"]),
        ("blank_line", ["Steps:\n\n", "1. Add.\n\n***\n\n", "Done."]),
        ("blank_line", ["# Solution\n\n## Step 1: add\n\n2+2=4\n\n", "**Final Answer**\n\n$$4$$"]),
        ("blank_line", ["### 2+2=4\n\n", "#### 4\n\n", "So."]),  # an equation, and GSM8K's answer
        ("newline", ["Step 1:\n2+2=4\n", "**Step 2:**\n4+1=5"]),
        ("sentence", ["**Step 1.** Add 2.", " Then stop."]),
        ("sentence", ["See e.g. Fig. 3 for it.", " Then Dr. Smith adds 2.5 to 3."]),
        ("sentence", ["By eq. 4 it holds.", " So x = 2 vs. 3 is decided."]),
        ("sentence", ["In the U.S. he says no.", " By Thm. 2, see No. 5, etc. and so on.", " It ends at B.", " Ok."]),
        ("sentence", ["Thus $x=5.$", " Then $y=6.$", " Done."]),
        ("sentence", ["We get **x=5.**", " Then \\(y=6.\\)", " So $z=7.$ and stop."]),
        ("blank_line", ["First.\r\r", "Second.\r\n\r\n", "Third.\u2028 \u2028", "Fourth.\r\nStill."]),
        ("newline", ["First.\r", "Second.\r\n", "Third.\u2028", "Fourth."]),
    ],
)  # fmt: skip
def test_steps_of_real_responses(segmenter: str, steps: list[str]) -> None:
    assert pieces("".join(steps), segmenter) == steps


def test_the_papers_cut_stays_by_key() -> None:
    text = "# A\n\n\\[\na\n\n= c\n\\]\n\n---\n\nDone."
    assert pieces(text, whole_blocks=False) == ["# A\n\n", "\\[\na\n\n", "= c\n\\]\n\n", "---\n\n", "Done."]
    assert split_text(text, BlankLineSteps(whole_blocks=False))[1] == "\\[\na\n\n"
    assert compose_train(["credit=capo_paper"]).steps.whole_blocks is False
    assert compose_train([]).steps.whole_blocks is True


MARKS = ["```", "~~~", "$$", "\\[", "\\]", "\\begin{align}", "\\end{align}", "a", "|", "---", "#"]
PARTS = st.lists(
    st.sampled_from([*MARKS, "\n\n", "\n", "\r\n", " "]),
    max_size=24,
)


@settings(max_examples=examples(300))
@given(PARTS, st.sampled_from(["blank_line", "newline", "sentence"]), st.integers(1, 4))
def test_steps_of_any_blocks_tile_and_cut_none(parts: Sequence[str], segmenter: str, width: int) -> None:
    text = "".join(parts)
    ends = ends_of(text, segmenter)
    assert ends == sorted(set(ends)) and all(0 < end < len(text) for end in ends)
    assert not any(start < end < stop for end in ends for start, stop in block_spans(text))
    if text.strip():
        assert all(piece.strip() for piece in pieces(text, segmenter))
    response = of_ends(text, [*range(width, len(text), width), len(text)] if text else [])
    check_spans(split_steps(response, SEGMENTERS[segmenter]()), len(response.token_ids))


@pytest.mark.slow
@pytest.mark.parametrize(
    "unit",
    ["$$", "\\[", "```\n", "```x\n", "~~~a\n", "\\begin{align}", "\\end{align}", "\\[\\begin{array}", "| a\n", "\r",
     "\r\n", "- a\n\n  b\n\n", "**a** ", "# a\n\n", "---\n\n", "\n\n", "e.g. ", "x.$ ", "|", "\\", "`"],
)  # fmt: skip
@pytest.mark.parametrize("segmenter", ["blank_line", "newline", "sentence"])
def test_hostile_blocks_take_linear_time(segmenter: str, unit: str) -> None:
    text = unit * (200_000 // len(unit))
    started = time.process_time()
    ends_of(text, segmenter)
    assert time.process_time() - started < 2.0


THOUGHT = "<think>\n2+2 is 5, no, 4.\n\nSure.\n</think>\n\nIt is 4.\n\n\\boxed{4}"


def path_of(response: Completion) -> Trajectory:
    return Trajectory(TrajectoryKey("p", 0, 0), (7, 8), response)


def test_thinking_that_is_left_out_becomes_prompt() -> None:
    response = dataclasses.replace(completion(THOUGHT), versions=(VersionRun(0, 10), VersionRun(1, len(THOUGHT) + 1)))
    whole, rest = path_of(response), without_thinking(path_of(response))
    assert rest.response.text == "\n\nIt is 4.\n\n\\boxed{4}"
    assert rest.token_ids.tolist() == whole.token_ids.tolist()
    count = len(rest.response.token_ids)
    assert [len(rest.response.logprobs), len(rest.response.char_ends)] == [count, count]
    assert rest.response.versions == (VersionRun(1, count),)
    assert len(split_steps(rest.response)) == 2 and len(split_steps(response)) == 4
    assert (rest.question_tokens, whole.question_tokens) == (2, 2) and len(rest.prompt_ids) > 2


@pytest.mark.parametrize("text", ["no thinking", "<think>never closed", "<think>all</think>\n ", ""])
def test_without_an_answer_behind_thinking_the_response_stays_whole(text: str) -> None:
    assert without_thinking(path_of(completion(text))) == path_of(completion(text))


@pytest.mark.parametrize("thinking", ["train", "leave_out"])
def test_the_critic_and_the_learner_see_what_the_key_says(thinking: str, tmp_path: Path) -> None:
    class Thinker(FakeEngine):
        async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> tuple[Completion, ...]:
            return (completion("<think>x\n\ny</think>z\n\n7"),) * sampling.n

    class Listening(FakeJudge):
        async def critique(
            self, problem: Problem, responses: Sequence[JudgeRequest], num_votes: int
        ) -> tuple[tuple[Critique, ...], ...]:
            seen.update("".join(request.steps) for request in responses)
            return await super().critique(problem, responses, num_votes)

    seen: set[str] = set()
    config = make_config("capo", steps={"thinking": thinking})
    parts = fake_parts(tmp_path, config, engine=Thinker(), judge=Listening())
    group = asyncio.run(GroupWay(parts).walk(0, Problem("p7", "digit 7", "7"), 0, 0.0))
    shown = {"train": "<think>x\n\ny</think>z\n\n7", "leave_out": "z\n\n7"}[thinking]
    assert seen == {shown}
    assert [len(row) for row in group.credit.advantages] == [len(shown) + 1] * 4
    assert (
        split_text("<think>x\n\ny</think>z", config.steps)[0] == {"train": "<think>x\n\n", "leave_out": "z"}[thinking]
    )


def test_thinking_that_cannot_be_left_out_is_refused() -> None:
    for method in ("vineppo", "rlsd"):
        with pytest.raises(ConfigError, match=r"steps\.thinking must be train"):
            compose_train([f"credit={method}", "steps.thinking=leave_out"])
