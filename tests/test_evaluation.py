"""The figures of an evaluation: against numbers worked out by hand, brute force, and what holds of any responses."""

from __future__ import annotations

import math
from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capo_ray.evaluation import Judgement, compare, estimate, figures, majority, pass_at, sign_test

REWARDS = st.lists(st.sampled_from([0, 1, None]), min_size=1, max_size=6)


def said(answer: str | None, reward: int | None = 0, tokens: int = 10, cut: bool = False) -> Judgement:
    return Judgement(reward, answer, cut, tokens)


def test_pass_at_k_is_equation_1_of_chen_et_al() -> None:
    # 1 - C(2,2)/C(4,2) = 5/6; 1 - C(7,5)/C(10,5) = 1 - 21/252; fewer wrong ones than k: certain.
    assert pass_at(4, 2, 2) == pytest.approx(5 / 6)
    assert pass_at(10, 3, 5) == pytest.approx(11 / 12)
    assert (pass_at(5, 3, 3), pass_at(5, 0, 5), pass_at(8, 2, 1)) == (1.0, 0.0, 0.25)


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.data())
def test_pass_at_k_is_the_mean_over_all_draws_of_k(right: list[bool], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(right)))
    draws = list(combinations(right, k))
    assert pass_at(len(right), sum(right), k) == pytest.approx(sum(map(any, draws)) / len(draws))


@pytest.mark.parametrize(("num", "right", "k"), [(4, 2, 0), (4, 2, 5), (4, 5, 1), (0, 0, 1)])
def test_pass_at_k_refuses_what_is_no_draw(num: int, right: int, k: int) -> None:
    with pytest.raises(ValueError, match="expected 1 <= k <= n"):
        pass_at(num, right, k)


def test_the_commonest_answer_is_counted_by_value_and_ties_are_halved() -> None:
    assert majority([said("4", 1), said("4.0", 1), said("5")]) == 1
    assert majority([said("4", 1), said("0.5"), said("1/2")]) == 0, "two spellings of one wrong answer"
    assert majority([said("4", 1), said("5")]) == 0.5
    assert majority([said("4", 1), said("5"), said("6"), said("7")]) == 0.25
    assert majority([said(None), said(None)]) == 0
    assert majority([said(None), said(None), said("4", 1)]) == 1, "no answer is no vote"


def test_intervals_are_bootstraps_over_problems() -> None:
    # Binomial(4, 1/4)/4: P(0) = .32, P(<= .5) = .949, P(<= .75) = .996; the mean of {0, 1} is 0 or 1 a quarter each.
    one_of_four = estimate([0, 0, 0, 1])
    assert (one_of_four.value, one_of_four.low, one_of_four.high) == (0.25, 0.0, 0.75)
    assert estimate([0, 1]).ci95 == [0.0, 1.0]
    wide = estimate([0.0, 1.0] * 200)  # normal: 1.96 * .5 / 20 = .049
    assert wide.ci95 == pytest.approx([0.451, 0.549], abs=0.004)


def test_problems_that_are_all_alike_leave_a_doubt() -> None:
    # Clopper-Pearson for 0 of 4 is [0, .6024], for 20 of 20 [.8316, 1]; .6024 of all may be 0 or 1 where 4 are 1/2.
    assert estimate([0.0] * 4).ci95 == pytest.approx([0.0, 0.6024], abs=1e-4)
    assert estimate([1.0] * 20).ci95 == pytest.approx([0.8316, 1.0], abs=1e-4)
    assert estimate([0.5] * 4).ci95 == pytest.approx([0.1988, 0.8012], abs=1e-4)
    assert math.isnan(estimate([]).value)


@given(st.lists(st.integers(0, 4).map(lambda c: c / 4), min_size=1, max_size=60))
def test_an_interval_holds_its_mean_and_stays_in_range(values: list[float]) -> None:
    found = estimate(values)
    assert -1e-12 <= found.low <= found.value + 1e-12 and found.value <= found.high + 1e-12 <= 1 + 2e-12
    assert estimate(values) == estimate(values[::-1])


def test_the_figures_of_a_suite() -> None:
    problems = {
        "a": [said("4", 1, 10), said("5", 0, 20), said("4", 1, 30), said("6", 0, 40, cut=True)],
        "b": [said("1"), said("1"), said(None), said("2", 1)],
        "c": [said("7", None), said("7", 1), said("7", 1), said("7", 1)],  # one verdict timed out
    }
    greedy = {"a": said("4", 1), "b": said("1"), "c": said("7", None)}
    told = figures(problems, greedy)
    assert told["num_problems"] == 3 and told["num_samples"] == 4
    assert told["avg_at_k"] == pytest.approx((2 / 4 + 1 / 4 + 1) / 3)
    assert told["pass_at_k"] == 1
    # pass@2: a 1 - C(2,2)/C(4,2) = 5/6, b 1 - C(3,2)/C(4,2) = 1/2, c (three valid, all right) 1
    assert told["pass_at"] == {"1": told["avg_at_k"], "2": pytest.approx((5 / 6 + 1 / 2 + 1) / 3), "4": 1.0}
    assert told["majority_at_k"] == pytest.approx((1 + 0 + 1) / 3)
    assert told["greedy_accuracy"] == 0.5
    assert told["ci95"] == told["avg_at_k_ci95"]
    assert (told["truncated_frac"], told["no_answer_frac"], told["invalid_frac"]) == (1 / 12, 1 / 12, 1 / 12)


@pytest.mark.slow
@given(st.lists(REWARDS, min_size=1, max_size=8))
def test_avg_is_at_most_pass_and_an_invalid_verdict_changes_no_mean(rewards: list[list[int | None]]) -> None:
    told = figures({str(i): [said("x", r) for r in rs] for i, rs in enumerate(rewards)}, {})
    alone = figures({str(i): [said("x", r) for r in rs if r is not None] for i, rs in enumerate(rewards)}, {})
    assert told.get("avg_at_k") == alone.get("avg_at_k")
    if "avg_at_k" in told:
        assert 0 <= told["avg_at_k"] <= told["pass_at_k"] + 1e-12 <= 1 + 2e-12  # type: ignore[operator]
        assert list(told["pass_at"].values()) == sorted(told["pass_at"].values())  # type: ignore[attr-defined]


def test_two_policies_are_compared_problem_by_problem() -> None:
    first = {"a": 0.0, "b": 1.0, "c": 0.25, "d": 1.0, "only here": 1.0}
    second = {"a": 1.0, "b": 1.0, "c": 0.5, "d": 0.0}
    told = compare(first, second)
    assert (told.num_problems, told.num_up, told.num_down) == (4, 2, 1)
    assert told.difference.value == pytest.approx(0.25 / 4)
    assert told.p_value == 1.0  # 2 of 3: 2 * (1 + 3) / 8


def test_equal_policies_leave_a_doubt_on_both_sides() -> None:
    same = compare({"a": 1.0, "b": 0.0}, {"a": 1.0, "b": 0.0})
    reach = 1 - 0.025**0.5
    assert same.difference.ci95 == pytest.approx([-reach, reach]) and same.p_value == 1


def test_the_sign_test_is_exact() -> None:
    # 2 (1 + 10 + 45) / 2^10; 2 / 2^5; nothing changed.
    assert (sign_test(8, 2), sign_test(0, 5), sign_test(0, 0)) == (112 / 1024, 2 / 32, 1.0)
    splits = [sum(split) for split in product([0, 1], repeat=7)]
    assert sign_test(6, 1) == sum(abs(2 * ups - 7) >= 5 for ups in splits) / len(splits)
