"""The main job: one run from configuration to summary, every end of which leaves ledger and checkpoints whole.

open the run -> join or start Ray -> start all parts side by side -> restore -> pipeline -> summary
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from capo_ray.checkpoint import CheckpointStore
from capo_ray.config import TrainConfig
from capo_ray.demand import policy_model
from capo_ray.engines import HfTokenizer
from capo_ray.environments import open_environment
from capo_ray.flow import Parts, Pipeline, RunOutcome
from capo_ray.flow.quarantine import Quarantine
from capo_ray.flow.state import RunState, read_checkpoint
from capo_ray.ledger import LedgerLost, SqliteLedger, read_balance
from capo_ray.metrics import (
    Screen,
    TranscriptWriter,
    plot_learning_curve,
    write_summary,
)
from capo_ray.place import cluster, nodes, rundir
from capo_ray.place.actors import Actors
from capo_ray.place.agreement import CANARY_TOKENS, agree_at_start, start_ids
from capo_ray.place.ending import Ending, ends_soon_after_failure
from capo_ray.place.report import closing_rows, report_rows, summarise
from capo_ray.place.role import path_of
from capo_ray.place.roles.critic import CRITIC
from capo_ray.place.roles.learner import LEARNER
from capo_ray.place.roles.reward_model import REWARD_MODEL, require_policys_tokens
from capo_ray.place.roles.rollout import ROLLOUT
from capo_ray.place.roles.verifier import VERIFIER
from capo_ray.place.session import Session, files_within, find_latest, in_session, start_trackers
from capo_ray.place.trust import require_trust
from capo_ray.place.watch import ClusterWatch
from capo_ray.problems import ProblemSet, build_problems, true_wrong_steps
from capo_ray.protocols import RunFailed, RunStopped
from capo_ray.runs.layout import (
    CURVE_FILE,
    LEDGER_FILE,
    METRICS_FILE,
    QUARANTINE_FILE,
    SUMMARY_FILE,
    TRANSCRIPTS_FILE,
)


def run(config: TrainConfig) -> Path:
    """The directory of a run that ended as asked; raises `RunFailed` or `RunStopped` (with `run_dir`) otherwise."""
    return in_session(config, _run, around=cluster.left_behind)


async def _run(config: TrainConfig, session: Session) -> Path:
    run_dir, ending = session.run_dir, session.ending
    started = time.monotonic()
    tokenizer = HfTokenizer(path_of(policy_model(config)))
    require_policys_tokens(config, tokenizer)
    problems = build_problems(config.data, config.run.seed, config.environment)
    report_rows(problems)
    checkpoints = rundir.checkpoints_of(run_dir, config)
    screen = Screen(num_updates=config.run.num_updates, title=f"capo-ray  credit={config.credit.method}  {run_dir}")
    with screen:
        screen.update(phase="starting Ray")
        address = await cluster.join(config, lambda phase: screen.update(phase=phase))
        ending.watch()
        prompts = [problem.prompt for problem in problems.held_out(16)]
        ids = start_ids(tokenizer, prompts, config.model.max_model_len)
        with (
            ClusterWatch(config) as watch,
            contextlib.closing(Actors(config, run_dir, ids[:CANARY_TOKENS])) as actors,
            ends_soon_after_failure(session.timers, ending),
        ):
            await watch.guard(nodes.asked(config, run_dir))
            screen.update(phase=f"starting workers on {address}")
            # The shards of a checkpoint to go on from are hashed while the actors start.
            starting = watch.guard(_start(config, actors, ids, lambda words: screen.update(phase=words)))
            latest, _ = await asyncio.gather(find_latest(config, checkpoints), starting)
            with _open_ledger(config, run_dir) as ledger:
                state = await watch.guard(_restore(config, latest, checkpoints, actors, ledger, problems))
                if config.resume:
                    record = asyncio.to_thread(rundir.record_session, run_dir, config, session.changes, state.version)
                    await files_within(config, run_dir, "the record of this session", record)
                outcome = await watch.guard(
                    _train(config, run_dir, state, checkpoints, actors, ledger, screen, tokenizer, problems, ending)
                )
                if outcome.asked_to_end:
                    raise RunStopped(f"version {outcome.state.version} is saved", ending.signum or signal.SIGTERM)
            restarts = actors.restarts()
        screen.update(phase="summary")
        balance = read_balance(run_dir / LEDGER_FILE).to_dict()
        summary = summarise(config, outcome, balance, time.monotonic() - started, restarts)
        write_summary(run_dir / SUMMARY_FILE, summary)
        plot_learning_curve(run_dir / METRICS_FILE, run_dir / CURVE_FILE, title=f"credit={config.credit.method}")
        screen.final_table(closing_rows(summary, run_dir))
    return run_dir


async def _start(config: TrainConfig, actors: Actors, ids: tuple[int, ...], say: Callable[[str], None]) -> None:
    """Returns once all parts are ready, engines and learner score alike, and the critic is as good as is asked for."""
    await actors.start(say)
    await require_trust(config, actors.find(CRITIC))
    learner = actors.part(LEARNER)
    learner.allowed = await agree_at_start(config, ids, actors.part(ROLLOUT), learner)


async def _train(
    config: TrainConfig,
    run_dir: Path,
    state: RunState,
    checkpoints: CheckpointStore,
    actors: Actors,
    ledger: SqliteLedger,
    screen: Screen,
    tokenizer: HfTokenizer,
    problems: ProblemSet,
    ending: Ending,
) -> RunOutcome:
    """The outcome of the pipeline over started actors, from `state` on."""
    resume_from = state.version if config.resume else None
    tracker = await start_trackers(config, run_dir, resume_from)
    engine = actors.part(ROLLOUT)
    with contextlib.closing(tracker), open_environment(config, engine, tokenizer) as environment:
        # In a thread: what earlier sessions wrote is read and cut, which may be gigabytes of transcripts.
        cutting = asyncio.to_thread(TranscriptWriter, run_dir / TRANSCRIPTS_FILE, resume_from, tracker.show)
        transcripts = await files_within(config, run_dir, f"the reading of {TRANSCRIPTS_FILE}", cutting)
        parts = Parts(
            config=config,
            tokenizer=tokenizer,
            problems=problems,
            engine=engine,
            environment=environment,
            verifier=actors.part(VERIFIER),
            judge=actors.find(CRITIC),
            learner=actors.part(LEARNER),
            publisher=actors.publisher,
            reward_model=actors.find(REWARD_MODEL),
            ledger=ledger,
            checkpoints=checkpoints,
            tracker=tracker,
            transcripts=transcripts,
            progress=screen,
            step_truth=true_wrong_steps if config.knows_steps else None,
            quarantine=Quarantine(run_dir / QUARANTINE_FILE),
            part_stats=actors.stats,
        )
        pipeline = Pipeline(parts, state)
        ending.ask = pipeline.stop
        return await pipeline.run()


@contextlib.contextmanager
def _open_ledger(config: TrainConfig, run_dir: Path) -> Iterator[SqliteLedger]:
    """The run's ledger; at the end, however it comes, what is still open is dropped with the reason."""
    ledger = SqliteLedger(run_dir / LEDGER_FILE, config.run.name)
    ending = "run_ended"
    try:
        yield ledger
    except BaseException as error:
        ending = "interrupted" if isinstance(error, KeyboardInterrupt | asyncio.CancelledError) else "run_failed"
        with contextlib.suppress(LedgerLost):  # what ended the run is to be told, and may be this very loss
            ledger.close_open(ending)
            ledger.close()
        raise
    ledger.close_open(ending)
    ledger.close()


