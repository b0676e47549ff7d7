"""A version in buckets to all engines at once: real learner ranks, real engines, and one that comes late."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
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
from capo_ray.protocols import Sampling
from capo_ray.types import Completion
from capo_ray.weights import Apart, apart, checkpoint_shapes
from capo_ray.weights.contents import adapter_shapes
from tests.learner_group import make_batch

pytestmark = pytest.mark.real

CONFIG = (
    "credit=grpo", "weights.transport=gloo", "weights.bucket_mib=1", "engine.num_workers=2", "learner.num_ranks=2",
    "learner.zero_stage=3", "learner.num_epochs=4", "learner.deadline_s=240",
)  # fmt: skip


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


ADAPTERS_ALONE = (
    "credit=grpo", "weights.transport=gloo", "weights.running=keep", "learner.backend=torch", "learner.lora.rank=4",
    "learner.lr=0.01", "learner.num_epochs=4", "learner.deadline_s=240",
)  # fmt: skip


async def compare(learner: LearnerActors, engines: RolloutPool, ids: list[int], count: int) -> tuple[float, ...]:
    """The learner's scores, as which all `count` engines compute."""
    (ours,) = await learner.logprobs([ids], [1])
    theirs = await engines.scores_at_start(ids)
    assert len(theirs) == count and all(apart(scores, ours).worst < 1e-3 for scores in theirs)
    return ours


async def publish_and_compare(publisher: Any, learner: LearnerActors, engines: RolloutPool, ids: list[int]) -> int:
    """The version, which both engines now compute with as the learner does."""
    version: int = await publisher.publish()
    await compare(learner, engines, ids, 2)
    return version


async def replace_one(engines: RolloutPool, count: int) -> None:
    """Kills an engine, and returns once its place is filled again and all `count` are ready."""
    gone = engines.pids()[0]
    os.kill(gone, signal.SIGKILL)
    async with asyncio.timeout(200):
        while engines.pool.num_ready < count or gone in engines.pids():
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
        await replace_one(engines, 2)
        await compare(learner, engines, ids, 2)
        await learner.update(make_batch(2, num_ranks=2))
        assert await publish_and_compare(publisher, learner, engines, ids) == 2
        assert publisher._address != first
        return publisher.stats()
    finally:
        learner.close()
        engines.close()
        places.close()


async def adapters_through_an_engine_that_dies(config: TrainConfig, folder: Path) -> dict[str, float]:
    """The publisher's figures of the second of two versions; the first comes while responses are sampled and kept."""
    ids = HfTokenizer(str(asset_path("laptop", "policy"))).encode("7 + 5 = 2, 2 + 1 = 3")
    places = Places(config)
    site = Site(config, folder, places, tuple(ids))
    learner, engines = LEARNER.build(site), ROLLOUT.build(site)
    try:
        await places.reserve()
        await asyncio.gather(learner.start(), engines.start())
        learner.allowed = Apart(1e-3, 1e-2)
        publisher = build_publisher(config, learner, engines)
        before = await compare(learner, engines, ids, 1)
        await learner.update(make_batch(1))
        sampled: list[Completion] = []
        async with asyncio.TaskGroup() as tasks:
            publishing = tasks.create_task(publisher.publish())
            for _ in range(2):
                tasks.create_task(sample_until(engines, ids, publishing, sampled))
        assert publishing.result() == 1 and all(run.version in (0, 1) for each in sampled for run in each.versions)
        assert any(len(each.versions) == 2 for each in sampled), "some went on under the version that came"
        first = await compare(learner, engines, ids, 1)
        await replace_one(engines, 1)
        assert await compare(learner, engines, ids, 1) == first, "the engine that comes late is brought to the version"
        await learner.update(make_batch(2))
        assert await publisher.publish() == 2
        second = await compare(learner, engines, ids, 1)
        assert apart(before, first).mean > 5e-3 and apart(first, second).mean > 5e-3
        return publisher.stats()
    finally:
        learner.close()
        engines.close()
        places.close()


async def sample_until(
    engines: RolloutPool, ids: list[int], publishing: asyncio.Task[int], sampled: list[Completion]
) -> None:
    """Responses to a prompt, again and again, to which the version comes that is being published."""
    while not publishing.done():
        sampled += await engines.generate(ids, Sampling(max_tokens=200, n=4))


def test_adapters_go_alone_to_an_engine_amid_its_responses_and_to_the_one_that_replaces_it(
    cluster: None, tmp_path: Path
) -> None:
    config = compose_train([*ADAPTERS_ALONE, f"run.dir={tmp_path}"])
    assert config.weights.adapters == "alone"
    figures = asyncio.run(asyncio.wait_for(adapters_through_an_engine_that_dies(config, tmp_path), 500))
    shapes = adapter_shapes(checkpoint_shapes(str(asset_path("laptop", "policy"))), config.learner.lora)
    numel = sum(rows * columns for rows, columns in shapes.values())
    assert figures["weights/fallbacks_total"] == 0
    assert figures["weights/sent_mib"] == pytest.approx(numel * 4 / 2**20) and numel < 342_336 / 4


def test_ranks_of_zero_3_send_to_all_engines_at_once_and_one_that_comes_late_is_brought(
    cluster: None, tmp_path: Path
) -> None:
    config = compose_train([*CONFIG, f"run.dir={tmp_path}"])
    figures = asyncio.run(asyncio.wait_for(through_two_groups(config, tmp_path), 500))
    assert figures["weights/fallbacks_total"] == 0
    assert figures["weights/sent_mib"] == pytest.approx(342_336 * 4 / 2**20)
