"""Environments: exact replies, turns whose tokens stay as they were, and failures that are read or invalid, never 0."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from capo_ray.cli.compose import compose_train
from capo_ray.cli.schema import ConfigError
from capo_ray.config import CREDIT_METHODS
from capo_ray.config.environment import CalculatorEnvironment, GridEnvironment, GymnasiumEnvironment, PlayedBase
from capo_ray.credit import EvidenceError, assign_credit
from capo_ray.critics.expressions import NotArithmetic
from capo_ray.environments import Children, Playing, Reply, Task, calculator, grid, gymnasium
from capo_ray.environments.build import build_environment
from capo_ray.environments.playing import Source
from capo_ray.environments.reply import serve
from capo_ray.evidence.offline import credit_of_line
from capo_ray.flow import Pipeline
from capo_ray.flow.state import RunState
from capo_ray.ledger import read_balance
from capo_ray.loss import soft_value_targets
from capo_ray.metrics.transcripts import group_line
from capo_ray.problems import build_problems
from capo_ray.protocols import PartLost, Played, Sampling
from capo_ray.types import Completion, Group, Problem, Verdict, VersionRun
from tests.credit_groups import Member, group, judged
from tests.fakes import FakeEngine, FakeTokenizer, Recorder, fake_parts
from tests.own_environment import Moody

NUMBERS = st.integers(0, 10**6)
QUESTION = Problem("p", "(47+86)*31", "4123")
GUESS = "\\boxed{1}"
CALLS = ("calc 47+86\n", "calc 133*31\n", "\\boxed{4123}")


class Scripted(FakeEngine):
    """Says the given turns, in order for each episode; remembers the prompts that it was given."""

    def __init__(self, *turns: str) -> None:
        super().__init__()
        self.turns, self.prompts = turns, list[tuple[int, ...]]()
        self.samplings = list[Sampling]()

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> tuple[Completion, ...]:
        self.prompts.append(tuple(prompt_ids))
        self.samplings.append(sampling)
        text = "".join(map(chr, prompt_ids))
        turn = self.turns[min(sum(text.count(said) for said in set(self.turns)), len(self.turns) - 1)]
        ids = tuple(map(ord, turn))[: sampling.max_tokens]
        n = len(ids)
        one = Completion(ids, (-0.5,) * n, range(1, n + 1), turn[:n], (VersionRun(self.version, n),), "stop")
        return (one,) * sampling.n


class Inside:
    """An environment's function in this process."""

    def __init__(self, rule: object, config: PlayedBase) -> None:
        self.rule, self.settings = rule, config.model_dump()

    async def ask(self, problem: Problem, said: Sequence[str]) -> Reply | str:
        return self.rule(Task(problem.id, problem.prompt, problem.answer, self.settings), said)  # type: ignore[operator]

    def stats(self) -> dict[str, float]:
        return {}


def playing(config: PlayedBase, engine: FakeEngine, source: Source, max_len: int = 512) -> Playing:
    return Playing(config, source, engine, FakeTokenizer(), lambda p: list(map(ord, p.prompt)), None, max_len)


def play(
    config: PlayedBase, engine: FakeEngine, source: Source, n: int = 1, max_tokens: int = 200
) -> tuple[Played, ...]:
    prompt = [*map(ord, QUESTION.prompt), 10]
    return asyncio.run(
        playing(config, engine, source).play(QUESTION, prompt, Sampling(n=n, max_tokens=max_tokens, seed=1))
    )


@given(NUMBERS, NUMBERS, NUMBERS, st.sampled_from("+-*"), st.sampled_from("+-*"))
def test_a_call_is_answered_with_its_exact_value(a: int, b: int, c: int, first: str, second: str) -> None:
    text = f"({a}{first}{b}) {second} {c}"
    assert calculator.calculate(text) == str(eval(text))
    if c:
        assert calculator.calculate(f"{a}/{c}") == str(Fraction(a, c))


@pytest.mark.parametrize(
    "text", ["9^64^2", "2^99", "1/0", "__import__('os')", "1" * 300, "(" * 60 + "1" + ")" * 60, "", "1 2"]
)
def test_what_is_no_arithmetic_or_too_large_is_refused(text: str) -> None:
    with pytest.raises(NotArithmetic):
        calculator.calculate(text)
    told = Task("p", "q", "1", {"max_operations": 1})
    reply = calculator.reply(told, (f"calc {text}\n",))
    assert not reply.done and not reply.legal and reply.text.startswith("error: ")


