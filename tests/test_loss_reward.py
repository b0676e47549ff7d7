"""The objectives of reward models against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from capo_ray.loss import outcome_loss, pair_loss, rank_pairs, response_score, soft_value_targets


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_outcome_loss_by_hand() -> None:
    # -log sigmoid(ln 3) = ln(4/3) for the right one, -log(1 - sigmoid(ln 3)) = ln 4 for the wrong one
    scores = tensor(math.log(3), math.log(3), 0.0)
    loss = outcome_loss(scores, torch.tensor([1, 0, 1]))
    assert float(loss) == pytest.approx((math.log(4 / 3) + math.log(4) + math.log(2)) / 3)


def test_pair_loss_is_the_mean_over_groups_of_the_mean_over_their_pairs() -> None:
    scores = tensor(math.log(3), 0.0, 0.0, 5.0, 7.0, 1.0, 1.0)
    outcomes, groups = torch.tensor([1, 0, 0, 1, 1, 1, 0]), torch.tensor([0, 0, 0, 1, 1, 2, 2])
    # group 0: two pairs of ln(4/3); group 1 has no wrong answer; group 2: a tie, ln 2
    assert float(pair_loss(scores, outcomes, groups)) == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)
    # a pair of gap 10 under scale 0.2 and margin 2 is sigmoid(0)
    far = pair_loss(tensor(10.0, 0.0), torch.tensor([1, 0]), torch.tensor([0, 0]), scale=0.2, margin=2.0)
    assert float(far) == pytest.approx(math.log(2))


def test_istars_scores_by_hand() -> None:
    # beta log-ratios of a right response of three steps, (ln 3), (0, ln 3), (ln 9), and of a wrong one of one step
    right, wrong = tensor(math.log(3), 0.0, math.log(3), math.log(9)), tensor(math.log(2), math.log(2))
    paper = [response_score(right, "sum", 3), response_score(wrong, "sum", 1)]
    code = [response_score(right, "step_mean", 3), response_score(wrong, "step_mean", 1)]
    assert [float(x) for x in paper] == pytest.approx([math.log(81), math.log(4)])
    assert [float(x) for x in code] == pytest.approx([math.log(81) / 3, math.log(4)])  # (ln 3 + ln 3 + ln 9) / 3
    pair = (torch.tensor([1, 0]), torch.tensor([0, 0]))
    # -log sigmoid(ln 81 - ln 4) = ln(1 + 4/81); -log sigmoid(ln 81^(1/3) - ln 4) = ln(1 + 4 / 81^(1/3))
    assert float(pair_loss(torch.stack(paper), *pair)) == pytest.approx(math.log(85 / 81))
    assert float(pair_loss(torch.stack(code), *pair)) == pytest.approx(math.log(1 + 4 / 81 ** (1 / 3)))


@pytest.mark.parametrize("outcome", [0, 1])
def test_groups_that_agree_with_themselves_teach_pairs_nothing_and_give_no_nan(outcome: int) -> None:
    scores = tensor(0.3, -0.2, 4.0).requires_grad_()
    loss = pair_loss(scores, torch.tensor([outcome] * 3), torch.tensor([0, 0, 1]))
    (slope,) = torch.autograd.grad(loss, scores)
    assert float(loss.detach()) == 0.0 and slope.tolist() == [0.0, 0.0, 0.0]
    assert rank_pairs(scores.detach(), torch.tensor([outcome] * 3), torch.tensor([0, 0, 1])) == (0.0, 0)


def test_pairs_are_counted_within_groups_and_ties_by_half() -> None:
    scores, outcomes = tensor(1.0, 0.0, 1.0, 2.0, 9.0), torch.tensor([1, 0, 0, 1, 0])
    # group 0: 1 > 0, 1 = 1; group 1: 2 < 9
    assert rank_pairs(scores, outcomes, torch.tensor([0, 0, 0, 1, 1])) == (1.5, 3)


@given(
    st.lists(st.tuples(st.floats(-30, 30), st.integers(0, 1), st.integers(0, 3)), min_size=1, max_size=12), st.data()
)
def test_objectives_do_not_depend_on_the_order_of_responses(
    rows: list[tuple[float, int, int]], data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(rows))))
    losses = []
    for picked in (rows, [rows[i] for i in order]):
        scores, outcomes, groups = (torch.tensor(column) for column in zip(*picked, strict=True))
        scores = scores.double()
        losses.append([float(pair_loss(scores, outcomes, groups)), float(outcome_loss(scores, outcomes))])
        assert all(map(math.isfinite, losses[-1]))
    assert losses[0] == pytest.approx(losses[1])


def test_soft_value_targets_by_hand() -> None:
    values, kl = tensor(0.2, 0.4, 0.8), tensor(1.0, 2.0, -1.0)
    # one token: the next value, the outcome at the end, less beta kl
    assert soft_value_targets(values, kl, 1.0, 0.1, 0.0).tolist() == pytest.approx([0.4 - 0.1, 0.8 - 0.2, 1.0 + 0.1])
    # all the way: the outcome less the KL still to come
    assert soft_value_targets(values, kl, 1.0, 0.1, 1.0).tolist() == pytest.approx([1.0 - 0.2, 1.0 - 0.1, 1.0 + 0.1])
    # errors 0.1, 0.2, 0.3 under decay 0.5: 0.2 + 0.1 + 0.1 + 0.075, 0.4 + 0.2 + 0.15, 0.8 + 0.3
    assert soft_value_targets(values, kl, 1.0, 0.1, 0.5).tolist() == pytest.approx([0.475, 0.75, 1.1])
