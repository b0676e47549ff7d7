"""The pipeline over fakes: what it promises of every group, under delays, losses and endings."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from capo_ray.checkpoint import read_state, write_state
from capo_ray.config import TrainConfig
from capo_ray.config.base import RuleError
from capo_ray.config.credit import CreditBase
from capo_ray.flow import GroupWay, Parts, Pipeline, RunOutcome, group, off_loop, pipeline, training
from capo_ray.flow.budgets import batch_deadline_s
from capo_ray.flow.group import CreditedGroup
from capo_ray.flow.pipeline import MAX_ATTEMPTS, _Flight
from capo_ray.flow.state import RunState, read_checkpoint
from capo_ray.metrics import TranscriptWriter, read_rows
from capo_ray.problems import Curriculum
from capo_ray.protocols import JudgeRequest, PartLost, RunFailed, Sampling
from capo_ray.runs.layout import REWARD_MODEL_DIR, STATE_FILE
from capo_ray.types import (
    Batch,
    Completion,
    Critique,
    Judged,
    Problem,
    Provenance,
    Trajectory,
    TrajectoryKey,
    UpdateReport,
    Verdict,
    WrittenFile,
)
from tests.fakes import (
    FakeEngine,
    FakeJudge,
    FakeLearner,
    FakeProblems,
    FakeRewardModel,
    FakeVerifier,
    completion,
    fake_parts,
)

Critiques = tuple[tuple[Critique, ...], ...]


def make_config(method: str = "capo", **sections: dict[str, object]) -> TrainConfig:
    base: dict[str, dict[str, object]] = {
        "run": {"num_updates": 12, "eval_every": 0, "eval_problems": 4, "checkpoint_every": 5},
        "credit": {"method": method},
        "steps": {"segmenter": "entropy" if method == "acpo" else "blank_line"},  # as the preset
        "rollout": {"group_size": 4},
        "learner": {"groups_per_batch": 3},
        "stream": {"max_age": 2},
    }
    for name, values in sections.items():
        base[name] = {**base.get(name, {}), **values}
    return TrainConfig.model_validate(base)


def run(parts: Parts, state: RunState | None = None) -> RunOutcome:
    async def bounded() -> RunOutcome:
        return await asyncio.wait_for(Pipeline(parts, state or RunState()).run(), 30)

    return asyncio.run(bounded())


def close(parts: Parts) -> None:
    parts.ledger.close_open("run_ended")  # type: ignore[attr-defined]


def run_until_killed(parts: Parts, version: int) -> None:
    """A run that is cut off once it has come to `version` and the checkpoint due before is whole."""
    due = version - version % parts.config.run.checkpoint_every

    async def killed() -> None:
        pipeline = Pipeline(parts, RunState())
        task = asyncio.ensure_future(pipeline.run())
        while not task.done() and (pipeline.state.version < version or pipeline.saver.saved < due):
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(killed())


def test_every_trajectory_is_trained_once_or_dropped_with_a_reason(tmp_path: Path) -> None:
    parts = fake_parts(tmp_path, make_config())
    outcome = run(parts)
    close(parts)
    balance = parts.ledger.balance()  # type: ignore[attr-defined]
    trained = [key for batch in parts.learner.batches for key in batch]  # type: ignore[attr-defined]
    assert outcome.state.version == 12
    assert balance.balanced and balance.open == 0
    assert balance.counts["trained"] == len(trained) == 12 * 3 * 4
    assert max(Counter(trained).values()) == 1


def test_what_is_reckoned_over_many_tokens_leaves_the_loop_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert off_loop.LARGE_TOKENS <= 16_384, "a long response is enough"
    monkeypatch.setattr(off_loop, "LARGE_TOKENS", 1)
    on_loop: dict[str, set[bool]] = {}

    def watched(name: str, usual: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            on_loop.setdefault(name, set()).add(threading.current_thread() is threading.main_thread())
            return usual(*args, **more)

        return call

    for room, name in (
        (group, "assign_credit"),
        (group, "split_steps"),
        (pipeline, "update_figures"),
        (training, "build_batch"),
    ):
        monkeypatch.setattr(room, name, watched(name, getattr(room, name)))
    run(fake_parts(tmp_path, make_config(run={"num_updates": 2})))
    assert on_loop == {n: {False} for n in ("assign_credit", "split_steps", "update_figures", "build_batch")}


def test_transcripts_have_the_learners_logprobs_of_every_trained_token(tmp_path: Path) -> None:
    path = tmp_path / "transcripts.jsonl"
    config = make_config(run={"transcripts_every": 5, "transcript_groups": 2})
    run(fake_parts(tmp_path, config, transcripts=TranscriptWriter(path)))
    lines = read_rows(path)
    assert [line["update"] for line in lines] == [1, 1, 5, 5, 10, 10, 12, 12]
    responses = [response for line in lines for response in line["responses"]]
    assert len(responses) == 8 * 4
    for response in responses:
        assert response["policy_logprobs"] == [pytest.approx(x - 0.5) for x in response["logprobs"]]


def test_a_checkpoint_leaves_out_no_problem_that_is_drawn_while_it_is_written(tmp_path: Path) -> None:
    class Slow(FakeLearner):
        async def save(self, path: str) -> tuple[WrittenFile, ...]:
            await asyncio.sleep(0.02)  # as an actor: groups go on meanwhile
            return await super().save(path)

    parts = fake_parts(tmp_path, make_config(), learner=Slow(), engine=FakeEngine(0.0, lambda: 0.001))
    run_until_killed(parts, 7)
    latest = parts.checkpoints.latest()
    assert latest is not None
    state, cursor = read_checkpoint(latest)
    drawn = {f"p{i}" for i in range(cursor["cursor"])}
    trained = {key.problem for batch in parts.learner.batches[: state.version] for key in batch}  # type: ignore[attr-defined]
    assert state.version == 5
    assert drawn == trained | {problem.id for problem, _ in state.outstanding}


def test_a_checkpoint_from_before_evaluations_had_intervals_is_read(tmp_path: Path) -> None:
    parts = fake_parts(tmp_path, make_config())
    run_until_killed(parts, 7)
    latest = parts.checkpoints.latest()
    assert latest is not None
    payload = read_state(latest / STATE_FILE)
    del payload["initial"]
    write_state(latest / STATE_FILE, payload | {"initial_accuracy": 0.25})
    state, _ = read_checkpoint(latest)
    assert state.version == 5 and state.initial == {"accuracy": 0.25}


@pytest.mark.parametrize("max_age", [0, 1, 3])
def test_no_trained_token_is_older_than_the_bound(tmp_path: Path, max_age: int) -> None:
    rng = random.Random(max_age)
    engine = FakeEngine(delay_s=lambda: 0.03 * rng.paretovariate(1.2) ** 1.0 if rng.random() < 0.2 else 0.001)
    parts = fake_parts(tmp_path, make_config(stream={"max_age": max_age}), engine=engine)
    run(parts)
    ages = parts.learner.ages  # type: ignore[attr-defined]
    assert max(ages) <= max_age
    assert max_age == 0 or max(ages) > 0, "the test sees asynchrony at all"


def test_capo_trains_on_groups_where_every_answer_is_wrong_and_grpo_cannot(tmp_path: Path) -> None:
    engine = FakeEngine(skill=0.0)
    parts = fake_parts(tmp_path / "capo", make_config("capo"), engine=engine)
    assert run(parts).state.version == 12
    config = make_config("grpo", run={"max_creditless_groups": 20})
    with pytest.raises(RunFailed, match="expected credit in at least one of 20 groups in a row, got none"):
        run(fake_parts(tmp_path / "grpo", config, engine=engine, judge=None))


def test_the_ledger_has_the_valid_and_the_asked_votes_of_each_response(tmp_path: Path) -> None:
    class HalfDeaf(FakeJudge):
        async def critique(self, problem: Problem, responses: Sequence[JudgeRequest], num_votes: int) -> Critiques:
            votes = await super().critique(problem, responses, num_votes)
            deaf = Critique(None, None, "", "unreadable", Provenance("fake", "", 0))
            return tuple((deaf, *row[1:]) if i == 0 else row[:2] for i, row in enumerate(votes))

    parts = fake_parts(tmp_path, make_config(critic={"num_votes": 4}), judge=HalfDeaf())
    run(parts)
    close(parts)
    balance = parts.ledger.balance()  # type: ignore[attr-defined]
    assert set(balance.votes) == {"3/4", "2/2"}
    assert balance.votes["2/2"] == 3 * balance.votes["3/4"] and balance.votes["3/4"] >= 12 * 3


class HalfTheProblems(FakeEngine):
    """Right on every second problem, and half right on the others: GRPO has no credit for the first."""

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> tuple[Completion, ...]:
        self.skill = 1.0 if chr(list(prompt_ids)[-2]) in "02468" else 0.5
        return await super().generate(prompt_ids, sampling)


@pytest.mark.parametrize("replaced", [False, True])
def test_groups_without_credit_are_replaced_by_key_alone(tmp_path: Path, replaced: bool) -> None:
    config = make_config("grpo", rollout={"group_size": 8}, stream={"replace_creditless": replaced})
    parts = fake_parts(tmp_path, config, engine=HalfTheProblems(), judge=None)
    outcome = run(parts)
    close(parts)
    balance = parts.ledger.balance()  # type: ignore[attr-defined]
    batches, samples = parts.learner.batches, parts.learner.samples  # type: ignore[attr-defined]
    num_zero = sum(not sample.advantages.any() for sample in samples)
    assert outcome.state.version == 12 and balance.balanced
    assert all(len(batch) == 3 * 8 for batch in batches)
    assert (num_zero == 0) == replaced
    assert ("no_credit" in balance.reasons) == replaced
    if not replaced:
        assert 0.3 < num_zero / len(samples) < 0.7
        assert not balance.reasons.keys() - {"run_ended"}, "every group that was finished is trained"


def test_a_group_without_a_valid_verdict_is_never_in_a_batch(tmp_path: Path) -> None:
    class Broken(FakeVerifier):
        async def verify(self, answer: str, responses: Sequence[str]) -> tuple[Verdict, ...]:
            valid = await super().verify(answer, responses)
            return valid if answer in "02468" else tuple(Verdict(None, "crashed") for _ in responses)

    parts = fake_parts(tmp_path, make_config("grpo"), verifier=Broken(), judge=None)
    run(parts)
    trained = {key.problem for batch in parts.learner.batches for key in batch}  # type: ignore[attr-defined]
    assert all(int(problem.removeprefix("p")) % 2 == 0 for problem in trained)


def test_a_policy_that_is_always_right_ends_the_run_well(tmp_path: Path) -> None:
    config = make_config("grpo", run={"max_creditless_groups": 20})
    outcome = run(fake_parts(tmp_path, config, engine=FakeEngine(skill=1.0), judge=None))
    assert "nothing left to learn" in outcome.stopped_early


@pytest.mark.parametrize("skill", [0.0, 0.25])
def test_a_verifier_that_fails_on_wrong_answers_does_not_make_a_run_that_has_nothing_left_to_learn(
    tmp_path: Path, skill: float
) -> None:
    class Raising(FakeVerifier):
        async def verify(self, answer: str, responses: list[str]) -> tuple[Verdict, ...]:  # type: ignore[override]
            verdicts = await super().verify(answer, responses)
            return tuple(v if v.reward else Verdict(None, "crash: KeyError: 'no number'") for v in verdicts)

    config = make_config("grpo", run={"max_creditless_groups": 20})
    parts = fake_parts(tmp_path, config, engine=FakeEngine(skill=skill), verifier=Raising(), judge=None)
    with pytest.raises(
        RunFailed, match=r"expected verdicts on most responses of 20 .* the last for .*KeyError.*kind=ma"
    ):
        run(parts)


def test_a_lost_group_is_tried_once_more_and_the_run_goes_on(tmp_path: Path) -> None:
    engine = FakeEngine()
    losses = iter([True, False, True] + [False] * 10_000)

    def fail() -> None:
        if next(losses):
            raise PartLost("rollout worker 0 was lost")

    parts = fake_parts(tmp_path, make_config(), engine=engine)

    async def go() -> RunOutcome:
        pipeline = Pipeline(parts, RunState())
        engine.fail = fail
        return await asyncio.wait_for(pipeline._stream(), 30)  # type: ignore[arg-type, return-value]

    asyncio.run(go())
    close(parts)
    trained = {key for batch in parts.learner.batches for key in batch}  # type: ignore[attr-defined]
    assert {key.attempt for key in trained} == {0, 1}
    assert parts.ledger.balance().balanced  # type: ignore[attr-defined]


def test_failures_in_a_row_end_the_run_with_the_cause(tmp_path: Path) -> None:
    class Broken(FakeVerifier):
        async def verify(self, answer: str, responses: object) -> tuple[Verdict, ...]:
            raise PartLost("verifier worker 0 was lost")

    parts = fake_parts(tmp_path, make_config(run={"max_failures": 5}), verifier=Broken())

    async def go() -> None:
        await asyncio.wait_for(Pipeline(parts, RunState())._stream(), 30)

    with pytest.raises(BaseExceptionGroup) as caught:
        asyncio.run(go())
    assert caught.group_contains(RunFailed, match="5 groups in a row failed, the last with PartLost: verifier worker 0")
    assert parts.ledger.balance().counts["dropped"] >= 5 * 4


class Spoiled(FakeLearner):
    """Skips its first `num_skipped` updates; the first sample of each is to blame."""

    def __init__(self, num_skipped: int) -> None:
        super().__init__()
        self.num_skipped = num_skipped

    async def update(self, batch: Batch) -> UpdateReport:
        report = await super().update(batch)
        if report.version > self.num_skipped:
            return report
        metrics = {"loss/skipped_moves_total": float(report.version)}
        return replace(report, metrics=metrics, moved=False, skipped=True, nonfinite=(self.batches[-1][0],))


def test_an_update_that_moved_nothing_drops_its_samples_with_the_reason_and_the_run_goes_on(tmp_path: Path) -> None:
    learner = Spoiled(2)
    parts = fake_parts(tmp_path, make_config(run={"max_nonfinite_updates": 3}), learner=learner)
    assert run(parts).state.version == 12
    close(parts)
    balance = parts.ledger.balance()  # type: ignore[attr-defined]
    reasons = balance.reasons
    assert reasons["nonfinite_loss"] == 2
    assert reasons["update_skipped"] == sum(len(batch) for batch in learner.batches[:2]) - 2
    assert balance.counts["trained"] == sum(len(batch) for batch in learner.batches[2:]) and balance.balanced


def test_updates_without_a_finite_loss_in_a_row_end_the_run_and_name_the_samples(tmp_path: Path) -> None:
    learner = Spoiled(12)
    parts = fake_parts(tmp_path, make_config(run={"max_nonfinite_updates": 3}), learner=learner)
    with pytest.raises(RunFailed, match=r"3 update\(s\) in a row .*run\.max_nonfinite_updates=3") as caught:
        run(parts)
    assert str(learner.batches[-1][0]) in str(caught.value)
    assert len(learner.batches) == 3


def test_a_critic_that_never_answers_in_the_asked_form_ends_the_run(tmp_path: Path) -> None:
    class Mumbling(FakeJudge):
        async def critique(self, problem: Problem, responses: Sequence[JudgeRequest], num_votes: int) -> Critiques:
            mumble = Critique(None, None, "hm", "no verdict to be read", Provenance("fake", "", 0))
            return tuple((mumble,) * num_votes for _ in responses)

    with pytest.raises(RunFailed, match=r"readable critiques .* most common cause: no verdict to be read"):
        run(fake_parts(tmp_path, make_config(run={"num_updates": 100}), judge=Mumbling()))


def test_a_defect_in_any_loop_ends_the_run_with_its_own_exception(tmp_path: Path) -> None:
    class Defect(FakeJudge):
        async def critique(self, problem: object, responses: object, num_votes: int) -> tuple[()]:
            raise ZeroDivisionError("a defect")

    with pytest.raises(ZeroDivisionError, match="a defect"):
        run(fake_parts(tmp_path, make_config(), judge=Defect()))


def test_invalid_verdicts_stand_outside_the_batch_and_the_means(tmp_path: Path) -> None:
    class Half(FakeVerifier):
        async def verify(self, answer: str, responses: list[str]) -> tuple[Verdict, ...]:  # type: ignore[override]
            verdicts = await super().verify(answer, responses)
            return (Verdict(None, "time-out"), *verdicts[1:])

    config = make_config(run={"eval_problems": 1})
    parts = fake_parts(tmp_path, config, verifier=Half(), engine=FakeEngine(skill=0.5))
    run(parts)
    close(parts)
    trained = {key for batch in parts.learner.batches for key in batch}  # type: ignore[attr-defined]
    balance = parts.ledger.balance()  # type: ignore[attr-defined]
    assert trained and all(key.sample != 0 for key in trained)
    assert balance.balanced and balance.reasons["invalid_verdict"] == 12 * 3


def test_a_resumed_run_trains_nothing_twice_and_ends_at_the_same_count(tmp_path: Path) -> None:
    config = make_config(run={"num_updates": 20})
    parts = fake_parts(tmp_path, config)

    run_until_killed(parts, 13)
    latest = parts.checkpoints.latest()
    assert latest is not None
    state, cursor = read_checkpoint(latest)
    assert state.version == 10 and state.outstanding
    again = fake_parts(tmp_path, config, ledger=parts.ledger)
    asyncio.run(again.learner.load(str(latest / "learner")))
    again.problems.train.restore(cursor)
    num_trained = parts.ledger.balance().counts["trained"]
    parts.ledger.rewind(state.version)  # type: ignore[attr-defined]
    state.next_group = max(state.next_group, parts.ledger.next_group())  # type: ignore[attr-defined]
    again.engine.version = state.version  # type: ignore[attr-defined]
    outcome = run(again, state)
    close(again)
    balance = again.ledger.balance()  # type: ignore[attr-defined]
    assert outcome.state.version == 20
    assert outcome.state.critic.num_responses == outcome.state.num_trajectories, "both of all sessions"
    assert balance.balanced and again.ledger.trained_twice() == 0  # type: ignore[attr-defined]
    assert balance.counts["trained"] == 20 * 3 * 4
    assert balance.reasons["rolled_back"] == num_trained - 10 * 3 * 4 >= 3 * 3 * 4


RELEASED = threading.Event()


class StuckConfig(CreditBase):
    """A method whose function does not return by itself."""

    rule: ClassVar[str] = "tests.test_pipeline:wait"


def wait(judged: object, config: StuckConfig, progress: float) -> None:
    RELEASED.wait()


def test_a_rule_of_another_package_that_never_returns_ends_the_run_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(off_loop, "RULE_S", 0.05)
    config = make_config("grpo").model_copy(update={"credit": StuckConfig(method="stuck")})
    late = threading.Timer(20, RELEASED.set)  # lest the test itself never return
    late.start()
    with pytest.raises(RuleError, match=r"^StuckConfig \(tests.test_pipeline:wait\) did not return within 0.05 s$"):
        run(fake_parts(tmp_path, config))
    assert not RELEASED.is_set(), "the run waited for the rule"
    late.cancel()
    RELEASED.set()


def test_a_problem_fits_only_if_its_scored_answer_does_too(tmp_path: Path) -> None:
    problem = Problem(id="p", prompt="x" * 400, answer="7" * 20)
    sizes = {"model": {"max_model_len": 512}, "rollout": {"group_size": 4, "max_response_tokens": 96}}
    assert GroupWay(fake_parts(tmp_path / "grpo", make_config("grpo", **sizes))).fits(problem)
    assert not GroupWay(fake_parts(tmp_path / "mig", make_config("mig", **sizes))).fits(problem)


def test_methods_on_answer_logprobs_train_without_a_judge(tmp_path: Path) -> None:
    parts = fake_parts(tmp_path, make_config("mig"), judge=None)
    assert run(parts).state.version == 12
    assert len(parts.learner.batches) == 12  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", ["prime", "istar", "qrm", "etpo"])
def test_a_reward_model_rewards_every_group_once_and_is_trained_on_those_that_are_trained(
    tmp_path: Path, method: str
) -> None:
    model = FakeRewardModel()
    parts = fake_parts(tmp_path, make_config(method), judge=None, reward_model=model)
    assert run(parts).state.version == 12
    batches = parts.learner.batches  # type: ignore[attr-defined]
    assert [sorted(map(str, keys)) for keys in model.trained] == [sorted(map(str, keys)) for keys in batches]
    assert max(Counter(model.rewarded).values()) == 1 and {k for keys in batches for k in keys} <= set(model.rewarded)
    rows = [row for _, row in parts.tracker.rows if "time/reward_model_s" in row]  # type: ignore[attr-defined]
    assert len(rows) == 12 and all(row["reward_model/loss_mean"] == 0.5 for row in rows)


def test_token_rewards_reach_the_credit_and_invalid_members_are_not_asked_for(tmp_path: Path) -> None:
    class Half(FakeVerifier):
        async def verify(self, answer: str, responses: Sequence[str]) -> tuple[Verdict, ...]:
            return (Verdict(None, "time-out"), *(await super().verify(answer, responses))[1:])

    model = FakeRewardModel()
    parts = fake_parts(tmp_path, make_config("qrm"), judge=None, reward_model=model, verifier=Half())
    walked = asyncio.run(GroupWay(parts).walk(0, Problem("p7", "digit 7", "7"), 0, 0.0))
    assert [key.sample for key in model.rewarded] == [1, 2, 3]
    assert [m.evidence.token_rewards[-1:].tolist() for m in walked.group.members] == [[], [0.25], [0.25], [0.25]]
    # one 0.25 in nine tokens: deviation 0.25 sqrt(8) / 9
    assert walked.credit.advantages[1][-1] == pytest.approx(9 / 8**0.5)
    assert not any(walked.credit.advantages[0])


def test_a_checkpoint_holds_a_reward_model_only_where_the_run_has_one(tmp_path: Path) -> None:
    for method, model in (("grpo", None), ("prime", FakeRewardModel())):
        run(fake_parts(tmp_path / method, make_config(method), judge=None, reward_model=model))
        latest = tmp_path / method / "checkpoints" / "v000012"
        assert latest.is_dir() and (latest / REWARD_MODEL_DIR).is_dir() == (model is not None)


def test_a_resumed_run_goes_on_with_the_reward_model_of_its_checkpoint(tmp_path: Path) -> None:
    config = make_config("prime", run={"num_updates": 8, "checkpoint_every": 3})
    model = FakeRewardModel()
    parts = fake_parts(tmp_path, config, judge=None, reward_model=model)

    run_until_killed(parts, 5)
    latest = parts.checkpoints.latest()
    assert latest is not None and latest.name == "v000003"
    state, cursor = read_checkpoint(latest)
    again = FakeRewardModel()
    assert asyncio.run(again.load(str(latest / REWARD_MODEL_DIR))) == 3
    assert again.level == model.levels[2]
    resumed = fake_parts(tmp_path / "again", config, judge=None, reward_model=again)
    asyncio.run(resumed.learner.load(str(latest / "learner")))
    resumed.problems.train.restore(cursor)
    resumed.engine.version = state.version  # type: ignore[attr-defined]
    state.next_group = 10_000
    assert run(resumed, state).state.version == 8
    assert again.version == 8 and len(again.trained) == 5


def test_acpo_switches_stages_once_with_entropies_behind_its_steps(tmp_path: Path) -> None:
    sections: dict[str, dict[str, object]] = {
        "loss": {"entropy_control": "aer", "entropy_coef": 0.01, "entropy_rate": 0.0, "entropy_pass_rate": 0.0},
        "stream": {"max_age": 0},
    }
    parts = fake_parts(tmp_path, make_config("acpo", **sections), judge=None)
    run(parts)
    learner = parts.learner
    assert learner.kl_scales == [0.0] * 6 + [1.0] * 6  # type: ignore[attr-defined]
    assert learner.references == [6]  # type: ignore[attr-defined]
    samples = [learner.samples[i : i + 12] for i in range(0, 144, 12)]  # type: ignore[attr-defined]
    assert all(0.01 in s.entropy_weights for update in samples[:6] for s in update)
    assert not any(any(s.entropy_weights) for update in samples[6:] for s in update)


def test_the_reference_is_not_refreshed_where_kl_does_not_count(tmp_path: Path) -> None:
    parts = fake_parts(tmp_path, make_config("acpo", loss={"kl_coef": 0.0}), judge=None)
    run(parts)
    assert parts.learner.references == []  # type: ignore[attr-defined]


class Recording(FakeEngine):
    """Remembers the seeds of training's draws, and those of evaluations apart."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.drawn: list[int | None] = []
        self.evaluated: list[int | None] = []

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> tuple[Completion, ...]:
        (self.drawn if sampling.n > 1 else self.evaluated).append(sampling.seed)
        return await super().generate(prompt_ids, sampling)


