"""The main job on real parts: Ray actors, vLLM engines, DeepSpeed, math-verify. Few runs, each asked many things."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from capo_ray.config import TrainConfig
from capo_ray.ledger.lives import read_lives
from capo_ray.metrics.register import unregistered
from capo_ray.problems import build_problems
from capo_ray.runs.layout import CRITIQUES_FILE, LEDGER_FILE
from tests.own_package import write_package
from tests.test_critics_figures import OF_THE_TIER, PROMISED
from tests.wheel import outside

pytestmark = [pytest.mark.real, pytest.mark.timeout(420)]

SMALL = (
    "run.eval_problems=8",
    "run.eval_every=0",
    "run.transcripts_every=1",
    "learner.groups_per_batch=4",
    "learner.num_epochs=2",
    "rollout.group_size=4",
    "tracking.tensorboard=false",
)
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}


FROM_PYTHON = """
import json, sys, capo_ray
run = capo_ray.train(sys.argv[1:])
print("RETURNED", json.dumps([str(run.directory), run.summary["updates"]]))
"""


def start(
    run_dir: Path, *overrides: str, program: Sequence[str] = (sys.executable, "-m", "capo_ray", "train"), **where: Any
) -> subprocess.Popen[str]:
    """A `capo-ray train` process, or that of another program, whose run directory is `run_dir`."""
    words = list(program)
    if not any(word.startswith("resume=") for word in overrides):
        words += [*SMALL, f"run.dir={run_dir.parent}", f"run.name={run_dir.name}"]
    words += overrides
    log = (run_dir.parent / f"{run_dir.name}.log").open("a")
    # Tests in the background of a shell inherit that Ctrl-C is ignored; the run must not.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    # A cluster that an earlier test began in this process has switched tokens on for every later one.
    env = ENVIRONMENT | {k: v for k, v in os.environ.items() if k == "RAY_AUTH_MODE"} | where.pop("env", {})
    return subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, text=True, env=env, preexec_fn=heed, **where)


def finish(process: subprocess.Popen[str], run_dir: Path, deadline_s: float = 300) -> int:
    """The exit code of a run; a run past its deadline is killed and fails the test with its log."""
    try:
        return process.wait(deadline_s)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"the run was not over after {deadline_s} s:\n{log_of(run_dir)}")


def log_of(run_dir: Path) -> str:
    return (run_dir.parent / f"{run_dir.name}.log").read_text()


def wait_for(
    condition: Callable[[], bool], process: subprocess.Popen[str], run_dir: Path, what: str, deadline_s: float = 240
) -> None:
    ends = time.monotonic() + deadline_s
    while not condition():
        if process.poll() is not None or time.monotonic() > ends:
            process.kill()
            pytest.fail(f"{what} did not happen:\n{log_of(run_dir)}")
        time.sleep(0.2)


def rows_of(run_dir: Path) -> list[dict[str, Any]]:
    path = run_dir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def updates_of(run_dir: Path) -> int:
    return max((int(row["update"]) for row in rows_of(run_dir)), default=0)


def ledger_of(run_dir: Path) -> dict[str, Any]:
    words = [sys.executable, "-m", "capo_ray", "ledger", str(run_dir), "--json"]
    return json.loads(subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout)


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory, site: Path) -> Iterator[Path]:
    """A run of CAPO over two learner ranks, its canaries held to 1e-4: the installed wheel, far from the checkout."""
    run_dir = tmp_path_factory.mktemp("runs") / "clean"
    process = start(
        run_dir,
        "run.num_updates=4",
        "run.checkpoint_every=2",
        "learner.num_ranks=2",
        "learner.num_cpus=0.5",
        "learner.lr=1e-3",
        "weights.canary_tolerance=1e-4",
        "critic.min_f1=0.5",
        program=[str(site / "bin" / "capo-ray"), "train"],
        cwd=run_dir.parent,
        env=outside(site),
    )
    assert finish(process, run_dir) == 0, log_of(run_dir)
    yield run_dir


def test_the_installed_wheel_is_what_trained(clean: Path, site: Path) -> None:
    """Python leaves the bytecode of what it imports beside it: the driver's modules, and those of workers alone."""
    ran = {path.name.split(".")[0] for path in (site / "capo_ray").rglob("*.pyc")}
    assert {"pipeline", "learner", "vllm_engine", "lane"} <= ran


def num_stale(run_dir: Path) -> int:
    """Members of trained groups whose every token had grown too old: on a busy machine one group may lag behind."""
    return sum(round(row.get("stream/stale_responses_frac", 0.0) * 4 * 4) for row in rows_of(run_dir))


