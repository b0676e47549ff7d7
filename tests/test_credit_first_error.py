"""Cliff and VPPO by hand: what the critics' first wrong step makes of a wrong response."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capo_ray.config.credit import CREDIT_METHODS, CliffConfig, VppoConfig
from capo_ray.credit import assign_credit
from capo_ray.credit.indifferent import critiques_matter
from tests.credit_groups import Member, group

RIGHT = Member(1, [4], [[], []])
SLIPPED = Member(0, [2, 4], [[1], []])  # one of two votes: a majority, since half suffices
UNSEEN = Member(0, [3], [[], []])


def test_cliff_by_hand() -> None:
    credit = assign_credit(group(RIGHT, SLIPPED, UNSEEN), CliffConfig())
    # mu 1/3, sigma sqrt(2)/3: A+ = sqrt 2, A- = -1/sqrt 2; 4 A+ + 2 * 0 + 7 A- = 1/sqrt 2 over 13 tokens
    good, bad, middle = math.sqrt(2), -1 / math.sqrt(2), 1 / math.sqrt(2) / 13
    assert credit.advantages[0] == pytest.approx((good - middle,) * 4)
    assert credit.advantages[1] == pytest.approx((-middle,) * 2 + (bad - middle,) * 4)
    assert credit.advantages[2] == pytest.approx((bad - middle,) * 3)
    assert credit.step_weights == ((0.0,), (0.0, 1.0), (0.0,))


def test_cliff_gives_a_good_prefix_lambda_times_a_right_answers_advantage() -> None:
    credit = assign_credit(group(RIGHT, SLIPPED), CliffConfig(prefix_frac=0.5))
    # A+ 1, A- -1: 4 + 2 * .5 - 4 = 1 over 10 tokens
    assert credit.advantages[0] == pytest.approx((0.9,) * 4)
    assert credit.advantages[1] == pytest.approx((0.4,) * 2 + (-1.1,) * 4)


def test_cliff_blames_the_whole_of_a_response_that_was_cut_off() -> None:
    cut = Member(0, [2, 4], [[1], [1]], finish="length")
    credit = assign_credit(group(Member(1, [6], [[]]), cut), CliffConfig())
    assert credit.advantages == ((1.0,) * 6, (-1.0,) * 6)


def test_vppo_rewards_the_good_prefix_of_a_response_that_was_cut_off_too() -> None:
    cut = Member(0, [2, 2], [[1]], finish="length")
    credit = assign_credit(group(Member(1, [2], [[]]), cut), VppoConfig(shorten_tokens=0))
    # means of R: 1 and (2 * .5 + 2 * 0) / 4 = .25, so .625 is taken off (2601.18984 knows no cut-off)
    assert credit.advantages[0] == pytest.approx((0.375,) * 2)
    assert credit.advantages[1] == pytest.approx((-0.125,) * 2 + (-0.625,) * 2)


@pytest.mark.parametrize("reward", [0, 1])
def test_cliff_skips_a_group_whose_outcomes_agree(reward: int) -> None:
    made = group(Member(reward, [2, 4], [[1]]), Member(reward, [3], [[]]))
    assert not assign_credit(made, CliffConfig()).has_signal
    assert not critiques_matter(made.members, CliffConfig(), 0.0)


def test_vppo_does_not_shorten_a_good_prefix_by_the_thinking_that_is_left_out() -> None:
    made = group(Member(1, [4], [[]]), Member(0, [4, 4], [[1]]))
    wrong = made.members[1]
    path = replace(wrong.trajectory, prompt_ids=[1, 2, *range(40)], thinking=40)  # 2 of a question behind 40
    thought = replace(made, members=(made.members[0], replace(wrong, trajectory=path)))
    credit = assign_credit(thought, VppoConfig())
    assert credit.token_rewards[1] == (0.5, 0.5) + (0.0,) * 6
    assert credit == assign_credit(made, VppoConfig())


def test_a_critic_that_calls_a_wrong_answer_right_is_trusted_only_where_asked() -> None:
    member = Member(0, [2, 4], [[1], []], overall=[False, True])
    one = Member(0, [2, 4], [[1], [], []], overall=[False, True, True])
    made = group(Member(1, [6], [[]], overall=[True]), one)
    assert assign_credit(made, CliffConfig()).step_weights[1] == (0.0, 0.0)  # one of three votes is no majority
    trusted = assign_credit(made, CliffConfig(trust="verdict"))
    assert trusted.step_weights[1] == (0.0, 1.0)
    alone = group(Member(1, [6], [[]]), Member(0, [2, 4], [[1]], overall=[True]))
    assert assign_credit(alone, CliffConfig(trust="verdict")).advantages[1] == (-1.0,) * 6
    assert assign_credit(group(Member(1, [6], [[]]), member), CliffConfig(quorum=3)).step_weights[1] == (0.0, 0.0)


def test_vppo_by_hand() -> None:
    long = Member(0, [4, 4], [[1], [1]])
    credit = assign_credit(group(RIGHT, long), VppoConfig())
    # a prompt of 2 tokens shortens the prefix of 4 to 2: scores 1 and .5 * 2 / 8, mean .5625
    assert credit.advantages[0] == pytest.approx((0.4375,) * 4)
    assert credit.advantages[1] == pytest.approx((-0.0625,) * 2 + (-0.5625,) * 6)
    whole = assign_credit(group(RIGHT, long), VppoConfig(shorten_tokens=0, prefix_reward=0.8))
    # scores 1 and .8 * 4 / 8: mean .7
    assert whole.advantages[1] == pytest.approx((0.1,) * 4 + (-0.7,) * 4)
    kept = assign_credit(group(RIGHT, long), VppoConfig(keep_prefix_sign=True))
    assert kept.advantages[1] == pytest.approx((0.0,) * 2 + (-0.5625,) * 6)


def test_vppo_learns_from_an_all_wrong_group_but_not_from_an_all_right_one() -> None:
    wrong = group(Member(0, [4, 4], [[1]]), Member(0, [4, 4], [[0]]))
    assert assign_credit(wrong, VppoConfig()).has_signal and critiques_matter(wrong.members, VppoConfig(), 0.0)
    right = group(Member(1, [4, 4], [[1]]), Member(1, [4], [[0]]))
    assert not assign_credit(right, VppoConfig()).has_signal
    assert not critiques_matter(right.members, VppoConfig(), 0.0)


@given(
    flags=st.lists(st.lists(st.lists(st.integers(0, 2), unique=True), max_size=3), min_size=2, max_size=5),
    rewards=st.lists(st.sampled_from([0, 1]), min_size=5, max_size=5),
    lengths=st.lists(st.integers(1, 5), min_size=3, max_size=3),
)
def test_cliff_sums_to_zero_over_the_tokens_of_a_group(
    flags: list[list[list[int]]], rewards: list[int], lengths: list[int]
) -> None:
    made = group(*[Member(reward, lengths, flag) for reward, flag in zip(rewards, flags, strict=False)])
    assert math.fsum(a for row in assign_credit(made, CREDIT_METHODS["cliff"]()).advantages for a in row) == (
        pytest.approx(0.0, abs=1e-9)
    )
