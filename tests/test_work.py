"""Who worked for a group: noted where calls are sent, kept beside the account, told by actor."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from capo_ray.config import TrainConfig
from capo_ray.flow import Pipeline
from capo_ray.flow.state import RunState
from capo_ray.flow.training import by_group
from capo_ray.ledger.lives import read_lives
from capo_ray.protocols import Sampling
from capo_ray.types import Batch, Completion, Sample, TrajectoryKey, VersionRun, WeightedSample
from capo_ray.work import Work, Works, noting, working
from tests.fakes import FakeEngine, FakeLearner, fake_parts


async def call(tier: str, *actors: int) -> None:
    with working(tier, actors):
        await asyncio.sleep(0.001)


def test_notes_follow_a_group_into_its_tasks_and_into_no_other() -> None:
    async def group(number: int) -> Works:
        with noting(group=number) as works:
            await asyncio.gather(call("rollout", number), call("critic", number))
        return works

    async def run() -> list[Works]:
        return await asyncio.gather(group(1), group(2), call("nobody's", 0))  # type: ignore[return-value]

    one, two, _ = asyncio.run(run())
    assert [(w.tier, w.actor, w.group) for w in one] == [("rollout", 1, 1), ("critic", 1, 1)]
    assert [(w.tier, w.actor, w.group) for w in two] == [("rollout", 2, 2), ("critic", 2, 2)]
    assert all(w.began_s < w.ended_s for w in one)


def test_work_that_fails_is_noted_too() -> None:
    with noting(errand="publish") as works:
        try:
            with working("learner", range(2)):
                raise ValueError
        except ValueError:
            pass
    assert [(w.actor, w.errand) for w in works] == [(0, "publish"), (1, "publish")]


def test_what_an_actor_does_at_once_is_one_work() -> None:
    works = Works(7, "")
    spans = [(0, 0, 2), (1, 1, 3), (0, 1, 4), (0, 4, 5), (0, 6, 7)]
    works.extend(Work("rollout", actor, began, ended, 7) for actor, began, ended in reversed(spans))
    told = [(work.actor, work.began_s, work.ended_s) for work in works.merged()]
    assert told == [(0, 0, 5), (1, 1, 3), (0, 6, 7)]


def test_ranks_that_compute_a_column_together_worked_for_its_groups() -> None:
    def cell(*groups: int) -> tuple[WeightedSample, ...]:
        ones = np.ones(1)
        keys = [TrajectoryKey("p", group, 0) for group in groups]
        samples = [Sample(key, (1, 2), (0.0,), ones, (VersionRun(0, 1),)) for key in keys]  # type: ignore[arg-type]
        return tuple(WeightedSample(sample, ones) for sample in samples)  # type: ignore[arg-type]

    batch = Batch(((cell(3, 3), cell(4)), (cell(5), cell())))
    works = [Work("learner", rank, 1.0, 2.0, errand="update") for rank in range(4)]
    told = by_group([*works, Work("reward model", 0, 1.0, 1.5, errand="update")], batch, shared=2)
    ranks = [(work.tier, work.actor, work.group) for work in told]
    assert ranks == [("learner", 0, 3), ("learner", 0, 5), ("learner", 1, 3), ("learner", 1, 5),
                     ("learner", 2, 4), ("learner", 3, 4), ("reward model", 0, None)]  # fmt: skip


class Engine(FakeEngine):
    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> tuple[Completion, ...]:
        with working("rollout", [len(prompt_ids) % 2]):
            return await super().generate(prompt_ids, sampling)


class Learner(FakeLearner):
    async def update(self, batch: Batch):
        with working("learner", [0]):
            return await super().update(batch)


def test_a_run_keeps_who_worked_for_each_group_and_for_its_evaluations(tmp_path: Path) -> None:
    run = {"num_updates": 2, "eval_every": 1, "eval_problems": 2}
    config = TrainConfig.model_validate({"run": run, "learner": {"groups_per_batch": 3}, "rollout": {"group_size": 4}})
    parts = fake_parts(tmp_path, config, engine=Engine(), learner=Learner())
    asyncio.run(asyncio.wait_for(Pipeline(parts, RunState()).run(), 30))
    lives = read_lives(tmp_path / "ledger.sqlite", None)
    trained = [life.group for life in lives.groups if "trained" in life.times]
    assert len(trained) == 2 * 3
    for group in trained:
        assert [work.tier for work in lives.works if work.group == group] == ["rollout", "learner"]
    assert {work.errand for work in lives.works if work.group is None} == {"evaluation"}
