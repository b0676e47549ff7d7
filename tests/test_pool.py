"""The worker pool on real Ray actors that do nothing but sleep, break or answer."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import ray

from capo_ray.place.pool import MAX_BROKEN, WorkerPool
from capo_ray.protocols import PartTimeout, RunFailed

pytestmark = pytest.mark.real


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def make_actor() -> Any:
    """An actor class, pickled by value since it is local."""

    class Worker:
        async def start(self) -> int:
            return os.getpid()

        async def ping(self) -> dict[str, float]:
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

        async def refuse(self) -> None:
            from capo_ray.protocols import PartLost

            raise PartLost("the engine broke and must be started anew: out of rope")

    return ray.remote(Worker).options(num_cpus=0, max_concurrency=100)


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


def test_calls_of_a_killed_worker_are_sent_again_and_a_new_worker_takes_its_place() -> None:
    async def test(pool: WorkerPool) -> None:
        before = pool.pids()
        calls = [asyncio.ensure_future(pool.call("work", 2.0, deadline_s=30)) for _ in range(8)]
        await asyncio.sleep(0.3)
        os.kill(before[0], signal.SIGKILL)
        assert set(await asyncio.gather(*calls)) <= set(before) | set(pool.pids())
        assert pool.num_restarts == 1 and pool.num_resent == 4
        while pool.num_ready < 2:
            await asyncio.sleep(0.1)
        assert before[0] not in pool.pids()

    with_pool(test)


def test_a_call_past_its_deadline_says_who_did_not_answer() -> None:
    async def test(pool: WorkerPool) -> None:
        with pytest.raises(PartTimeout, match=r"sleepy worker 0 \(work\) did not answer within 1 s"):
            await pool.call("work", 30.0, deadline_s=1)

    with_pool(test, num_workers=1)


def test_a_second_try_keeps_away_from_the_worker_of_the_first() -> None:
    async def test(pool: WorkerPool) -> None:
        used: set[int] = set()
        asked = [await pool.call("work", 0.0, deadline_s=10, used=used) for _ in range(2)]
        assert len(set(asked)) == 2 and used == {0, 1}
        assert await pool.call("work", 0.0, deadline_s=10, used=used) in asked, "better the same one than none"

    with_pool(test)


def test_cancelling_a_call_cancels_it_on_the_worker() -> None:
    async def test(pool: WorkerPool) -> None:
        call = asyncio.ensure_future(pool.call("work", 30.0, deadline_s=30))
        for wanted in ((1, 0), (1, 1)):
            while await pool.call("seen", deadline_s=10) != wanted:
                await asyncio.sleep(0.05)
            call.cancel()

    with_pool(test, num_workers=1)


def test_an_exception_of_the_part_arrives_as_itself_with_its_place_noted() -> None:
    async def test(pool: WorkerPool) -> None:
        with pytest.raises(ZeroDivisionError, match="by hand") as caught:
            await pool.call("fail", "by hand", deadline_s=10)
        assert str(caught.value) == "by hand"
        assert "Worker.fail" in "".join(caught.value.__notes__)

    with_pool(test, num_workers=1)


def test_workers_that_break_by_themselves_end_the_run_with_their_own_words() -> None:
    async def test(pool: WorkerPool) -> None:
        with pytest.raises(RunFailed, match=rf"broke {MAX_BROKEN + 1} times, the last with: .*out of rope"):
            await pool.call("refuse", deadline_s=60)

    with_pool(test, num_workers=1)