def test_a_run_draws_under_its_own_seeds_and_each_evaluation_under_the_same(tmp_path: Path) -> None:
    def listen(name: str, **sections: dict[str, object]) -> Recording:
        engine = Recording()
        run(fake_parts(tmp_path / name, make_config(**sections), engine=engine))
        return engine

    first, again = listen("a"), listen("b")
    other = listen("c", run={"seed": 1})
    silent = listen("d", engine={"seeded": False})
    assert None not in first.drawn and len(set(first.drawn)) == len(first.drawn)
    assert set(first.drawn[:20]) <= set(again.drawn) and not set(first.drawn) & set(other.drawn)
    half = len(first.evaluated) // 2
    assert half == 8 and sorted(map(str, first.evaluated[:half])) == sorted(map(str, first.evaluated[half:]))
    assert set(silent.drawn) == {None} and None not in silent.evaluated


def test_an_evaluation_is_of_one_version_and_only_the_next_publish_waits_for_it(tmp_path: Path) -> None:
    class Slow(FakeEngine):
        async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> tuple[Completion, ...]:
            before = self.version
            done = await super().generate(prompt_ids, sampling)
            if sampling.n == 1:
                ends = time.monotonic() + 5  # a learner that waited for this would not come to its update
                while learner.version == before < 4 and time.monotonic() < ends:
                    await asyncio.sleep(0.01)
                evaluated.append((before, self.version, learner.version))
            return done

    evaluated: list[tuple[int, int, int]] = []
    learner = FakeLearner()
    config = make_config(run={"num_updates": 4, "eval_every": 1})
    parts = fake_parts(tmp_path, config, engine=Slow(), learner=learner)
    run(parts)
    assert {before for before, _, _ in evaluated} == {0, 1, 2, 3, 4}
    assert all(before == after for before, after, _ in evaluated), "no weights came in between"
    assert all(trained == before + 1 for before, _, trained in evaluated if before < 4), "the learner did not wait"


