"""CAPO by hand (arXiv 2508.02298, eqs. 1 and 2), and what must hold for every group."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from capo_ray.config.credit import CapoConfig
from capo_ray.credit import assign_credit, audit
from capo_ray.types import Group
from tests.credit_groups import Member, group
from tests.examples import examples

# {right, 4 tokens, clean; wrong, 6 tokens of which 3 flagged}: rewards 4x2, 3x0, 3x-1; mean .5, variance 1.65.
WORKED = group(Member(1, [4], [[]]), Member(0, [3, 3], [[1]]))


def test_worked_group_of_the_paper_equations() -> None:
    credit = assign_credit(WORKED, CapoConfig())
    assert credit.token_rewards == ((2.0,) * 4, (0.0,) * 3 + (-1.0,) * 3)
    sigma = math.sqrt(1.65)
    assert credit.advantages[0] == pytest.approx((1.5 / sigma,) * 4)
    assert credit.advantages[1] == pytest.approx((-0.5 / sigma,) * 3 + (-1.5 / sigma,) * 3)
    assert credit.advantages[0][0] == pytest.approx(1.168, abs=5e-4)
    assert credit.advantages[1][0] == pytest.approx(-0.389, abs=5e-4)
    assert credit.advantages[1][3] == pytest.approx(-1.168, abs=5e-4)
    assert credit.step_weights == ((0.0,), (0.0, 1.0))
    assert credit.valid_critiques == (1, 1)


def test_reward_spectrum_of_equation_1() -> None:
    made = group(Member(1, [1, 1], [[1]]), Member(0, [1, 1], [[1]]))
    assert assign_credit(made, CapoConfig()).token_rewards == ((2.0, 1.0), (0.0, -1.0))


def test_average_vote_penalises_in_proportion() -> None:
    made = group(Member(0, [1, 1], [[0], [0], [0], [1]]), Member(1, [1]))
    assert assign_credit(made, CapoConfig(vote="average")).token_rewards == ((-0.75, -0.25), (2.0,))


def test_trajectory_weighting_lets_each_response_count_once() -> None:
    # means 2 and -.5 -> .75; variance (1.25^2 + (.75^2 + 1.75^2)/2)/2 = (1.5625 + 1.8125)/2 = 1.6875
    credit = assign_credit(WORKED, CapoConfig(weighting="trajectory"))
    sigma = math.sqrt(1.6875)
    assert credit.advantages[0] == pytest.approx((1.25 / sigma,) * 4)
    assert credit.advantages[1] == pytest.approx((-0.75 / sigma,) * 3 + (-1.75 / sigma,) * 3)


def test_separate_normalisation_by_hand() -> None:
    # outcome 4x2, 6x0: mean .8, sd sqrt(.96); process 7x0, 3x-1: mean -.3, sd sqrt(.21); ratio of weights 1/2
    credit = assign_credit(WORKED, CapoConfig(normalisation="separate"))
    clean, flagged = 0.5 * 0.3 / math.sqrt(0.21), -0.5 * 0.7 / math.sqrt(0.21)
    right, wrong = 1.2 / math.sqrt(0.96), -0.8 / math.sqrt(0.96)
    assert credit.advantages[0] == pytest.approx((right + clean,) * 4)
    assert credit.advantages[1] == pytest.approx((wrong + clean,) * 3 + (wrong + flagged,) * 3)


def test_separate_normalisation_still_feels_w_process() -> None:
    weak = assign_credit(WORKED, CapoConfig(normalisation="separate", w_process=0.1))
    strong = assign_credit(WORKED, CapoConfig(normalisation="separate", w_process=1.0))
    assert weak.advantages[1][5] - weak.advantages[1][0] == pytest.approx(
        0.1 * (strong.advantages[1][5] - strong.advantages[1][0])
    )


def test_leave_one_out_by_hand() -> None:
    # the right one against the wrong one's mean -.5; the wrong one against 2
    credit = assign_credit(WORKED, CapoConfig(normalisation="leave_one_out"))
    assert credit.advantages == ((2.5,) * 4, (-2.0,) * 3 + (-3.0,) * 3)


def test_keep_outcome_sign_takes_no_right_answer_down_and_no_wrong_one_up() -> None:
    made = group(Member(0, [3, 3], [[1]]), Member(0, [2], [[0]]))
    assert assign_credit(made, CapoConfig()).advantages[0][0] > 0
    kept = assign_credit(made, CapoConfig(keep_outcome_sign=True))
    assert kept.advantages[0][:3] == (0.0, 0.0, 0.0)
    assert kept.advantages[0][3] < 0
    right = assign_credit(group(Member(1, [1, 2], [[0]]), Member(1, [3], [[]])), CapoConfig(keep_outcome_sign=True))
    assert right.advantages[0][0] == 0.0 and right.advantages[0][1] > 0


def test_format_reward_goes_to_responses_with_an_extracted_answer() -> None:
    made = group(Member(0, [2], [[]], extracted=None), Member(0, [2], [[]]))
    credit = assign_credit(made, CapoConfig(w_format=0.2))
    assert credit.token_rewards == ((0.0, 0.0), (0.2, 0.2))
    assert credit.advantages[0] == pytest.approx((-1.0, -1.0))


def test_w_process_ramps_over_its_share_of_the_run() -> None:
    config = CapoConfig(ramp_frac=0.5)
    flagged = [assign_credit(WORKED, config, progress).token_rewards[1][5] for progress in (0.0, 0.25, 0.5, 1.0)]
    assert flagged == [0.0, -0.5, -1.0, -1.0]


@pytest.mark.parametrize("normalisation", ["pooled", "separate", "leave_one_out"])
def test_the_ramp_grows_the_credit_of_a_group_whose_outcomes_agree(normalisation: str) -> None:
    made = group(Member(0, [2, 2], [[1]]), Member(0, [4], [[]]))
    config = CapoConfig(ramp_frac=0.5, normalisation=normalisation)  # type: ignore[arg-type]
    whole = assign_credit(made, CapoConfig(normalisation=normalisation)).advantages  # type: ignore[arg-type]
    assert whole[0][3] < -0.1
    for progress, share in ((0.0, 0.0), (0.005, 0.01), (0.25, 0.5), (0.5, 1.0), (1.0, 1.0)):
        rows = assign_credit(made, config, progress).advantages
        assert [list(row) for row in rows] == [pytest.approx([share * x for x in row]) for row in whole]


def test_the_ramp_begins_at_the_credit_of_the_outcome_alone() -> None:
    config = CapoConfig(ramp_frac=0.5)
    start = assign_credit(WORKED, config).advantages
    assert start == assign_credit(WORKED, CapoConfig(w_process=0.0)).advantages
    assert start != assign_credit(WORKED, config, 0.25).advantages


def test_the_ramp_grows_the_process_part_of_separate_normalisation_too() -> None:
    config = CapoConfig(normalisation="separate", ramp_frac=0.5)
    rows = [assign_credit(WORKED, config, progress).advantages[1] for progress in (0.0, 0.05, 0.25, 0.5)]
    whole = rows[-1][0] - rows[-1][5]
    assert [row[0] - row[5] for row in rows] == pytest.approx([0.0, 0.1 * whole, 0.5 * whole, whole])


def test_below_the_quorum_a_response_keeps_its_outcome_alone() -> None:
    made = group(Member(0, [2, 2], [[0], None, None, None]), Member(1, [2]))
    assert assign_credit(made, CapoConfig(quorum=2)).token_rewards[0] == (0.0,) * 4
    assert assign_credit(made, CapoConfig(quorum=1)).token_rewards[0] == (-1.0, -1.0, 0.0, 0.0)


def test_a_greedy_vote_cannot_have_a_quorum_of_two() -> None:
    with pytest.raises(ValidationError, match="quorum must be 1"):
        CapoConfig(vote="greedy", quorum=2)


def test_capo_keeps_signal_when_every_answer_is_wrong() -> None:
    made = group(Member(0, [2, 2], [[1]]), Member(0, [2], [[]]))
    credit = assign_credit(made, CapoConfig())
    assert credit.has_signal
    figures = audit(made, credit)
    assert figures["credit/saved_by_process_frac"] == 1.0
    assert figures["credit/outcome_signal_frac"] == 0.0
    assert figures["credit/positive_on_wrong_frac"] == pytest.approx(4 / 6)


@pytest.mark.parametrize("normalisation", ["pooled", "separate", "leave_one_out"])
@pytest.mark.parametrize(("weighting", "w_whole", "lengths"), [("token", 0.1, (3, 4)), ("trajectory", 2.0, (7, 7, 7))])
def test_equal_rewards_give_exact_zeros_however_they_round(
    normalisation: str, weighting: str, w_whole: float, lengths: tuple[int, ...]
) -> None:
    # The mean of these equal numbers is not the number, so a deviation from it alone would be blown up to +-1.
    assert math.fsum([0.1 + 0.2] * 7) / 7 != 0.1 + 0.2
    assert math.fsum([2.2 / 7] * 21) / math.fsum([1 / 7] * 21) != 2.2
    made = group(*[Member(1, [length], [[]]) for length in lengths])
    config = CapoConfig(w_whole=w_whole, w_format=0.2, normalisation=normalisation, weighting=weighting)
    assert not assign_credit(made, config).has_signal


@pytest.mark.parametrize("normalisation", ["pooled", "separate", "leave_one_out"])
def test_rewards_that_are_equal_but_for_the_rounding_of_their_sums_give_exact_zeros(normalisation: str) -> None:
    # right and flagged: .1 + .2 - .1; wrong and clean: .2
    made = group(Member(1, [2], [[0]]), Member(0, [2], [[]]))
    credit = assign_credit(made, CapoConfig(w_whole=0.1, w_process=0.1, w_format=0.2, normalisation=normalisation))
    assert credit.token_rewards[0] != credit.token_rewards[1]
    assert not credit.has_signal


def test_audit_by_hand() -> None:
    figures = audit(WORKED, assign_credit(WORKED, CapoConfig()))
    # |A| in units of 1/sigma: 4 x 1.5, 3 x .5, 3 x 1.5 = 12, of which 4.5 on flagged tokens
    assert figures["credit/penalty_mass_frac"] == pytest.approx(4.5 / 12)
    assert figures["credit/flagged_frac"] == pytest.approx(0.3)
    assert figures["credit/sign_flip_frac"] == 0.0
    assert figures["credit/length_corr"] == pytest.approx(-1.0)
    assert figures["credit/num_steps_corr"] == pytest.approx(-1.0)
    assert figures["credit/sampler_entropy_nats"] == pytest.approx(0.5)
    assert figures["credit/invalid_frac"] == 0.0


def test_audit_of_critiques_flips_and_blame_by_hand() -> None:
    made = group(
        Member(1, [2, 1], [[0], [0], None]),  # right, rewards 1 1 2
        Member(0, [1, 2], [[0], [0]]),  # wrong, rewards -1 0 0
        Member(0, [2], [None]),  # wrong, rewards 0 0
        Member(None, [5], [[0]]),
    )
    # mean 3/8, so that A has the signs + + +, - - - and - -; in eighths of 1/sigma: 5 5 13, 11 3 3 and 3 3
    figures = audit(made, assign_credit(made, CapoConfig()))
    assert figures["credit/penalty_mass_frac"] == pytest.approx(11 / 46), "the first two flagged tokens are not blamed"
    assert figures["credit/flagged_frac"] == pytest.approx(3 / 8)
    assert figures["credit/sign_flip_frac"] == figures["credit/positive_on_wrong_frac"] == 0.0
    assert figures["credit/invalid_frac"] == pytest.approx(1 / 4)
    assert figures["credit/valid_critiques_frac"] == pytest.approx(4 / 6)
    assert figures["credit/no_valid_critique_frac"] == pytest.approx(1 / 3)
    assert (figures["credit/outcome_signal_frac"], figures["credit/saved_by_process_frac"]) == (1.0, 0.0)
    # two right: mean 11/6, so the flagged token alone is turned against its answer
    flipped = group(Member(1, [1, 2], [[0]]), Member(1, [3], [[]]))
    assert audit(flipped, assign_credit(flipped, CapoConfig()))["credit/sign_flip_frac"] == pytest.approx(1 / 6)


def test_audit_of_a_group_without_credit() -> None:
    made = group(Member(0, [1, 1], [[]]), Member(0, [2], [[]]))
    figures = audit(made, assign_credit(made, CapoConfig()))
    assert figures["credit/saved_by_process_frac"] == figures["credit/outcome_signal_frac"] == 0.0
    assert figures["credit/sign_flip_frac"] == figures["credit/advantage_abs_mean"] == 0.0
    assert not {"credit/penalty_mass_frac", "credit/length_corr", "credit/num_steps_corr"} & set(figures)


MEMBERS = st.builds(
    Member,
    reward=st.sampled_from([0, 1, None]),
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    flags=st.lists(st.one_of(st.none(), st.just([0]), st.just([])), max_size=4),
    extracted=st.sampled_from([None, "1"]),
)
CONFIGS = st.builds(
    CapoConfig,
    vote=st.sampled_from(["intersection", "majority", "union", "average"]),
    normalisation=st.sampled_from(["pooled", "separate", "leave_one_out"]),
    weighting=st.sampled_from(["token", "trajectory"]),
    w_process=st.sampled_from([0.0, 0.1, 1.0]),
    w_format=st.sampled_from([0.0, 0.2]),
    quorum=st.integers(1, 2),
    keep_outcome_sign=st.booleans(),
)


@settings(max_examples=examples(80))
@given(members=st.lists(MEMBERS, min_size=1, max_size=5), config=CONFIGS, data=st.data())
def test_permuting_siblings_permutes_advantages_to_the_bit(
    members: list[Member], config: CapoConfig, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(members))))
    straight = assign_credit(group(*members), config)
    permuted = assign_credit(group(*[members[i] for i in order]), config)
    assert permuted.advantages == tuple(straight.advantages[i] for i in order)


@settings(max_examples=examples(80))
@given(members=st.lists(MEMBERS, min_size=1, max_size=5), config=CONFIGS)
def test_invalid_verdicts_and_critiques_are_as_if_absent(members: list[Member], config: CapoConfig) -> None:
    credit = assign_credit(group(*members), config)
    for member, row, ok in zip(members, credit.advantages, credit.included, strict=True):
        assert ok == (member.reward is not None)
        assert all(math.isfinite(a) for a in row)
        assert ok or set(row) == {0.0}
    kept = [
        Member(m.reward, m.lengths, [f for f in m.flags if f is not None], extracted=m.extracted)
        for m in members
        if m.reward is not None
    ]
    rows = [row for row, ok in zip(credit.advantages, credit.included, strict=True) if ok]
    assert list(assign_credit(group(*kept), config).advantages) == rows


@settings(max_examples=examples(60))
@given(members=st.lists(MEMBERS, min_size=1, max_size=5), config=CONFIGS)
def test_audit_is_finite_for_every_group(members: list[Member], config: CapoConfig) -> None:
    made: Group = group(*members)
    assert all(math.isfinite(value) for value in audit(made, assign_credit(made, config)).values())


def test_capo_keeps_one_flagged_step_among_right_answers_within_the_floor_of_the_deviation() -> None:
    made = group(Member(1, [3], [[]]), Member(1, [1], [[0]]))
    # rewards 2 2 2 1: mean 1.75, deviation .433
    exact = assign_credit(made, CapoConfig())
    assert exact.advantages[1] == pytest.approx((-0.75 / math.sqrt(0.1875),))
    floored = assign_credit(made, CapoConfig(min_std=0.5))
    assert floored.advantages == ((0.5, 0.5, 0.5), (-1.5,))
    assert assign_credit(made, CapoConfig(min_std=0.4)).advantages == exact.advantages
