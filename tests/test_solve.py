"""`capo-ray solve`: what is asked, refused, kept and told; and the shipped policy with the shipped critic."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from capo_ray.cli import main
from capo_ray.cli.compose import compose_train
from capo_ray.cli.schema import ConfigError
from capo_ray.cli.solve import _suites
from capo_ray.cli.solve_settings import compose_solve
from capo_ray.config.evaluation import JudgedServeConfig
from capo_ray.config.search import MajoritySearch, NavigatorSearch
from capo_ray.config.sections import ModelConfig
from capo_ray.config.solve import SolveConfig
from capo_ray.config.steps import DEFAULT_STEPS
from capo_ray.demand import demand
from capo_ray.flow.answering import ResponseFile
from capo_ray.flow.solving import Solve, Solving, solve_figures, unsolved
from capo_ray.problems.chains import make_problem
from capo_ray.protocols import PartLost, RunFailed
from capo_ray.types import Problem
from tests.fakes import FakeTokenizer, FakeVerifier
from tests.test_search import Flagging, Scripted


def test_a_search_is_chosen_with_its_own_keys_and_brings_critics_where_it_asks_them() -> None:
    config = compose_solve(["suite=gsm8k", "search=best_of_n", "search.num_samples=3", "search.vote=greedy"])
    assert (config.search.method, config.search.num_samples, config.vote) == ("best_of_n", 3, "greedy")  # type: ignore[attr-defined]
    serving = config.serving("choice")
    assert isinstance(serving, JudgedServeConfig) and serving.verifier.kind == "choice"
    assert [one.role for one in demand(serving)] == ["rollout", "verifier", "critic"]
    plain = compose_solve(["suite=gsm8k", "search=majority"]).serving()
    assert [one.role for one in demand(plain)] == ["rollout", "verifier"]
    assert compose_solve(["suite=gsm8k"]).search == NavigatorSearch()
    shown = [compose_solve(["suite=gsm8k", *w]).settled_search for w in (["critic=calculator"], ["critic=laptop"])]
    assert shown == [NavigatorSearch(shows="steps"), NavigatorSearch(shows="whole")]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("search=navigatr", "search=navigatr is no choice; did you mean search=navigator? Choices: best_of_n,"),
        ("steps=sentence", "so steps.segmenter must be blank_line or newline (got sentence)"),
        ("steps.thinking=leave_out", "so steps.thinking must be train (got leave_out)"),
        ("search=best_of_n steps=entropy", "must be one that reads the text alone (got entropy)"),
        ("search=majority search.temperature=0", "search.temperature must be > 0 with search=majority"),
        ("search=sample search.breadth=2", "search.breadth is no key"),
        ("search=sample critic=calculator", "critic=… has no effect with search=sample, which asks no critic"),
        ("learner.lr=1", "learner.lr is no key"),
    ],
)
def test_what_cannot_be_searched_is_one_sentence(given: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose_solve(["suite=own", *given.split()])
    assert said in str(caught.value)


@pytest.mark.parametrize("given", ["search=navigator", "rollout.search=navigator", "search.breadth=2"])
def test_a_run_refuses_a_search_since_its_text_is_off_policy(given: str) -> None:
    with pytest.raises(ConfigError, match=r"its text is not the policy's own .* search with capo-ray solve"):
        compose_train([given])


def test_a_response_that_ends_at_its_first_step_has_none_to_search() -> None:
    with pytest.raises(ValueError, match=r"which model.stop_strings ends a response at; remove it there"):
        SolveConfig(model=ModelConfig(stop_strings=("\n",)))


def test_nothing_to_solve_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["solve"]) == 1
    assert "expected --question TEXT, --input FILE or suite=NAME, got none" in capsys.readouterr().err


def test_a_file_of_questions_needs_no_answers_and_is_judged_where_it_has_them(tmp_path: Path) -> None:
    bare, told = tmp_path / "bare.jsonl", tmp_path / "told.jsonl"
    bare.write_text('{"question": "one"}\n{"question": "two"}\n')
    told.write_text('{"question": "one", "answer": "1"}\n')

    def problems(path: Path, *more: str) -> list[Problem]:
        return _suites(compose_solve(["suite=own", f"eval.path={path}", *more]))["own"][1]

    assert [(p.prompt, p.answer) for p in problems(bare)] == [("one", ""), ("two", "")]
    assert [p.prompt for p in problems(bare, "eval.limit=1", "eval.instruction=Think.")] == ["one\n\nThink."]
    assert [(p.prompt, p.answer) for p in problems(told)] == [("one", "1")]


HOW = Solve(NavigatorSearch(), DEFAULT_STEPS, "\n\n", 2, 60, 100, seed=0)
DIGITS = [Problem(f"p{i}", f"Q{i}", str(i), source="own") for i in range(4)]


class Digits(Scripted):
    """Goes on from any question; the second step of question i is right, i."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__({})
        self.fails = fails

    async def generate(self, prompt_ids: Sequence[int], sampling: object) -> object:  # type: ignore[override]
        question, so_far = FakeTokenizer().decode(prompt_ids)[:2], FakeTokenizer().decode(prompt_ids)[2:]
        if self.fails and question == "Q3":
            raise PartLost("rollout worker 0 is gone")
        self.script = {f"{question}{so_far}"[1:]: [f"#### {question[1]}" if so_far else "x? one\n\n", "one\n\n"]}
        return await super().generate(FakeTokenizer().encode(f"{question}{so_far}"[1:]), sampling)  # type: ignore[arg-type]


