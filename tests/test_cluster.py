"""Joining a cluster that is not there, or does not speak Ray: one sentence, in time."""

from __future__ import annotations

import asyncio
import datetime
import functools
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from capo_ray.cli.compose import compose_train
from capo_ray.config import TrainConfig
from capo_ray.learners.store import build_store
from capo_ray.place import capacity, cluster
from capo_ray.place.placement import GRAIN
from capo_ray.place.roles.verifier import options_of
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
        words = ["train", f"cluster.address={address}", "cluster.start_deadline_s=2", f"run.dir={tmp_path}"]
        done = subprocess.run([sys.executable, "-m", "capo_ray", *words], capture_output=True, text=True, timeout=90)
    assert done.returncode == 1
    assert "to answer within cluster.start_deadline_s=2, got nothing" in done.stderr
    assert time.monotonic() - started < 60


class Growing:
    """A cluster to which a node with a GPU comes at every look, once it was asked for."""

    def __init__(self, most: int) -> None:
        self.most, self.gpus = most, 0
        self.asked: list[object] = []

    def nodes(self) -> list[dict[str, float]]:
        if self.asked and self.gpus < self.most:
            self.gpus += 1
        return [{"CPU": 8.0, "rollout": 1.0}] + [{"CPU": 8.0, "GPU": 1.0, "rollout": 1.0}] * self.gpus

    def ask(self, bundles: object) -> None:
        self.asked.append(bundles)


def test_nodes_that_join_late_are_asked_for_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "POLL_S", 0.01)
    engine, learner = {"num_gpus": 1, "node_resource": "rollout"}, {"num_ranks": 2, "num_gpus": 1}
    wanted = TrainConfig.model_validate({"engine": engine, "learner": learner, "cluster": {"wait_s": 0.3}})
    bundles = capacity.bundles_of(wanted)
    assert [b["GPU"] for b in bundles if "GPU" in b] == [1, 1, 1] and "rollout" in bundles[0]
    told: list[str] = []
    growing = Growing(most=3)
    asyncio.run(capacity.Muster(wanted, growing.nodes, growing.ask).wait(told.append))
    assert growing.gpus == 3 and growing.asked == [bundles, ()]  # held, then let go
    assert "for nodes: too few GPUs" in told[0]

    growing = Growing(most=2)
    with pytest.raises(
        RunFailed, match=r"too few GPUs: expected a cluster with 3 .* got 2 .*waited cluster.wait_s=0.3"
    ):
        asyncio.run(capacity.Muster(wanted, growing.nodes, growing.ask).wait(told.append))
    assert growing.asked[-1] == ()


class OneRequest:
    """Ray's autoscaler: it holds one request, whoever made it last, and makes its nodes while it is held."""

    def __init__(self) -> None:
        self.held: object = ()
        self.gpus = 0

    def ask(self, bundles: object) -> None:
        self.held = bundles

    def nodes(self, wanted: object, most: int) -> list[dict[str, float]]:
        if self.held == wanted and self.gpus < most:
            self.gpus += 1
        return [{"CPU": 8.0}] + [{"CPU": 8.0, "GPU": 1.0}] * self.gpus


def test_a_run_asks_again_for_nodes_when_another_has_asked_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "POLL_S", 0.01)
    monkeypatch.setattr(capacity, "ASK_EVERY_S", 0.05)
    scaler = OneRequest()

    async def both() -> None:
        waits = []
        for gpus in (6, 2):  # the second asks in place of the first, is given its nodes, and lets go of all
            learner = {"num_ranks": gpus, "num_gpus": 1}
            config = TrainConfig.model_validate({"learner": learner, "cluster": {"wait_s": 2}})
            nodes = functools.partial(scaler.nodes, capacity.bundles_of(config), gpus)
            waits.append(capacity.Muster(config, nodes, scaler.ask).wait(lambda words: None))
        await asyncio.gather(*waits)

    asyncio.run(both())
    assert scaler.gpus == 6 and scaler.held == ()


def test_without_a_wait_a_cluster_that_is_too_small_is_refused_at_once() -> None:
    growing = Growing(most=3)
    wanted = TrainConfig.model_validate({"engine": {"num_gpus": 1}})
    with pytest.raises(
        RunFailed, match=r"too few GPUs on one node: engine asks for 1 .*cluster.wait_s waits for nodes"
    ):
        asyncio.run(capacity.Muster(wanted, growing.nodes, growing.ask).wait(print))
    assert growing.asked == []


@pytest.mark.parametrize("address, refused", [("", True), ("10.0.0.7:6379", True), ("127.0.0.1:1", False)])
def test_open_ports_without_a_token_are_refused_before_ray_starts(
    address: str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    words = "RAY_AUTH_MODE=disabled" if refused else "nothing answers there"
    with pytest.raises(RunFailed, match=words):
        cluster.connect(config(address))


def test_a_cluster_of_its_own_is_started_whatever_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    asked = []

    def init(**given: object) -> None:
        asked.append(given)
        raise Exception("enough")

    monkeypatch.setattr(cluster.ray, "init", init)
    wanted = compose_train(["cluster=own", "cluster.num_cpus=7", "cluster.object_store_mib=300"])
    with pytest.raises(RunFailed, match="expected Ray to start a cluster of this run's own, got: enough"):
        cluster.connect(wanted)
    ((given),) = asked
    assert (given["address"], given["num_cpus"], given["object_store_memory"]) == ("local", 7, 300 << 20)
    assert cluster.is_own(wanted)


def test_the_store_of_two_ranks_listens_on_its_own_address_alone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    store = build_store(f"tcp://127.0.0.1:{port}", 0, 1, datetime.timedelta(seconds=10))
    places = {c.laddr[0] for c in psutil.Process().net_connections() if c.laddr and c.laddr[1] == port}
    assert places == {"127.0.0.1"}
    del store


def test_a_process_that_hangs_after_its_last_word_is_ended_with_its_code() -> None:
    hangs = (
        "import sys, threading; from capo_ray.place.last_resort import force_exit_after; "
        "threading.Thread(target=threading.Event().wait).start(); force_exit_after(0.5, 3, 'the words'); sys.exit(3)"
    )
    done = subprocess.run([sys.executable, "-c", hangs], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (3, "the words\n")


def test_a_cluster_that_does_not_start_in_time_says_what_may_help() -> None:
    late = Exception("The current node timed out during startup. This could happen because\nsomething")
    words = cluster._why_unreached("", late)
    assert "timed out during startup" in words and "may be too busy (load" in words and "cluster.address=auto" in words
    assert "check cluster.address" in cluster._why_unreached("10.0.0.1:6379", late) and "\n" not in words


def test_verifiers_go_only_where_their_resource_is() -> None:
    fenced = TrainConfig.model_validate({"verifier": {"node_resource": "verifier", "num_workers": 2}})
    assert options_of(fenced.verifier)["resources"] == {"verifier": GRAIN}
    assert options_of(TrainConfig().verifier)["resources"] == {}
    assert [bundle for bundle in capacity.bundles_of(fenced) if "verifier" in bundle] == [{"verifier": GRAIN}] * 2
    said = capacity.shortage(fenced, [{"CPU": 64.0}])
    assert "verifier.node_resource=verifier is announced by no node" in said
