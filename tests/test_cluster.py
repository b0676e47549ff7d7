"""Joining a cluster that is not there, or does not speak Ray: one sentence, in time."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from capo_ray.config import TrainConfig
from capo_ray.place import cluster
from capo_ray.protocols import RunFailed


def config(address: str, start_deadline_s: float = 20.0) -> TrainConfig:
    return TrainConfig.model_validate({"cluster": {"address": address, "start_deadline_s": start_deadline_s}})


def test_an_address_where_nobody_listens_is_refused_at_once() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        with pytest.raises(RunFailed, match=r"expected Ray at 127\.0\.0\.1:\d+, but nothing answers there"):
            asyncio.run(cluster.join(config(f"127.0.0.1:{held.getsockname()[1]}")))


@pytest.mark.real
def test_a_port_that_never_speaks_ends_the_program_within_the_deadline(tmp_path: Path) -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        started = time.monotonic()
        words = ["train", f"cluster.address={address}", "cluster.start_deadline_s=5", f"run.dir={tmp_path}"]
        done = subprocess.run([sys.executable, "-m", "capo_ray", *words], capture_output=True, text=True, timeout=90)
    assert done.returncode == 1
    assert "to answer within cluster.start_deadline_s=5, got nothing" in done.stderr
    assert time.monotonic() - started < 60


class Growing:
    """A cluster to which a node with a GPU comes at every look, from the second on, once it was asked for."""

    def __init__(self, most: int) -> None:
        self.most, self.gpus = most, 0
        self.asked: list[object] = []

    def resources(self) -> dict[str, float]:
        if self.asked and self.gpus < self.most:
            self.gpus += 1
        return {"CPU": 8.0, "GPU": float(self.gpus)}

    def ask(self, bundles: object) -> None:
        self.asked.append(bundles)


def test_nodes_that_join_late_are_asked_for_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "POLL_S", 0.01)
    asked = TrainConfig.model_validate(
        {"engine": {"num_gpus": 1, "node_resource": "rollout"}, "learner": {"num_ranks": 2, "num_gpus": 1}}
    )
    demand = cluster.demand_of(asked)
    assert [b["GPU"] for b in demand.bundles if "GPU" in b] == [1, 1, 1] and "rollout" in demand.bundles[0]
    growing = Growing(most=3)
    cluster.await_capacity(demand, 5.0, growing.resources, growing.ask)
    assert growing.gpus == 3 and growing.asked == [demand.bundles, ()]  # held, then let go

    growing = Growing(most=2)
    with pytest.raises(RunFailed, match=r"expected a cluster with 3 GPUs .* within cluster.wait_s=0.2, got 2"):
        cluster.await_capacity(demand, 0.2, growing.resources, growing.ask)
    assert growing.asked[-1] == ()


def test_without_a_wait_a_cluster_that_is_too_small_is_refused_at_once() -> None:
    growing = Growing(most=3)
    with pytest.raises(RunFailed, match=r"expected a cluster with 1 GPUs .* got 0; add nodes, wait for them"):
        cluster.await_capacity(cluster.Demand(1.0, 1.0), 0.0, growing.resources, growing.ask)
    assert growing.asked == []