def test_each_evaluation_tells_sampled_and_greedy_accuracy_with_an_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Torn(FakeEngine):  # greedy answers are right, sampled ones wrong
        async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> tuple[Completion, ...]:
            answer = int(chr(list(prompt_ids)[-2])) + (sampling.temperature > 0)
            return tuple(completion(str(answer % 10)) for _ in range(sampling.n))

    config = make_config(run={"num_updates": 1, "eval_problems": 4, "eval_samples": 3}, rollout={"group_size": 4})
    parts = fake_parts(tmp_path, config, engine=Torn())
    long = Problem(id="long", prompt="x" * 9999, answer="1")
    few = parts.problems.held_out
    monkeypatch.setattr(parts.problems, "held_out", lambda n: [long, *few(n)])
    outcome = run(parts)
    upper = 1 - 0.025**0.25
    assert outcome.state.initial == outcome.final
    assert outcome.final["accuracy"] == 0 and outcome.final["accuracy_ci95"] == pytest.approx([0, upper])
    assert outcome.final["greedy_accuracy"] == 1
    first = next(row for _, row in parts.tracker.rows if "eval/accuracy_frac" in row)  # type: ignore[attr-defined]
    assert first["eval/accuracy_high_frac"] == pytest.approx(upper) and first["eval/greedy_accuracy_frac"] == 1
    assert first["eval/too_long_problems"] == 1


