"""The memory of every role of a run, by formula, and the device that it is held against.

A row is one actor's host memory, or one GPU's. On GPUs an engine takes its share of the device whatever its model, so
its terms end in the cache that is left; a learner rank takes what its terms add up to.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import psutil

from capo_ray.cli.memory_ranks import (
    DTYPE_BYTES,
    GIB,
    Memory,
    Model,
    offloaded_rows,
    rank_memory,
)
from capo_ray.cli.models import size_of
from capo_ray.config import Job, SftConfig, TrainConfig
from capo_ray.config.engine import EngineBase
from capo_ray.demand import Demand, ModelUse, adapters_alone, demand, policy_model, publishes
from capo_ray.place.transport import choose_transport
from capo_ray.problems.chains_tokenizer import vocabulary
from capo_ray.sizing import (
    AdapterLoad,
    EngineLoad,
    Shape,
    Term,
    engine_terms,
    kv_bytes_per_token,
    shm_bytes,
    store_bytes,
)
from capo_ray.sizing.gpus import found_gpus, sizes_of

ENGINE_BASE_GIB = 1.0  # a vLLM worker on the CPU before weights and cache; as the others, measured on a default run
CHILD_BASE_GIB = 0.2  # a verifier actor, and each of its child processes
RAY_BASE_GIB = 0.8  # driver, GCS and raylet


def device_gib(config: Job) -> float | None:
    """The memory of one GPU: as given, else of the smallest here where the run stays here; None where unknown."""
    if config.cluster.gpu_memory_gib:
        return config.cluster.gpu_memory_gib
    return found_gib() if not config.cluster.joined else None


def found_gib() -> float | None:
    """The memory of this machine's smallest NVIDIA GPU, or None."""
    return min((gib for gib, _ in sizes_of(found_gpus())), default=None)


