"""Every end of a run keeps what it has done; checkpoints are written while it goes on. The pipeline over fakes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from capo_ray.config import TrainConfig
from capo_ray.flow import Parts, Pipeline, RunOutcome
from capo_ray.flow.state import RunState, read_checkpoint
from capo_ray.ledger import LedgerLost
from capo_ray.place.ending import Ending
from capo_ray.protocols import PartTimeout, RunFailed, RunStopped
from capo_ray.types import Batch, UpdateReport, WrittenFile
from tests.fakes import FakeEngine, FakeJudge, FakeLearner, FakeRewardModel, fake_parts
from tests.test_pipeline import make_config, run


def never(**more: object) -> TrainConfig:
    """A run that would not come to a checkpoint of its own."""
    return make_config(run={"num_updates": 10_000, "checkpoint_every": 10_000, **more})


def last_saved(parts: Parts) -> int:
    """The version of the newest whole checkpoint; its own state says so too."""
    latest = parts.checkpoints.latest()
    if latest is None:
        return 0
    state, _ = read_checkpoint(latest)
    assert (latest / "learner" / "version").read_text() == str(state.version), "shards and counters are of one moment"
    return state.version


def run_and_stop(parts: Parts, version: int) -> RunOutcome:
    """The outcome of a run that is asked to end once it has come to `version`."""

    async def go() -> RunOutcome:
        pipeline = Pipeline(parts, RunState())
        task = asyncio.ensure_future(pipeline.run())
        while pipeline.state.version < version:
            await asyncio.sleep(0.001)
        assert pipeline.stop("asked to end by SIGTERM")
        return await asyncio.wait_for(task, 20)

    return asyncio.run(go())


def test_a_run_whose_minutes_are_over_keeps_its_policy(tmp_path: Path) -> None:
    parts = fake_parts(tmp_path, never(max_minutes=0.005))
    outcome = run(parts)
    assert "run.max_minutes" in outcome.stopped_early
    assert last_saved(parts) == outcome.state.version > 0


def test_a_run_with_nothing_left_to_learn_keeps_its_policy(tmp_path: Path) -> None:
    config = make_config("grpo", run={"num_updates": 10_000, "checkpoint_every": 10_000, "max_creditless_groups": 20})
    parts = fake_parts(tmp_path, config, engine=FakeEngine(skill=1.0), judge=None)
    outcome = run(parts)
    assert "nothing left to learn" in outcome.stopped_early
    assert last_saved(parts) == outcome.state.version > 0


def test_a_run_that_is_asked_to_end_saves_first_and_is_not_evaluated_again(tmp_path: Path) -> None:
    parts = fake_parts(tmp_path, never(), engine=FakeEngine(delay_s=lambda: 0.001))
    outcome = run_and_stop(parts, 4)
    assert outcome.asked_to_end and last_saved(parts) == outcome.state.version >= 4
    evaluations = [row for _, row in parts.tracker.rows if "eval/invalid_responses" in row]  # type: ignore[attr-defined]
    assert len(evaluations) == 1, "the first"


def test_an_evaluation_amid_the_run_does_not_hold_up_its_end(tmp_path: Path) -> None:
    class Slow(FakeEngine):
        async def generate(self, prompt_ids: Any, sampling: Any) -> Any:
            if sampling.n == 1 and self.version >= 2:
                await asyncio.sleep(60)
            return await super().generate(prompt_ids, sampling)

    parts = fake_parts(tmp_path, never(eval_every=2), engine=Slow())
    started = time.monotonic()
    outcome = run_and_stop(parts, 2)
    assert time.monotonic() - started < 10 and last_saved(parts) == outcome.state.version
    assert outcome.state.version in (2, 3), "an update goes on beside it, its publish would wait"


def test_a_run_that_waits_for_a_batch_ends_when_asked(tmp_path: Path) -> None:
    engine = FakeEngine()
    parts = fake_parts(tmp_path, never(), engine=engine)
    engine.delay_s = lambda: 60.0 if engine.version >= 3 else 0.0
    assert run_and_stop(parts, 3).asked_to_end
    assert last_saved(parts) >= 3


@pytest.mark.parametrize("error", [RunFailed("the critics are gone"), ZeroDivisionError("a defect")])
def test_a_failed_run_keeps_what_it_has_done_where_the_learner_still_answers(tmp_path: Path, error: Exception) -> None:
    class Breaking(FakeJudge):
        async def critique(self, problem: Any, responses: Any, num_votes: int) -> Any:
            if parts.learner.version >= 3:  # type: ignore[attr-defined]
                raise error
            return await super().critique(problem, responses, num_votes)

    parts = fake_parts(tmp_path, never(), judge=Breaking())
    with pytest.raises(type(error), match=str(error)):
        run(parts)
    assert last_saved(parts) >= 3
    parts.ledger.close_open("run_failed")  # type: ignore[attr-defined]
    assert parts.ledger.balance().balanced  # type: ignore[attr-defined]


class HalfTrained(FakeLearner):
    """Fails inside its fourth update, after some of its passes."""

    async def update(self, batch: Batch) -> UpdateReport:
        if self.version == 3:
            raise RunFailed("the batch loss must be finite (got nan)")
        return await super().update(batch)


def test_half_an_update_is_in_no_checkpoint(tmp_path: Path) -> None:
    parts = fake_parts(tmp_path, make_config(run={"checkpoint_every": 2}), learner=HalfTrained())
    with pytest.raises(RunFailed, match="must be finite"):
        run(parts)
    assert last_saved(parts) == 2


def test_a_checkpoint_under_way_is_finished_when_the_next_update_fails(tmp_path: Path) -> None:
    class Slow(HalfTrained):
        async def save(self, path: str) -> tuple[WrittenFile, ...]:
            await asyncio.sleep(0.3)
            return await super().save(path)

    parts = fake_parts(tmp_path, make_config(run={"checkpoint_every": 3}), learner=Slow())
    with pytest.raises(RunFailed, match="must be finite"):
        run(parts)
    assert last_saved(parts) == 3


def test_a_learner_that_no_longer_answers_holds_up_no_end(tmp_path: Path) -> None:
    class Hung(FakeLearner):
        async def snapshot(self) -> int:
            await asyncio.sleep(60)
            return 0

    class Breaking(FakeJudge):
        async def critique(self, problem: Any, responses: Any, num_votes: int) -> Any:
            if parts.learner.version >= 2:  # type: ignore[attr-defined]
                raise RunFailed("the critics are gone")
            return await super().critique(problem, responses, num_votes)

    parts = fake_parts(tmp_path, never(stop_grace_s=0.2), learner=Hung(), judge=Breaking())
    started = time.monotonic()
    with pytest.raises(RunFailed, match="the critics are gone") as failed:
        run(parts)
    assert time.monotonic() - started < 10
    assert failed.value.__notes__[0].startswith("no checkpoint of version ")


def test_updates_go_on_while_a_checkpoint_is_written_and_the_next_one_waits(tmp_path: Path) -> None:
    spans: list[tuple[float, float]] = []

    class Slow(FakeLearner):
        async def save(self, path: str) -> tuple[WrittenFile, ...]:
            started, self.at_start = time.monotonic(), self.version
            await asyncio.sleep(0.15)
            during.append(self.version - self.at_start)
            spans.append((started, time.monotonic()))
            return await super().save(path)

    during: list[int] = []
    parts = fake_parts(tmp_path, make_config(run={"num_updates": 12, "checkpoint_every": 4}), learner=Slow())
    run(parts)
    assert during[0] > 0 and parts.checkpoints.versions() == [8, 12]
    assert all(before[1] <= after[0] for before, after in pairwise(spans)), "one at a time"


def test_a_checkpoint_is_of_the_moment_it_began_at(tmp_path: Path) -> None:
    class Slow(FakeLearner):
        async def save(self, path: str) -> tuple[WrittenFile, ...]:
            await asyncio.sleep(0.1)
            return await super().save(path)

    model = FakeRewardModel()
    config = make_config("prime", run={"num_updates": 40, "checkpoint_every": 5})
    parts = fake_parts(tmp_path, config, learner=Slow(), reward_model=model, judge=None)
    run_and_stop(parts, 8)
    for version in parts.checkpoints.versions():
        path = parts.checkpoints.directory / f"v{version:06d}"
        state, _ = read_checkpoint(path)
        assert (path / "learner" / "version").read_text() == str(version) == str(state.version)
        assert (path / "reward_model" / "state").read_text() == f"{version} {model.levels[version - 1]}"


def test_a_full_disk_at_a_checkpoint_ends_the_run_with_its_sentence_and_the_one_before_is_whole(tmp_path: Path) -> None:
    class Full(FakeLearner):
        async def save(self, path: str) -> tuple[WrittenFile, ...]:
            if self.copied >= 8:
                raise OSError(28, os.strerror(28))
            return await super().save(path)

    learner = Full()
    parts = fake_parts(tmp_path, make_config(run={"num_updates": 1000, "checkpoint_every": 4}), learner=learner)
    with pytest.raises(
        RunFailed, match=r"checkpoint 8 could not be written to .*: No space left on device; the one before"
    ):
        run(parts)
    assert last_saved(parts) == 4
    assert not list(parts.checkpoints.directory.glob(".writing*"))


def test_a_run_resumed_after_its_last_update_is_only_evaluated(tmp_path: Path) -> None:
    config = make_config()
    state = run(fake_parts(tmp_path / "one", config)).state
    parts = fake_parts(tmp_path / "two", config)
    outcome = run(parts, state)
    assert 0 <= outcome.final["accuracy"] <= 1 and not outcome.stopped_early
    assert not parts.learner.batches and parts.checkpoints.versions() == []  # type: ignore[attr-defined]
    assert len(parts.tracker.rows) == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(("fails", "accuracy"), [(lambda i: i % 2, True), (lambda i: True, False)])
def test_a_failed_evaluation_request_is_counted_and_ends_nothing(tmp_path: Path, fails: Any, accuracy: bool) -> None:
    class Failing(FakeEngine):
        calls = 0

        async def generate(self, prompt_ids: Any, sampling: Any) -> Any:
            if sampling.n == 1:
                self.calls += 1
                if fails(self.calls):
                    raise PartTimeout("rollout worker 0 (generate) did not answer within 300 s")
            return await super().generate(prompt_ids, sampling)

    parts = fake_parts(tmp_path, make_config(run={"eval_every": 5}), engine=Failing())
    assert run(parts).state.version == 12
    rows = [row for _, row in parts.tracker.rows if "eval/failed_requests" in row]  # type: ignore[attr-defined]
    assert [row["eval/failed_requests"] for row in rows] == [4.0 if accuracy else 8.0] * 4
    assert all(("eval/accuracy_frac" in row) == accuracy for row in rows)


@pytest.mark.parametrize("what", ["removed", "damaged"])
def test_a_ledger_that_is_lost_ends_the_run_at_once_with_its_name(tmp_path: Path, what: str) -> None:
    class Losing(FakeLearner):
        async def update(self, batch: Batch) -> UpdateReport:
            if self.version == 2:
                path = tmp_path / "ledger.sqlite"
                if what == "removed":
                    path.unlink()
                else:
                    parts.ledger._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # type: ignore[attr-defined]
                    path.write_bytes(path.read_bytes()[:4096] + b"\x07" * (path.stat().st_size - 4096))
            return await super().update(batch)

    parts = fake_parts(tmp_path, make_config(run={"checkpoint_every": 1}), learner=Losing())
    with pytest.raises(LedgerLost, match=r"the ledger .*ledger\.sqlite (was removed|cannot be used|is damaged)"):
        run(parts)
    assert parts.learner.version <= 4  # type: ignore[attr-defined]


def test_the_first_signal_asks_and_the_second_ends_at_once(tmp_path: Path) -> None:
    async def go() -> tuple[int | None, float, list[str]]:
        ending = Ending(grace_s=30)
        asked: list[str] = []
        ending.watch()
        ending.ask = lambda reason: not asked.append(reason)
        started = time.monotonic()
        os.kill(os.getpid(), signal.SIGINT)
        try:
            await asyncio.sleep(0.2)
            assert asked == ["asked to end by SIGINT"], "and the run goes on until it has saved"
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            pass
        return ending.signum, time.monotonic() - started, asked

    signum, seconds, asked = asyncio.run(go())
    assert signum == signal.SIGINT and seconds < 5 and len(asked) == 1


def test_the_grace_of_a_signal_is_kept() -> None:
    async def go() -> float:
        ending = Ending(grace_s=0.2)
        ending.watch()
        ending.ask = lambda reason: True
        started = time.monotonic()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(30)
        return time.monotonic() - started

    assert 0.15 < asyncio.run(go()) < 5


def test_a_run_in_another_thread_leaves_signals_to_the_main_one() -> None:
    async def go() -> str:
        Ending(grace_s=1).watch()
        return "works on"

    before = [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)]
    with ThreadPoolExecutor(1) as other:
        assert other.submit(asyncio.run, go()).result() == "works on"
    assert [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)] == before


HANGING = """
import asyncio, sys, threading, time
from capo_ray.place import ending
ending.END_S = 0.5
threading.Thread(target=time.sleep, args=(60,)).start()  # what a library may leave behind
asked = ending.Ending(grace_s=1)
asked.signum = int(sys.argv[1]) or None
timers = []
def hang():
    time.sleep(60)
try:
    with ending.ends_soon_after_failure(timers, asked):
        raise asyncio.CancelledError if asked.signum else RuntimeError("the disk is {full}")
finally:
    hang()
"""


@pytest.mark.parametrize(
    ("signum", "code", "sentence"),
    [
        (0, 1, "capo-ray train: the disk is {full} (its end hung for 0.5 s at <string>:10 hang and was cut off)"),
        (signal.SIGTERM, 143, "capo-ray train: asked to end (SIGTERM) (its end hung for 0.5 s at "),
    ],
)
def test_an_end_that_hangs_is_cut_off_with_its_sentence_and_place(signum: int, code: int, sentence: str) -> None:
    words = [sys.executable, "-c", HANGING, str(int(signum))]
    done = subprocess.run(words, capture_output=True, text=True, timeout=50)
    assert done.returncode == code
    assert sentence in done.stderr


def test_a_stop_names_the_signal_that_asked_for_it() -> None:
    stop = RunStopped("version 3 is saved", signal.SIGTERM)
    assert isinstance(stop, KeyboardInterrupt) and stop.signum == 15 and str(stop) == "version 3 is saved"
