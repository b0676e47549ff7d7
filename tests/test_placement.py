"""Where workers go, on a real cluster of two nodes with two (pretended) GPUs each."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from pydantic import ValidationError
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from capo_ray.config import TrainConfig
from capo_ray.demand import Demand, find
from capo_ray.place.capacity import Muster, shortage
from capo_ray.place.placement import Places, ask_of, node_resources, shares_devices
from capo_ray.place.pool import WorkerPool
from capo_ray.place.room import NoRoom, Room
from capo_ray.protocols import RunFailed


def config(critic: dict[str, Any], **engine: Any) -> TrainConfig:
    defaults = {"num_gpus": 0.5, "num_cpus": 0.1, "gpu_memory_frac": 0.4}
    return TrainConfig.model_validate({"critic": defaults | critic, "engine": defaults | {"num_workers": 2} | engine})


def critic_of(config: TrainConfig) -> Demand:
    found = find(config, "critic")
    assert found is not None
    return found


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
def two_nodes() -> Iterator[Cluster]:
    cluster = Cluster()
    for name in ("rollouts", "judges"):
        cluster.add_node(num_cpus=2, num_gpus=2, resources={name: 1}, include_dashboard=False)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
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
    reserved = Places(config)
    asyncio.run(reserved.reserve())
    rollout = [where(reserved.of("rollout", i)) for i in range(config.engine.num_workers)]
    critic = [where(reserved.of("critic", i)) for i in range(config.critic.num_workers)]
    found = ray.get([ref for _, ref in rollout], timeout=30), ray.get([ref for _, ref in critic], timeout=30)
    for actor, _ in rollout + critic:
        ray.kill(actor)
    reserved.close()
    return found


@pytest.mark.real
def test_colocated_critics_share_their_rollout_workers_gpu(two_nodes: Cluster) -> None:
    rollout, critic = places(config({"placement": "colocated", "num_workers": 2}))
    assert critic == rollout
    assert len(set(rollout)) == 2


@pytest.mark.real
def test_critics_of_the_same_node_have_gpus_of_their_own(two_nodes: Cluster) -> None:
    wanted = config({"placement": "same_node", "num_workers": 3, "num_gpus": 1}, num_gpus=1, num_workers=1)
    with pytest.raises(
        RunFailed, match=r"room for rollout worker 0 and its critics .* on one node, and got none within 2 s"
    ):
        places(wanted.model_copy(update={"engine": wanted.engine.model_copy(update={"start_deadline_s": 2.0})}))
    rollout, critic = places(
        config({"placement": "same_node", "num_workers": 1, "num_gpus": 1}, num_gpus=1, num_workers=1)
    )
    assert critic[0][0] == rollout[0][0]
    assert critic[0][1] != rollout[0][1]


@pytest.mark.real
def test_a_fence_keeps_workers_on_the_nodes_that_announce_it(two_nodes: Cluster) -> None:
    fenced = config({"node_resource": "judges", "num_workers": 3}, node_resource="rollouts")
    assert not shortage(fenced, node_resources())
    rollout, critic = places(fenced)
    nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes()}
    assert all("rollouts" in nodes[node] for node, _ in rollout)
    assert all("judges" in nodes[node] for node, _ in critic)


@pytest.mark.real
def test_a_fence_that_no_node_announces_is_named(two_nodes: Cluster) -> None:
    with pytest.raises(RunFailed, match=r"critic\.node_resource=elsewhere is announced by no node"):
        asyncio.run(Muster(config({"node_resource": "elsewhere"})).wait(print))


def test_what_is_missing_is_named() -> None:
    small, large = {"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0, "GPU": 8.0, "judges": 1.0}
    wanted = config({"num_gpus": 4, "tensor_parallel": 4, "node_resource": "judges"}, num_gpus=1, num_workers=4)
    assert shortage(wanted, [small, large]) == ""
    assert "critic.node_resource=judges is announced by no node" in shortage(wanted, [small])
    one_node = "too few GPUs on one node: critic asks for 4 on each, and the largest with judges has 2"
    assert one_node in shortage(wanted, [small | {"judges": 1.0}, {"GPU": 8.0, "CPU": 8.0}])
    less = "too few GPUs: expected a cluster with 8 for this run's actors, got 6 on 2 node(s)"
    assert less in shortage(wanted, [small, large | {"GPU": 4.0}])


@pytest.mark.real
def test_a_node_that_joins_late_is_waited_for(two_nodes: Cluster) -> None:
    wanted = config({"num_gpus": 1}, num_gpus=1, num_workers=4).model_copy(
        update={"cluster": TrainConfig().cluster.model_copy(update={"wait_s": 60.0})}
    )
    told: list[str] = []

    async def go() -> None:
        waiting = asyncio.ensure_future(Muster(wanted).wait(told.append))
        await asyncio.sleep(1.5)
        assert not waiting.done()
        node = two_nodes.add_node(num_cpus=1, num_gpus=1)
        await waiting
        two_nodes.remove_node(node)

    asyncio.run(go())
    assert "too few GPUs: expected a cluster with 5 for this run's actors, got 4" in told[0]


def test_without_placement_an_actor_asks_for_its_share_alone_and_sees_no_gpu_without_one() -> None:
    assert ask_of(critic_of(config({}))) == {"num_cpus": 0.1, "num_gpus": 0.5, "resources": {}}
    hidden = ask_of(critic_of(config({"num_gpus": 0})))
    assert hidden.pop("runtime_env") == {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
    assert hidden == {"num_cpus": 0.1, "num_gpus": 0, "resources": {}}


@pytest.mark.real
def test_an_actor_without_gpus_sees_none_on_a_node_that_has_some(two_nodes: Cluster) -> None:
    class Worker:
        def seen(self) -> str | None:
            return os.environ.get("CUDA_VISIBLE_DEVICES")

    plain = ask_of(critic_of(config({"num_gpus": 0})))
    bare = ray.remote(Worker).options(num_cpus=0.1, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}}).remote()
    actor = ray.remote(Worker).options(**plain).remote()
    assert ray.get([actor.seen.remote(), bare.seen.remote()], timeout=60) == ["", None]
    for one in (actor, bare):
        ray.kill(one)


@pytest.mark.real
def test_ranks_are_packed_on_one_node_and_an_engine_over_two_gpus_finds_its_node_whole(two_nodes: Cluster) -> None:
    wanted = TrainConfig.model_validate(
        {
            "engine": {"num_gpus": 2, "num_cpus": 0.1, "tensor_parallel": 2},
            "learner": {"num_ranks": 2, "num_gpus": 1, "num_cpus": 0.1},
            "credit": {"method": "grpo"},
        }
    )
    reserved = Places(wanted)
    asyncio.run(reserved.reserve())
    ranks = [where(reserved.of("learner", rank)) for rank in range(2)]
    engine = where(reserved.of("rollout", 0))
    (first, second, rollout) = ray.get([ref for _, ref in (*ranks, engine)], timeout=60)
    for actor, _ in (*ranks, engine):
        ray.kill(actor)
    reserved.close()
    assert first[0] == second[0] != rollout[0]
    assert len(rollout[1]) == 2 and first[1] != second[1]


@pytest.mark.real
def test_ranks_whose_node_has_just_died_do_not_wait_for_room_until_the_start_is_over(
    two_nodes: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("capo_ray.place.placement.FITS_NOWHERE_S", 1.0)
    learner = {"num_ranks": 2, "num_cpus": 0.5, "node_resource": "gone"}
    reserved = Places(TrainConfig.model_validate({"learner": learner}))
    with pytest.raises(RunFailed, match=r"expected room for the 2 ranks of learner, .* got none within 1 s; add nodes"):
        asyncio.run(asyncio.wait_for(reserved.reserve(), 30))
    reserved.close()


def test_engines_on_shares_of_a_gpu_start_in_turn() -> None:
    assert shares_devices(config({"placement": "colocated"}))
    assert not shares_devices(config({"num_gpus": 1}, num_gpus=2))
    assert not shares_devices(TrainConfig())


class Light:
    """A pool's worker that says where it is."""

    async def start(self) -> int:
        return os.getpid()

    async def ping(self) -> dict[str, float]:
        return {}

    async def home(self) -> str:
        return str(ray.get_runtime_context().get_node_id())


