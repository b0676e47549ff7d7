"""A group of ranks on real Ray actors: one that stands still is found, and what it stands at is told."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from capo_ray.config import TrainConfig
from capo_ray.place.face import send
from capo_ray.place.ranks import PINGS, GroupRank, RankActors
from capo_ray.protocols import RunFailed
from capo_ray.work import noting

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("local_ray")]


def make_ranks() -> tuple[Any, RankActors[Any]]:
    """A class of ranks, pickled by value since it is local, and two of them, not started."""

    class Sleeper(GroupRank):
        def start(self, stops: bool) -> int:
            import torch.distributed  # noqa: F401 - not on the clock of `meet`

            if stops:
                os.kill(os.getpid(), signal.SIGSTOP)
                time.sleep(60)  # the stop may reach another thread first: this one would go on and answer
            return os.getpid()

        def meet(self, meeting: str) -> None:
            from capo_ray.learners.meeting import join

            if self._rank == 0:
                join("cpu", 0, 2, meeting, 600)
            time.sleep(60)

        def fail(self) -> None:
            raise RuntimeError("Connection closed by peer")

        def work(self, seconds: float) -> None:
            time.sleep(seconds)

        def load(self, path: str) -> int:
            time.sleep(2.0)
            return int(path)

    actor = ray.remote(num_cpus=0, concurrency_groups={PINGS: 1})(Sleeper)
    return Sleeper, RankActors("learner", lambda rank: actor.remote(rank), 2, TrainConfig(), Path("runs/lost"))


def test_a_stopped_rank_is_found_though_its_call_may_take_ten_minutes_and_a_busy_one_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("capo_ray.place.ranks.PING_EVERY_S", 0.2)
    monkeypatch.setattr("capo_ray.place.ranks.SILENT_S", 2.0)

    async def go() -> None:
        sleeper, ranks = make_ranks()
        await ranks._start(sleeper.start, lambda rank, _: (False,))
        with noting(errand="update") as works:
            await ranks._all(sleeper.work, lambda _: (4.0,))
        assert [(w.tier, w.actor, w.errand) for w in works] == [("learner", 0, "update"), ("learner", 1, "update")]
        assert all(3.9 < w.ended_s - w.began_s < 30 for w in works)
        os.kill(ranks.pids()[1], signal.SIGSTOP)
        try:
            with pytest.raises(
                RunFailed, match=r"learner rank 1 \(ping\) did not answer within 2 s; .* resume=runs/lost$"
            ):
                await asyncio.wait_for(ranks._all(sleeper.work, lambda _: (60.0,)), 30)
        finally:
            os.kill(ranks.pids()[1], signal.SIGKILL)
            ranks.close()

    asyncio.run(go())


def test_a_rank_that_stands_still_at_its_start_is_found_long_before_the_learners_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("capo_ray.place.ranks.PING_EVERY_S", 0.2)
    monkeypatch.setattr("capo_ray.place.ranks.START_SILENT_S", 10.0)

    async def go() -> None:
        sleeper, ranks = make_ranks()
        try:
            with pytest.raises(RunFailed, match=r"learner rank 1 \(ping\) did not answer within 10 s; "):
                await asyncio.wait_for(ranks._start(sleeper.start, lambda rank, _: (rank == 1,)), 60)
        finally:
            ranks.close()  # kills the stopped one too

    asyncio.run(go())


def test_ranks_that_wait_for_one_another_say_at_the_deadline_where_they_stand() -> None:
    async def go() -> None:
        sleeper, ranks = make_ranks()
        meeting: list[str] = []

        def start(rank: int, place: str) -> tuple[bool]:
            meeting.append(place)
            return (False,)

        try:
            await ranks._start(sleeper.start, start)
            ranks.deadline_s = 2.0
            with pytest.raises(RunFailed) as failed:
                await asyncio.wait_for(ranks._all(sleeper.meet, lambda _: (meeting[0],)), 30)
        finally:
            ranks.close()
        said = str(failed.value)
        assert "learner rank 0 (meet) did not answer within 2 s (rank 0 is at store.py:" in said, said
        assert "rank 1 is in no call of ours); go on from the last checkpoint with resume=runs/lost" in said, said

    asyncio.run(go())


def test_a_checkpoint_is_read_for_as_long_as_one_may_be_written_and_not_only_for_an_updates_time() -> None:
    async def go() -> None:
        sleeper, ranks = make_ranks()
        try:
            await ranks._start(sleeper.start, lambda rank, _: (False,))
            ranks.deadline_s = 0.5
            assert await ranks.load("7") == 7
        finally:
            ranks.close()

    asyncio.run(go())


def test_a_rank_that_died_is_the_cause_where_another_that_worked_with_it_is_heard_first() -> None:
    async def go() -> None:
        sleeper, ranks = make_ranks()
        try:
            await ranks._start(sleeper.start, lambda rank, _: (False,))
            os.kill(ranks.pids()[1], signal.SIGKILL)
            first = send(ranks._ranks[0], sleeper.fail), "learner rank 0 (fail)"
            with pytest.raises(RunFailed, match=r"^learner rank 1 \(ping\) was lost: .* resume=runs/lost$"):
                await asyncio.wait_for(ranks._gather([first]), 30)
        finally:
            ranks.close()

    asyncio.run(go())
