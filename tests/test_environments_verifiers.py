"""Environments of the package `verifiers`: its own rollout waits for each turn, and its rubric says how it ended.

Each test asks a fake of the package (`tests/fake_verifiers`), which is always there, and the real one where it is
installed; the fake shows that our half is right, the real one that the fake's face is the package's.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from capo_ray.cli.compose import compose_train
from capo_ray.cli.settings import check_environment
from capo_ray.config.environment import VerifiersEnvironment
from capo_ray.environments import Children, Reply, Task, verifiers, verifiers_loading
from capo_ray.environments.verifiers_rows import _answer, _read, rows
from capo_ray.problems import build_problems
from capo_ray.protocols import RunFailed
from capo_ray.types import Problem

FAKE = Path(__file__).parent / "fake_verifiers"
MADE_BY = ("verifiers", "datasets", "tests.verifiers_world", "guessing")


def _forget() -> dict[str, Any]:
    """Take the modules of the package, and of environments that imported it, out of this process."""
    verifiers_loading._LOADED.clear()
    verifiers._client_class.cache_clear()
    verifiers._KEPT.clear()
    _read.cache_clear()
    names = [n for n in sys.modules if n in MADE_BY or n.startswith(("verifiers.", "datasets."))]
    return {name: sys.modules.pop(name) for name in names}


@pytest.fixture(params=["fake", "real"])
def package(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The package, which is asked of each test; signals are given back, which the real one takes."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "examples")
    handlers = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    real: dict[str, Any] = {}
    if request.param == "fake":
        real = _forget()
        monkeypatch.syspath_prepend(FAKE)
    else:
        package = pytest.importorskip("verifiers", reason="the package verifiers is not installed")
        if not hasattr(package, "MultiTurnEnv"):
            pytest.skip(f"verifiers {package.__version__} has no MultiTurnEnv")
    yield request.param
    for loop in verifiers._LOOPS:
        loop.close()
    verifiers._LOOPS.clear()
    if request.param == "fake":
        _forget()
        sys.modules.update(real)
    for one, handler in handlers.items():
        signal.signal(one, handler)


def section(made_by: str = "make", **args: Any) -> VerifiersEnvironment:
    return VerifiersEnvironment(id=f"tests.verifiers_world:{made_by}", args=args)


def task(number: int = 3, split: str = "train", **args: Any) -> Task:
    config = section(**args)
    question = f"Obey.\n\nSay {number if split == 'train' else 90 + number}."
    return Task(f"{config.id}/{split}/{number}", question, "", config.model_dump())


def test_the_environments_own_rollout_waits_for_each_turn(package: str) -> None:
    opening = verifiers.reply(task(), ())
    assert opening.text == "" and not opening.done and opening.legal
    first = verifiers.reply(task(), ("hello",))
    assert first.text.startswith("1 hello ") and not first.done and first.outcome is None
    second = verifiers.reply(task(), ("hello", "you"))
    assert second.text.startswith("2 you ") and len({r.state for r in (opening, first, second)}) == 3
    right = verifiers.reply(task(), ("hello", "you", "3\n"))
    assert (right.done, right.outcome, right.reward, right.text) == (True, 1, 1.0, "")
    last = verifiers.reply(task(), ("a", "b", "c", "d"))  # its own max_turns, whatever ours are
    assert (last.done, last.outcome, last.reward) == (True, 0, 0.0)
    assert verifiers.reply(task(2, "held_out", held_out=3), ("92",)).outcome == 1


def test_a_lost_rollout_is_played_again_to_the_same_words(package: str) -> None:
    said = ("one", "two", "one")
    others = [verifiers.reply(task(), ("other",)), verifiers.reply(task(1), ("one",))]
    replies = [verifiers.reply(task(), said[:k]) for k in range(4)]
    assert verifiers.reply(task(), ("other",)) == others[0]  # siblings in between change nothing
    verifiers._KEPT.clear()  # as after the process was killed
    assert verifiers.reply(task(), said) == replies[3] and verifiers.reply(task(), said[:2]) == replies[2]


def test_no_more_rollouts_are_kept_than_so_many_and_the_others_end(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifiers, "KEPT_ROLLOUTS", 2)
    verifiers.reply(task(0), ())
    (oldest,) = verifiers._KEPT.values()
    for number in (1, 2, 2):
        verifiers.reply(task(number), ())
    assert len(verifiers._KEPT) == 2 and oldest._running.cancelled()


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("fail", "no such thing"),
        ("error", "the environment gave up"),
        ("rewrite", "rewrites what was said"),
        ("unscorable", "no score for this"),  # the package itself makes it a reward of 0
    ],
)
def test_what_the_environment_or_its_rubric_cannot_do_is_an_error_and_no_reward(
    package: str, word: str, why: str
) -> None:
    with pytest.raises(Exception, match=why):
        verifiers.reply(task(), ("well", word))
    assert verifiers.reply(task(), ("well", "3")).outcome == 1  # and the next turn is answered


def test_an_episode_is_a_success_from_the_rubrics_reward_on_that_a_key_says(package: str) -> None:
    half = Task(task().id, task().question, "", {**task().settings, "success_reward": 0.5})
    assert verifiers.reply(half, ("nearly",)) == Reply("", verifiers.reply(half, ("nearly",)).state, True, 1, 0.5)
    assert verifiers.reply(task(), ("nearly",)).outcome == 0


def test_a_function_that_raises_is_no_reward_of_0_where_logging_is_turned_off(package: str) -> None:
    own = logging.getLogger("verifiers")
    level = own.level
    try:
        logging.disable(logging.CRITICAL)
        own.setLevel(logging.CRITICAL)
        with pytest.raises(RuntimeError, match="no score for this"):
            verifiers.reply(task(), ("unscorable",))
        assert (logging.root.manager.disable, own.level) == (logging.CRITICAL, logging.CRITICAL)  # as it was
    finally:
        logging.disable(logging.NOTSET)
        own.setLevel(level)


def test_an_environment_that_cannot_begin_says_why(package: str) -> None:
    with pytest.raises(Exception, match="no board"):
        verifiers.reply(Task("own", "Say 5.", "5", section("unready").model_dump()), ())


def test_problems_of_other_data_are_asked_as_they_stand(package: str) -> None:
    own = Task("math-7", "Say 5, please.", "5", section().model_dump())
    assert verifiers.reply(own, ()).text == "" and verifiers.reply(own, ("5",)).outcome == 1
    moved = Task(task().id, "Say something.", "", section().model_dump())
    with pytest.raises(RuntimeError, match="data are others each time they are loaded"):
        verifiers.reply(moved, ())


@pytest.mark.parametrize(
    ("made_by", "why"),
    [
        ("judged", "its JudgeRubric asks a model for its rewards; give a rubric of Python functions"),
        ("with_tools", "its tools are called outside the text"),
        ("asking", "it asks the model in a way of its own"),
        ("none", "it is no MultiTurnEnv, but of type object"),
        ("unrewarded", "its rubric has no function with a weight, so that it would reward nothing"),
    ],
)
def test_an_environment_that_cannot_be_played_is_refused_with_why(package: str, made_by: str, why: str) -> None:
    with pytest.raises(
        ValueError, match=f"environment.id=tests.verifiers_world:{made_by} cannot be played here: {why}"
    ):
        verifiers_loading.environment_of(section(made_by).model_dump())


def test_a_version_without_these_environments_is_refused_by_its_number(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = type(sys)("verifiers")
    module.__version__ = "0.4.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "verifiers", module)
    with pytest.raises(ValueError, match=r"with MultiTurnEnv \(got 0.4.0\): pip install 'verifiers>=0.1.14,<0.4'"):
        verifiers_loading.environment_of(section(new=1).model_dump())


def test_messages_that_are_no_text_are_refused() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert verifiers_loading.texts([{"role": "user", "content": parts}, {"role": "assistant", "content": None}]) == [
        ("user", "ab"),
        ("assistant", ""),
    ]
    with pytest.raises(ValueError, match="expected messages of text, got image_url"):
        verifiers_loading.texts([{"role": "user", "content": [{"type": "image_url"}]}])
    with pytest.raises(ValueError, match="got one of assistant"):
        verifiers_loading.question_of({"prompt": [{"role": "assistant", "content": "x"}]})


def test_the_problems_are_the_rows_of_the_environment_and_none_is_on_both_sides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = {"train": [[f"q{i}", "1", f"m{i}"] for i in range(20)], "held_out": [["q3", "1", "m3"], ["new", "1", "new"]]}
    monkeypatch.setattr("capo_ray.environments.verifiers_rows._read", lambda settings: told)
    config = compose_train(["environment=verifiers", "environment.id=mine", "data=environment", "steps=turn"])
    made = build_problems(config.data, 0, config.environment)
    assert [p.id for p in made.held_out(9)] == ["mine/held_out/0", "mine/held_out/1"]
    drawn = [made.train.next_problem() for _ in range(38)]
    assert len({p.id for p in drawn}) == 19 and "q3" not in {p.prompt for p in drawn}  # two epochs of the others
    told["held_out"] = []
    assert [p.prompt for p in build_problems(config.data, 0, config.environment).held_out(9)] == ["q18", "q19"]
    told["train"] = [["Guess a word.", "1", f"m{i}"] for i in range(4)]  # of so few one is held out
    made = build_problems(config.data, 0, config.environment)
    assert [p.id for p in made.held_out(9)] == ["mine/train/3"]
    assert {made.train.next_problem().id for _ in range(3)} == {f"mine/train/{i}" for i in range(3)}
    told["train"] = [["Guess.", "1", "m"]] * 4
    with pytest.raises(RunFailed, match=r"to train on and others to hold out, got 0 and 1: make it with more rows"):
        build_problems(config.data, 0, config.environment)


def test_what_is_read_of_an_environment_or_why_it_is_not_is_one_line(package: str) -> None:
    asked = {"args": {}, "data": True}
    train = _answer({"id": "tests.verifiers_world:alike", **asked})["train"]
    assert [row[:2] for row in train] == [("Guess.", str(i)) for i in range(4)] and len({row[2] for row in train}) == 4
    assert _answer({"id": "tests.verifiers_world:leaving", **asked}) == {"error": "SystemExit: not here"}
    assert "its rubric" in _answer({"id": "tests.verifiers_world:unrewarded", **asked, "data": False})["error"]


@pytest.mark.slow
def test_in_its_process_it_is_loaded_before_it_is_confined_and_a_crash_is_played_over(package: str) -> None:
    config = VerifiersEnvironment(id="guessing:make", args={"num_rows": 8})
    train, held_out = rows(config.model_dump(mode="json"), 0.1)
    assert len(train) == 6 and len(held_out) == 2 and train[0].prompt.startswith("Answer with one number and nothing")
    data = ["environment=verifiers", "environment.id=tests.verifiers_world:judged", "steps=turn", "credit=grpo"]
    with pytest.raises(RunFailed, match="cannot be played here: its JudgeRubric asks a model"):
        check_environment(compose_train(data))  # before Ray, with other data than its own
    with pytest.raises(RunFailed, match=r"environment.id=tests.verifiers_world:leaving: .*ended with code 0 \("):
        rows(section("leaving", at_once=True).model_dump(mode="json"), 0.1)

    async def played() -> list[Reply | str]:
        with Children(config) as children:
            problem, right = train[0], train[0].answer
            said = [(), ("well",), ("well", "0"), ("well", "0", right), ("well", "10000")]
            return [await children.ask(problem, one) for one in said]

    replies = asyncio.run(played())
    assert [r if isinstance(r, str) else r.text for r in replies] == [
        *("", "Say a number.", "No, it is larger. Say another number.", "", "No, it is smaller. Say another number."),
    ]
    assert replies[3].outcome == 1 and replies[3].done  # type: ignore[union-attr]

    async def lost() -> list[Reply | str]:
        with Children(section()) as children:
            problem = Problem("own", "Say 5.", "5")
            return [await children.ask(problem, one) for one in (("well", "die"), ("well",), ("well", "5"))]

    died, well, right = asyncio.run(lost())
    assert isinstance(died, str) and died.startswith("crash")
    assert well.text.startswith("1 well") and right.outcome == 1  # type: ignore[union-attr]
