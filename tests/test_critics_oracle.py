"""The oracle: the truth of made problems as a critic, with as many errors as it is told to make."""

from __future__ import annotations

import asyncio

import pytest

from capo_ray.cli.compose import compose_train
from capo_ray.cli.schema import ConfigError
from capo_ray.critics import build_judge
from capo_ray.place.judging import engine_spec, judge_on
from capo_ray.problems import true_wrong_steps
from capo_ray.protocols import JudgeRequest
from capo_ray.types import Critique, Problem

CHAIN = Problem("p", "7*8+5-3", "8")
MISREAD = ("7*8=6\n\n", "6*5=0\n\n", "0-3=7\n\n", "\\boxed{7}")  # one wrong step in four


def critiques(problem: Problem, num_votes: int, *words: str) -> tuple[Critique, ...]:
    config = compose_train(["critic=oracle", "critic.early_stop=false", *words])
    assert engine_spec(config) is None
    judge = judge_on(None, config.critic, "majority", 1, None)
    return asyncio.run(judge.critique(problem, [JudgeRequest(MISREAD)], num_votes))[0]


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


def test_of_a_problem_whose_steps_nobody_knows_it_says_nothing() -> None:
    (vote,) = critiques(Problem("p", "How many?", "7"), 1)
    assert vote.flagged is None and vote.reason


def test_an_oracle_is_refused_where_nobody_knows_the_steps() -> None:
    with pytest.raises(ConfigError, match="knows the steps of data=chains and data=words alone"):
        compose_train(["critic=oracle", "data=gsm8k", "data.path=x.jsonl"])
    with pytest.raises(ValueError, match="needs problems whose steps are known"):
        build_judge(compose_train(["critic=oracle"]).critic, vote="majority", quorum=1)
    assert compose_train(["experiment=novice", "critic=oracle"]).critic.backend == "oracle"