def test_a_batch_is_trained_in_the_order_in_which_its_groups_were_drawn(tmp_path: Path) -> None:
    rng, orders = random.Random(3), []

    async def listened() -> None:
        parts = fake_parts(tmp_path, make_config(), engine=FakeEngine(delay_s=lambda: rng.random() * 0.01))
        pipeline = Pipeline(parts, RunState())
        update = pipeline.training.update

        async def listening(groups: Sequence[CreditedGroup]) -> tuple[list[CreditedGroup], UpdateReport]:
            orders.append([credited.group.id for credited in groups])
            return await update(groups)

        pipeline.training.update = listening  # type: ignore[method-assign]
        await asyncio.wait_for(pipeline.run(), 30)

    asyncio.run(listened())
    assert len(orders) == 12 and all(order == sorted(order) for order in orders)


def test_entropies_are_asked_for_only_where_they_are_read(tmp_path: Path) -> None:
    class Listening(FakeEngine):
        async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> tuple[Completion, ...]:
            asked.add(sampling.entropies)
            return await super().generate(prompt_ids, sampling)

    for method, expected in (("acpo", {True, False}), ("mig", {False})):  # evaluation never asks
        asked: set[bool] = set()
        run(fake_parts(tmp_path / method, make_config(method), judge=None, engine=Listening()))
        assert asked == expected, method


