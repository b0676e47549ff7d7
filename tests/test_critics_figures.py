"""The critic tier's figures of an update, by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from capo_ray.config import TrainConfig
from capo_ray.credit import assign_credit
from capo_ray.flow.budgets import MIN_JUDGED, Budgets
from capo_ray.flow.group import CreditedGroup
from capo_ray.flow.judging import exposed_s, judge_figures
from capo_ray.protocols import RunFailed
from capo_ray.types import Critique, Evidence, Judged, Provenance
from capo_ray.votes import majority_word
from tests.credit_groups import Member, group
from tests.fakes import fake_parts
from tests.test_pipeline import make_config, run

CONFIG = make_config(critic={"num_votes": 3, "max_verifier_gap": 0.4})
PROMISED = frozenset(
    f"critic/{name}"
    for name in (
        "votes_per_response", "valid_votes_per_response", "agreement_frac", "invalid_frac", "abstained_frac",
        "early_stopped_frac", "cache_hit_frac", "skipped_frac", "outcome_only_frac", "critique_s",
        "tokens_per_critique", "prompt_tokens_per_critique", "exposed_s", "step_time_frac", "verifier_gap_frac",
        "lenient_gap_frac", "strict_gap_frac", "verifier_gap_alarm", "outages_total", "outage_s_total",
        "waiting_groups", "lost_groups_total",
    )
)  # fmt: skip
"""What every update of a run with critics must log."""
OF_THE_TIER = frozenset(
    f"critic/{name}"
    for name in (
        "in_flight_calls", "ready_workers", "restarts_total", "calls_resent_total", "retried_groups_total",
        "hedged_groups_total",
    )
)  # fmt: skip
"""What the pool of critic workers adds in a real run."""


def vote(flagged: Sequence[int] | None, overall: bool | None = None, **source: object) -> Critique:
    provenance = Provenance("m", "", 0, **source)  # type: ignore[arg-type]
    return Critique(None if flagged is None else frozenset(flagged), overall, "said", "", provenance)


def credited(*members: tuple[int, Sequence[Critique]], ended_at: float = 0.0, critique_s: float = 0.0) -> CreditedGroup:
    """A group of two-step responses, each a reward and its votes."""
    plain = group(*(Member(reward, [2, 2]) for reward, _ in members))
    judged: list[Judged] = [
        replace(member, evidence=Evidence(critiques=tuple(votes)))
        for member, (_, votes) in zip(plain.members, members, strict=True)
    ]
    whole = replace(plain, members=tuple(judged))
    return CreditedGroup(whole, assign_credit(whole, CONFIG.credit), {"critique": critique_s}, ended_at)


def figures(*groups: CreditedGroup, config: TrainConfig = CONFIG) -> dict[str, float]:
    return judge_figures(groups, config, waited_s=1.0, step_s=4.0)


def test_votes_of_an_update_by_hand() -> None:
    out = figures(
        credited(
            (1, [vote([]), vote([]), vote([])]),  # all three
            (0, [vote([1]), vote([1])]),  # decided after two of three
            (0, [vote(None), vote(None), vote(None)]),  # nobody could be read
            (0, [vote([0], cached=True), vote([1]), vote(None)]),
        )
    )
    assert out["critic/votes_per_response"] == 11 / 4
    assert out["critic/valid_votes_per_response"] == 7 / 4
    assert out["critic/invalid_frac"] == 4 / 11
    assert out["critic/abstained_frac"] == 1 / 4
    assert out["critic/early_stopped_frac"] == 1 / 4
    assert out["critic/cache_hit_frac"] == 1 / 11
    # full agreement on three responses' pairs but for the last: {0} against {1} differ on both of two steps
    assert out["critic/agreement_frac"] == pytest.approx((1 + 1 + 0) / 3)


def test_cost_counts_only_what_was_asked_now() -> None:
    paid = {"seconds": 2.0, "output_tokens": 30, "prompt_tokens": 100}
    old = {"seconds": 9.0, "output_tokens": 99, "prompt_tokens": 999, "cached": True}
    out = figures(credited((1, [vote([], **paid), vote([], **{**paid, "output_tokens": 10}), vote([], **old)])))
    assert out["critic/critique_s"] == 2.0
    assert out["critic/tokens_per_critique"] == 20
    assert out["critic/prompt_tokens_per_critique"] == 100
    assert "critic/critique_s" not in figures(credited((1, [vote([], **old)])))


def test_the_gap_between_critics_and_verifier_by_hand() -> None:
    right, wrong = vote([], True), vote([0], False)
    made = credited(
        (1, [right, right, wrong]),  # agree
        (0, [right, right, wrong]),  # critics lenient
        (1, [wrong, wrong]),  # critics strict
        (0, [right, wrong]),  # a tie: no word
        (0, [vote([0]), vote(None)]),  # no overall verdict: no word
    )
    out = figures(made)
    assert out["critic/verifier_gap_frac"] == pytest.approx(2 / 3)
    assert out["critic/lenient_gap_frac"] == pytest.approx(1 / 3)
    assert out["critic/strict_gap_frac"] == pytest.approx(1 / 3)
    assert out["critic/verifier_gap_alarm"] == 1.0
    assert figures(made, config=make_config(critic={"max_verifier_gap": 0.7}))["critic/verifier_gap_alarm"] == 0.0
    assert not any("gap" in name for name in figures(credited((0, [vote([0])]))))


def test_a_tie_and_silence_are_no_word() -> None:
    assert majority_word([vote([], True), vote([], False)]) is None
    assert majority_word([vote(None, None)]) is None
    assert majority_word([vote([], True), vote(None, False), vote(None, False)]) is True, "invalid critiques abstain"
    assert majority_word([vote([], True), vote([], True), vote([], False)]) is True


def test_exposed_seconds_are_those_by_which_judging_put_the_batch_off() -> None:
    # The batch was there at 10; without critics its last group would have ended at 9.5.
    one = credited((1, [vote([])]), ended_at=10.0, critique_s=2.0)
    two = credited((1, [vote([])]), ended_at=9.7, critique_s=0.2)
    assert exposed_s([one, two], waited_s=5.0) == pytest.approx(0.5)
    assert exposed_s([one, two], waited_s=0.1) == 0.1, "the learner was busy the rest of the time"
    out = judge_figures([one, two], CONFIG, waited_s=0.25, step_s=2.0)
    assert out["critic/step_time_frac"] == 0.125 and out["critic/exposed_s"] == 0.25


def test_an_update_without_critiques_has_no_critic_figures() -> None:
    assert figures(credited((1, []), (0, []))) == {}


def test_every_update_of_a_run_with_critics_logs_all_that_is_promised(tmp_path: Path) -> None:
    parts = fake_parts(tmp_path, make_config(), judge=Spoken())
    run(parts)
    rows = [row for _, row in parts.tracker.rows if "time/update_s" in row]  # type: ignore[attr-defined]
    assert len(rows) == 12
    for row in rows:
        assert row.keys() >= PROMISED, sorted(PROMISED - row.keys())
        assert all(math.isfinite(row[name]) for name in PROMISED)
    plain = fake_parts(tmp_path / "grpo", make_config("grpo"), judge=None)
    run(plain)
    names = {name for _, row in plain.tracker.rows for name in row}  # type: ignore[attr-defined]
    assert not any(name.startswith("critic/") for name in names)


class Spoken:
    """A critic whose answers have a text, as those of a model have."""

    async def critique(self, problem, responses, num_votes):  # type: ignore[no-untyped-def]
        def one(request, index):  # type: ignore[no-untyped-def]
            right = request.steps[-1].endswith(problem.answer)
            return vote([] if right else [1], right, seconds=0.01, output_tokens=9, prompt_tokens=50)

        return tuple(tuple(one(r, i) for i in range(num_votes)) for r in responses)


def test_a_calculator_without_arithmetic_to_check_is_answered_with_its_own_cure() -> None:
    told = []
    for backend in ("calculator", "vllm"):
        budgets = Budgets(CONFIG.model_copy(update={"critic": CONFIG.critic.model_copy(update={"backend": backend})}))
        for _ in range(MIN_JUDGED):
            budgets.judged(credited((1, [vote(None)]), (0, [vote(None)])))
        with pytest.raises(RunFailed) as failure:
            budgets.raise_if_failed()
        told.append(str(failure.value))
    assert "critic.max_outcome_only_frac=1" in told[0] and "rubric" not in told[0]
    assert "critic.rubric and critic.max_tokens" in told[1]
