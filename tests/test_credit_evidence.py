"""The methods that read more than outcomes and votes, each by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capo_ray.config import CREDIT_METHODS
from capo_ray.credit import EvidenceError, assign_credit, audit, scale_batch
from capo_ray.credit.acpo import factors_of
from capo_ray.credit.mig import watermark_gains
from capo_ray.credit.pure import min_form
from capo_ray.flow import CreditedGroup
from capo_ray.flow.group import to_samples
from tests.credit_groups import Member, group


def config(method: str, **keys: object):  # type: ignore[no-untyped-def]
    return CREDIT_METHODS[method](**keys)


def test_mig_gains_count_only_new_heights() -> None:
    assert watermark_gains([-3.0, -2.0, -2.5, -1.5, -1.5]) == pytest.approx([1.0, 0.0, 0.5, 0.0])


def test_mig_gives_the_gain_to_the_reasoning_alone() -> None:
    made = group(
        Member(1, [2, 1], answer_logprobs=[-3, -1, -1]),  # gain 2
        Member(0, [1, 2], answer_logprobs=[-3, -4, -3]),  # gain 0
    )
    credit = assign_credit(made, config("mig", w_gain=0.5))
    assert credit.advantages == (pytest.approx((1.5, 1.5, 1.0)), pytest.approx((-1.5, -1.0, -1.0)))


def test_mig_imitates_what_is_right_and_gained_and_nothing_else() -> None:
    made = group(
        Member(1, [2, 1], answer_logprobs=[-3, -1, -1]),  # right, gain 2
        Member(1, [2], answer_logprobs=[-1, -2]),  # right, no gain
        Member(0, [1, 1], answer_logprobs=[-3, -2, -1]),  # wrong, gain 2
        Member(None, [1, 1]),
    )
    credit = assign_credit(made, config("mig", w_sft=0.3))
    assert credit.imitation_weights == ((0.3, 0.3, 0.3), (0.0, 0.0), (0.0, 0.0), (0.0, 0.0))
    assert audit(made, credit)["credit/imitated_frac"] == pytest.approx(1 / 3)
    assert assign_credit(made, config("mig", w_sft=0.0)).imitation_weights == ()
    wrong = group(Member(0, [1], answer_logprobs=[-3, -1]), Member(0, [1], answer_logprobs=[-3, -2]))
    assert audit(wrong, assign_credit(wrong, config("mig")))["credit/imitated_frac"] == 0.0


def test_the_rounding_of_a_sure_answers_scores_is_neither_gain_nor_attribution() -> None:
    sure = [-1.2e-7, 0.0, -1.2e-7]  # the step of float32 below 1
    made = group(Member(1, [1, 1], answer_logprobs=[0.0, 0.0, 0.0]), Member(1, [1, 1], answer_logprobs=sure))
    credit = assign_credit(made, config("mig"))
    assert not credit.has_signal and not any(any(row) for row in credit.imitation_weights)
    assert factors_of([1.2e-7, -1.2e-7], [(0, 1), (1, 2)], beta=0.5) == [1.0, 1.0]


def test_acpo_keeps_up_entropy_on_its_weightiest_steps_in_the_first_stage_alone() -> None:
    made = group(
        Member(1, [2, 1, 1, 1], answer_logprobs=[-5, -4, -4, -1, -1]),  # gains 1, 0, 3, 0
        Member(0, [1, 2], answer_logprobs=[-3, -1, -1]),
        Member(None, [2]),
    )
    credit = assign_credit(made, config("acpo", entropy_frac=0.5))
    assert credit.entropy_weights == ((1, 1, 0, 1, 0), (1, 0, 0), (1, 1))
    assert to_samples(CreditedGroup(made, credit, {}, ended_at=0.0))[1].entropy_weights == (1, 0, 0), (
        "an invalid member is no sample"
    )
    late = assign_credit(made, config("acpo", entropy_frac=0.5), progress=0.5)
    assert not any(any(row) for row in late.entropy_weights)


def test_acpo_has_no_kl_in_its_first_stage_and_measures_it_from_that_stages_end() -> None:
    acpo = config("acpo", stage2_from=0.25)
    assert [acpo.kl_scale(p) for p in (0.0, 0.24, 0.25, 1.0)] == [0.0, 0.0, 1.0, 1.0]
    assert acpo.reference_from == 0.25
    assert not config("acpo", stage2_from=1.0).in_stage2(1.0), "1: never"
    assert config("grpo").reference_from is None and config("grpo").kl_scale(0.0) == 1.0


def test_acpo_factors_have_mean_one_over_the_tokens() -> None:
    # gains 3, 0: z = +-1, c = 1.5, 0.5; lengths 1 and 3 give total 3, so both are multiplied by 4/3
    factors = factors_of([3.0, 0.0], [(0, 1), (1, 4)], beta=0.5)
    assert factors == pytest.approx([2.0, 2 / 3])
    assert 1 * factors[0] + 3 * factors[1] == pytest.approx(4.0)


def test_acpo_factors_are_clipped_before_they_are_rescaled() -> None:
    assert factors_of([1.0, -1.0], [(0, 1), (1, 2)], beta=5.0) == pytest.approx([2 * 2 / 2.1, 0.1 * 2 / 2.1])


def test_acpo_by_hand_in_its_first_stage() -> None:
    made = group(
        Member(1, [1, 1], answer_logprobs=[-3, -1, -1]),  # gains 2, 0: c = 1.5, .5
        Member(0, [1, 1], answer_logprobs=[-3, -1, -1]),
    )
    # outcomes 1 and 0: mean .5, std .5; (1.5 - .5)/.5 = 2, (.5 - .5)/.5 = 0, and -1 on every token of the wrong one
    assert assign_credit(made, config("acpo")).advantages == (pytest.approx((2.0, 0.0)), pytest.approx((-1.0, -1.0)))


def test_acpo_never_turns_a_right_answer_into_blame() -> None:
    made = group(
        Member(1, [1, 1], answer_logprobs=[-9, -1, -9]),
        *[Member(1, [2], answer_logprobs=[-1, -1]) for _ in range(2)],
        Member(0, [2], answer_logprobs=[-1, -1]),
    )
    credit = assign_credit(made, config("acpo", beta=0.9), progress=1.0)
    assert min(a for row in credit.advantages[:3] for a in row) == 0.0
    assert max(credit.advantages[3]) < 0.0


def test_acpo_second_stage_weighs_by_confidence_but_gives_an_all_right_group_nothing() -> None:
    sure, unsure = [-1, math.log(0.8)], [-1, math.log(0.4)]
    mixed = group(
        Member(1, [1], answer_logprobs=sure),
        Member(1, [1], answer_logprobs=unsure),
        Member(0, [1], answer_logprobs=[-1, math.log(0.3)]),
    )
    credit = assign_credit(mixed, config("acpo", kappa=0.5, stage2_from=0.5), progress=0.5)
    # mean p = .5: rewards 1 + .5 x .3 and 1 - .5 x .1
    assert [row[0] for row in credit.token_rewards] == pytest.approx([1.15, 0.95, 0.0])
    first = assign_credit(mixed, config("acpo", kappa=0.5, stage2_from=0.5), progress=0.49)
    assert [row[0] for row in first.token_rewards] == [1.0, 1.0, 0.0]
    right = group(Member(1, [1], answer_logprobs=sure), Member(1, [1], answer_logprobs=unsure))
    assert not assign_credit(right, config("acpo"), progress=1.0).has_signal


def test_pure_shares_are_those_of_the_worst_step() -> None:
    # weights e^(-1/.5) for rewards 1 and 1 for -1: softmax of -r/T with T = 1 is e^-1 : e^1 : e^-1
    total = 2 * math.exp(-1) + math.exp(1)
    good, bad = math.exp(-1) / total, -math.exp(1) / total
    assert min_form([1.0, -1.0, 1.0], 1.0) == pytest.approx([good, bad, good])
    assert min_form([1.0, -1.0, 1.0], 0.01) == pytest.approx([0.0, -1.0, 0.0])


def test_pure_by_hand() -> None:
    made = group(Member(1, [1, 1], [[]]), Member(0, [1, 1], [[1]]), Member(0, [1], []))
    credit = assign_credit(made, config("pure", temperature=0.01))
    # shares (1/2, 1/2) against -1 over 2 tokens, and (0, -1) against 1 over 2; outcomes 1, -1/2, -1/2
    assert credit.advantages[0] == pytest.approx((1 + 2, 1 + 1))
    assert credit.advantages[1] == pytest.approx((-0.5 - 2, -0.5 - 1.5))
    assert credit.advantages[2] == pytest.approx((-0.5,))


@pytest.mark.parametrize("lengths", [[1, 1, 1, 1], [3, 1, 2, 7]])
def test_pure_gives_an_all_right_all_clean_group_nothing(lengths: list[int]) -> None:
    made = group(*[Member(1, lengths[: 2 + i % 3], [[]]) for i in range(4)])
    assert not assign_credit(made, config("pure")).has_signal


def test_vineppo_advantage_is_the_change_of_value() -> None:
    made = group(Member(1, [2, 1], step_values=[0.25, 0.75, 1.0]), Member(0, [1, 1], step_values=[0.25, 0.5, 0.0]))
    assert assign_credit(made, config("vineppo")).advantages == ((0.5, 0.5, 0.25), (0.25, -0.5))


def test_prime_by_hand() -> None:
    made = group(Member(1, [2], token_rewards=[0.5, 1.5]), Member(0, [1], token_rewards=[-1.0]))
    # baselines -1 and 1 (means of the other); outcome +1 and -1
    assert assign_credit(made, config("prime")).advantages == ((1 + 1.5 + 2.5, 1 + 2.5), (-1 - 2,))


def test_prime_by_the_authors_program_by_hand() -> None:
    made = group(Member(1, [2], token_rewards=[0.5, 1.5]), Member(0, [1], token_rewards=[-0.4]))
    # largest return 2: r' = (.25, .75) and -.2, means .5 and -.2: S = .3, 2 r' - S = (.2, 1.2) and -.7; outcome +1, -1
    credit = assign_credit(made, config("prime", form="code"))
    assert credit.advantages[0] == pytest.approx((1 + 1.4, 1 + 1.2), abs=1e-5)
    assert credit.advantages[1] == pytest.approx((-1 - 0.7,), abs=1e-5)


@pytest.mark.parametrize("form", ["paper", "code"])
def test_prime_has_no_credit_where_all_rewards_are_equal(form: str) -> None:
    made = group(*[Member(1, [n], token_rewards=[0.7] * n) for n in (1, 3, 7, 10)])
    assert not assign_credit(made, config("prime", form=form)).has_signal


def test_prime_is_standardised_over_the_batch_unless_asked_not_to() -> None:
    made = group(Member(1, [2], token_rewards=[0.5, 1.5]), Member(0, [1], token_rewards=[-1.0]))
    bare = assign_credit(made, config("prime"))
    # 5 3.5 -3: mean 11/6, deviation sqrt(217/18)
    (scaled,) = scale_batch([bare], config("prime"))
    sigma = math.sqrt(217 / 18)
    assert scaled.advantages[0] == pytest.approx((19 / 6 / sigma, 10 / 6 / sigma))
    assert scaled.advantages[1] == pytest.approx((-29 / 6 / sigma,))
    assert scale_batch([bare], config("prime", whiten=False)) == (bare,)


def test_vineppo_is_standardised_over_the_batch_unless_asked_not_to() -> None:
    made = group(Member(1, [2, 1], step_values=[0.25, 0.75, 1.0]), Member(0, [1, 1], step_values=[0.25, 0.5, 0.0]))
    bare = assign_credit(made, config("vineppo"))
    # .5 .5 .25 .25 -.5: mean .2, deviation sqrt(.135)
    (scaled,) = scale_batch([bare], config("vineppo"))
    assert scaled.advantages[0] == pytest.approx((0.8164966, 0.8164966, 0.1360828), abs=1e-6)
    assert scaled.advantages[1] == pytest.approx((0.1360828, -1.9051587), abs=1e-6)
    assert scale_batch([bare], config("vineppo", whiten=False)) == (bare,)


def test_vineppo_and_etpo_have_credit_wherever_a_value_changes() -> None:
    values = group(*[Member(0, [1, 1], step_values=[0.5, x, 0.0], token_rewards=[0.5, 0.0]) for x in (0.9, 0.1)])
    for method in ("vineppo", "etpo"):
        credit = assign_credit(values, CREDIT_METHODS[method]())
        assert credit.has_signal
        assert {x for row in credit.token_rewards for x in row} == {0.0}


def test_istar_by_hand() -> None:
    made = group(Member(1, [2, 1], token_rewards=[0.5, 0.5, 2.0]), Member(0, [1], token_rewards=[-1.0]))
    # steps 1, 2 and -1, each against the mean of the two others: .5, 2, -2.5; outcome +1 and -1
    assert assign_credit(made, config("istar")).advantages == ((1.5, 1.5, 3.0), (-3.5,))
    half = assign_credit(made, config("istar", w_step=0.5))
    assert half.advantages == ((1.25, 1.25, 2.0), (-2.25,)) and half.token_rewards == ((1.5, 1.5, 2.0), (-0.5,))


def test_qrm_scales_without_centring() -> None:
    made = group(Member(1, [2], token_rewards=[1.0, 3.0]), Member(0, [2], token_rewards=[1.0, 3.0]))
    assert assign_credit(made, config("qrm")).advantages == ((1.0, 3.0), (1.0, 3.0))


def test_qrm_gives_nothing_where_its_rewards_are_nearly_one_number() -> None:
    made = group(Member(1, [2], token_rewards=[1.0, 1.0 + 1e-7]), Member(0, [2], token_rewards=[1.0, 1.0]))
    assert not assign_credit(made, config("qrm")).has_signal
    # mean 1, deviation .1: a tenth of the root mean square is enough
    made = group(Member(1, [1], token_rewards=[1.1]), Member(0, [1], token_rewards=[0.9]))
    assert [row[0] for row in assign_credit(made, config("qrm")).advantages] == pytest.approx([11.0, 9.0])


def test_qrm_takes_the_outcome_until_its_model_is_to_be_trusted() -> None:
    made = group(Member(1, [2], token_rewards=[1.0, 3.0]), Member(0, [2], token_rewards=[1.0, 3.0]))
    early = assign_credit(made, config("qrm", outcome_until=0.5), progress=0.49)
    assert early.advantages == ((1.0, 1.0), (-1.0, -1.0)) and early.token_rewards == ((1.0, 1.0), (0.0, 0.0))
    assert assign_credit(made, config("qrm", outcome_until=0.5), progress=0.5).advantages == ((1.0, 3.0), (1.0, 3.0))


def test_etpo_gives_an_empty_response_no_credit() -> None:
    made = group(Member(1, []), Member(0, [2], token_rewards=[0.5, 0.25]))
    assert assign_credit(made, CREDIT_METHODS["etpo"](trace_decay=0.0)).advantages == ((), (-0.25, -0.25))


def test_etpo_by_hand() -> None:
    made = group(
        Member(1, [2, 1], token_rewards=[0.25, 0.5, 0.75]), Member(0, [1], token_rewards=[0.5]), Member(None, [1])
    )
    # changes of value 0.25, 0.25, and 0.25 to the outcome
    one = assign_credit(made, config("etpo", trace_decay=0.0))
    assert one.advantages == ((0.25, 0.25, 0.25), (-0.5,), (0.0,))
    assert one.token_rewards == ((0.5, 0.75, 1.0), (0.0,), (0.0,))
    assert assign_credit(made, config("etpo", trace_decay=0.5)).advantages[0] == (0.4375, 0.375, 0.25)
    # all the way: the outcome less the value before the token
    assert assign_credit(made, config("etpo", trace_decay=1.0)).advantages[0] == (0.75, 0.5, 0.25)


def test_rlsd_by_hand() -> None:
    made = group(Member(1, [2], hint_gains=[math.log(1.1), math.log(2.0)]), Member(0, [1], hint_gains=[math.log(1.1)]))
    # A 1 and -1; half of it follows 1.1 and 2 clipped to 1.2, and 1/1.1 where the answer is wrong
    credit = assign_credit(made, config("rlsd"))
    assert credit.advantages[0] == pytest.approx((1.05, 1.1))
    assert credit.advantages[1] == pytest.approx((-(0.5 + 0.5 / 1.1),))
    # half way through the run a quarter is left of it, at its end nothing
    assert assign_credit(made, config("rlsd"), progress=0.5).advantages[0] == pytest.approx((1.025, 1.05))
    assert assign_credit(made, config("rlsd"), progress=1.0).advantages == ((1.0, 1.0), (-1.0,))
    assert assign_credit(made, config("rlsd", mix_until=0.0), progress=1.0).advantages[0] == pytest.approx((1.05, 1.1))
    whole = assign_credit(made, config("rlsd", mix=1.0, clip=0.5))
    assert whole.advantages[0] == pytest.approx((1.1, 1.5))


@given(gains=st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3), mix=st.floats(0, 1))
def test_rlsd_never_crosses_the_verifiers_sign_nor_its_clip(gains: list[float], mix: float) -> None:
    made = group(Member(1, [3], hint_gains=gains), Member(0, [3], hint_gains=gains))
    right, wrong = assign_credit(made, config("rlsd", mix=mix)).advantages
    assert all(0.8 - 1e-9 <= a <= 1.2 + 1e-9 for a in right) and all(-1.2 - 1e-9 <= a <= -0.8 + 1e-9 for a in wrong)


@pytest.mark.parametrize("method", ["acpo", "mig", "vineppo", "prime", "istar", "qrm", "etpo", "rlsd"])
def test_missing_or_broken_evidence_is_refused(method: str) -> None:
    with pytest.raises(EvidenceError, match=f"credit={method} reads"):
        assign_credit(group(Member(1, [2, 2]), Member(0, [1])), config(method))
    nans = [float("nan")] * 4
    broken = Member(1, [2, 1, 1], answer_logprobs=nans, step_values=nans, token_rewards=nans, hint_gains=nans)
    with pytest.raises(EvidenceError, match="finite"):
        assign_credit(group(broken, Member(0, [])), config(method))