def test_an_engine_that_gives_no_entropies_where_steps_are_cut_by_them_ends_the_run(tmp_path: Path) -> None:
    class Silent(FakeEngine):
        async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> tuple[Completion, ...]:
            return await super().generate(prompt_ids, replace(sampling, entropies=False))

    with pytest.raises(RuntimeError, match="entropies of 9 tokens, got 0"):
        run(fake_parts(tmp_path, make_config("acpo"), judge=None, engine=Silent()))


def test_controller_curriculum_and_stage_go_on_after_a_resume(tmp_path: Path) -> None:
    sections: dict[str, dict[str, object]] = {
        "run": {"num_updates": 12, "checkpoint_every": 4},
        "loss": {"entropy_control": "aer", "entropy_rate": 0.01, "entropy_coef": 0.05},
        "stream": {"max_age": 0},
        "data": {"curriculum": {"kind": "pass_rate", "late_from": 0.5}},
    }

    def build(folder: Path, updates: int) -> Parts:
        config = make_config("acpo", **{**sections, "run": {**sections["run"], "num_updates": updates}})
        problems = Curriculum(FakeProblems(), config.data.curriculum, seed=3)
        problems.held_out, problems.train = FakeProblems().held_out, problems  # type: ignore[attr-defined]
        parts = fake_parts(folder, config, judge=None, problems=problems)
        parts.learner.entropy_nats = 0.5  # type: ignore[attr-defined]
        return parts

    parts = build(tmp_path, 12)

    run_until_killed(parts, 9)
    latest = parts.checkpoints.latest()
    assert latest is not None
    state, cursor = read_checkpoint(latest)
    # H = H_0 = 0.5, target 0.2: six updates of 0.01 (0.2 - 0.5) from 0.05, then the second stage, which steers nothing
    assert state.version == 8 and state.reference_version == 6
    assert state.entropy.initial_nats == 0.5 and state.entropy.coefficient == pytest.approx(0.032)
    again = build(tmp_path / "again", 12)
    asyncio.run(again.learner.load(str(latest / "learner")))
    again.problems.train.restore(cursor)
    assert again.problems.train.state() == cursor
    again.engine.version = state.version  # type: ignore[attr-defined]
    state.next_group = 10_000
    run(again, state)
    assert again.learner.references == [], "the reference was refreshed before the kill"  # type: ignore[attr-defined]
    rows = [row for _, row in again.tracker.rows if "entropy/bonus_coef" in row]  # type: ignore[attr-defined]
    assert [row["entropy/bonus_coef"] for row in rows] == pytest.approx([0.032] * 4)
    assert rows[0]["entropy/target_nats"] == pytest.approx(0.2)
    assert rows[-1]["curriculum/repeated_frac"] > 0