def test_a_calculators_problem_is_solved_by_its_solution_and_stands_on_one_side() -> None:
    settings = CalculatorEnvironment(num_operations=3).model_dump()
    for split in ("train", "held_out"):
        problem = calculator.make_problem(1, 5, split, settings)
        *calls, answer = (problem.solution or "").split("\n")
        said = tuple(f"{call}\n" for call in calls)
        values = [calculator.reply(Task("p", "", "", settings), said[: k + 1]).text for k in range(3)]
        assert values[-1] == problem.answer and answer == f"\\boxed{{{problem.answer}}}"
        assert eval(problem.prompt) == int(problem.answer)
    made = build_problems(
        compose_train(["data=environment", "environment=calculator"]).data, 0, CalculatorEnvironment()
    )
    train = {made.train.next_problem().prompt for _ in range(50)}
    assert len(train) == 50 and not train & {p.prompt for p in made.held_out(50)}


def test_a_box_is_pushed_onto_its_goal_and_an_illegal_move_changes_nothing() -> None:
    task = Task("p", "@$.o\n....\n....\n....", "")
    opening = grid.reply(task, ())
    assert opening.state == task.question and opening.legal and not opening.done
    blocked = grid.reply(task, ("u\n",))
    assert not blocked.legal and blocked.state == task.question and not blocked.done
    assert grid.reply(task, ("u\n", "r\n")).text.split("\n")[0] == ".@$o"
    won = grid.reply(task, ("r\n", "r\n"))
    assert won.done and won.outcome == 1 and won.text.split("\n")[0] == "..@*"
    assert not grid.reply(task, ("jump\n",)).legal
    assert grid.parse(grid.parse("+$.\n...\n...").text).goal == (0, 0)


def test_a_puzzle_is_solvable_within_its_moves_and_the_same_again() -> None:
    settings = GridEnvironment(min_moves=3, most_moves=4).model_dump()
    problem = grid.make_problem(0, 7, "train", settings)
    moves = (problem.solution or "").split("\n")
    assert 3 <= len(moves) <= 4 and grid.make_problem(0, 7, "train", settings) == problem
    assert grid.reply(Task("p", problem.prompt, ""), moves).outcome == 1
    assert grid.reply(Task("p", problem.prompt, ""), moves[:-1]).outcome is None


def test_an_environment_with_gymnasiums_face_is_played_and_played_again() -> None:
    settings = GymnasiumEnvironment(id="tests.own_environment:Line").model_dump()
    task = Task("p", "", "10", settings)
    assert gymnasium.reply(task, ()).text == "10"
    assert gymnasium.reply(task, ("0",)).text == "11"
    lost = gymnasium.reply(task, ("0", "fly"))  # no action: told, and nothing changes
    assert not lost.legal and lost.state == gymnasium.reply(task, ("0",)).state
    gymnasium._KEPT.clear()  # as after the process was killed
    ended = gymnasium.reply(task, ("0", "fly", "go 2\n"))
    assert (ended.text, ended.done, ended.outcome, ended.reward) == ("14", True, 1, 1.0)


def test_what_a_terminal_would_colour_is_marked_in_text() -> None:
    lake = "  (Down)\nSFFF\n\x1b[41mF\x1b[0mHFH\n"
    assert gymnasium.without_colours(lake) == "  (Down)\nSFFF\n[F]HFH\n"
    assert gymnasium.without_colours("|\x1b[35mR\x1b[0m: |\x1b[34;1mY\x1b[0m|") == "|(35 R): |(34 Y)|"


def test_the_frozen_lake_of_the_real_package_is_played_and_played_again() -> None:
    pytest.importorskip("gymnasium", reason="gymnasium is not installed")
    task = Task("p", "", "4", GymnasiumEnvironment(id="FrozenLake-v1").model_dump())
    said = ("1", "right: 2", "go", "0", "1")
    replies = [gymnasium.reply(task, said[:k]) for k in range(6)]
    assert replies[0].text == "\n[S]FFF\nFHFH\nFFFH\nHFFG\n" and [r.legal for r in replies] == [True] * 3 + [
        False,
        True,
        True,
    ]
    assert replies[3].state == replies[2].state and "\x1b" not in "".join(r.text for r in replies)
    gymnasium._KEPT.clear()  # as after the process was killed: the ice is as slippery as it was
    assert gymnasium.reply(task, said) == replies[5]


