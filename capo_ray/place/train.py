"""The main job: one run from configuration to summary, every end of which leaves ledger and checkpoints whole.

open the run -> join or start Ray -> start all parts side by side -> restore -> pipeline -> summary
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from capo_ray.checkpoint import CheckpointStore, write_state
from capo_ray.config import TrainConfig
from capo_ray.engines import HfTokenizer
from capo_ray.flow import Parts, Pipeline, RunOutcome
from capo_ray.flow.state import LEARNER_DIR, RunState, read_checkpoint
from capo_ray.ledger import LEDGER_FILE, RunLock, SqliteLedger
from capo_ray.metrics import (
    METRICS_FILE,
    SUMMARY_FILE,
    TRANSCRIPTS_FILE,
    Screen,
    TranscriptWriter,
    build_trackers,
    plot_learning_curve,
    write_summary,
)
from capo_ray.place import build, cluster, rundir
from capo_ray.place.learner import LearnerActors
from capo_ray.place.tiers import CriticPool, RolloutPool, VerifierTier
from capo_ray.problems import ProblemSet, build_problems
from capo_ray.problems.chains import true_wrong_steps
from capo_ray.protocols import RunFailed

CURVE_FILE = "learning_curve.png"
WORKERS_FILE = "workers.json"


def run(config: TrainConfig) -> int:
    """0 after a run that ended as asked; raises `RunFailed` (with `run_dir`) or `KeyboardInterrupt` otherwise."""
    if config.resume:
        run_dir = rundir.open_existing(config.resume)
    else:
        run_dir, config = rundir.open_new(config)
    try:
        with RunLock(run_dir):
            return asyncio.run(_run(config, run_dir))
    except asyncio.CancelledError:
        raise SystemExit(int(signal.SIGTERM)) from None
    except BaseException as error:
        error.run_dir = run_dir  # type: ignore[attr-defined]
        raise
    finally:
        ray.shutdown()


@dataclass
class _Actors:
    rollout: RolloutPool
    verifier: VerifierTier
    critic: CriticPool | None
    learner: LearnerActors

    async def start(self, canary: tuple[int, ...], run_dir: Path) -> None:
        """Start all side by side: the slowest decides. From then on `workers.json` names their processes."""
        pools = [tier.pool for tier in (self.rollout, self.verifier, self.critic) if tier is not None]

        def note() -> None:
            roles = {pool.role: pool.pids() for pool in pools}
            write_state(run_dir / WORKERS_FILE, {"driver": os.getpid(), **roles, "learner": self.learner.pids})

        for pool in pools:
            pool.on_ready = note
        await asyncio.gather(self.learner.start(canary), *(pool.start() for pool in pools))
        note()

    def stats(self) -> dict[str, float]:
        figures = {**self.rollout.pool.stats(), **self.verifier.pool.stats()}
        return figures | self.critic.stats() if self.critic is not None else figures

    def close(self) -> None:
        self.rollout.pool.close()
        self.verifier.pool.close()
        self.learner.close()
        if self.critic is not None:
            self.critic.pool.close()


async def _run(config: TrainConfig, run_dir: Path) -> int:
    started = time.monotonic()
    screen = Screen(num_updates=config.run.num_updates, title=f"capo-ray  credit={config.credit.method}  {run_dir}")
    with screen:
        screen.update(phase="starting Ray")
        address = await asyncio.to_thread(cluster.connect, config)
        _end_on_sigterm()
        screen.update(phase=f"starting workers on {address}")
        tokenizer = HfTokenizer(build.policy_path(config))
        problems = build_problems(config.data, config.run.seed)
        prompts = [problem.prompt for problem in problems.held_out(16)]
        actors = _Actors(
            build.build_rollout_pool(config),
            build.build_verifier_tier(config),
            build.build_critic_pool(config, run_dir) if "critiques" in config.credit.needs else None,
            build.build_learner(config),
        )
        ledger = SqliteLedger(run_dir / LEDGER_FILE, config.run.name)
        checkpoints = CheckpointStore(run_dir / "checkpoints", config.run.keep_checkpoints)
        ending = "run_ended"
        try:
            await actors.start(build.canary_ids(tokenizer, prompts, config.model.max_model_len), run_dir)
            state = await _restore(config, checkpoints, actors, ledger, problems)
            resume_from = state.version if config.resume else None
            tracker = build_trackers(config.tracking, run_dir, config.model_dump(mode="json"), resume_from=resume_from)
            try:
                parts = Parts(
                    config=config,
                    tokenizer=tokenizer,
                    problems=problems,
                    engine=actors.rollout,
                    verifier=actors.verifier,
                    judge=actors.critic,
                    learner=actors.learner,
                    ledger=ledger,
                    checkpoints=checkpoints,
                    tracker=tracker,
                    transcripts=TranscriptWriter(run_dir / TRANSCRIPTS_FILE, resume_from),
                    progress=screen,
                    step_truth=true_wrong_steps if config.data.kind == "chains" else None,
                    part_stats=actors.stats,
                )
                outcome = await Pipeline(parts, state).run()
            finally:
                tracker.close()
        except BaseException as error:
            ending = "interrupted" if isinstance(error, KeyboardInterrupt | asyncio.CancelledError) else "run_failed"
            raise
        finally:
            ledger.close_open(ending)
            balance = ledger.balance()
            ledger.close()
            actors.close()
    summary = _summarise(config, outcome, balance.to_dict(), time.monotonic() - started, actors)
    write_summary(run_dir / SUMMARY_FILE, summary)
    plot_learning_curve(run_dir / METRICS_FILE, run_dir / CURVE_FILE, title=f"credit={config.credit.method}")
    screen.final_table(_rows(summary, run_dir))
    return 0


async def _restore(
    config: TrainConfig, checkpoints: CheckpointStore, actors: _Actors, ledger: SqliteLedger, problems: ProblemSet
) -> RunState:
    """The state to go on from: of the newest whole checkpoint when resuming, else a new one; engines then agree."""
    latest = checkpoints.latest() if config.resume else None
    if latest is None:
        if config.resume:
            ledger.rewind(0)
            return RunState(next_group=ledger.next_group())
        return RunState()
    state, cursor = read_checkpoint(latest)
    if state.version >= config.run.num_updates:
        raise RunFailed(
            f"expected updates left to do, got a run that has done {state.version} of run.num_updates="
            f"{config.run.num_updates}; raise run.num_updates to go on"
        )
    version = await actors.learner.load(str(latest / LEARNER_DIR))
    if version != state.version:
        raise RunFailed(f"expected learner shards of version {state.version} in {latest}, got version {version}")
    problems.train.restore(cursor)
    ledger.rewind(version)
    state.next_group = max(state.next_group, ledger.next_group())
    await actors.rollout.load_weights(await actors.learner.publishable())
    return state


def _summarise(
    config: TrainConfig, outcome: RunOutcome, ledger: dict[str, object], wall_s: float, actors: _Actors
) -> dict[str, Any]:
    state = outcome.state
    return {
        "initial_accuracy": outcome.initial_accuracy,
        "final_accuracy": outcome.final_accuracy,
        "accuracy_is": "greedy" if config.run.eval_temperature == 0 else f"sampled at {config.run.eval_temperature:g}",
        "updates": state.version,
        "trajectories": state.num_trajectories,
        "trained": state.num_trained,
        "stale": state.num_stale,
        "too_long": state.num_too_long,
        "critiques": outcome.critic.num_critiques,
        "critic": outcome.critic.summary(),
        "ledger": ledger,
        "restarts": {name: value for name, value in actors.stats().items() if name.endswith("/restarts")},
        "stopped_early": outcome.stopped_early,
        "wall_s": round(wall_s + state.seconds, 1),
        "config": config.model_dump(mode="json"),
    }


def _rows(summary: dict[str, Any], run_dir: Path) -> list[tuple[str, str]]:
    """The closing table."""

    def show(value: float | None) -> str:
        return "unknown" if value is None else f"{value:.3f}"

    critic = summary["critic"]
    rows = [
        ("held-out accuracy", f"{summary['initial_accuracy']:.3f} → {summary['final_accuracy']:.3f}"),
        ("accuracy is", summary["accuracy_is"]),
        ("updates", str(summary["updates"])),
        ("trajectories", f"{summary['trajectories']} ({summary['trained']} trained)"),
        ("wall time", f"{summary['wall_s']:.0f} s"),
    ]
    if summary["critiques"]:
        rows += [
            ("critiques", f"{summary['critiques']} ({critic['num_valid']} valid)"),
            ("critic step precision / recall", f"{show(critic['precision'])} / {show(critic['recall'])}"),
            ("after the vote", f"{show(critic['voted_precision'])} / {show(critic['voted_recall'])}"),
        ]
    if summary["stopped_early"]:
        rows.append(("stopped early", summary["stopped_early"]))
    return [*rows, ("learning curve", str(run_dir / CURVE_FILE)), ("run", str(run_dir))]


def _end_on_sigterm() -> None:
    """Let SIGTERM (a stopped job, a drained pod) end the run like Ctrl-C; Ray's own handler would just exit."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
