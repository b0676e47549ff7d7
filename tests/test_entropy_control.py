"""The entropy controls: the coefficient by hand, its bounds for any entropy, and what of it reaches the samples."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capo_ray.config.loss import LossConfig
from capo_ray.flow import CreditedGroup
from capo_ray.flow.entropy_control import EntropyControl, EntropyState
from capo_ray.flow.group import to_samples
from capo_ray.types import GroupCredit
from tests.credit_groups import Member, group
from tests.examples import examples


def credited(*rewards: int | None, shares: tuple[tuple[float, ...], ...] = ()) -> CreditedGroup:
    """Responses of two tokens."""
    made = group(*(Member(reward, [2]) for reward in rewards))
    count = len(rewards)
    credit = GroupCredit(
        advantages=((1.0, -1.0),) * count,
        token_rewards=((0.0, 0.0),) * count,
        step_weights=((0.0,),) * count,
        valid_critiques=(0,) * count,
        included=tuple(reward is not None for reward in rewards),
        entropy_weights=shares,
    )
    return CreditedGroup(made, credit, {}, ended_at=0.0)


def weights(control: EntropyControl, one: CreditedGroup) -> list[tuple[float, ...]]:
    return [sample.entropy_weights for sample in to_samples(control.weigh([one])[0])]


def test_without_control_no_sample_carries_weights_whatever_the_credit_shares() -> None:
    control = EntropyControl(LossConfig(), EntropyState())
    assert weights(control, credited(1, 0, shares=((1.0, 0.0),) * 2)) == [(), ()]
    assert control.figures([]) == {}


@pytest.mark.parametrize("kind", ["fixed", "lica"])
def test_a_fixed_coefficient_is_spread_evenly_or_as_the_credit_shares_it(kind: str) -> None:
    control = EntropyControl(LossConfig(entropy_control=kind, entropy_coef=0.02), EntropyState())  # type: ignore[arg-type]
    assert weights(control, credited(1, 0)) == [(0.02, 0.02)] * 2
    assert weights(control, credited(1, None, shares=((0.0, 0.5), (1.0, 1.0)))) == [(0.0, 0.01)]
    control.observe(0.3)
    assert weights(control, credited(1)) == [(0.02, 0.02)]


def test_aer_by_hand() -> None:
    config = LossConfig(
        entropy_control="aer",
        entropy_coef=0.01,
        entropy_target_frac=0.4,
        entropy_rate=0.1,
        entropy_max_coef=0.05,
        entropy_pass_rate=0.5,
    )
    control = EntropyControl(config, EntropyState())
    assert control.target_nats is None
    # pass rates 0, 1/4 and 1/2 against rho = 1/2: factors 1, 1/2 and 0; the invalid answer does not count
    assert weights(control, credited(0, 0)) == [(0.01, 0.01)] * 2
    assert weights(control, credited(1, 0, 0, 0, None)) == [(0.005, 0.005)] * 4
    assert weights(control, credited(1, 0)) == [(), ()]
    control.observe(0.5)  # H_0, so the target is 0.2: 0.01 + 0.1 (0.2 - 0.5) is below 0
    assert (control.target_nats, control.coefficient) == (pytest.approx(0.2), 0.0)
    control.observe(0.1)  # 0 + 0.1 (0.2 - 0.1)
    assert control.coefficient == pytest.approx(0.01)
    control.observe(-9.0)
    assert control.coefficient == 0.05, "at most entropy_max_coef"
    figures = control.figures(control.weigh([credited(0, 0), credited(1, 1)]))
    assert figures == {
        "entropy/bonus_coef": 0.05,
        "entropy/weight_mean": pytest.approx(0.025),
        "entropy/weighted_frac": 0.5,
        "entropy/target_nats": pytest.approx(0.2),
    }


def test_aer_without_a_pass_rate_treats_all_questions_alike() -> None:
    config = LossConfig(entropy_control="aer", entropy_coef=0.01, entropy_pass_rate=0)
    assert weights(EntropyControl(config, EntropyState()), credited(1, 1)) == [(0.01, 0.01)] * 2


@settings(max_examples=examples(100))
@given(
    st.lists(st.floats(0, 10), min_size=1, max_size=30), st.floats(0, 1), st.floats(0, 1), st.lists(st.integers(0, 1))
)
def test_aer_stays_in_bounds_moves_towards_the_target_and_helps_hard_questions_more(
    entropies: list[float], rate: float, tau: float, rewards: list[int]
) -> None:
    config = LossConfig(entropy_control="aer", entropy_rate=rate, entropy_target_frac=tau, entropy_max_coef=0.1)
    control = EntropyControl(config, EntropyState())
    for nats in entropies:
        before = control.coefficient
        control.observe(nats)
        target = control.target_nats
        assert target == pytest.approx(tau * entropies[0])
        assert 0.0 <= control.coefficient <= 0.1
        assert (control.coefficient - before) * (target - nats) >= 0
    harder, easier = (weights(control, credited(*rewards, extra))[0] or (0.0, 0.0) for extra in (0, 1))
    assert 0.0 <= easier[0] <= harder[0] <= control.coefficient
    again = EntropyControl(config, EntropyState(**asdict(control._state)))
    for one in (control, again):
        one.observe(0.123)
    assert (again.coefficient, again.target_nats) == (control.coefficient, control.target_nats), "restored"


def test_a_run_that_goes_on_with_aer_starts_from_its_coefficient_and_stays_below_its_bound() -> None:
    state = EntropyState()
    for before in (LossConfig(), LossConfig(entropy_control="fixed", entropy_coef=0.7)):
        EntropyControl(before, state).observe(0.5)
        aer = LossConfig(entropy_control="aer", entropy_coef=0.05)
        assert EntropyControl(aer, EntropyState(**asdict(state))).coefficient == 0.05
    lower = LossConfig(entropy_control="aer", entropy_max_coef=0.02)
    assert EntropyControl(lower, EntropyState(0.08, 0.5)).coefficient == 0.02
    assert EntropyControl(lower, EntropyState(0.01, 0.5)).coefficient == 0.01
    assert EntropyControl(aer, EntropyState(0.0, None)).coefficient == 0.05, "a checkpoint of a run without aer"


def test_aer_does_not_wind_up_where_the_credit_gives_no_token_a_share() -> None:
    control = EntropyControl(LossConfig(entropy_control="aer", entropy_rate=0.1), EntropyState(0.01, 1.0))
    control.weigh([credited(1, 0, shares=((0.0, 0.0),) * 2)])
    control.observe(0.1)
    assert control.coefficient == 0.01
    control.weigh([credited(1, 0, shares=((0.0, 0.0), (0.0, 1.0)))])
    control.observe(0.1)
    assert control.coefficient == pytest.approx(0.01 + 0.1 * (0.4 - 0.1))


def test_an_entropy_that_is_no_number_steers_nothing() -> None:
    control = EntropyControl(LossConfig(entropy_control="aer", entropy_coef=0.02), EntropyState())
    control.observe(float("nan"))
    assert control.coefficient == 0.02 and control.target_nats is None


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"entropy_control": "fixed"}, "needs loss.entropy_coef other than 0"),
        ({"entropy_control": "aer", "entropy_coef": 0.2}, r"must lie in \[0, loss.entropy_max_coef\]"),
        ({"covariance_low": 6.0}, "covariance_low must be <= loss.covariance_high"),
    ],
)
def test_controls_that_could_do_nothing_are_refused(keys: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LossConfig.model_validate(keys)


def test_each_covariance_control_picks_its_authors_share_of_tokens_unless_told_another() -> None:
    assert LossConfig(covariance="clip").picked_frac == 0.0002  # both scripts of 2505.22617
    assert LossConfig(covariance="kl").picked_frac == 0.002
    assert LossConfig(covariance="clip", covariance_frac=0.01).picked_frac == 0.01


def test_weighing_leaves_advantages_and_groups_as_they_were() -> None:
    control = EntropyControl(LossConfig(entropy_control="fixed", entropy_coef=0.02), EntropyState())
    one = credited(1, 0)
    (weighed,) = control.weigh([one])
    assert replace(weighed, credit=one.credit) == one
    assert weighed.credit.advantages == one.credit.advantages
