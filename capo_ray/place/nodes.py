"""What each node of the cluster has, asked by one light task per node, and what of it would break a run.

    driver: a token in the run directory -> look() on every node, side by side -> facts -> faults (one sentence each)

Invariant: asking loads no model and no heavy package, is over within `ASK_S`, and leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import shutil
import socket
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from capo_ray.config import Job, TrainConfig
from capo_ray.config.credit import Critiques
from capo_ray.config.shipped import SHIPPED
from capo_ray.demand import bfloat16_on_gpus, models
from capo_ray.place.calls import one_line, within
from capo_ray.protocols import RunFailed
from capo_ray.sizing.gpus import BF16_CAPABILITY, found_gpus

ASK_S = 60.0
LOOK_S = 60.0
"""For what the driver does itself to ask: a file in the run directory, and all of it where there is one node."""
SEEN_S = 5.0
"""How long a network file system may take to show a new file on another node."""
GIB = 1 << 30
PACKAGES = ("capo-ray", "ray", "torch", "vllm", "transformers", "deepspeed")


@dataclass(frozen=True, slots=True)
class Question:
    """What a node is to look for: the token in the run directory, model directories and secrets by their keys."""

    token: str = ""
    models: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)
    """By key: `file:PATH`, `env:NAME`, or `hub`, the token of the model hub."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What one node answered; `error` says why it did not, and the rest is then empty."""

    node: str
    host: str
    error: str = ""
    python: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    gpus: tuple[Mapping[str, str], ...] = ()
    nccl: str = ""
    shm_gib: float = 0.0
    store_gib: float = 0.0
    clock_s: float = 0.0
    """How far its clock is ahead of the driver's."""
    clock_error_s: float = 0.0
    can_listen: bool = True
    sees_run_dir: bool = True
    lacks: tuple[str, ...] = ()
    """Keys of models and secrets that are not there."""


def question_of(config: Job, token: str = "") -> Question:
    """What every node needs for this run. A name of the model hub is no directory, and is not looked for."""
    names = {model.key: model.name for model in models(config) if model.name}
    secrets = _critics_secrets(config) if isinstance(config, TrainConfig) else {}
    folders = {key: name for key, name in names.items() if name.startswith(("/", ".", "~")) or Path(name).is_dir()}
    if any(name not in SHIPPED["policy"] and key not in folders for key, name in names.items()) and _has_hub_token():
        secrets["the model hub's token (HF_TOKEN)"] = "hub"
    return Question(token, {key: str(Path(name).expanduser().absolute()) for key, name in folders.items()}, secrets)


def _critics_secrets(config: TrainConfig) -> dict[str, str]:
    endpoint = config.critic.endpoint
    if not config.credit.asked(Critiques) or config.critic.backend != "endpoint":
        return {}
    if endpoint.key_file:
        return {"critic.endpoint.key_file": f"file:{Path(endpoint.key_file).expanduser()}"}
    return {"critic.endpoint.key_env": f"env:{endpoint.key_env}"} if endpoint.key_env else {}


def look(question: Question) -> dict[str, Any]:
    """The answer of the node on which this runs, as fields of `Facts`."""
    lacks = [key for key, folder in question.models.items() if not Path(folder).is_dir()]
    lacks += [key for key, secret in question.secrets.items() if not _has_secret(secret)]
    return {
        "python": ".".join(platform.python_version_tuple()[:2]),
        "versions": {name: _version(name) for name in PACKAGES},
        "gpus": found_gpus(),
        "nccl": next((v for n in ("nvidia-nccl-cu13", "nvidia-nccl-cu12") if (v := _version(n)) != "none"), ""),
        "shm_gib": shutil.disk_usage("/dev/shm").total / GIB if Path("/dev/shm").is_dir() else 0.0,
        "can_listen": _can_listen(),
        "sees_run_dir": not question.token or _sees(Path(question.token)),
        "lacks": tuple(lacks),
    }


def alive_nodes() -> list[dict[str, Any]]:
    """What Ray knows of the nodes of the joined cluster that it holds for alive."""
    return [node for node in ray.nodes() if node["Alive"]]


def tell_time() -> float:
    """The clock of the node on which this runs."""
    return time.time()


def ask_all(question: Question) -> list[Facts]:
    """The facts of every living node of the joined cluster, in the order of their hosts.

    One that has died may be counted for a while; what found it gone is no answer of a node.
    """
    alive = alive_nodes()
    ask: Any = ray.remote(num_cpus=0, max_retries=0)(look)
    clock: Any = ray.remote(num_cpus=0, max_retries=0)(tell_time)

    def on(node: Mapping[str, Any]) -> dict[str, Any]:
        return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)}

    ends = time.monotonic() + ASK_S
    answers = [ask.options(**on(node)).remote(question) for node in alive]
    found = []
    for node, ref in zip(alive, answers, strict=True):
        store = node["Resources"].get("object_store_memory", 0.0) / GIB
        known: dict[str, Any] = {"node": node["NodeID"][:8], "host": node["NodeManagerHostname"], "store_gib": store}
        try:
            answer: dict[str, Any] = ray.get(ref, timeout=max(0.1, ends - time.monotonic()))
            asked = time.time()
            theirs: float = ray.get(clock.options(**on(node)).remote(), timeout=max(0.1, ends - time.monotonic()))
            now = time.time()
        except Exception as error:  # noqa: BLE001 - it is the node's answer, and becomes a fault
            if node["NodeID"] in {one["NodeID"] for one in alive_nodes()}:
                found.append(Facts(**known, error=one_line(error)))
            continue
        offset: dict[str, Any] = {"clock_s": theirs - (asked + now) / 2, "clock_error_s": (now - asked) / 2}
        found.append(Facts(**known, **answer, **offset))
    return sorted(found, key=lambda facts: (facts.host, facts.node))


