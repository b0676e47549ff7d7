"""A version in buckets to all engines at once: real learner ranks, real engines, and one that comes late."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import ray

from capo_ray.cli.compose import compose_train
from capo_ray.config import TrainConfig
from capo_ray.engines import HfTokenizer
from capo_ray.place.placement import Places
from capo_ray.place.publish import WirePublisher, build_publisher
from capo_ray.place.role import Site
from capo_ray.place.roles.learner import LEARNER, LearnerActors
from capo_ray.place.roles.rollout import ROLLOUT, RolloutPool
from capo_ray.problems import asset_path
from capo_ray.weights import Apart, apart
from tests.learner_group import make_batch

pytestmark = pytest.mark.real

CONFIG = (
    "credit=grpo", "weights.transport=gloo", "weights.bucket_mib=1", "engine.num_workers=2", "learner.num_ranks=2",
    "learner.zero_stage=3", "learner.deadline_s=240",
)  # fmt: skip


async def publish_and_compare(publisher: Any, learner: LearnerActors, engines: RolloutPool, ids: list[int]) -> int:
    """The version, which both engines now compute with as the learner does."""
    version: int = await publisher.publish()
    (ours,) = await learner.logprobs([ids], [1])
    theirs = await engines.scores_at_start(ids)
    assert len(theirs) == 2 and all(apart(scores, ours).worst < 1e-3 for scores in theirs)
    return version


async def until_ready(engines: RolloutPool, gone: int) -> None:
    """Returns once the place of a killed engine is filled again."""
    async with asyncio.timeout(200):
        while engines.pool.num_ready < 2 or gone in engines.pids():
            await asyncio.sleep(0.1)


async def through_two_groups(config: TrainConfig, folder: Path) -> dict[str, float]:
    """The publisher's figures after two publishes, with an engine killed between them."""
    ids = HfTokenizer(str(asset_path("laptop", "policy"))).encode("7 + 5 = 2, 2 + 1 = 3")
    places = Places(config)
    site = Site(config, folder, places, tuple(ids))
    learner, engines = LEARNER.build(site), ROLLOUT.build(site)
    try:
        await places.reserve()
        await asyncio.gather(learner.start(), engines.start())
        learner.allowed = Apart(1e-3, 1e-2)
        publisher = build_publisher(config, learner, engines)
        assert isinstance(publisher, WirePublisher)
        await learner.update(make_batch(1, num_ranks=2))
        assert await publish_and_compare(publisher, learner, engines, ids) == 1
        first = publisher._address
        gone = engines.pids()[0]
        os.kill(gone, signal.SIGKILL)
        await until_ready(engines, gone)
        (ours,) = await learner.logprobs([ids], [1])
        assert all(apart(scores, ours).worst < 1e-3 for scores in await engines.scores_at_start(ids))
        await learner.update(make_batch(2, num_ranks=2))
        assert await publish_and_compare(publisher, learner, engines, ids) == 2
        assert publisher._address != first
        return publisher.stats()
    finally:
        learner.close()
        engines.close()
        places.close()


def test_ranks_of_zero_3_send_to_all_engines_at_once_and_one_that_comes_late_is_brought(tmp_path: Path) -> None:
    config = compose_train([*CONFIG, f"run.dir={tmp_path}"])
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False)
    try:
        figures = asyncio.run(asyncio.wait_for(through_two_groups(config, tmp_path), 500))
    finally:
        ray.shutdown()
    assert figures["weights/fallbacks_total"] == 0
    assert figures["weights/sent_mib"] == pytest.approx(342_336 * 4 / 2**20)
