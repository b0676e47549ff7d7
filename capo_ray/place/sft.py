"""The supervised job: one run from configuration to its last checkpoint, on ranks of a cluster or in this process.

open the run -> lessons, first model -> learner (one rank here, or ranks that are started on Ray) -> restore -> train
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capo_ray.checkpoint import CheckpointStore, write_state
from capo_ray.config import SftConfig
from capo_ray.config.loss import LossConfig
from capo_ray.engines import HfTokenizer
from capo_ray.flow.parts import SftParts
from capo_ray.flow.state import SftState, read_sft_checkpoint
from capo_ray.flow.supervised import Supervised
from capo_ray.learners import LearnerAlone, LearnerSpec
from capo_ray.metrics import Screen
from capo_ray.place import rundir
from capo_ray.place.ending import ends_soon_after_failure
from capo_ray.place.report import report_rows
from capo_ray.place.session import Session, files_within, find_latest, in_session, start_trackers
from capo_ray.problems import ProblemSource, asset_path
from capo_ray.problems.lessons import build_lessons
from capo_ray.protocols import RunFailed, RunStopped, Trainer
from capo_ray.runs.layout import LEARNER_DIR, START_DIR, WORKERS_FILE

Training = Callable[[Trainer], Coroutine[Any, Any, Supervised]]


@dataclass(frozen=True, slots=True)
class Trained:
    """A supervised run that ended as asked: its last checkpoint holds its model; `seconds` count all its sessions."""

    run_dir: Path
    checkpoint: Path
    seconds: float
    early: str
    """Why it made fewer than `run.num_updates` updates; empty where it did not."""


def run(config: SftConfig) -> Trained:
    """What was trained; raises `RunFailed` or `RunStopped` (with `run_dir`) otherwise."""
    if config.in_process:
        return in_session(config, _run)
    from capo_ray.place import cluster

    return in_session(config, _run, around=cluster.left_behind)


async def _run(config: SftConfig, session: Session) -> Trained:
    checkpoints = rundir.checkpoints_of(session.run_dir, config)
    lessons = build_lessons(config.data, config.run.seed)
    report_rows(lessons)
    making = asyncio.to_thread(start_model, config, session.run_dir)
    start = await files_within(config, session.run_dir, "the making of the first model", making)
    tokenizer = load_tokenizer(start)
    screen = Screen(num_updates=config.run.num_updates, title=f"capo-ray sft  {session.run_dir}")

    async def train(learner: Trainer) -> Supervised:
        state = await _restore(config, session, checkpoints, learner, lessons.train)
        tracker = await start_trackers(config, session.run_dir, state.version if config.resume else None)
        with contextlib.closing(tracker):
            parts = SftParts(config, tokenizer, lessons.train, learner, checkpoints, tracker, screen)
            supervised = Supervised(parts, state)
            session.ending.ask = supervised.stop
            await supervised.run()
        return supervised

    with screen:
        where = _alone if config.in_process else _on_ranks
        done = await where(config, session, spec_of(config, start), screen, train)
    if done.asked_to_end:
        raise RunStopped(f"version {done.state.version} is saved", session.ending.signum or signal.SIGTERM)
    checkpoint = checkpoints.likely()
    assert checkpoint is not None, "the last update has a checkpoint"
    return Trained(session.run_dir, checkpoint, done.seconds, done.early)


async def _alone(config: SftConfig, session: Session, spec: LearnerSpec, screen: Screen, train: Training) -> Supervised:
    """What `train` returns of a learner in this process."""
    session.ending.watch()
    screen.update(phase="building the model")
    with (
        contextlib.closing(LearnerAlone(spec)) as learner,
        ends_soon_after_failure(session.timers, session.ending, "sft"),
    ):
        await learner.start()
        return await train(learner)


async def _on_ranks(
    config: SftConfig, session: Session, spec: LearnerSpec, screen: Screen, train: Training
) -> Supervised:
    """What `train` returns of the learner group of a run, started on the cluster."""
    from capo_ray.place import cluster, nodes
    from capo_ray.place.placement import Places
    from capo_ray.place.roles.learner import LearnerActors, spawning
    from capo_ray.place.watch import ClusterWatch

    screen.update(phase="starting Ray")
    address = await cluster.join(config, lambda phase: screen.update(phase=phase))
    session.ending.watch()
    places = Places(config)
    actors = LearnerActors(config, spec, spawning(config, places), session.run_dir)

    async def start() -> None:
        await places.reserve()
        await actors.start()
        write_state(session.run_dir / WORKERS_FILE, {"driver": os.getpid(), "learner": actors.pids()})

    with (
        ClusterWatch(config) as watch,
        contextlib.closing(places),
        contextlib.closing(actors),
        ends_soon_after_failure(session.timers, session.ending, "sft"),
    ):
        await watch.guard(nodes.asked(config, session.run_dir))
        screen.update(phase=f"starting learner ranks on {address}")
        await watch.guard(start())
        return await watch.guard(train(actors))


async def _restore(
    config: SftConfig, session: Session, checkpoints: CheckpointStore, learner: Trainer, lessons: ProblemSource
) -> SftState:
    """The state to go on from: that of the checkpoint, else a new one."""
    latest, state = await find_latest(config, checkpoints), SftState()
    if latest is not None:
        state, cursor = read_sft_checkpoint(latest)
        await learner.load(str(latest / LEARNER_DIR))
        lessons.restore(cursor)
    elif config.resume:
        checkpoints.set_aside()
    if config.resume:
        record = asyncio.to_thread(rundir.record_session, session.run_dir, config, session.changes, state.version)
        await files_within(config, session.run_dir, "the record of this session", record)
    return state


def spec_of(config: SftConfig, model_path: str) -> LearnerSpec:
    """What a rank is made from, were it the only one: nothing but imitation is in its loss."""
    return LearnerSpec(
        model_path=model_path,
        dtype=config.model.dtype,
        learner=config.learner.to_learner(),
        loss=LossConfig(behaviour="recompute", kl_coef=0.0, aggregation="token_mean"),
        temperature=1.0,
        total_updates=config.run.num_updates,
        seed=config.run.seed,
        device="auto" if config.learner.num_gpus else "cpu",
        other_model="model.path" in config.run.changes_allowed,
    )


def start_model(config: SftConfig, run_dir: Path) -> str:
    """The model directory (or hub name) that training starts from; one from scratch is made in the run's directory."""
    from capo_ray.learners.recipe import model_from_scratch
    from capo_ray.problems.chains_tokenizer import build_tokenizer

    if config.model.path:
        return str(asset_path(config.model.path, "policy"))
    directory = run_dir / START_DIR
    tokenizer = build_tokenizer(config.data.role, config.model.max_positions)
    model_from_scratch(config.model, tokenizer, config.run.seed).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


def load_tokenizer(path: str) -> HfTokenizer:
    """The tokenizer of a Hugging Face directory or hub name; RunFailed with a sentence otherwise."""
    try:
        return HfTokenizer(path)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RunFailed(f"expected a Hugging Face model directory or hub name, got {path!r}: {reason}") from error
