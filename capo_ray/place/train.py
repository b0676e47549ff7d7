"""The main job: one run from configuration to summary, every end of which leaves ledger and checkpoints whole.

open the run -> join or start Ray -> start all parts side by side -> restore -> pipeline -> summary
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from capo_ray.checkpoint import CheckpointStore
from capo_ray.config import TrainConfig
from capo_ray.engines import HfTokenizer
from capo_ray.flow import Parts, Pipeline, RunOutcome
from capo_ray.flow.quarantine import QUARANTINE_FILE, Quarantine
from capo_ray.flow.state import LEARNER_DIR, REWARD_MODEL_DIR, RunState, read_checkpoint
from capo_ray.ledger import LEDGER_FILE, RunLock, SqliteLedger, read_balance
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
from capo_ray.place import build, cluster, nodes, rundir
from capo_ray.place.actors import Actors
from capo_ray.place.learner import LearnerActors
from capo_ray.place.report import CURVE_FILE, closing_rows, summarise
from capo_ray.place.reward_model import RewardModelActors
from capo_ray.place.watch import ClusterWatch
from capo_ray.problems import ProblemSet, build_problems
from capo_ray.problems.chains import true_wrong_steps
from capo_ray.protocols import RunFailed

MAX_ROWS_SHOWN = 10


def run(config: TrainConfig) -> int:
    """0 after a run that ended as asked; raises `RunFailed` (with `run_dir`) or `KeyboardInterrupt` otherwise."""
    if config.resume:
        run_dir = rundir.open_existing(config.resume)
    else:
        run_dir, config = rundir.open_new(config)
    try:
        with RunLock(run_dir), cluster.left_behind():
            return asyncio.run(_run(config, run_dir))
    except asyncio.CancelledError:
        raise SystemExit(int(signal.SIGTERM)) from None
    except BaseException as error:
        error.run_dir = run_dir  # type: ignore[attr-defined]
        raise


async def _run(config: TrainConfig, run_dir: Path) -> int:
    started = time.monotonic()
    tokenizer = HfTokenizer(build.policy_path(config))
    build.require_policys_tokens(config, tokenizer)
    problems = build_problems(config.data, config.run.seed)
    _report_bad_rows(problems)
    screen = Screen(num_updates=config.run.num_updates, title=f"capo-ray  credit={config.credit.method}  {run_dir}")
    with screen:
        screen.update(phase="starting Ray")
        address = await cluster.join(config, lambda phase: screen.update(phase=phase))
        _end_on_sigterm()
        await asyncio.to_thread(nodes.check_nodes, config, run_dir)
        screen.update(phase=f"starting workers on {address}")
        with contextlib.closing(Actors.build(config, run_dir)) as actors, ClusterWatch(config) as watch:
            prompts = [problem.prompt for problem in problems.held_out(16)]
            canary = build.canary_ids(tokenizer, prompts, config.model.max_model_len)
            await watch.guard(actors.start(canary, run_dir))
            with _open_ledger(config, run_dir) as ledger:
                outcome = await watch.guard(_train(config, run_dir, actors, ledger, screen, tokenizer, problems))
            restarts = actors.restarts()
        screen.update(phase="summary")
        balance = read_balance(run_dir / LEDGER_FILE).to_dict()
        summary = summarise(config, outcome, balance, time.monotonic() - started, restarts)
        write_summary(run_dir / SUMMARY_FILE, summary)
        plot_learning_curve(run_dir / METRICS_FILE, run_dir / CURVE_FILE, title=f"credit={config.credit.method}")
    screen.final_table(closing_rows(summary, run_dir))
    return 0


async def _train(
    config: TrainConfig,
    run_dir: Path,
    actors: Actors,
    ledger: SqliteLedger,
    screen: Screen,
    tokenizer: HfTokenizer,
    problems: ProblemSet,
) -> RunOutcome:
    """The outcome of the pipeline over started actors, from the newest checkpoint when resuming."""
    checkpoints = CheckpointStore(run_dir / "checkpoints", config.run.keep_checkpoints)
    state = await _restore(config, checkpoints, actors, ledger, problems)
    resume_from = state.version if config.resume else None
    tracker = build_trackers(config.tracking, run_dir, config.model_dump(mode="json"), resume_from=resume_from)
    with contextlib.closing(tracker):
        parts = Parts(
            config=config,
            tokenizer=tokenizer,
            problems=problems,
            engine=actors.rollout,
            verifier=actors.verifier,
            judge=actors.critic,
            learner=actors.learner,
            reward_model=actors.reward_model,
            ledger=ledger,
            checkpoints=checkpoints,
            tracker=tracker,
            transcripts=TranscriptWriter(run_dir / TRANSCRIPTS_FILE, resume_from),
            progress=screen,
            step_truth=true_wrong_steps if config.data.kind == "chains" else None,
            quarantine=Quarantine(run_dir / QUARANTINE_FILE),
            part_stats=actors.stats,
        )
        return await Pipeline(parts, state).run()


@contextlib.contextmanager
def _open_ledger(config: TrainConfig, run_dir: Path) -> Iterator[SqliteLedger]:
    """The run's ledger; at the end, however it comes, what is still open is dropped with the reason."""
    ledger = SqliteLedger(run_dir / LEDGER_FILE, config.run.name)
    ending = "run_ended"
    try:
        yield ledger
    except BaseException as error:
        ending = "interrupted" if isinstance(error, KeyboardInterrupt | asyncio.CancelledError) else "run_failed"
        raise
    finally:
        ledger.close_open(ending)
        ledger.close()


def _report_bad_rows(problems: ProblemSet) -> None:
    """Say how rows were read, and name those that were passed over, on standard error."""
    for note in problems.notes:
        print(note, file=sys.stderr)
    for row in problems.bad_rows[:MAX_ROWS_SHOWN]:
        print(f"passed over {row}", file=sys.stderr)
    if len(problems.bad_rows) > MAX_ROWS_SHOWN:
        print(f"passed over {len(problems.bad_rows) - MAX_ROWS_SHOWN} more bad rows", file=sys.stderr)


async def _restore(
    config: TrainConfig, checkpoints: CheckpointStore, actors: Actors, ledger: SqliteLedger, problems: ProblemSet
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
    shards: dict[str, LearnerActors | RewardModelActors] = {LEARNER_DIR: actors.learner}
    if actors.reward_model is not None:
        shards[REWARD_MODEL_DIR] = actors.reward_model
    for name, group in shards.items():
        version = await group.load(str(latest / name))
        if version != state.version:
            raise RunFailed(f"expected {name} shards of version {state.version} in {latest}, got version {version}")
    problems.train.restore(cursor)
    ledger.rewind(state.version)
    state.next_group = max(state.next_group, ledger.next_group())
    await actors.rollout.load_weights(await actors.learner.publishable())
    return state


def _end_on_sigterm() -> None:
    """Let SIGTERM (a stopped job, a drained pod) end the run like Ctrl-C; Ray's own handler would just exit."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