def solve(path: Path, engine: Digits, how: Solve = HOW, problems: Sequence[Problem] = DIGITS) -> ResponseFile:
    file = ResponseFile.open(path)
    encode = FakeTokenizer().encode
    solving = Solving(how, engine, FakeTokenizer(), Flagging(), lambda p: encode(p.prompt), file, 4)  # type: ignore[arg-type]
    asyncio.run(solving.solve(unsolved(problems, file), FakeVerifier(), "math"))
    return file


def test_what_was_solved_is_not_solved_again_and_what_is_missing_is_drawn_as_ever(tmp_path: Path) -> None:
    whole = solve(tmp_path / "whole.jsonl", Digits())
    with pytest.raises(RunFailed, match=r"1 of 4 problems of own have no solution: .* capo-ray solve resume="):
        solve(tmp_path / "cut.jsonl", Digits(fails=True))
    engine = Digits()
    again = solve(tmp_path / "cut.jsonl", engine)
    assert {so_far[0] for so_far, _ in engine.asked} == {"3"}

    def told(file: ResponseFile) -> dict[str, object]:
        return {p.id: {k: v for k, v in file.of("own", p.id)[0].items() if k != "wall_s"} for p in DIGITS}

    assert told(again) == told(whole)
    row = whole.of("own", "p1")[0]
    assert row["reward"] == 1 and row["judged_steps"] >= 2 and row["backtracks"] == 0 and row["exhausted"] == 0
    figures = solve_figures(DIGITS, "own", whole)
    assert figures["accuracy"] == 1 and figures["ci95"][1] == 1 and figures["num_problems"] == 4
    assert figures["total_tokens"] == figures["policy_tokens"] + figures["critic_tokens"] > 0


def test_a_prompt_without_room_is_refused_before_any_problem_is_solved(tmp_path: Path) -> None:
    engine, long = Digits(), Problem("p9", "Q" * 100, "9", source="own")
    with pytest.raises(RunFailed, match=r"a prompt of own has 100 tokens, expected < model.max_model_len=100"):
        solve(tmp_path / "r.jsonl", engine, problems=[*DIGITS, long])
    assert engine.asked == []


def test_a_question_without_an_answer_has_no_verdict_and_no_accuracy(tmp_path: Path) -> None:
    bare = [Problem("p1", "Q1", "", source="own")]
    file = solve(tmp_path / "r.jsonl", Digits(), problems=bare)
    row = file.of("own", "p1")[0]
    assert (row["reward"], row["reason"], row["extracted"]) == (None, "no answer is given", "1")
    assert "accuracy" not in solve_figures(bare, "own", file)


def test_equal_values_are_one_answer_for_the_majority(tmp_path: Path) -> None:
    class Spellings(Scripted):
        async def generate(self, prompt_ids: Sequence[int], sampling: object) -> object:  # type: ignore[override]
            self.script = {"": [f"\\boxed{{{a}}}" for a in ("3", "0.50", "1/2")]}
            return await super().generate([], sampling)  # type: ignore[arg-type]

    how = Solve(MajoritySearch(num_samples=3), DEFAULT_STEPS, "", 1, 60, 100, seed=0)
    file = solve(tmp_path / "r.jsonl", Spellings({}), how, [Problem("p", "Q", "", source="own")])  # type: ignore[arg-type]
    assert file.of("own", "p")[0]["extracted"] in ("0.50", "1/2")


@pytest.mark.real
def test_the_shipped_policy_and_critic_solve_a_file_with_more_right_than_a_sample(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "chains.jsonl"
    chains = [make_problem(0, i, 6, "held_out") for i in range(8)]
    data.write_text("".join(json.dumps({"question": p.prompt, "answer": p.answer}) + "\n" for p in chains))
    words = ["solve", "--input", str(data), "model=laptop", "search.temperature=1", "search.top_p=1"]
    words += ["search.vote=greedy", "rollout.max_response_tokens=80", f"run.dir={tmp_path}", "run.name=s"]
    assert main([*words, "--lines"]) == 0
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert {row["answer"] for row in rows} == {p.answer for p in chains} and len(rows) == 8
    assert all(row["judged_steps"] > 0 and row["critic_tokens"] > 0 for row in rows)
    assert main([*words, "--json"]) == 0, "all is there: nothing is started"
    told = json.loads(capfd.readouterr().out)["suites"]["own"]
    assert told["num_problems"] == 8 and told["accuracy"] >= 0.75
