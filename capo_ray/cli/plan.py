"""What a run would be, before it is: actors and their places, the algebra of a batch, memory by formula.

Invariant: nothing is started and no accelerator or cluster is touched; the figures follow from the configuration and
the model's files.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from capo_ray.cli.models import ModelFacts, Role, find_model, read_facts
from capo_ray.cli.useless import READS_CRITICS
from capo_ray.config import TrainConfig
from capo_ray.config.reward_model import RewardModelConfig
from capo_ray.config.sections import LearnerConfig

GIB = 1 << 30
UNKNOWN = "unknown until fetched"
DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
ENGINE_BASE_GIB = 1.0  # a vLLM worker on the CPU before weights and cache; these four were measured on a default run
LEARNER_BASE_GIB = 0.5  # torch, transformers and DeepSpeed
CHILD_BASE_GIB = 0.2  # a verifier actor, and each of its child processes
RAY_BASE_GIB = 0.8  # driver, GCS and raylet


@dataclass(frozen=True, slots=True)
class Actor:
    """One role's actors: how many, and the Ray resources of each."""

    role: str
    count: int
    num_cpus: float
    num_gpus: float
    note: str


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory of one actor of a role, with the formula that gave it."""

    role: str
    count: int
    gib_each: float
    on_gpu: bool
    formula: str


def place_actors(config: TrainConfig) -> list[Actor]:
    """The actors of a run in the order in which a group meets them."""
    engine, critic, learner, verifier = config.engine, config.critic, config.learner, config.verifier
    actors = [
        Actor("rollout", engine.num_workers, engine.num_cpus, engine.num_gpus, f"vLLM, {config.model.path}"),
        Actor(
            "verifier", verifier.num_workers, 0.0, 0.0, f"{verifier.kind}, {verifier.num_processes} child process(es)"
        ),
    ]
    if reads_critics(config):
        judge = f"vLLM, {critic.model}" if critic.backend == "vllm" else critic.backend
        actors.append(Actor("critic", critic.num_workers, critic.num_cpus, critic.num_gpus, judge))
    note = f"DeepSpeed ZeRO-{learner.zero_stage}"
    actors.append(Actor("learner", learner.num_ranks, learner.num_cpus, learner.num_gpus, note))
    if reads_token_rewards(config):
        second = config.reward_model
        note = f"{note}, {second.path or config.model.path}"
        actors.append(Actor("reward model", second.num_ranks, second.num_cpus, second.num_gpus, note))
    return actors


def reads_critics(config: TrainConfig) -> bool:
    """Whether the credit method makes use of critics."""
    return bool(READS_CRITICS & type(config.credit).needs)


def reads_token_rewards(config: TrainConfig) -> bool:
    """Whether a second model rewards tokens."""
    return "token_rewards" in type(config.credit).needs


def batch_algebra(config: TrainConfig) -> dict[str, int]:
    """The counts that follow from the configuration."""
    groups, size = config.learner.groups_per_batch, config.rollout.group_size
    return {
        "groups_per_update": groups,
        "responses_per_group": size,
        "responses_per_update": groups * size,
        "optimizer_moves_per_update": config.learner.num_epochs,
        "slots": groups * (config.stream.max_age + 1),
        "max_response_tokens_per_update": groups * size * config.rollout.max_response_tokens,
        "max_critiques_per_update": groups * size * config.critic.num_votes if reads_critics(config) else 0,
        "updates": config.run.num_updates,
        "responses": config.run.num_updates * groups * size,
    }


def estimate_memory(config: TrainConfig) -> list[Memory]:
    """The memory of every role; GPU roles count device memory, CPU roles host memory."""
    policy = _facts(config.model.path, "policy", "model.path")
    rows = [_engine_memory("rollout", config.engine, policy, config.model.dtype)]
    processes = config.verifier.num_processes
    rows.append(
        Memory(
            "verifier",
            config.verifier.num_workers,
            CHILD_BASE_GIB * (1 + processes),
            False,
            f"{CHILD_BASE_GIB} GiB x (1 + {processes} children); a child is killed at {config.verifier.memory_mib} MiB",
        )
    )
    if reads_critics(config) and config.critic.backend != "vllm":
        workers = config.critic.num_workers
        rows.append(Memory("critic", workers, CHILD_BASE_GIB, False, f"{CHILD_BASE_GIB} GiB, no model in the cluster"))
    elif reads_critics(config):
        judge = _facts(config.critic.model, "critic", "critic.model")
        rows.append(_engine_memory("critic", config.critic, judge, config.critic.dtype))
    has_reference = config.loss.kl_coef > 0
    rows.append(_learner_memory("learner", config, config.learner, policy, has_reference))
    if reads_token_rewards(config):
        name = config.reward_model.path
        second = _facts(name, "policy", "reward_model.path") if name else policy
        has_reference = config.credit.method == "prime" or (config.credit.method == "etpo" and has_reference)
        rows.append(_learner_memory("reward model", config, config.reward_model, second, has_reference))
    shared = 2 * 4 * policy.num_params / GIB
    store = config.cluster.object_store_mib / 1024
    formula = f"{RAY_BASE_GIB} GiB + store {store:.2f} GiB + two published versions 2 x 4 B x N"
    rows.append(Memory("driver and Ray", 1, RAY_BASE_GIB + store + shared, False, formula))
    return rows


def host_gib(config: TrainConfig) -> float:
    """Host memory of all CPU roles together."""
    return sum(row.count * row.gib_each for row in estimate_memory(config) if not row.on_gpu)


def _facts(name: str, role: Role, key: str) -> ModelFacts:
    folder = find_model(name, role)
    if folder is not None:
        return read_facts(folder, key)
    return ModelFacts(0, 0, 0, 0, None, None)


def _engine_memory(role: str, section: Any, facts: ModelFacts, dtype: str) -> Memory:
    weights = DTYPE_BYTES[dtype] * facts.num_params / GIB
    size = f"{DTYPE_BYTES[dtype]} B x N (N={_count(facts)})"
    if section.num_gpus > 0:
        formula = f"{size} / {section.tensor_parallel} + cache: gpu_memory_frac={section.gpu_memory_frac} of the device"
        return Memory(
            role, section.num_workers * section.tensor_parallel, weights / section.tensor_parallel, True, formula
        )
    formula = f"{ENGINE_BASE_GIB} GiB + {size} + cache {section.kv_cache_gib} GiB"
    return Memory(role, section.num_workers, ENGINE_BASE_GIB + weights + section.kv_cache_gib, False, formula)


def _learner_memory(
    role: str, config: TrainConfig, group: LearnerConfig | RewardModelConfig, facts: ModelFacts, has_reference: bool
) -> Memory:
    """Weights, gradients, Adam's two moments (and fp32 masters), frozen reference, activations of one microbatch."""
    learner, n, ranks = config.learner, facts.num_params, group.num_ranks
    shard = [ranks if learner.zero_stage >= stage else 1 for stage in (3, 2, 1)]
    unit = DTYPE_BYTES[config.model.dtype]
    states = 8 + (4 if unit == 2 else 0)
    per_param = unit / shard[0] * (2 if has_reference else 1) + unit / shard[1] + states / shard[2]
    kept = (
        1 if learner.gradient_checkpointing else 16
    )  # hidden-sized tensors of a layer that wait for the backward pass
    activations = learner.microbatch_tokens * (facts.layers * facts.hidden * kept * unit + 3 * 4 * facts.vocab)
    base = 0.0 if group.num_gpus > 0 else LEARNER_BASE_GIB
    formula = (
        f"{base} GiB + N x ({unit}/{shard[0]} weights + {unit}/{shard[1]} gradients + {states}/{shard[2]} optimizer"
        f"{f' + {unit}/{shard[0]} reference' if has_reference else ''}) B + {learner.microbatch_tokens} tokens x "
        f"({kept} x {unit} B x layers x hidden + 12 B x vocabulary), N={_count(facts)}"
    )
    return Memory(role, ranks, base + (n * per_param + activations) / GIB, group.num_gpus > 0, formula)


