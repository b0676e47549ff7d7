"""The worker pool on real Ray actors that do nothing but sleep, break or answer."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from capo_ray.place import pool as place_pool
from capo_ray.place.calls import ActorGone
from capo_ray.place.pool import MAX_LATE, WorkerPool
from capo_ray.place.restarts import MAX_BROKEN, RESTART_WINDOW_S, Restarts
from capo_ray.protocols import PartLost, PartTimeout, RunFailed
from capo_ray.work import noting

real = pytest.mark.real


def make_worker(fails_without: Path | None = None, error: type[Exception] = ValueError) -> Any:
    """A worker class, pickled by value since it is local; a start that finds no such file makes it, and fails."""

    class Worker:
        spoilt = False

        async def start(self) -> int:
            if fails_without is not None and not fails_without.exists():
                fails_without.touch()
                raise error("No available memory for the cache blocks")
            return os.getpid()

        async def ping(self) -> dict[str, float]:
            if self.spoilt:
                raise AttributeError("no queue: the engine is gone")
            return {"pings": 1.0}

        begun = cancelled = 0

        async def work(self, seconds: float) -> int:
            self.begun += 1
            try:
                await asyncio.sleep(seconds)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            return os.getpid()

        async def seen(self) -> tuple[int, int]:
            return self.begun, self.cancelled

        async def fail(self, message: str) -> None:
            raise ZeroDivisionError(message)

        async def spoil_pings(self) -> None:
            self.spoilt = True

        async def refuse(self) -> None:
            from capo_ray.protocols import PartLost

            raise PartLost("the engine broke and must be started anew: out of rope")

    return Worker


Worker = make_worker()


def make_actor(*how: Any) -> Any:
    """An actor class that Ray can make actors of, as many calls at once as there are."""
    return ray.remote(make_worker(*how)).options(num_cpus=0, max_concurrency=100)


def with_pool(test: Callable[[WorkerPool], Awaitable[None]], num_workers: int = 2) -> None:
    async def go() -> None:
        actor = make_actor()
        pool = WorkerPool("sleepy", lambda _: actor.remote(), num_workers, start_deadline_s=60)
        await pool.start()
        try:
            await asyncio.wait_for(test(pool), 60)
        finally:
            pool.close()

    asyncio.run(go())


@real
@pytest.mark.usefixtures("local_ray")
def test_calls_of_a_killed_worker_are_sent_again_and_a_new_worker_takes_its_place() -> None:
    async def test(pool: WorkerPool) -> None:
        before = pool.pids()
        calls = [asyncio.ensure_future(pool.call(Worker.work, 2.0, deadline_s=30)) for _ in range(8)]
        await asyncio.sleep(0.3)
        os.kill(before[0], signal.SIGKILL)
        assert set(await asyncio.gather(*calls)) <= set(before) | set(pool.pids())
        assert pool.num_restarts == 1 and pool.num_resent == 4
        while pool.num_ready < 2:
            await asyncio.sleep(0.1)
        assert before[0] not in pool.pids()

    with_pool(test)


@real
@pytest.mark.usefixtures("local_ray")
def test_a_call_past_its_deadline_says_who_did_not_answer() -> None:
    async def test(pool: WorkerPool) -> None:
        with pytest.raises(PartTimeout, match=r"sleepy worker 0 \(work\) did not answer within 1 s"):
            await pool.call(Worker.work, 30.0, deadline_s=1)

    with_pool(test, num_workers=1)


@real
@pytest.mark.usefixtures("local_ray")
def test_a_second_try_keeps_away_from_the_worker_of_the_first() -> None:
    async def test(pool: WorkerPool) -> None:
        used: set[int] = set()
        with noting(group=7) as works:
            asked = [await pool.call(Worker.work, 0.0, deadline_s=10, used=used) for _ in range(2)]
        assert len(set(asked)) == 2 and used == {0, 1}
        assert {(work.tier, work.actor, work.group) for work in works} == {("sleepy", 0, 7), ("sleepy", 1, 7)}
        assert await pool.call(Worker.work, 0.0, deadline_s=10, used=used) in asked, "better the same one than none"

    with_pool(test)


@real
@pytest.mark.usefixtures("local_ray")
def test_cancelling_a_call_cancels_it_on_the_worker() -> None:
    async def test(pool: WorkerPool) -> None:
        call = asyncio.ensure_future(pool.call(Worker.work, 30.0, deadline_s=30))
        for wanted in ((1, 0), (1, 1)):
            while await pool.call(Worker.seen, deadline_s=10) != wanted:
                await asyncio.sleep(0.05)
            call.cancel()

    with_pool(test, num_workers=1)


@real
@pytest.mark.usefixtures("local_ray")
def test_an_exception_of_the_part_arrives_as_itself_with_its_place_noted() -> None:
    async def test(pool: WorkerPool) -> None:
        with pytest.raises(ZeroDivisionError, match="by hand") as caught:
            await pool.call(Worker.fail, "by hand", deadline_s=10)
        assert str(caught.value) == "by hand"
        assert "Worker.fail" in "".join(caught.value.__notes__)

    with_pool(test, num_workers=1)


@real
@pytest.mark.usefixtures("local_ray")
def test_workers_that_break_by_themselves_end_the_run_with_their_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("capo_ray.place.restarts.MAX_WAIT_S", 0.1)

    async def test(pool: WorkerPool) -> None:
        with pytest.raises(RunFailed, match=rf"broke {MAX_BROKEN + 1} times in a row, the last with: .*out of rope"):
            await pool.call(Worker.refuse, deadline_s=60)

    with_pool(test, num_workers=1)


@real
@pytest.mark.usefixtures("local_ray")
def test_a_worker_that_answers_pings_but_no_call_is_replaced() -> None:
    async def test(pool: WorkerPool) -> None:
        before = pool.pids()
        late = [asyncio.ensure_future(pool.call(Worker.work, 60.0, deadline_s=1)) for _ in range(MAX_LATE)]
        assert all(isinstance(r, PartTimeout) for r in await asyncio.gather(*late, return_exceptions=True))
        assert await pool.call(Worker.work, 0.0, deadline_s=30) not in before
        assert pool.num_restarts == 1

    with_pool(test, num_workers=1)


@real
@pytest.mark.usefixtures("local_ray")
def test_a_late_call_now_and_then_costs_no_worker() -> None:
    async def test(pool: WorkerPool) -> None:
        for _ in range(MAX_LATE + 1):
            with pytest.raises(PartTimeout):
                await pool.call(Worker.work, 60.0, deadline_s=0.5)
            await pool.call(Worker.work, 0.0, deadline_s=10)
        assert pool.num_restarts == 0

    with_pool(test, num_workers=1)


@real
@pytest.mark.usefixtures("local_ray")
def test_a_ping_that_raises_anything_replaces_its_worker_and_supervision_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(place_pool, "PING_EVERY_S", 0.2)

    async def test(pool: WorkerPool) -> None:
        for times in (1, 2):
            await pool.call(Worker.spoil_pings, deadline_s=10)
            while pool.num_restarts < times or pool.num_ready < 1:
                await asyncio.sleep(0.1)

    with_pool(test, num_workers=1)


@real
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("error", [ValueError, KeyError])
def test_a_successor_that_cannot_start_is_tried_again_whatever_it_raised(
    error: type[Exception], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    started = tmp_path / "started"
    started.touch()

    async def go() -> None:
        actor = make_actor(started, error)
        pool = WorkerPool("picky", lambda _: actor.remote(), 1, start_deadline_s=60)
        await pool.start()
        started.unlink()
        os.kill(pool.pids()[0], signal.SIGKILL)
        assert await pool.call(Worker.work, 0.0, deadline_s=60)
        assert pool.num_restarts == 2
        pool.close()

    asyncio.run(go())
    assert "never retrieved" not in caplog.text


def test_an_answer_begins_a_places_row_of_breaks_anew() -> None:
    broken, clock = PartLost("the engine broke"), iter(range(0, 10_000, 100))
    restarts = Restarts("rollout", max_restarts=20)
    for _ in range(5):
        assert [restarts.lost(0, broken, next(clock)) for _ in range(MAX_BROKEN)] == [""] * MAX_BROKEN
        restarts.answered(0)
    assert restarts.total == 5 * MAX_BROKEN
    assert restarts.wait_s(0) == 0
    assert [restarts.lost(1, broken, next(clock)) for _ in range(MAX_BROKEN)] == [""] * MAX_BROKEN
    assert [restarts.wait_s(0), restarts.wait_s(1)] == [0, 4]
    assert "rollout worker 1 broke 4 times in a row, the last with: the engine broke" in restarts.lost(1, broken, 9999)


def test_workers_killed_faster_than_they_start_end_the_run_and_slow_kills_do_not() -> None:
    gone = ActorGone("worker 0 was lost")
    slow = Restarts("critic", max_restarts=3)
    assert not any(slow.lost(0, gone, at * RESTART_WINDOW_S / 2) for at in range(100))
    fast = Restarts("critic", max_restarts=3)
    assert [bool(fast.lost(0, gone, float(at))) for at in range(4)] == [False, False, False, True]
