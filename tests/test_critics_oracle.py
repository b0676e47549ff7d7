"""The oracle: the truth of made problems as a critic, with as many errors as it is told to make."""

from __future__ import annotations

import asyncio
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capo_ray.cli.compose import compose_train
from capo_ray.cli.schema import ConfigError
from capo_ray.cli.solve_settings import compose_solve
from capo_ray.config.sections import CriticConfig
from capo_ray.critics import build_judge, parse_critique
from capo_ray.critics.oracle import OracleSource
from capo_ray.critics.panel import Asking
from capo_ray.place.judging import engine_spec, judge_on
from capo_ray.problems import true_wrong_steps
from capo_ray.protocols import JudgeRequest
from capo_ray.types import Critique, Problem
from tests.examples import examples

CHAIN = Problem("p", "7*8+5-3", "8")
MISREAD = ("7*8=6\n\n", "6*5=0\n\n", "0-3=7\n\n", "\\boxed{7}")  # one wrong step in four


def critiques(problem: Problem, num_votes: int, *words: str) -> tuple[Critique, ...]:
    config = compose_train(["critic=oracle", "critic.early_stop=false", *words])
    assert engine_spec(config) is None
    judge = judge_on(None, config.critic, "majority", 1, None)
    return asyncio.run(judge.critique(problem, [JudgeRequest(MISREAD)], num_votes))[0]


def texts(source: OracleSource, asking: Asking, num_votes: int, num_before: int = 0) -> list[str]:
    async def ask() -> list[str]:
        return [reply.text async for reply in source.votes(asking, num_votes, 0, num_before)]

    return asyncio.run(ask())


def test_an_oracle_without_errors_says_what_is_true() -> None:
    assert true_wrong_steps(CHAIN, MISREAD) == {1}
    assert [(c.flagged, c.overall) for c in critiques(CHAIN, 3)] == [({1}, False)] * 3


def test_an_oracle_errs_as_often_as_it_is_told_and_each_vote_on_its_own() -> None:
    votes = critiques(CHAIN, 1000, "critic.oracle_precision=0.8", "critic.oracle_recall=0.6")
    hits = sum(1 in (c.flagged or ()) for c in votes)
    alarms = sum(len((c.flagged or frozenset()) - {1}) for c in votes)
    # 600 of 1000 wrong steps; 150 of the 3000 right ones, so that 600 flags of 750 are right
    assert hits == pytest.approx(600, abs=50) and alarms == pytest.approx(150, abs=40)
    assert {c.flagged for c in votes} > {frozenset(), frozenset({1}), frozenset({0}), frozenset({0, 1})}
    again = critiques(CHAIN, 1000, "critic.oracle_precision=0.8", "critic.oracle_recall=0.6")
    assert [c.flagged for c in again] == [c.flagged for c in votes], "of one response it says the same again"


@given(st.floats(0.05, 1), st.floats(0, 1), st.floats(0.05, 0.95))
@settings(max_examples=examples(24), deadline=None)
def test_its_flags_have_the_precision_and_recall_asked_for_or_are_refused(
    precision: float, recall: float, wrong_frac: float
) -> None:
    """Over steps of which that share is wrong; what no oracle can have is refused with the least that one can."""
    asked = {"oracle_precision": precision, "oracle_recall": recall, "oracle_wrong_frac": wrong_frac}
    least = recall * wrong_frac / (recall * wrong_frac + 1 - wrong_frac)
    if precision < least * (1 - 1e-6):
        with pytest.raises(
            ValueError, match=re.escape(f"must be at least {least:.3g}, that of an oracle which flags every right step")
        ):
            CriticConfig.model_validate({"backend": "oracle", **asked})
        return
    wrong = frozenset(range(round(wrong_frac * 1000)))
    source = OracleSource(lambda problem, steps: wrong, CriticConfig.model_validate({"backend": "oracle", **asked}))
    right, found = 0, 0
    for text in texts(source, Asking(CHAIN, ("",) * 1000, "key"), 2):
        flagged, _, reason = parse_critique(text, 1000, "compact")
        assert flagged is not None, reason
        right, found = right + len(flagged & wrong), found + len(flagged)
    assert right == pytest.approx(
        recall * 2 * len(wrong), abs=5 * math.sqrt(recall * (1 - recall) * 2 * len(wrong)) + 1
    )
    if found:
        assert right / found == pytest.approx(precision, abs=3 / math.sqrt(found))


def test_votes_in_two_waves_are_those_of_one() -> None:
    config = compose_train(["critic=oracle", "critic.oracle_recall=0.5"]).critic
    source, asking = OracleSource(true_wrong_steps, config), Asking(CHAIN, MISREAD, "key")
    at_once = texts(source, asking, 16)
    assert texts(source, asking, 5) + texts(source, asking, 11, 5) == at_once and len(set(at_once)) == 2


def test_of_a_problem_whose_steps_nobody_knows_it_says_nothing() -> None:
    (vote,) = critiques(Problem("p", "How many?", "7"), 1)
    assert vote.flagged is None and vote.reason


def test_an_oracle_is_refused_where_nobody_knows_the_steps() -> None:
    with pytest.raises(ConfigError, match="knows the steps of data=chains and data=words alone"):
        compose_train(["critic=oracle", "data=gsm8k", "data.path=x.jsonl"])
    for words in (["environment=calculator"], ["steps=turn"], ["steps=entropy"]):
        with pytest.raises(ConfigError, match="in one turn and cut where the text ends them"):
            compose_train(["critic=oracle", *words])
        with pytest.raises(ConfigError, match="sees which steps were asked for in one turn and cut where the text"):
            compose_train(["experiment=novice", *words])
        assert not compose_train(["experiment=novice", "critic.flag_unasked=false", *words]).knows_steps
    assert compose_train(["critic=oracle", "steps=sentence"]).knows_steps
    with pytest.raises(ConfigError, match="knows the answer that search=navigator looks for"):
        compose_solve(["suite=gsm8k", "critic=oracle"])
    with pytest.raises(ValueError, match="needs problems whose steps are known"):
        build_judge(compose_train(["critic=oracle"]).critic, vote="majority", quorum=1)
    assert compose_train(["experiment=novice", "critic=oracle"]).critic.backend == "oracle"