def test_equal_prefixes_of_siblings_are_scored_once_and_every_score_comes_home(tmp_path: Path) -> None:
    class Counting(FakeEngine):
        async def score(
            self, token_ids: Sequence[Sequence[int]], starts: Sequence[int]
        ) -> tuple[tuple[float, ...], ...]:
            asked.extend(tuple(ids) for ids in token_ids)
            assert all(self.text(ids[start:]) == "7" for ids, start in zip(token_ids, starts, strict=True))
            return await super().score(token_ids, starts)

        def text(self, ids: Sequence[int]) -> str:
            return "".join(map(chr, ids))

    asked: list[tuple[int, ...]] = []
    parts = fake_parts(tmp_path, make_config("mig"), engine=Counting(), judge=None)
    problem = Problem("p7", "digit 7", "7")
    group = asyncio.run(GroupWay(parts).walk(0, problem, 0, 0.0)).group
    assert len(asked) == len(set(asked)) <= 4, "the prompt, the first step, and two answers at most"
    for member in group.members:
        prompt, response = member.trajectory.prompt_ids, member.trajectory.response.token_ids
        lengths = [
            len(prompt) + end - (response[end - 1] == 0 if end else 0) for end in (0, *(e for _, e in member.steps))
        ]
        # the fake scores a sequence by its length: prompt, steps, cue of 7 tokens, answer
        assert member.evidence.answer_logprobs == tuple(-1.0 / (n + len("\\boxed{") + 1) for n in lengths)