def _count(facts: ModelFacts) -> str:
    return f"{facts.num_params:,}" if facts.num_params else UNKNOWN


def to_json(config: TrainConfig) -> dict[str, Any]:
    """The whole plan for programs."""
    return {
        "config": config.model_dump(mode="json"),
        "placement": [asdict(actor) for actor in place_actors(config)],
        "batch": batch_algebra(config),
        "memory": [asdict(row) for row in estimate_memory(config)],
        "host_gib": round(host_gib(config), 3),
    }


def to_text(config: TrainConfig) -> str:
    """The whole plan for people."""
    import yaml

    batch = batch_algebra(config)
    lines = ["# configuration", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).rstrip(), ""]
    lines += ["# placement", f"{'role':<13}{'count':>6}{'CPUs':>7}{'GPUs':>6}  each"]
    lines += [f"{a.role:<13}{a.count:>6}{a.num_cpus:>7g}{a.num_gpus:>6g}  {a.note}" for a in place_actors(config)]
    cpus = sum(a.count * a.num_cpus for a in place_actors(config))
    gpus = sum(a.count * a.num_gpus for a in place_actors(config))
    lines += [f"{'together':<13}{'':>6}{cpus:>7g}{gpus:>6g}", "", "# batch", *_batch_words(config, batch), ""]
    lines += ["# memory (estimate)"]
    for row in estimate_memory(config):
        where = "GPU" if row.on_gpu else "host"
        size = "     ?" if UNKNOWN in row.formula else f"{row.gib_each:6.2f}"
        lines.append(f"{row.role:<15}{row.count:>3} x {size} GiB {where:<5} = {row.formula}")
    lines.append(f"{'host together':<15}    {host_gib(config):6.2f} GiB")
    return "\n".join(lines)


def _batch_words(config: TrainConfig, batch: dict[str, int]) -> list[str]:
    groups, size = batch["groups_per_update"], batch["responses_per_group"]
    words = [
        f"{groups} groups x {size} responses = {batch['responses_per_update']} responses per update "
        f"(at most {batch['max_response_tokens_per_update']:,} tokens)",
        f"{batch['optimizer_moves_per_update']} optimizer moves per update (learner.num_epochs passes over the batch)",
        f"{groups} x (max_age {config.stream.max_age} + 1) = {batch['slots']} slots: "
        "groups generated or waiting at any time",
    ]
    if batch["max_critiques_per_update"]:
        words.append(
            f"{batch['responses_per_update']} responses x {config.critic.num_votes} votes = "
            f"at most {batch['max_critiques_per_update']} critiques per update"
        )
    words.append(
        f"{batch['updates']} updates x {batch['responses_per_update']} = {batch['responses']:,} responses in all"
    )
    return words