def test_the_summary_says_what_was_done(clean: Path) -> None:
    summary = json.loads((clean / "summary.json").read_text())
    assert summary["updates"] == 4
    assert summary["trained"] == 4 * 4 * 4 - num_stale(clean)
    assert summary["critiques"] > 0 and 0 < summary["critic"]["precision"] <= 1
    for name in ("initial_accuracy", "final_accuracy", "initial_greedy_accuracy", "final_greedy_accuracy"):
        low, high = summary[f"{name}_ci95"]
        assert 0 <= low <= summary[name] <= high <= 1
    assert summary["config"]["learner"]["num_ranks"] == 2
    assert (clean / "learning_curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_ledger_of_a_run_balances(clean: Path) -> None:
    ledger = ledger_of(clean)
    assert ledger["balanced"] is True
    assert ledger["counts"]["trained"] == 4 * 4 * 4 - num_stale(clean)
    assert ledger["trained_twice"] == 0


def test_the_ledger_says_which_actor_worked_for_each_group(clean: Path) -> None:
    lives = read_lives(clean / LEDGER_FILE, 4, around=4)
    actors = {life.group: {(w.tier, w.actor) for w in lives.works if w.group == life.group} for life in lives.groups}
    whole = [life.group for life in lives.groups if "trained" in life.times]
    tiers = [{tier for tier, _ in actors[group]} for group in whole]
    assert whole and all({"rollout", "verifier", "learner"} <= one for one in tiers)
    assert {"critic"} < set().union(*tiers) <= {"rollout", "verifier", "critic", "learner"}
    assert {work.actor for work in lives.works if work.tier == "learner" and work.group is not None} == {0, 1}
    published = {(w.tier, w.actor) for w in lives.works if w.errand == "publish"}
    assert published == {("learner", 0), ("learner", 1), ("rollout", 0)}


def test_the_critic_was_measured_before_the_first_group(clean: Path) -> None:
    assert re.search(r"update 0/4  waiting for .*learner 0/2", log_of(clean)), "whom the start waits for is said"
    assert "critic: F1 of first errors" in log_of(clean)


def test_a_critic_below_the_trust_gate_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    run_dir, labelled = tmp_path / "refused", tmp_path / "labelled.jsonl"
    rows = [{"problem": "2+2?", "steps": ["2+2 = 5"], "label": -1}, {"problem": "2?", "steps": ["2 = 2"], "label": 0}]
    labelled.write_text("".join(json.dumps(row) + "\n" for row in rows))
    gate = ("critic=calculator", "critic.min_f1=0.1", f"critic.trust_file={labelled}")
    assert finish(start(run_dir, *gate), run_dir) == 1
    assert "critic.min_f1: expected a critic whose F1 of first errors on" in log_of(run_dir)
    assert "is at least 0.1, got 0.000" in log_of(run_dir)
    assert updates_of(run_dir) == 0


def test_engine_and_learner_agree_after_every_publish(clean: Path) -> None:
    # Each publish carried a canary of 48 tokens, longer than a cache block, which the engine scored to 1e-4 while it
    # went on generating; a worker that disagrees is refused and the run fails.
    rows = [row for row in rows_of(clean) if "loss/objective_mean" in row]
    assert len(rows) == 4
    assert all(row["rollout/restarts_total"] == 0 for row in rows)
    assert rows[-1]["loss/kl_last_pass_nats"] > 0


def test_no_trained_token_is_older_than_the_bound(clean: Path) -> None:
    ages = [row["stream/age_max"] for row in rows_of(clean) if "stream/age_max" in row]
    assert len(ages) == 4 and max(ages) <= 1


def test_sampler_and_learner_logprobs_agree_on_fresh_tokens(clean: Path) -> None:
    first = next(row for row in rows_of(clean) if "loss/mismatch_max_nats" in row)
    assert first["stream/age_max"] == 0
    assert first["loss/mismatch_max_nats"] < 1e-4


def test_every_update_logs_what_the_critics_said_and_cost(clean: Path) -> None:
    for row in rows_of(clean):
        assert unregistered(row.keys() - {"update", "unix_s"}) == []
        if "loss/objective_mean" in row:
            assert row.keys() >= PROMISED | OF_THE_TIER, sorted((PROMISED | OF_THE_TIER) - row.keys())


def test_transcripts_show_credit_token_by_token(clean: Path) -> None:
    lines = [json.loads(line) for line in (clean / "transcripts.jsonl").read_text().splitlines()]
    responses = [response for line in lines for response in line["responses"]]
    assert len(responses) == 4 * 4
    assert all("".join(response["tokens"]) == response["text"] for response in responses)
    assert any(a != 0 for response in responses for a in response["credit"]["advantages"])
    fresh = [response for line in lines if line["update"] == 1 for response in line["responses"]]
    for response in fresh:  # of the weights that sampled them, and by every rank
        assert response["policy_logprobs"] == pytest.approx(response["logprobs"], abs=1e-4)
        assert len(response["policy_entropies"]) == len(response["tokens"]) and min(response["policy_entropies"]) >= 0


def test_export_gives_a_model_that_transformers_reads(clean: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "capo_ray", "export", str(clean), "--output", str(tmp_path / "policy")]
    subprocess.run(words, check=True, timeout=120)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    assert model.config.vocab_size >= len(AutoTokenizer.from_pretrained(tmp_path / "policy"))


def kill_critics(run_dir: Path, process: subprocess.Popen[str], every_s: float, num_kills: int) -> int:
    """How many critic workers were killed, one `every_s` after another was ready, until the run was over."""
    killed: set[int] = set()
    ends = time.monotonic() + 300
    while process.poll() is None and len(killed) < num_kills and time.monotonic() < ends:
        workers = json.loads((run_dir / "workers.json").read_text())
        fresh = [pid for pid in workers["critic"] if pid not in killed and is_alive(pid)]
        time.sleep(every_s if fresh else 0.2)
        for pid in fresh:
            with contextlib.suppress(ProcessLookupError):  # the run ended meanwhile
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
    return len(killed)


def test_critic_workers_killed_over_and_over_cost_no_group_its_critiques(tmp_path: Path) -> None:
    # On-policy and at a learning rate of next to nothing: a run that loses no group trains the first problems in turn.
    # More updates than are made beside three kills: an idle machine makes two or three between a start and a kill.
    run_dir, num_updates = tmp_path / "critics", 14
    words = (f"run.num_updates={num_updates}", "stream.max_age=0", "learner.lr=1e-7", "credit.quorum=3")
    process = start(run_dir, *words, program=[sys.executable, "-c", FROM_PYTHON])  # as a user of the library does
    wait_for(lambda: updates_of(run_dir) >= 1, process, run_dir, "the first update")
    num_killed = kill_critics(run_dir, process, every_s=1.0, num_kills=4)
    assert finish(process, run_dir) == 0, log_of(run_dir)
    assert num_killed >= 3
    assert f"RETURNED {json.dumps([str(run_dir), num_updates])}" in log_of(run_dir)
    problems = build_problems(TrainConfig().data, TrainConfig().run.seed).train
    assert problems_of(run_dir, "trained") == {problems.next_problem().id for _ in range(num_updates * 4)}
    assert ledger_of(run_dir)["balanced"] is True and ledger_of(run_dir)["trained_twice"] == 0
    last = [row for row in rows_of(run_dir) if "loss/objective_mean" in row][-1]
    assert last["critic/restarts_total"] >= 3 and last["critic/calls_resent_total"] >= 1
    assert last["critic/lost_groups_total"] == 0
    # Every response was answered until its quorum of 3, or in full: only what the critic wrote itself can miss it.
    answers = answers_of(run_dir)
    unreadable = [valid for asked, valid in answers if valid < 3 and asked == 4]
    assert all(valid >= 3 or asked == 4 for asked, valid in answers)
    assert last["critic/outcome_only_frac"] * num_updates * 4 <= len(unreadable)


def answers_of(run_dir: Path) -> list[tuple[int, int]]:
    """For each response that was judged, how often the critic answered and how many of its answers were readable."""
    with sqlite3.connect(f"file:{run_dir / CRITIQUES_FILE}?mode=ro", uri=True) as db:
        return db.execute("SELECT count(*), count(flagged) FROM votes GROUP BY key").fetchall()


def problems_of(run_dir: Path, state: str) -> set[str]:
    """The problems with a trajectory in a state of the ledger."""
    with sqlite3.connect(f"file:{run_dir / LEDGER_FILE}?mode=ro", uri=True) as db:
        return {row[0] for row in db.execute("SELECT DISTINCT problem FROM trajectories WHERE state = ?", (state,))}


def test_a_killed_driver_resumes_and_trains_nothing_twice_also_with_parts_of_another_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, package = tmp_path / "killed", write_package(tmp_path / "site")
    monkeypatch.setitem(ENVIRONMENT, "PYTHONPATH", os.pathsep.join([str(package), *sys.path]))
    # A function of one's own has its limit in wall time: a busy machine once took all of 1 s, and a verdict failed.
    parts = ("credit=own", "steps=own_lines", "verifier.kind=own_end", "verifier.timeout_s=20")
    process = start(run_dir, *parts, "run.num_updates=5", "run.checkpoint_every=2")
    due = run_dir / "checkpoints" / "v000002"  # written while the third update goes on
    wait_for(lambda: updates_of(run_dir) >= 3 and due.is_dir(), process, run_dir, "the third update")
    process.kill()
    process.wait(30)
    again = start(run_dir, f"resume={run_dir}")
    assert finish(again, run_dir) == 0, log_of(run_dir)
    ledger = ledger_of(run_dir)
    assert ledger["balanced"] is True and ledger["trained_twice"] == 0
    assert ledger["counts"]["trained"] == 5 * 4 * 4
    groups = [json.loads(line) for line in (run_dir / "transcripts.jsonl").read_text().splitlines()]
    told = [(group["answer"], response) for group in groups for response in group["responses"]]
    assert {response["reason"] for _, response in told} <= {"right", "wrong"}, "the words of a custom verifier"
    assert all(response["reward"] == response["text"].rstrip("}\n").endswith(answer) for answer, response in told)
    assert sorted(int(r["update"]) for r in rows_of(run_dir) if "loss/objective_mean" in r) == list(range(1, 6))
    sessions = json.loads((run_dir / "history.json").read_text())["sessions"]
    assert [s["from_version"] for s in sessions] in ([0, 2], [0, 4])
    assert finish(start(run_dir, f"resume={run_dir}"), run_dir) == 1
    assert "is summed up; raise run.num_updates to go on" in log_of(run_dir)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, list[int]]:
    """A run of ACPO with Ctrl-C after its fifth update of eight: its directory, exit code and workers' processes."""
    run_dir = tmp_path_factory.mktemp("runs") / "acpo"
    process = start(
        run_dir,
        "credit=acpo",
        "run.num_updates=8",
        "run.checkpoint_every=1000",
        "credit.stage2_from=0.375",
        "loss.entropy_coef=0.01",
        "loss.entropy_target_frac=2",
        "loss.covariance=kl",
        "learner.num_ranks=2",
        "learner.num_cpus=0.5",
        "stream.max_age=0",
    )
    wait_for(lambda: updates_of(run_dir) >= 5, process, run_dir, "the fifth update")
    workers = json.loads((run_dir / "workers.json").read_text())
    process.send_signal(signal.SIGINT)
    code = finish(process, run_dir, 90)
    return run_dir, code, [pid for role in ("rollout", "verifier", "learner") for pid in workers[role]]