def test_no_answer_is_scored_after_the_token_that_ended_a_response_whichever_it_is(tmp_path: Path) -> None:
    class Asked(FakeEngine):
        async def score(
            self, token_ids: Sequence[Sequence[int]], starts: Sequence[int]
        ) -> tuple[tuple[float, ...], ...]:
            asked.extend("".join(map(chr, ids)) for ids in token_ids)
            return await super().score(token_ids, starts)

    asked: list[str] = []
    parts = fake_parts(tmp_path, make_config("acpo", credit={"method": "acpo", "answer_cue": "="}), engine=Asked())
    whole = completion("a\n\nb")
    other_end = replace(whole, token_ids=(*whole.token_ids[:-1], 3))  # one of the model's own end tokens, not eos_id
    cut_off = replace(whole, token_ids=(*whole.token_ids[:-1], ord("c")), text="a\n\nbc", finish="length")
    members = [
        Judged(Trajectory(TrajectoryKey("p", 0, i), (63,), response), Verdict(1, ""), ((0, 3), (3, 5)))
        for i, response in enumerate((whole, other_end, cut_off))
    ]
    (source, _) = GroupWay(parts).sources  # answers, and the entropies that cut the steps
    asyncio.run(source.gather(Problem("p", "?", "7"), members, 0.0))
    assert asked == ["?=7", "?a\n\n=7", "?a\n\nb=7", "?a\n\nbc=7"]


