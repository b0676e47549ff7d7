"""Figures of an update, counted by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from capo_ray.config import TrainConfig
from capo_ray.config.credit import GrpoConfig
from capo_ray.credit import assign_credit
from capo_ray.flow.figures import CriticScore
from capo_ray.flow.group import CreditedGroup
from capo_ray.flow.idle import Idle
from capo_ray.flow.shown import last_judged, shown
from capo_ray.place.report import _credit_words
from capo_ray.types import Evidence
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


def test_a_run_says_in_the_end_what_its_credit_did() -> None:
    group = one_group(1)  # its answers differ
    alike = replace(group, members=group.members[3:] * 2)  # two wrong ones, step 1 of both flagged
    score = CriticScore()
    for one in (group, alike):
        score.count(
            CreditedGroup(one, assign_credit(one, TrainConfig().credit, 0.0), {}, 0.0),
            lambda problem, steps: frozenset({1}) if "=5" in steps[1] else frozenset(),
        )
    told = score.summary()
    assert (told["num_steps"], told["num_flagged"]) == (18, 3)
    assert (told["num_groups"], told["num_saved"]) == (2, 1)
    words = "3 of 18 judged steps flagged, 100% of them truly wrong; 1 of 2 judged groups teach by their steps alone"
    assert _credit_words(told) == words


def test_the_idle_share_of_a_tier_is_of_the_seconds_since_its_workers_last_told() -> None:
    def told(busy: float, up: float, **others: float) -> dict[str, float]:
        seconds = {"time/wait_for_batch_s": 1.0, "time/update_s": 2.0, "time/publish_s": 1.0}
        return idle.figures(seconds | {"rollout/busy_s_total": busy, "rollout/up_s_total": up} | others)

    idle = Idle()
    assert told(6.0, 8.0) == {"learner/idle_frac": 0.25, "rollout/idle_frac": 0.25}
    assert told(6.0, 8.0) == {"learner/idle_frac": 0.25}, "no ping since"
    assert told(7.0, 18.0)["rollout/idle_frac"] == 0.9, "1 s of 10"
    assert "rollout/idle_frac" not in told(1.0, 2.0), "another worker, whose counters begin anew"
    assert told(3.0, 6.0)["rollout/idle_frac"] == 0.5
    critics = {"critic/engine_busy_s_total": 3.0, "critic/engine_up_s_total": 2.0}  # a step that ended a moment later
    assert told(3.0, 6.0, **critics)["critic/idle_frac"] == 0.0


def test_whoever_watches_sees_the_newest_judged_response_with_most_blame() -> None:
    group = one_group(1)
    credited = CreditedGroup(group, assign_credit(group, TrainConfig().credit, 0.0), {}, 0.0)
    figures = {"rollout/reward_mean": 0.75, "learner/idle_frac": 0.25}
    told = shown([credited], figures)
    assert (told["reward"], told["idle"], told["agreement"]) == (0.75, {"learner": 0.25}, None)
    assert told["judged"]["question"] == group.problem.prompt and told["judged"]["verdict"] == "wrong"
    steps = [("1+1=2\n", 0.0), ("2+2=5\n", 1.0), ("so 1 done", 0.0)]
    assert told["judged"]["steps"] == steps
    unjudged = replace(group, members=tuple(replace(m, evidence=Evidence()) for m in group.members))
    plain = CreditedGroup(unjudged, assign_credit(unjudged, GrpoConfig(), 0.0), {}, 0.0)
    assert last_judged([plain]) is None and last_judged([credited, plain]) == told["judged"]