def test_turns_are_token_in_token_out_and_what_is_read_stands_between_them() -> None:
    engine = Scripted(*CALLS)
    first, second = play(CalculatorEnvironment(), engine, Inside(calculator.reply, CalculatorEnvironment()), n=2)
    response = first.response
    assert response.text == "calc 47+86\n133\ncalc 133*31\n4123\n\\boxed{4123}" and response == second.response
    assert [response.text[a:b] for a, b in response.acted] == list(CALLS) and first.told is None
    assert engine.prompts[1] == (*first.prompt_ids, *response.token_ids[: response.acted[1][0]].tolist())
    assert [s.n for s in engine.samplings] == [2, 1, 1, 1, 1] and len({s.seed for s in engine.samplings}) == 5
    assert [turn.state for turn in first.turns] == ["", "calc 47+86", "calc 47+86\ncalc 133*31"]


def test_an_episode_ends_at_its_bounds_and_is_then_cut_short() -> None:
    config = GridEnvironment(max_turns=3, turn_tokens=2)
    board = Problem("p", "@$.o\n....\n....\n....", "")

    def played(config: PlayedBase, max_tokens: int) -> Played:
        room = playing(config, Scripted("d\n"), Inside(grid.reply, config))
        (one,) = asyncio.run(room.play(board, (*map(ord, board.prompt), 10), Sampling(max_tokens=max_tokens)))
        return one

    one = played(config, 200)
    assert len(one.turns) == 3 and one.response.finish == "length" and one.told and one.told.reward == 0
    assert [turn.legal for turn in one.turns] == [True, True, True] and len(one.response.acted) == 3
    short = played(config, 24)  # a turn and a board are 22 tokens
    assert len(short.response.token_ids) == 24 and len(short.turns) == 2 and short.told and not short.told.reward


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "cause"), [("hang", "timeout"), ("die", "crash"), ("call", "crash"), ("fail", "crash")]
)
def test_a_failure_is_read_or_makes_the_response_invalid_and_the_next_reply_comes(
    word: str, cause: str, caplog: pytest.LogCaptureFixture
) -> None:
    turns = (f"{word}\n", "more\n", "end\n")
    with Children(Moody()) as children:
        (told,) = play(Moody(), Scripted(*turns), children)
        assert told.response.text == f"{word}\nerror: {cause}\nmore\n1 more\nend\n" and told.told is None
        assert [turn.legal for turn in told.turns] == [False, True, True]
        config = Moody(on_failure="invalid")
        (invalid,) = play(config, Scripted(*turns), children)
        assert invalid.told and invalid.told.reward is None and cause in invalid.told.reason
        assert children.stats()["environment/failures_total"] == 2
        (logged,) = caplog.messages
        assert logged.startswith(f"environment.kind=moody failed, the first of its kind: '{cause}: ")


def test_half_a_character_is_read_as_a_question_mark_for_no_tokenizer_takes_it() -> None:
    asked = {"rule": "tests.own_environment:reply", "task": {"id": "1", "question": "", "answer": ""}}
    assert serve(json.dumps(asked), json.dumps(["\ud800 \U0001f600"]))["text"] == "1 ? \U0001f600"


@pytest.mark.parametrize(
    ("word", "said"),
    [("half", "outcome of 1, 0 or None, got 0.5"), ("two", "outcome of 1, 0 or None, got 2"),
     ("text", "strings, got NoneType, str"), ("state", "strings, got str, int"), ("nan", "finite number, got nan")],
)  # fmt: skip
def test_a_reply_that_is_none_is_a_crash_and_no_outcome_of_0(word: str, said: str) -> None:
    asked = {"rule": "tests.own_environment:reply", "task": {"id": "1", "question": "", "answer": ""}}
    with pytest.raises(ValueError, match=f"Reply from tests.own_environment:reply .*{said}"):
        serve(json.dumps(asked), json.dumps([word]))


def test_the_siblings_of_an_episode_that_was_lost_play_no_further() -> None:
    class Losing(Scripted):
        """Loses the second turn that it is asked for."""

        async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> tuple[Completion, ...]:
            if len(self.prompts) == 2:
                raise PartLost("the worker died")
            await asyncio.sleep(0)
            return await super().generate(prompt_ids, sampling)

    config, engine = CalculatorEnvironment(), Losing("calc 1+1\n")

    async def lose() -> int:
        room = playing(config, engine, Inside(calculator.reply, config))
        with pytest.raises(PartLost):
            await room.play(QUESTION, [*map(ord, QUESTION.prompt), 10], Sampling(n=4, max_tokens=200, seed=1))
        asked = len(engine.prompts)
        engine.prompts.append(())  # from here on it answers again
        await asyncio.sleep(0.05)
        return len(engine.prompts) - asked - 1

    assert asyncio.run(lose()) == 0


