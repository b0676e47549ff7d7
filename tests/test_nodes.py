"""What nodes answer is held against what a run needs; two real nodes, of which one has another view."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from capo_ray.cli import main
from capo_ray.config import TrainConfig
from capo_ray.place.nodes import (
    PACKAGES,
    Facts,
    Question,
    ask_all,
    check_nodes,
    faults,
    look,
    question_of,
    token_in,
)
from capo_ray.protocols import RunFailed


def facts(host: str, **other: Any) -> Facts:
    versions = dict.fromkeys(PACKAGES, "1.0") | other.pop("versions", {})
    return Facts(node="abc", host=host, python="3.11", versions=versions, **other)


def gpu(capability: str) -> dict[str, str]:
    return {"name": "V", "memory.total": "1", "driver_version": "580", "compute_cap": capability}


def test_nodes_that_agree_have_no_faults() -> None:
    assert faults([facts("a"), facts("b")], TrainConfig(), "/runs") == []


def test_each_fault_names_the_node_and_what_to_do() -> None:
    half = TrainConfig.model_validate({"model": {"dtype": "bfloat16"}, "learner": {"num_gpus": 1}})
    found = faults(
        [
            facts("a"),
            facts("b", versions={"torch": "0.9"}, sees_run_dir=False, lacks=("model.path",), can_listen=False),
            facts("c", gpus=(gpu("7.5"), gpu("9.0"))),
            Facts(node="d", host="d", error="ModuleNotFoundError: No module named 'capo_ray'"),
        ],
        half,
        "/runs",
    )
    for sentence, words in zip(
        found,
        (
            "node d did not answer: ModuleNotFoundError: No module named 'capo_ray'; install",
            "other versions of torch: 0.9 on b/abc, 1.0 on a/abc, c/abc; install the same everywhere",
            "run.dir: /runs is not seen by b/abc; choose a directory that all nodes share",
            "model.path is there for some and missing on b/abc",
            "b/abc can open no port",
            "model.dtype=bfloat16 needs GPUs that compute in it, and c/abc (V) does not",
        ),
        strict=True,
    ):
        assert words in sentence
    assert not faults([facts("c", gpus=(gpu("8.0"),))], half, "/runs")


def test_a_node_looks_for_the_token_the_models_and_the_secrets(tmp_path: Path, monkeypatch: Any) -> None:
    wanted = {"backend": "endpoint", "endpoint": {"base_url": "http://j/v1", "model": "j", "key_env": "JUDGE_KEY"}}
    config = TrainConfig.model_validate({"critic": wanted, "model": {"path": str(tmp_path)}})
    monkeypatch.setattr("capo_ray.place.nodes.SEEN_S", 0.1)
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "127.0.0.1")
    with token_in(tmp_path) as token:
        assert look(question_of(config, token))["sees_run_dir"] is True
    assert look(Question("/proc/self/status"))["sees_run_dir"] is False, "nothing can be put beside it"
    seen = look(question_of(config, token))
    assert seen["sees_run_dir"] is False and seen["lacks"] == ("critic.endpoint.key_env",)
    monkeypatch.setenv("JUDGE_KEY", "key")
    assert look(question_of(config))["lacks"] == ()
    elsewhere = config.model_copy(update={"model": config.model.model_copy(update={"path": str(tmp_path / "no")})})
    assert look(question_of(elsewhere))["lacks"] == ("model.path",)


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A cluster whose second node has another torch installed, no key, and a working directory of its own."""
    other = tmp_path_factory.mktemp("other")
    package = other / "torch-0.0.1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 0.0.1\n")
    path = os.pathsep.join(filter(None, (str(other), os.environ.get("PYTHONPATH"))))
    cluster = Cluster()
    cluster.add_node(num_cpus=1, include_dashboard=False, env_vars={"JUDGE_KEY": "key"})
    cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": path})
    cluster.wait_for_nodes()
    yield cluster.address
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.real
def test_a_node_of_another_version_and_without_a_key_is_named_by_doctor_and_refused_by_a_run(
    two_nodes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = ("critic.backend=endpoint", "critic.endpoint.base_url=http://j/v1", "critic.endpoint.model=j")
    words = ["doctor", "--cluster", "--json", f"cluster.address={two_nodes}", f"run.dir={tmp_path}", *judge]
    assert main([*words, "critic.endpoint.key_env=JUDGE_KEY"]) == 1
    printed = capsys.readouterr()
    assert printed.out, printed.err
    told = json.loads(printed.out)
    assert len(told["nodes"]) == 2 and not told["healthy"]
    assert any("other versions of torch: 0.0.1 on" in fault for fault in told["faults"])
    assert any("critic.endpoint.key_env is there for some and missing on" in fault for fault in told["faults"])
    assert all(node["sees_run_dir"] and abs(node["clock_s"]) < 1 for node in told["nodes"])
    assert list(tmp_path.iterdir()) == []
    ray.init(address=two_nodes, log_to_driver=False)
    with pytest.raises(RunFailed, match=r"other versions of torch: 0\.0\.1 on"):
        check_nodes(TrainConfig(), tmp_path)
    assert len(ask_all(question_of(TrainConfig()))) == 2
    ray.shutdown()  # doctor joins by itself, as a process of its own would
    assert main([words[0], words[1], *words[3:]]) == 1
    assert "bad  nodes have other versions of torch" in capsys.readouterr().out