def test_a_hint_is_told_behind_the_question_and_both_prompts_are_scored_at_once(tmp_path: Path) -> None:
    asked: list[tuple[str, int]] = []

    class Asked(FakeEngine):
        async def score(self, token_ids, starts):  # type: ignore[no-untyped-def]
            asked.extend(("".join(map(chr, ids)), start) for ids, start in zip(token_ids, starts, strict=True))
            return await super().score(token_ids, starts)

    parts = fake_parts(tmp_path, make_config("rlsd", credit={"method": "rlsd", "hint": " {answer}"}), engine=Asked())
    group = asyncio.run(GroupWay(parts).walk(0, Problem("p", "3", "7"), 0, 0.0))
    size = len(group.group.members)
    assert len(asked) == 2 * size
    plain, hinted = asked[:size], asked[size:]
    said = [text[start:] for text, start in plain]
    assert [text[start:] for text, start in hinted] == said
    assert all(" 7" in text[:start] for text, start in hinted) and not any(
        " 7" in text[:start] for text, start in plain
    )
    gains = group.group.members[0].evidence.hint_gains
    # the fake engine scores -1 / (length of the sequence), and the hint makes it longer by two
    length = len(plain[0][0])
    assert gains.tolist() == pytest.approx([1 / length - 1 / (length + 2)] * len(said[0]))


@pytest.mark.parametrize(
    ("method", "seconds"),
    [("grpo", 111), ("capo", 171), ("acpo", 211), ("vineppo", 212), ("prime", 1111), ("rlsd", 211)],
)
def test_a_batch_may_take_as_long_as_every_part_of_a_group_may(method: str, seconds: float) -> None:
    config = make_config(
        method,
        rollout={"deadline_s": 100},
        critic={"deadline_s": 10, "outage_budget_s": 0 if method != "capo" else 50},
        verifier={"deadline_s": 1},
        learner={"deadline_s": 1000},
    )
    assert batch_deadline_s(config) == seconds


def test_a_problem_whose_groups_were_given_up_may_be_drawn_again(tmp_path: Path) -> None:
    config = make_config(data={"curriculum": {"kind": "pass_rate", "fresh_frac": 1e-9}})
    problems = Curriculum(FakeProblems(), config.data.curriculum, seed=3)
    problems.held_out, problems.train = FakeProblems().held_out, problems  # type: ignore[attr-defined]
    problems.observe(Problem("p7", "digit 7", "7"), [1, 0])
    parts = fake_parts(tmp_path, config, engine=FakeEngine(delay_s=lambda: 0.001), problems=problems)

    def fail() -> None:
        raise PartLost("rollout worker 0 was lost")

    async def lose_twice() -> list[str]:
        parts.engine.fail = fail  # type: ignore[attr-defined]
        pipeline = Pipeline(parts, RunState())
        flight = _Flight(pipeline._draw(), 0)
        drawn = [flight.problem.id]
        for attempt in range(MAX_ATTEMPTS):
            await pipeline._walk(await pipeline.buffer.admit(0), attempt, replace(flight, attempt=attempt))
        return [*drawn, pipeline._draw().id]

    assert asyncio.run(lose_twice()) == ["p7", "p7"]


def test_a_run_resumed_with_more_updates_begins_its_second_stage_anew(tmp_path: Path) -> None:
    first = fake_parts(tmp_path, make_config("acpo", stream={"max_age": 0}), judge=None)
    state = run(first).state
    assert first.learner.references == [6]  # type: ignore[attr-defined]
    longer = make_config("acpo", stream={"max_age": 0}, run={"num_updates": 40})
    again = fake_parts(tmp_path / "again", longer, judge=None, learner=first.learner)
    again.engine.version = state.version  # type: ignore[attr-defined]
    run(again, state)
    assert first.learner.references == [6, 20]  # type: ignore[attr-defined]
    assert first.learner.kl_scales == [0.0] * 6 + [1.0] * 6 + [0.0] * 8 + [1.0] * 20  # type: ignore[attr-defined]


def test_acpo_cuts_where_the_engines_entropies_say_not_where_samples_surprise(tmp_path: Path) -> None:
    class Deciding(FakeEngine):
        """Sure of everything but the answer, though every token had the same logprob."""

        async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> tuple[Completion, ...]:
            done = await super().generate(prompt_ids, sampling)
            return tuple(replace(each, entropies=(0.0,) * 7 + (2.0, 0.0)) for each in done)

    parts = fake_parts(tmp_path, make_config("acpo", steps={"min_tokens": 1}), engine=Deciding(), judge=None)
    group = asyncio.run(GroupWay(parts).walk(0, Problem("p7", "digit 7", "7"), 0, 0.0)).group
    assert {member.steps for member in group.members} == {((0, 7), (7, 9))}
    assert group.members[0].evidence.entropies[7] == 2.0