@pytest.mark.slow
@pytest.mark.parametrize("lose_every", [0, 11])
def test_a_run_of_turns_trains_what_was_said_and_accounts_for_every_response(tmp_path: Path, lose_every: int) -> None:
    """Also where every so many calls of the engine are lost, in the middle of an episode mostly."""
    words = ["credit=grpo", "environment=calculator", "steps=turn", "data=environment", "run.num_updates=2"]
    words += ["rollout.group_size=4", "learner.groups_per_batch=2", "run.eval_every=0", "run.eval_problems=4"]
    config = compose_train([*words, "rollout.max_response_tokens=200", "verifier.kind=exact"])

    class Half(Scripted):
        """Every other episode guesses."""

        async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> tuple[Completion, ...]:
            said = await super().generate(prompt_ids, sampling)
            ids = list(map(ord, GUESS))
            guess = Completion(ids, (-0.5,) * 9, range(1, 10), GUESS, (VersionRun(0, 9),), "stop")
            return tuple(guess if i % 2 else one for i, one in enumerate(said))

    class Solver(Half):
        calls = 0

        async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> tuple[Completion, ...]:
            self.calls += 1
            if lose_every and self.calls % lose_every == 0:
                raise PartLost("the worker died")
            question = "".join(map(chr, prompt_ids)).partition("\n")[0]
            first = question[1 : question.index(")")]
            self.turns = (
                f"calc {first}\n",
                f"calc {eval(first)}{question[len(first) + 2 :]}\n",
                f"\\boxed{{{eval(question)}}}",
            )
            return await super().generate(prompt_ids, sampling)

    engine, problems = Solver("x"), build_problems(config.data, 0, config.environment)
    with Children(config.environment) as children:  # type: ignore[arg-type]
        environment = build_environment(config, engine, FakeTokenizer(), children)
        verifier = ExactVerifier()
        parts = fake_parts(
            tmp_path, config, engine=engine, problems=problems, environment=environment, verifier=verifier
        )
        asyncio.run(asyncio.wait_for(Pipeline(parts, RunState()).run(), 60))
    samples = parts.learner.samples  # type: ignore[attr-defined]
    assert len(samples) == 16 and {len(s.acted) for s in samples} == {0, 3}
    for sample in samples:
        text = "".join(chr(sample.token_ids[t]) for start, end in sample.spans for t in range(start, end))
        assert text.startswith("calc") == bool(sample.acted) and (sample.advantages[0] > 0) == bool(sample.acted)
    balance = read_balance(tmp_path / "ledger.sqlite")
    assert balance.counts["trained"] == 16 and not balance.trained_twice
    assert engine.calls > lose_every, "none was lost"
    tracker: Recorder = parts.tracker  # type: ignore[assignment]
    rows = [row for _, row in tracker.rows if "rollout/turns_mean" in row]
    assert len(rows) == 2 and all(row["rollout/turns_mean"] == 2.0 for row in rows)  # three turns, or one
    assert rows[-1]["environment/replies_total"] > 20 and rows[-1]["environment/failures_total"] == 0


class ExactVerifier:
    async def verify(self, answer: str, responses: Sequence[str]) -> tuple[Verdict, ...]:
        return tuple(Verdict(int(text == f"\\boxed{{{answer}}}"), "compared") for text in responses)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("credit=vineppo environment=grid", "credit=vineppo goes on from a response without its environment"),
        (
            "credit=gigpo environment=none data=chains",
            "credit=gigpo reads the turns of an environment, so there must be",
        ),
        ("credit=gigpo steps=newline", "(got environment.kind=grid and newline); add steps=turn"),
        ("data=environment", "environment.kind=none has none; choose environment=calculator"),
        ("environment=grid steps.thinking=leave_out", "steps.thinking must be train with environment.kind=grid"),
        ("environment=grid environment.reply_template=x", "must hold {reply} exactly once"),
        ("environment=maze", "environment=maze is no choice"),
    ],
)
def test_what_cannot_be_played_is_refused(words: str, why: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(why)):
        compose_train(words.split())


def turn_group() -> Group:
    """Two episodes that begin in state s: one ends right after a second turn, one wrong; and an invalid one."""
    right = Member(1, [2, 1], turns=[("s", 0.0, True), ("t", 0.0, True)])
    wrong = Member(0, [1, 3], turns=[("s", 0.0, True), ("u", 0.0, True)])
    return group(right, wrong, Member(None, [1], turns=[("s", 0.0, True)]))


