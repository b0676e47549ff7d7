"""Critiques of a file of solutions under one or several settings, in this process and without Ray.

settings -> engine of the first -> judge -> all solutions -> the next setting, on the same engine if it is the same
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capo_ray.config import TrainConfig
from capo_ray.config.sections import CriticConfig
from capo_ray.critics.guarded import GuardedStore
from capo_ray.critics.judgement import Judgement
from capo_ray.critics.layouts import Solution
from capo_ray.critics.store import StoreHeld
from capo_ray.place.judging import engine_spec, judge_on, open_engine
from capo_ray.protocols import Judge, JudgeRequest, RunFailed

MAX_OPEN = 64
"""Solutions under way at once."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How solutions are judged; `name` is what tells it from the first setting."""

    name: str
    config: TrainConfig
    critic: CriticConfig
    vote: str


async def judge_settings(
    settings: Sequence[Setting], solutions: Sequence[Solution]
) -> list[tuple[list[Judgement], float]]:
    """The critiques of all solutions and their seconds (the engine's start left out), for each setting in turn."""
    told: list[tuple[list[Judgement], float]] = []
    engine, held = None, None
    try:
        for setting in settings:
            spec = engine_spec(setting.config)
            if spec != held or engine is None:
                await _close(engine)
                engine, held = None, None
                engine, held = await open_engine(spec), spec
            async with _judge(engine, setting) as judge:
                started = time.monotonic()
                judgements = await _judge_all(judge, setting.critic.num_votes, solutions)
                told.append((judgements, time.monotonic() - started))
    finally:
        await _close(engine)
    return told


async def _close(engine: Any) -> None:
    if engine is not None:
        await asyncio.to_thread(engine.close)


@asynccontextmanager
async def _judge(engine: Any, setting: Setting) -> AsyncIterator[Judge]:
    """The setting's judge on a started engine, or on none."""
    judge: Any = None
    store = await _open_store(setting.critic.store)
    try:
        try:
            judge = judge_on(engine, setting.critic, setting.vote, 1, store)
        except ValueError as error:
            raise RunFailed(str(error)) from error
        yield judge
    finally:
        if hasattr(judge, "close"):
            await judge.close()
        if store is not None:
            await store.close()


async def _open_store(path: str) -> GuardedStore | None:
    """The store at a path, none where there is none; `RunFailed` where a run holds it."""
    if not path:
        return None
    store = GuardedStore(Path(path).expanduser(), held_s=5.0)
    try:
        await store.open()
    except StoreHeld as error:
        raise RunFailed(str(error)) from error
    return store


async def _judge_all(judge: Judge, num_votes: int, solutions: Sequence[Solution]) -> list[Judgement]:
    """The critiques of all solutions; those of one question are asked for together, so that they share its prefix."""
    groups: dict[tuple[str, str | None], list[int]] = {}
    for place, solution in enumerate(solutions):
        groups.setdefault((solution.problem.prompt, solution.problem.solution), []).append(place)
    results: dict[int, Judgement] = {}
    slots, done = asyncio.Semaphore(MAX_OPEN), 0

    async def critique(places: list[int]) -> None:
        nonlocal done
        async with slots:
            requests = [JudgeRequest(solutions[place].steps) for place in places]
            answers = await judge.critique(solutions[places[0]].problem, requests, num_votes)
        for place, answer in zip(places, answers, strict=True):
            results[place] = Judgement(solutions[place], answer)
        done += len(places)
        if sys.stderr.isatty():
            print(f"\r{done}/{len(solutions)} solutions judged", end="", file=sys.stderr, flush=True)

    async with asyncio.TaskGroup() as tasks:
        for places in groups.values():
            tasks.create_task(critique(places))
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return [results[place] for place in range(len(solutions))]
