"""One of two engines answers a publish without holding it: the driver sees it by the version that comes back."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest
import ray

from capo_ray.config import TrainConfig
from capo_ray.place.roles.rollout import RolloutPool, RolloutWorker
from capo_ray.protocols import RunFailed, WeightsHandle

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("local_ray")]


def make_actor() -> Any:
    """An actor class, pickled by value since it is local; one made `stale` keeps the version that it has."""

    class Engine:
        def __init__(self, stale: bool) -> None:
            self.version, self.stale = 0, stale

        async def start(self) -> int:
            return os.getpid()

        async def ping(self) -> dict[str, float]:
            return {"version": float(self.version)}

        async def load_weights(self, payload: object, version: int, fingerprint: str) -> int:
            assert (payload, fingerprint) == ("bytes", "print")
            self.version = self.version if self.stale else version
            return self.version

        async def generate(self, prompt: object, sampling: object) -> int:
            await asyncio.sleep(0.05)
            return self.version

    return ray.remote(Engine).options(num_cpus=0, max_concurrency=100)


def publish(num_stale: int) -> list[int]:
    """The versions that four calls see after a publish to two engines; the first `num_stale` made are stale."""
    actor, made = make_actor(), []

    def spawn(index: int) -> Any:
        made.append(index)
        return actor.remote(len(made) <= num_stale)

    async def go() -> list[int]:
        tier = RolloutPool(TrainConfig.model_validate({"engine": {"num_workers": 2}}), spawn)
        await tier.pool.start()
        try:
            assert await tier.load_weights(WeightsHandle(1, "", "bytes", "print", 5)) == 1
            while tier.pool.num_ready < 2:
                await asyncio.wait_for(tier.pool.call(RolloutWorker.ping, deadline_s=60), 60)
                await asyncio.sleep(0.05)
            calls = [tier.pool.call(RolloutWorker.generate, (), None, deadline_s=30) for _ in range(4)]
            return list(await asyncio.gather(*calls))
        finally:
            tier.pool.close()

    return asyncio.run(asyncio.wait_for(go(), 100))


def test_an_engine_that_keeps_its_old_weights_is_replaced_by_one_that_holds_the_new() -> None:
    assert publish(num_stale=1) == [1, 1, 1, 1]


def test_engines_that_all_keep_their_old_weights_end_the_run_in_a_sentence() -> None:
    with pytest.raises(RunFailed, match="version 1 of the weights with version 0"):
        publish(num_stale=100)