async def _restore(
    config: TrainConfig,
    latest: Path | None,
    checkpoints: CheckpointStore,
    actors: Actors,
    ledger: SqliteLedger,
    problems: ProblemSet,
) -> RunState:
    """The state to go on from: that of the checkpoint, else a new one; engines then hold its weights."""
    run_dir = checkpoints.directory.parent
    if latest is None:
        if config.resume:
            checkpoints.set_aside()
            await _rewind(config, run_dir, ledger, 0)
            return RunState(next_group=ledger.next_group())
        return RunState()
    state, cursor = read_checkpoint(latest)
    for name, group in actors.groups().items():
        version = await group.load(str(latest / name))
        if version != state.version:
            raise RunFailed(f"expected {name} shards of version {state.version} in {latest}, got version {version}")
    problems.train.restore(cursor)
    await _rewind(config, run_dir, ledger, state.version)
    state.next_group = max(state.next_group, ledger.next_group())
    await actors.publisher.publish()
    return state


async def _rewind(config: TrainConfig, run_dir: Path, ledger: SqliteLedger, version: int) -> None:
    """Returns once the ledger tells of nothing that was trained after `version`."""
    rewinding = asyncio.to_thread(ledger.rewind, version)
    await files_within(config, run_dir, f"the rewinding of {LEDGER_FILE}", rewinding)
