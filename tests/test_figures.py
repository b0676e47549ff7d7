"""Figures of an update, counted by hand."""

from __future__ import annotations

import pytest

from capo_ray.config import TrainConfig
from capo_ray.credit import assign_credit
from capo_ray.flow.figures import CriticScore
from capo_ray.flow.group import CreditedGroup
from tests.view_run import one_group


def test_precision_and_recall_are_of_the_groups_since_they_were_last_told() -> None:
    group = one_group(1)  # three votes on four responses: of the last one, two flag step 1, one nothing
    credited = CreditedGroup(group, assign_credit(group, TrainConfig().credit, 0.0), {}, 0.0)
    score = CriticScore()
    assert score.figures() == {}
    score.count(credited, lambda problem, steps: frozenset({1}) if "=5" in steps[1] else frozenset())
    first = score.figures()
    # Every response has "=5" in its step 1, so it is wrong in all four: 12 single chances, 2 hits; voted 1 of 4.
    assert first["critic/precision_frac"] == 1.0 and first["critic/recall_frac"] == pytest.approx(2 / 12)
    assert first["critic/voted_precision_frac"] == 1.0 and first["critic/voted_recall_frac"] == 0.25
    score.count(credited, lambda problem, steps: frozenset({0}))
    second = score.figures()
    assert second["critic/precision_frac"] == second["critic/voted_recall_frac"] == 0.0
    score.count(credited, None)
    assert "critic/recall_frac" not in score.figures()
    assert score.summary()["recall"] == pytest.approx(2 / 24)
