"""One session of a run in its own directory, of either kind: opened, locked, ended by signals, named by errors.

open or resume the directory -> lock -> work(config, session) -> every exception names the directory
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from capo_ray.checkpoint import CheckpointStore
from capo_ray.config import Job
from capo_ray.ledger import RunLock
from capo_ray.metrics import FanOut, build_trackers
from capo_ray.place import rundir
from capo_ray.place.calls import within
from capo_ray.place.ending import Ending
from capo_ray.place.resume import Changes
from capo_ray.place.rundir import JobT
from capo_ray.protocols import RunFailed, RunStopped

R = TypeVar("R")
TRACKERS_S = 300.0
"""For all trackers to start; one that asks a server gives up by itself after 90 s or so."""


@dataclass(frozen=True, slots=True)
class Session:
    """What a session's work is given; `changes` are those of the settings that a resume makes."""

    run_dir: Path
    changes: Changes
    ending: Ending
    timers: list[threading.Timer] = field(default_factory=list)
    """Of ends that may hang; they are cancelled once the session is over."""


def in_session(
    config: JobT,
    work: Callable[[JobT, Session], Coroutine[Any, Any, R]],
    around: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
) -> R:
    """What `work` returns; raises `RunFailed` or `RunStopped` (with `run_dir`) otherwise."""
    if config.resume:
        run_dir = rundir.open_existing(config.resume)
    else:
        run_dir, config = rundir.open_new(config)
    with RunLock(run_dir):
        changes = rundir.require_resumable(run_dir, config) if config.resume else {}
        session = Session(run_dir, changes, Ending(config.run.stop_grace_s))
        try:
            with around():
                return asyncio.run(work(config, session))
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError | KeyboardInterrupt) and not isinstance(error, RunStopped):
                signum = session.ending.signum or signal.SIGINT
                error = RunStopped("no checkpoint was saved of what was under way", signum)
            error.run_dir = run_dir  # type: ignore[attr-defined]
            raise error from error.__cause__
        finally:
            for timer in session.timers:
                timer.cancel()


async def files_within(config: Job, place: Path, what: str, work: Coroutine[Any, Any, R]) -> R:
    """The result of work on a run's own files; a file system that does not answer is a `RunFailed` after a while."""
    key, advice = "run.checkpoint_deadline_s", f"see that {place} is mounted and answers, or raise that"
    return await within(config.run.checkpoint_deadline_s, key, work, what, advice)


async def start_trackers(config: Job, run_dir: Path, resume_from: int | None) -> FanOut:
    """The run's trackers; `RunFailed` where one cannot be started, or does not come back from being started."""
    settings = config.model_dump(mode="json")
    # In a thread: what earlier sessions wrote is read and cut, and a server somewhere may be asked.
    work = asyncio.to_thread(build_trackers, config.tracking, run_dir, settings, resume_from=resume_from)
    advice = "see that their servers can be reached, or set tracking.wandb=false and the like"
    return await within(TRACKERS_S, "", work, "the start of tracking", advice)


async def find_latest(config: Job, checkpoints: CheckpointStore) -> Path | None:
    """The newest checkpoint that is whole to the last byte; None in a new run."""
    if not config.resume:
        return None
    hashing = asyncio.to_thread(checkpoints.latest)
    latest = await files_within(config, checkpoints.directory, "the hashing of the checkpoint to go on from", hashing)
    if latest is None and not config.run.from_zero:
        raise RunFailed(
            f"expected a whole checkpoint in {checkpoints.directory}, found only damaged ones (named above); nothing "
            f"was changed: put one back, or start again from update 0 with run.from_zero=true"
        )
    return latest