def test_gigpo_by_hand() -> None:
    # gamma 1/2: returns right (1/2, 1), wrong (0, 0). Episodes 1 and 0: mean 1/2, deviation 1/2: +1, -1.
    # State s: 1/2 and 0, mean 1/4, deviation 1/4: +1, -1. States t and u were met once: 0.
    credit = assign_credit(turn_group(), CREDIT_METHODS["gigpo"](gamma=0.5))
    assert credit.advantages == ((2.0, 2.0, 1.0), (-2.0, -1.0, -1.0, -1.0), (0.0,))
    # Without deviations: episodes +-1/2, state s +-1/4; omega 2.
    plain = assign_credit(turn_group(), CREDIT_METHODS["gigpo"](gamma=0.5, normalisation="none", w_step=2.0))
    assert plain.advantages == ((1.0, 1.0, 0.5), (-1.0, -0.5, -0.5, -0.5), (0.0,))


def test_gigpo_takes_an_illegal_turn_off_its_episode_and_its_state() -> None:
    # Rewards (-1/2, 1), (0, 0): episodes 1/2 and 0 -> +-1; state s at gamma 1: 1/2 and 0 -> +-1.
    illegal = Member(1, [1, 1], turns=[("s", 0.0, False), ("t", 0.0, True)])
    other = Member(0, [1, 1], turns=[("s", 0.0, True), ("u", 0.0, True)])
    credit = assign_credit(group(illegal, other), CREDIT_METHODS["gigpo"](gamma=1.0, illegal_penalty=0.5))
    assert credit.token_rewards == ((-0.5, 1.0), (0.0, 0.0)) and credit.advantages == ((2.0, 1.0), (-2.0, -1.0))
    with pytest.raises(EvidenceError, match=r"credit=gigpo reads turns, one for each step \(steps=turn\): expected 2"):
        assign_credit(group(Member(1, [1, 1])), CREDIT_METHODS["gigpo"]())


def test_gigpo_is_credited_again_from_a_transcript() -> None:
    made = turn_group()
    credit = assign_credit(made, CREDIT_METHODS["gigpo"]())
    line = group_line(1, made, credit)
    again = credit_of_line(json.dumps(line), CREDIT_METHODS["gigpo"]())["responses"]
    assert [tuple(r["advantages"]) for r in again] == [tuple(row) for row in credit.advantages]
    line["responses"][0]["turns"][1] = ["t", "much", True]
    with pytest.raises(
        ValueError, match=r"responses\[0\].turns: expected a \[state, reward, legal\] for each of the 2"
    ):
        credit_of_line(json.dumps(line), CREDIT_METHODS["gigpo"]())


def test_etpo_discounts_from_turn_to_turn_and_not_within_one() -> None:
    # Turns of 2 and 1 tokens; V = 1/2, 1/4, 1; gamma 1/2; right. Q: V_1 = 1/4, gamma V_2 = 1/2, outcome 1.
    said = Completion((1, 2), (-0.5,) * 2, (1, 2), "ab", (VersionRun(0, 2),), "stop").reads((9,), (1,), "x")
    said = said.then(Completion((3,), (-0.5,), (1,), "c", (VersionRun(0, 1),), "stop"))
    one = judged(Member(1, [3], token_rewards=[0.5, 0.25, 1.0]))
    one = replace(one, trajectory=replace(one.trajectory, response=said), steps=((0, 3), (3, 4)))
    made = Group(0, QUESTION, (one,))
    bare = assign_credit(made, CREDIT_METHODS["etpo"](trace_decay=0.0, turn_discount=0.5))
    assert bare.token_rewards == ((0.25, 0.5, 1.0),) and bare.advantages == ((-0.25, 0.25, 0.0),)
    # Traces: the last of turn one sees gamma * decay of what follows it, 0; the first sees decay 1 of 1/4.
    traced = assign_credit(made, CREDIT_METHODS["etpo"](trace_decay=1.0, turn_discount=0.5))
    assert traced.advantages == ((0.0, 0.25, 0.0),)
    values = torch.tensor([0.5, 0.25, 1.0])
    targets = soft_value_targets(values, torch.zeros(3), 1.0, 0.1, 0.0, {1: 0.5})
    assert targets.tolist() == [0.25, 0.5, 1.0]


def test_istars_steps_are_turns_whatever_was_read_between() -> None:
    # Token rewards 1 | 2 and 0 | 3 in turns: mean of the other three steps: 5/3, 4/3, 2, 1; outcomes +-1.
    made = group(Member(1, [1, 1], token_rewards=[1, 2]), Member(0, [1, 1], token_rewards=[0, 3]))
    credit = assign_credit(made, CREDIT_METHODS["istar"]())
    expected = ((1 + 1 - 5 / 3, 1 + 2 - 4 / 3), (-1 + 0 - 2, -1 + 3 - 1))
    assert [pytest.approx(row) for row in expected] == [list(row) for row in credit.advantages]
