"""What is not a number goes no further, and the rest of its group goes on."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from capo_ray.flow import quarantine
from capo_ray.flow.quarantine import ABSURD, Quarantine, unsound_credit, unsound_response, without
from capo_ray.protocols import RunFailed, Sampling
from capo_ray.types import Batch, Completion, GroupCredit, UpdateReport
from tests.fakes import FakeEngine, FakeLearner, completion, fake_parts
from tests.test_pipeline import close, make_config, run

NAN, INF = math.nan, math.inf


class Sick(FakeEngine):
    """Gives nan as the first logprob of the last sample of a group while `is_sick(call)`."""

    def __init__(self, is_sick: object) -> None:
        super().__init__()
        self.calls, self.is_sick = 0, is_sick

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> tuple[Completion, ...]:
        done = await super().generate(prompt_ids, sampling)
        self.calls += 1
        if sampling.n == 1 or not self.is_sick(self.calls):  # type: ignore[operator]
            return done
        last = done[-1]
        return (*done[:-1], replace(last, logprobs=(NAN, *last.logprobs[1:])))


def test_a_response_with_a_figure_that_is_no_number_is_told_by_its_token() -> None:
    whole = completion("ab")
    assert unsound_response(whole) == ""
    assert unsound_response(replace(whole, logprobs=(-0.5, NAN, -0.5))) == "the logprob of token 1 of 3 is nan"
    assert unsound_response(replace(whole, logprobs=(-INF, -0.5, -0.5))) == "the logprob of token 0 of 3 is -inf"
    assert unsound_response(replace(whole, entropies=(0.5, 0.5, INF))) == "the entropy of token 2 of 3 is inf"


def test_credit_that_is_infinite_or_absurd_is_told_and_left_out() -> None:
    rows = ((0.5, -0.5), (1e38,), (NAN,), (-ABSURD,))
    zeros = tuple((0.0,) * len(row) for row in rows)
    credit = GroupCredit(rows, zeros, zeros, (4, 3, 2, 1), (True, True, True, False))
    assert [bool(unsound_credit(credit, i)) for i in range(4)] == [False, True, True, False]
    assert unsound_credit(credit, 1) == "the advantage of token 0 of 1 is 1e+38"
    kept = without(credit, [0, 3])
    assert kept == GroupCredit((rows[0], rows[3]), (zeros[0], zeros[3]), (zeros[0], zeros[3]), (4, 1), (True, False))
    weighed = replace(credit, entropy_weights=((1.0, INF), (1.0,), (1.0,), (1.0,)))
    assert unsound_credit(weighed, 0) == "the entropy weight of token 1 of 2 is inf"


def test_a_nan_logprob_costs_its_response_and_not_the_group_or_the_run(tmp_path: Path) -> None:
    file = tmp_path / "quarantine.jsonl"
    engine = Sick(lambda call: call % 3 == 0)
    parts = fake_parts(tmp_path, make_config(), engine=engine, quarantine=Quarantine(file))
    assert run(parts).state.version == 12
    close(parts)
    balance = parts.ledger.balance()  # type: ignore[attr-defined]
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert balance.balanced and balance.reasons["non_finite"] == len(rows) > 3
    assert rows[0]["cause"].startswith("the logprob of token 0 of") and "think" in rows[0]["text"]
    samples = parts.learner.samples  # type: ignore[attr-defined]
    assert len(samples) == balance.counts["trained"] and 12 * 3 * 4 - 12 * 3 <= len(samples) < 12 * 3 * 4
    assert all(math.isfinite(x) for sample in samples for x in (*sample.sampler_logprobs, *sample.advantages))
    assert {str(sample.key) for sample in samples}.isdisjoint(row["key"] for row in rows)
    logged = [figures for _, figures in parts.tracker.rows if "loss/objective_mean" in figures]  # type: ignore[attr-defined]
    assert logged[-1]["rollout/quarantined_total"] >= 3
    assert all(math.isfinite(value) for figures in logged for value in figures.values())


def test_several_groups_in_a_row_end_the_run_with_the_cause(tmp_path: Path) -> None:
    config = make_config(run={"max_nonfinite_groups": 5})
    parts = fake_parts(tmp_path, config, engine=Sick(lambda call: True))
    with pytest.raises(RunFailed, match=r"5 groups in a row .* the logprob of token 0 of 9 is nan"):
        run(parts)


def test_the_file_is_bounded_and_one_that_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine, "MAX_FILE_BYTES", 2000)
    file = tmp_path / "quarantine.jsonl"
    config = make_config(run={"max_nonfinite_groups": 1000})
    run(fake_parts(tmp_path, config, engine=Sick(lambda call: True), quarantine=Quarantine(file)))
    assert 1000 < file.stat().st_size <= 2000
    nowhere = Quarantine(tmp_path / "missing" / "quarantine.jsonl")
    (tmp_path / "other").mkdir()
    run(fake_parts(tmp_path / "other", config, engine=Sick(lambda call: True), quarantine=nowhere))
    assert nowhere.figures()["rollout/quarantined_total"] > 12


def test_a_mismatch_of_engine_and_learner_raises_an_alarm_and_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Apart(FakeLearner):
        async def update(self, batch: Batch) -> UpdateReport:
            report = await super().update(batch)
            nats = 3.5 if report.version > 1 else 0.01
            return replace(report, metrics={**report.metrics, "loss/mismatch_kl_nats": nats})

    parts = fake_parts(tmp_path, make_config(run={"num_updates": 4}), learner=Apart())
    run(parts)
    alarms = [f["loss/mismatch_alarm"] for _, f in parts.tracker.rows if "loss/objective_mean" in f]  # type: ignore[attr-defined]
    assert alarms == [0.0, 1.0, 1.0, 1.0]
    assert [r.getMessage().startswith("update 2: engine and learner differ by 3.5") for r in caplog.records] == [True]
