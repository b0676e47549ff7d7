"""The critique store of a run on Ray: critic workers on two nodes, one file, and a run that does not need it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from aiohttp import web
from ray.cluster_utils import Cluster

from capo_ray.config.critic import CriticConfig, EndpointConfig
from capo_ray.critics.store import CritiqueStore
from capo_ray.place.roles.critic import CriticWorker
from capo_ray.place.store import StoreTier
from capo_ray.protocols import JudgeRequest, RunFailed
from capo_ray.types import Critique, Problem
from tests.test_critics_endpoint import FIRST, Server, answer

pytestmark = [pytest.mark.real, pytest.mark.timeout(240)]
PROBLEM, REQUEST = Problem("p", "3+4*2", "14"), JudgeRequest(("3+4=8", "8*2=16"))


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[None]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "resources": {"one": 1}})
    cluster.add_node(num_cpus=1, resources={"two": 1})
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()
    cluster.shutdown()


async def judge_on(node: str, url: str, store: StoreTier) -> tuple[tuple[Critique, ...], dict[str, float]]:
    """The votes of a fresh critic worker on a node, and its figures."""
    endpoint = EndpointConfig(base_url=url, model="judge", retry_wait_s=0.01)
    config = CriticConfig(backend="endpoint", endpoint=endpoint, rubric="paper", early_stop=False)
    actor: Any = ray.remote(CriticWorker).options(num_cpus=0, resources={node: 0.1}, max_concurrency=10)
    worker = actor.remote(None, config, "majority", 1, store.keeper)
    try:
        await worker.start.remote()
        (votes,) = await worker.critique.remote(PROBLEM, [REQUEST], 4)
        return votes, await worker.ping.remote()
    finally:
        ray.kill(worker)


async def everything_valid(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return answer([FIRST] * body["n"])


def test_workers_of_two_nodes_share_what_was_paid_for_and_another_run_is_kept_out(
    two_nodes: None, tmp_path: Path
) -> None:
    path = tmp_path / "store.sqlite"
    server = Server(everything_valid)

    async def go() -> None:
        async with server as url:
            store = StoreTier(path, asked_for=True)
            await store.start()
            first, _ = await judge_on("one", url, store)
            second, figures = await judge_on("two", url, store)
            assert len(server.bodies) == 1 and all(v.valid for v in first)
            assert [v.text for v in second] == [v.text for v in first]
            assert figures["critic/cache_hits_total"] == figures["critic/votes_total"] == len(second) > 0
            assert figures["critic/store_errors_total"] == 0
            other = StoreTier(path, asked_for=True)
            with pytest.raises(RunFailed, match="is held by another process"):
                await other.start()
            ray.kill(other.keeper)
            ray.kill(store.keeper)  # with no_restart, as a node that is gone for good
            third, figures = await judge_on("two", url, store)
            assert all(v.valid for v in third) and len(server.bodies) == 2
            assert figures["critic/store_errors_total"] == 2  # a read and a write
            store.close()

    asyncio.run(go())
    assert len(CritiqueStore(path, held_s=30)) == 4
    assert not list(tmp_path.glob("*-shm"))


def test_a_damaged_file_is_named_counted_and_done_without(
    two_nodes: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "store.sqlite"
    path.write_bytes(b"SQLite format 3\x00" + b"no more" * 1000)
    server = Server(everything_valid)

    async def go() -> dict[str, float]:
        async with server as url:
            store = StoreTier(path, asked_for=False)
            await store.start()
            votes, _ = await judge_on("two", url, store)
            assert all(v.valid for v in votes)
            figures, trouble = await store.keeper.ping.remote()
            store.close()
            assert str(path) in trouble
            return figures

    assert asyncio.run(go())["critic/store_errors_total"] == 3  # opened, read, written
    assert str(path) in caplog.text