def test_ctrl_c_saves_ends_all_processes_and_leaves_the_ledger_whole(interrupted: tuple[Path, int, list[int]]) -> None:
    run_dir, code, workers = interrupted
    assert code == 130
    assert "interrupted (Ctrl-C)" in log_of(run_dir)
    assert f"go on with capo-ray train resume={run_dir}" in log_of(run_dir)
    (checkpoint,) = (run_dir / "checkpoints").iterdir()
    assert int(checkpoint.name[1:]) == updates_of(run_dir), "the last update was saved, long before one was due"
    assert ledger_of(run_dir)["balanced"] is True
    assert len(workers) == 4 and not any(is_alive(pid) for pid in workers)


def test_acpo_comes_to_its_second_stage_and_a_resume_keeps_the_policy_that_kl_is_measured_from(
    interrupted: tuple[Path, int, list[int]],
) -> None:
    run_dir, _, _ = interrupted
    again = start(run_dir, f"resume={run_dir}")
    assert finish(again, run_dir) == 0, log_of(run_dir)
    rows = [row for row in rows_of(run_dir) if "loss/objective_mean" in row]
    kl = [row.get("loss/kl_nats") for row in rows]
    assert kl[:3] == [None] * 3 and kl[3] == pytest.approx(0.0, abs=1e-6), "the fourth update is measured from itself"
    assert all(0 < value < 0.1 for value in kl[4:]), "still from the end of stage 1, not from the first policy"
    coefficients = [row["entropy/bonus_coef"] for row in rows]
    assert coefficients == sorted(coefficients) and coefficients[0] == 0.01 < coefficients[-1]
    assert [row["entropy/weighted_frac"] > 0 for row in rows] == [True] * 3 + [False] * 5
    assert rows[0]["loss/mismatch_max_nats"] < 1e-4 and rows[0]["loss/covariance_frac"] > 0
    assert max(row["curriculum/repeated_frac"] for row in rows) > 0