@pytest.mark.real
def test_the_worker_of_a_node_that_dies_goes_where_room_is_and_where_none_is_the_run_ends(
    two_nodes: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("capo_ray.place.room.FITS_NOWHERE_S", 5.0)  # of 15
    fenced = {node.node_id: node for node in (two_nodes.add_node(num_cpus=1, resources={"lone": 1}) for _ in range(2))}
    two_nodes.wait_for_nodes()
    actor = ray.remote(Light).options(num_cpus=1, resources={"lone": 0.001}, max_concurrency=10)

    async def elsewhere(pool: WorkerPool[Any], lost: str) -> str:
        """Lose a node; the one that answers next. A process outlives its raylet by a moment, and answers in it."""
        two_nodes.remove_node(fenced.pop(lost), allow_graceful=False)
        while (home := str(await pool.call(Light.home, deadline_s=90))) == lost:
            await asyncio.sleep(0.5)
        return home

    async def go() -> None:
        room = Room({"CPU": 1.0, "lone": 0.001}, 0.0)
        pool: WorkerPool[Any] = WorkerPool("light", lambda _: actor.remote(), 1, start_deadline_s=600, room=room)
        await pool.start()
        try:
            first = await pool.call(Light.home, deadline_s=60)
            second = await elsewhere(pool, lost=first)
            assert [second] == list(fenced)
            died = time.monotonic()
            with pytest.raises(RunFailed, match=r"no living node has as much.*light worker 0, the last of its role"):
                await elsewhere(pool, lost=second)
            assert time.monotonic() - died < 60 - 10
        finally:
            pool.close()

    asyncio.run(go())


@pytest.mark.real
def test_a_reserved_place_is_room_while_nobody_is_in_it(two_nodes: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("capo_ray.place.room.FREE_S", 3.0)
    group = placement_group([{"CPU": 2.0}, {"CPU": 2.0}])
    ray.get(group.ready(), timeout=60)
    room = Room({"CPU": 2.0}, 0.0)

    def sit(bundle: int) -> Any:
        seat = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)
        actor = ray.remote(Light).options(num_cpus=2, scheduling_strategy=seat).remote()
        ray.get(actor.home.remote(), timeout=60)
        return actor

    try:
        first = sit(0)
        assert asyncio.run(room.free()), "the second place"
        second = sit(1)
        assert not asyncio.run(room.free())
    finally:
        remove_placement_group(group)
    del first, second


@pytest.mark.real
def test_room_that_others_have_taken_is_waited_for_while_another_worker_of_the_role_is_ready(
    two_nodes: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("capo_ray.place.room.TAKEN_S", 1.0)
    monkeypatch.setattr("capo_ray.place.room.POLL_S", 0.2)
    monkeypatch.setattr("capo_ray.place.room.FREE_S", 1.0)
    room = Room({"CPU": 2.0}, wait_s=1.0)
    taking = ray.remote(Light).options(num_cpus=2)
    taken = [taking.remote() for _ in range(2)]
    ray.get([one.home.remote() for one in taken], timeout=60)

    async def go() -> None:
        late = taking.remote()
        there = late.__ray_ready__.remote()
        assert not await room.free()
        waits = (room.found(there, lambda: False), room.found(there, lambda: True, given=True))
        _, waiting = await asyncio.wait(map(asyncio.ensure_future, waits), timeout=4)
        assert len(waiting) == 2, "another worker serves; what is taken may be its own, whose process is starting"
        for task in waiting:
            task.cancel()
        began = time.monotonic()
        with pytest.raises(NoRoom, match="others have taken what there is"):
            await room.found(there, lambda: True)
        assert 2 < time.monotonic() - began < 10
        ray.kill(taken.pop())
        monkeypatch.setattr("capo_ray.place.room.TAKEN_S", 60.0)  # what was given counts as taken while it starts
        await asyncio.wait_for(room.found(there, lambda: True), 60)
        ray.kill(late)
        monkeypatch.setattr("capo_ray.place.room.FREE_S", 20.0)
        assert await room.free(), "given back"

    try:
        asyncio.run(go())
    finally:
        for one in taken:
            ray.kill(one)
