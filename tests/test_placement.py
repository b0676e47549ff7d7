"""Where workers go, on a real cluster of two nodes with two (pretended) GPUs each."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from pydantic import ValidationError
from ray.cluster_utils import Cluster

from capo_ray.config import TrainConfig
from capo_ray.place.placement import Neighbourhoods, ask_of, check_fences
from capo_ray.protocols import RunFailed


def config(critic: dict[str, Any], **engine: Any) -> TrainConfig:
    defaults = {"num_gpus": 0.5, "num_cpus": 0.1, "gpu_memory_frac": 0.4}
    return TrainConfig.model_validate({"critic": defaults | critic, "engine": defaults | {"num_workers": 2} | engine})


def test_colocated_parts_that_need_more_than_one_gpu_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"engine.num_gpus \+ 2 x critic.num_gpus must be <= 1 \(got 1.5\)"):
        config({"placement": "colocated", "num_workers": 3})


def test_colocated_parts_that_need_more_than_the_gpus_memory_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"must be <= 1 \(got 1.1\)"):
        config({"placement": "colocated", "gpu_memory_frac": 0.7})


def test_a_fence_beside_a_placement_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"engine\.node_resource names the nodes of both"):
        config({"placement": "same_node", "node_resource": "judges"})


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[None]:
    cluster = Cluster()
    for name in ("rollouts", "judges"):
        cluster.add_node(num_cpus=2, num_gpus=2, resources={name: 1}, include_dashboard=False)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False)
    yield
    ray.shutdown()
    cluster.shutdown()


def where(options: dict[str, Any]) -> Any:
    """An actor placed by `options`, and the reference to its (node, GPUs)."""

    class Worker:
        def place(self) -> tuple[str, tuple[int, ...]]:
            context = ray.get_runtime_context()
            return context.get_node_id(), tuple(map(int, context.get_accelerator_ids()["GPU"]))

    actor = ray.remote(Worker).options(**options).remote()
    return actor, actor.place.remote()


def places(config: TrainConfig) -> tuple[list[tuple[str, Any]], list[tuple[str, Any]]]:
    """(node, GPUs) of the rollout workers and of the critics."""
    neighbourhoods = Neighbourhoods(config)
    asyncio.run(neighbourhoods.reserve())
    rollout = [where(neighbourhoods.rollout(i)) for i in range(config.engine.num_workers)]
    critic = [where(neighbourhoods.critic(i)) for i in range(config.critic.num_workers)]
    found = ray.get([ref for _, ref in rollout], timeout=30), ray.get([ref for _, ref in critic], timeout=30)
    for actor, _ in rollout + critic:
        ray.kill(actor)
    neighbourhoods.close()
    return found


@pytest.mark.real
def test_colocated_critics_share_their_rollout_workers_gpu(two_nodes: None) -> None:
    rollout, critic = places(config({"placement": "colocated", "num_workers": 2}))
    assert critic == rollout
    assert len(set(rollout)) == 2


@pytest.mark.real
def test_critics_of_the_same_node_have_gpus_of_their_own(two_nodes: None) -> None:
    wanted = config({"placement": "same_node", "num_workers": 3, "num_gpus": 1}, num_gpus=1, num_workers=1)
    with pytest.raises(RunFailed, match="on one node, and no node had that free within 2 s"):
        places(wanted.model_copy(update={"engine": wanted.engine.model_copy(update={"start_deadline_s": 2.0})}))
    rollout, critic = places(
        config({"placement": "same_node", "num_workers": 1, "num_gpus": 1}, num_gpus=1, num_workers=1)
    )
    assert critic[0][0] == rollout[0][0]
    assert critic[0][1] != rollout[0][1]


@pytest.mark.real
def test_a_fence_keeps_workers_on_the_nodes_that_announce_it(two_nodes: None) -> None:
    fenced = config({"node_resource": "judges", "num_workers": 3}, node_resource="rollouts")
    check_fences(fenced)
    rollout, critic = places(fenced)
    nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes()}
    assert all("rollouts" in nodes[node] for node, _ in rollout)
    assert all("judges" in nodes[node] for node, _ in critic)


@pytest.mark.real
def test_a_fence_that_no_node_announces_is_named(two_nodes: None) -> None:
    with pytest.raises(RunFailed, match=r"critic\.node_resource=elsewhere is announced by no node"):
        check_fences(config({"node_resource": "elsewhere"}))


def test_without_placement_an_actor_asks_for_its_share_alone() -> None:
    part = config({}).critic
    assert ask_of(part) == {"num_cpus": 0.1, "num_gpus": 0.5, "resources": {}}
