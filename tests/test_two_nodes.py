"""One run over two nodes: an engine over two processes, ranks packed on one node, the critic fenced off on the other.

The critic's node dies under it.

The nodes are Ray's own (`ray.cluster_utils`), on this machine; models, engines, learner and transfers are real.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from ray._private.state import state as ray_state
from ray.cluster_utils import Cluster
from ray.core.generated.gcs_pb2 import ActorTableData
from ray.util.placement_group import placement_group_table
from safetensors.torch import load_file, save_file

from capo_ray.problems import asset_path
from capo_ray.written import RECIPE
from tests.test_main_job import finish, is_alive, ledger_of, log_of, rows_of, start, updates_of, wait_for

# A busy machine takes a second for what a quiet one does in a twentieth: two processes that wait for each other.
pytestmark = [pytest.mark.real, pytest.mark.timeout(1000)]

NUM_UPDATES = 6
OF_THE_RUN = (
    f"run.num_updates={NUM_UPDATES}",
    "run.eval_problems=2",
    "run.checkpoint_every=3",
    "credit.vote=intersection",
    "data.chain_steps=4",
    "model.dtype=bfloat16",
    "engine.node_resource=work",
    "engine.tensor_parallel=2",
    "engine.max_num_seqs=16",
    "engine.kv_cache_gib=0.1",
    "critic.dtype=bfloat16",
    "critic.node_resource=judges",
    "critic.kv_cache_gib=0.1",
    "learner.num_ranks=2",
    "learner.num_cpus=0.5",
    "learner.groups_per_batch=2",
    "learner.num_epochs=1",
)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A cluster of two nodes and a spare one that this process has joined, to look on."""
    cluster = Cluster()
    for name, num_cpus in (("work", 2), ("judges", 1), ("judges", 1)):
        cluster.add_node(num_cpus=num_cpus, resources={name: 1}, include_dashboard=False)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def write_policy(folder: Path) -> Path:
    """The shipped policy with a fourth head that adds nothing: two processes cannot share three."""
    shutil.copytree(asset_path("laptop", "policy"), folder, ignore=shutil.ignore_patterns(RECIPE))
    config = json.loads((folder / "config.json").read_text())
    assert (config["num_attention_heads"], config["head_dim"]) == (3, 32)
    (folder / "config.json").write_text(json.dumps(config | {"num_attention_heads": 4, "num_key_value_heads": 4}))
    weights = load_file(folder / "model.safetensors")
    for name, tensor in weights.items():
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            weights[name] = torch.cat([tensor, tensor.new_zeros(32, tensor.shape[1])])
        elif name.endswith("o_proj.weight"):
            weights[name] = torch.cat([tensor, tensor.new_zeros(tensor.shape[0], 32)], dim=1)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def actors() -> dict[int, ActorTableData]:
    """What the cluster knows of its living actors, by process id."""
    table = ray_state._connect_and_get_accessor().get_actor_table(None, "ALIVE")
    return {actor.pid: actor for actor in map(ActorTableData.FromString, table)}


def lose_node(cluster: Cluster, actor: ActorTableData) -> None:
    """End the node that an actor lives on as a power cut would: its raylet, and what that started."""
    (node,) = (node for node in cluster.list_all_nodes() if node.node_id == actor.address.node_id.hex())
    cluster.remove_node(node, allow_graceful=False)


def home_of(actor: ActorTableData) -> str:
    """The name of the node that an actor lives on."""
    resources = next(n["Resources"] for n in ray.nodes() if n["NodeID"] == actor.address.node_id.hex())
    return next(name for name in ("work", "judges") if name in resources)


def test_six_updates_over_two_nodes_in_bf16_through_the_death_of_a_worker_and_of_a_node(
    cluster: Cluster, tmp_path: Path
) -> None:
    run_dir = tmp_path / "two"
    policy = write_policy(tmp_path / "policy")
    process = start(run_dir, f"cluster.address={cluster.address}", f"model={policy}", *OF_THE_RUN)
    wait_for(lambda: bool(rows_of(run_dir)), process, run_dir, "the first evaluation", 400)
    workers: dict[str, Any] = json.loads((run_dir / "workers.json").read_text())
    known = actors()
    homes = {role: [home_of(known[pid]) for pid in workers[role]] for role in ("rollout", "learner", "critic")}
    groups = {known[pid].placement_group_id.hex() for pid in workers["learner"]}
    strategies = {name: group["strategy"] for name, group in placement_group_table().items()}
    engine = psutil.Process(workers["rollout"][0]).children(recursive=True)
    titles = {child.name() for child in engine}
    wait_for(lambda: updates_of(run_dir) >= 1, process, run_dir, "the first update", 200)
    os.kill(workers["rollout"][0], signal.SIGKILL)
    lose_node(cluster, known[workers["critic"][0]])  # there is room for another critic on the spare one
    assert finish(process, run_dir, 500) == 0, log_of(run_dir)
    assert homes == {"rollout": ["work"], "learner": ["work", "work"], "critic": ["judges"]}
    assert [strategies[group] for group in groups] == ["STRICT_PACK"], "all ranks in one group, on one node"
    assert {"VLLM::Worker_TP0", "VLLM::Worker_TP1"} <= titles
    summary, ledger = json.loads((run_dir / "summary.json").read_text()), ledger_of(run_dir)
    assert summary["updates"] == NUM_UPDATES
    assert summary["restarts"]["rollout/restarts_total"] >= 1 and summary["restarts"]["critic/restarts_total"] >= 1
    assert ledger["balanced"] is True and ledger["trained_twice"] == 0
    assert ledger["counts"]["trained"] == NUM_UPDATES * 2 * 4
    first = next(row for row in rows_of(run_dir) if "loss/mismatch_max_nats" in row)
    assert 1e-4 < first["loss/mismatch_max_nats"] < 0.5, "in float32 engine and learner agree to 1e-4"
    assert not [pid for role in ("rollout", "critic", "verifier", "learner") for pid in workers[role] if is_alive(pid)]
    _, left = psutil.wait_procs(engine, timeout=20)
    assert not [child for child in left if child.status() != psutil.STATUS_ZOMBIE], "an engine's processes die with it"