def faults(facts: Sequence[Facts], config: Job, run_dir: str) -> list[str]:
    """What would break a run on these nodes, each a sentence: what differs, where, and what to do."""
    found = [
        f"node {f.host} did not answer: {f.error}; install capo-ray there, or take it out" for f in facts if f.error
    ]
    heard = [f for f in facts if not f.error]
    for name in ("python", *PACKAGES):
        versions: dict[str, list[str]] = {}
        for f in heard:
            versions.setdefault(f.python if name == "python" else f.versions[name], []).append(f"{f.host}/{f.node}")
        if len(versions) > 1:
            words = ", ".join(f"{version} on {_some(hosts)}" for version, hosts in sorted(versions.items()))
            found.append(f"nodes have other versions of {name}: {words}; install the same everywhere")
    blind = [f"{f.host}/{f.node}" for f in heard if not f.sees_run_dir]
    if blind:
        found.append(
            f"run.dir: {run_dir} is not seen by {_some(blind)}; choose a directory that all nodes share, since "
            "learner ranks write checkpoints there"
        )
    for key in sorted({key for f in heard for key in f.lacks}):
        where = _some([f"{f.host}/{f.node}" for f in heard if key in f.lacks])
        found.append(f"{key} is there for some and missing on {where}; put it on all nodes")
    found += [
        f"{f.host}/{f.node} can open no port for other nodes; look at its network" for f in heard if not f.can_listen
    ]
    old = [
        f"{f.host}/{f.node} ({g['name']})" for f in heard for g in f.gpus if float(g["compute_cap"]) < BF16_CAPABILITY
    ]
    wanted = bfloat16_on_gpus(config) if old else ()
    return found + [
        f"{key}=bfloat16 needs GPUs that compute in it, and {_some(old)} does not; use float32" for key in wanted
    ]


async def asked(config: Job, run_dir: Path | None = None) -> None:
    """Returns once every node was asked, as `check_nodes`; a file system that does not answer ends it too."""
    advice = "see that run.dir and the model directories are mounted and answer (capo-ray doctor --cluster)"
    asking = asyncio.to_thread(check_nodes, config, run_dir)
    await within(ASK_S + LOOK_S, "", asking, "the look at what the nodes have", advice)


def check_nodes(config: Job, run_dir: Path | None = None) -> None:
    """Raises RunFailed with what would break the run on the nodes of the joined cluster; seconds, nothing is loaded.

    `run_dir`: a directory that every node has to see.
    """
    with token_in(run_dir) if run_dir else contextlib.nullcontext("") as token:
        question = question_of(config, token)
        if len(alive_nodes()) == 1:
            facts = [Facts(node="", host=socket.gethostname(), **look(question))]
        else:
            facts = ask_all(question)
    found = faults(facts, config, str(run_dir))
    if found:
        more = f" (and {len(found) - 1} more: capo-ray doctor --cluster)" if len(found) > 1 else ""
        raise RunFailed(found[0] + more)


@contextlib.contextmanager
def token_in(folder: Path) -> Iterator[str]:
    """The path of a file that is in `folder` for as long as this lasts."""
    path = folder / f".seen-{uuid.uuid4().hex}"
    try:
        path.touch()
        yield str(path)
    finally:
        path.unlink(missing_ok=True)


def _version(name: str) -> str:
    """Without the build's tag (`+cpu`); vLLM's CPU build counts as vLLM."""
    if name == "capo-ray":
        from capo_ray import __version__

        return __version__
    for candidate in (name, f"{name}-cpu"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(candidate).partition("+")[0]
    return "none"


def _can_listen() -> bool:
    try:
        with socket.socket() as probe:
            probe.bind((ray.util.get_node_ip_address(), 0))
            probe.listen()
    except OSError:
        return False
    return True


def _sees(path: Path) -> bool:
    """Whether a file of the driver's is here, and another one can be put beside it: ranks write checkpoints there."""
    ends = time.monotonic() + SEEN_S
    while not path.exists():
        if time.monotonic() > ends:
            return False
        time.sleep(0.2)
    try:
        with token_in(path.parent):
            return True
    except OSError:
        return False


def _has_hub_token() -> bool:
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    return bool(os.environ.get("HF_TOKEN")) or (home / "token").is_file()


def _has_secret(secret: str) -> bool:
    kind, _, name = secret.partition(":")
    if kind == "hub":
        return _has_hub_token()
    return bool(os.environ.get(name)) if kind == "env" else Path(name).is_file()


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