def available_bytes(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Free memory of this machine or, where it is less, of this container."""
    free = int(psutil.virtual_memory().available)
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return free
    if limit == "max":
        return free
    return min(free, int(limit) - used + int(stat.get("inactive_file", 0)))


def sized(model: ModelUse) -> Model:
    """A model's size."""
    return Model(*size_of(model.name, model.shipped, model.key))


def policy_of(config: Job) -> Model:
    """The policy's size; of one that is made from scratch what its settings say."""
    if not isinstance(config, SftConfig) or config.model.path:
        return sized(policy_model(config))
    made, heads = config.model, config.model.num_heads
    vocab = len(vocabulary(config.data.role))
    shape = Shape(
        *(made.hidden_size, made.intermediate_size, made.num_layers, heads, heads, made.head_dim, vocab),
        tied=True,
        qk_norm=True,
    )
    return Model(shape.num_params, shape)


def estimate_memory(config: Job) -> list[Memory]:
    """The memory of every role, in the order in which a group meets them."""
    if isinstance(config, SftConfig):
        rows = [role_memory(config, one, policy_of(config)) for one in demand(config)]
        rows += offloaded(config)
        return rows if config.in_process else [*rows, _driver_memory(config, policy_of(config))]
    rows = [_process_memory(config, one) if one.model is None else role_memory(config, one) for one in demand(config)]
    policy = policy_of(config)
    return [*rows, *offloaded(config), *_coming_versions(config, policy), _driver_memory(config, policy)]


def role_memory(config: Job, one: Demand, model: Model | None = None) -> Memory:
    """The memory of one actor that loads a model, or of one of its GPUs; `model`: its size, where it is known."""
    assert one.model is not None
    model = model or sized(one.model)
    if one.engine is None:
        return rank_memory(config, one, model)
    return engine_memory(one.role, one.engine, model, one.model.dtype, device_gib(config))


def _process_memory(config: TrainConfig, one: Demand) -> Memory:
    base = Term("process", CHILD_BASE_GIB * GIB, f"{CHILD_BASE_GIB} GiB, no model in the cluster")
    if one.role == "verifier":
        processes = config.verifier.num_processes
        base = Term(
            "children",
            CHILD_BASE_GIB * (1 + processes) * GIB,
            f"{CHILD_BASE_GIB} GiB x (1 + {processes}); a child is killed at {config.verifier.memory_mib} MiB",
        )
    return Memory(one.role, one.count, False, (base,))


def host_gib(config: Job) -> float:
    """Host memory of all CPU roles together."""
    return sum(row.count * row.gib_each for row in estimate_memory(config) if not row.on_gpu)


def engine_memory(role: str, section: EngineBase, model: Model, dtype: str, device: float | None) -> Memory:
    """The memory of one engine on the CPU, or of one of its GPUs."""
    unit, tp = DTYPE_BYTES[dtype], section.tensor_parallel
    if section.num_gpus == 0:
        base = Term("process", ENGINE_BASE_GIB * GIB, f"{ENGINE_BASE_GIB} GiB")
        weights = Term("weights", unit * model.num_params, f"{unit} B x N")
        room = _tokens(section.kv_cache_gib * GIB, model.shape, unit)
        cache = Term("KV cache", section.kv_cache_gib * GIB, f"{section.kv_cache_gib} GiB{room}")
        return Memory(
            role, section.num_workers, False, (base, weights, cache), bool(model.num_params), model.num_params
        )
    if model.shape is None:
        share = Term("weights", unit * model.num_params / tp, f"{unit} B x N / {tp}")
        return Memory(role, section.num_workers * tp, True, (share,), bool(model.num_params), model.num_params)
    share_bytes = section.gpu_memory_frac * (device or 0.0) * GIB
    load = EngineLoad(model.shape, model.num_params, unit, tp, section.max_num_seqs, share_bytes)
    if section.max_batched_tokens:
        load = replace(load, batched_tokens=section.max_batched_tokens)
    terms = engine_terms(load)
    if device is None:
        terms = terms[:-1]  # the cache is what gpu_memory_frac leaves of a device that is not known
    return Memory(role, section.num_workers * tp, True, tuple(terms), num_params=model.num_params)


def offloaded(config: Job) -> list[Memory]:
    """Host memory of what learners on GPUs keep there."""
    policy = policy_of(config)
    groups = [(one, one.model) for one in demand(config) if one.num_gpus and one.is_group and one.model is not None]
    return [
        row
        for one, model in groups
        for row in offloaded_rows(config, one, policy if one.role == "learner" else sized(model), policy)
    ]


def _coming_versions(config: Job, policy: Model) -> list[Memory]:
    """Host memory in which engines make a version ready while they serve the one before, one row for all of them."""
    if not isinstance(config, TrainConfig) or not publishes(config):
        return []
    engine, unit = config.engine, DTYPE_BYTES[config.model.dtype]
    by_host = choose_transport(config).name == "host"
    terms = [Term("version", unit * policy.num_params, f"{unit} B x N")]  # the whole one, whatever is sent of it
    if by_host and engine.num_gpus and engine.tensor_parallel == 1 and not adapters_alone(config):
        return []  # read where it lies in the object store
    if config.weights.delta_frac and not by_host:
        sent = sent_term("the one before", config, policy)
        terms.append(replace(sent, formula=f"{sent.formula}, for weights.delta_frac"))
    # One file for all workers of an engine, or what each has received itself.
    count = engine.num_workers * (1 if by_host else engine.tensor_parallel)
    return [Memory("next version", count, False, tuple(terms), bool(policy.num_params), policy.num_params)]


def _sent_terms(config: TrainConfig, policy: Model) -> list[Term]:
    """Rank 0's memory for what it sends."""
    weights, by_host = config.weights, choose_transport(config).name == "host"
    copy = sent_term("version that is sent" if by_host else "version before", config, policy)
    copy = replace(copy, formula=f"rank 0's copy, {copy.formula}")
    if by_host:
        return [copy]
    terms = [Term("buckets", 2 * weights.bucket_mib << 20, f"2 x {weights.bucket_mib} MiB")]
    return terms + [copy] * bool(weights.delta_frac)


def sent_term(name: str, config: Job, policy: Model) -> Term:
    """The bytes of a version on its way."""
    unit, lora = DTYPE_BYTES[config.model.dtype], config.learner.lora
    if not adapters_alone(config) or policy.shape is None:
        return Term(name, unit * policy.num_params, f"{unit} B x N")
    numel = AdapterLoad(lora.rank, lora.targets).num_params(policy.shape)
    return Term(name, unit * numel, f"{unit} B x {numel:,} of adapters")


def _driver_memory(config: Job, policy: Model) -> Memory:
    version = int(sent_term("version", config, policy).num_bytes) if publishes(config) else 0
    terms = [Term("processes", RAY_BASE_GIB * GIB, f"{RAY_BASE_GIB} GiB"), _store_term(config, version)]
    if isinstance(config, TrainConfig) and publishes(config):
        terms += _sent_terms(config, policy)
    return Memory("driver and Ray", 1, False, tuple(terms), bool(policy.num_params))


def _store_term(config: Job, version: int) -> Term:
    """The object store of the run's own cluster, and what of two versions it cannot hold."""
    given = config.cluster.object_store_mib << 20
    size = given or store_bytes(version, shm_bytes())
    words = f"{size >> 20} MiB, " + ("as given" if given else "two versions and 256 MiB")
    if size < 2 * version:
        words += "; /dev/shm holds no more" if not given else ""
        words += f"; {(2 * version - size) >> 20} MiB of two versions go through a file on disk"
    return Term("object store", size, words)


def _tokens(num_bytes: float, shape: Shape | None, unit: int) -> str:
    return f": {int(num_bytes // kv_bytes_per_token(shape, unit)):,} tokens" if shape is not None else ""
