"""What a run would be, before it is: actors and their places, the algebra of a batch, memory by formula.

Invariant: nothing is started and no accelerator or cluster is touched; the figures follow from the configuration and
the model's files.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from capo_ray.cli.memory import (
    available_bytes,
    device_gib,
    estimate_memory,
    host_gib,
    policy_of,
    sent_term,
)
from capo_ray.cli.memory_ranks import Memory
from capo_ray.cli.pace import estimate_pace, to_words
from capo_ray.cli.plan_data import data_words
from capo_ray.cli.useless import is_idle
from capo_ray.config import FAMILIES, Job, SftConfig, TrainConfig
from capo_ray.config.base import flat_keys
from capo_ray.config.shipped import SHIPPED
from capo_ray.demand import Demand, adapters_alone, demand, find, in_all
from capo_ray.place.transport import choose_transport
from capo_ray.sizing import Term

MIB = 1 << 20

UNKNOWN = "unknown until fetched"


def batch_algebra(config: TrainConfig) -> dict[str, int]:
    """The counts that follow from the configuration."""
    groups, size = config.learner.groups_per_batch, config.rollout.group_size
    return {
        "groups_per_update": groups,
        "responses_per_group": size,
        "responses_per_update": groups * size,
        "optimizer_moves_per_update": config.learner.num_epochs,
        "slots": config.num_slots,
        "max_response_tokens_per_update": groups * size * config.rollout.max_response_tokens,
        "max_critiques_per_update": groups * size * config.critic.num_votes if find(config, "critic") else 0,
        "updates": config.run.num_updates,
        "responses": config.run.num_updates * groups * size,
    }


def to_json(config: Job) -> dict[str, Any]:
    """The whole plan for programs."""
    plan = {
        "config": config.model_dump(mode="json"),
        "placement": [_actor_json(one) for one in demand(config)],
        "memory": [_memory_json(row) for row in estimate_memory(config)],
        "host_gib": round(host_gib(config), 3),
        "gpu_gib": device_gib(config),
    }
    if isinstance(config, SftConfig):
        return plan
    sent = _sent(config)
    plan["transport"] = asdict(choose_transport(config)) | {"sends": sent.name, "version_mib": sent.num_bytes / MIB}
    return plan | {"batch": batch_algebra(config), "pace": [asdict(tier) for tier in estimate_pace(config)]}


def _actor_json(one: Demand) -> dict[str, Any]:
    head = {"role": one.label, "count": one.count}
    return {**head, "num_cpus": one.num_cpus, "num_gpus": one.num_gpus, "note": one.note}


def _memory_json(row: Memory) -> dict[str, Any]:
    terms = [{"name": term.name, "gib": term.gib, "formula": term.formula} for term in row.terms]
    head = {"role": row.role, "count": row.count, "on_gpu": row.on_gpu}
    return {**head, "gib_each": row.gib_each if row.known else None, "terms": terms}


def to_text(config: Job, *, full: bool = False) -> str:
    """The plan for people, what matters first; `full` adds the whole configuration at the end."""
    cpus, gpus = in_all(config)
    if isinstance(config, SftConfig):
        batch, more = _lesson_words(config), list[str]()
    else:
        batch, more = _batch_words(config, batch_algebra(config)), data_words(config)
        if gpus:
            not_counted = ["without the learner's traffic with host memory (learner.offload_states)"]
            more += ["# time of an update (estimate)", *to_words(estimate_pace(config), config.run.num_updates)]
            more += [*not_counted * config.learner.offload_states, ""]
    lines = ["# batch", *batch, "", "# placement", f"{'role':<13}{'count':>6}{'CPUs':>7}{'GPUs':>6}  each"]
    lines += [
        f"{one.label:<13}{one.count:>6}{one.num_cpus:>7g}{one.num_gpus:>6g}  {one.note}" for one in demand(config)
    ]
    lines += [f"{'together':<13}{'':>6}{cpus:>7g}{gpus:>6g}{_nodes(config)}", *_transport_words(config), ""]
    lines += ["# memory (estimate)", *_memory_words(config), "", *more]
    if not full:
        return "\n".join(
            [*lines, "# choices, and settings other than their defaults (all of them: --full)", *changed(config)]
        )
    import yaml

    return "\n".join(
        [*lines, "# configuration", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).rstrip()]
    )


def _transport_words(config: Job) -> list[str]:
    if not isinstance(config, TrainConfig):
        return []
    chosen = choose_transport(config)
    given = f" (weights.transport={config.weights.transport})"
    sent = _sent(config)
    size = f"{sent.num_bytes / MIB:,.1f} MiB = {sent.formula}" if policy_of(config).num_params else UNKNOWN
    return [
        f"weights go by {chosen.name}: {chosen.why}{given if config.weights.transport == 'auto' else ''}",
        f"a version is {sent.name}, {size}",
    ]


def _sent(config: TrainConfig) -> Term:
    """What a version is, and its bytes."""
    return sent_term("the adapters alone" if adapters_alone(config) else "the whole model", config, policy_of(config))


def _nodes(config: Job) -> str:
    cluster = config.cluster
    if not cluster.gpus_per_node:
        return ""
    return f"  of {cluster.num_nodes} node(s) of {cluster.gpus_per_node} GPUs"


def _memory_words(config: Job) -> list[str]:
    """A line per role and one per term of a role on GPUs."""
    lines, device = [], device_gib(config)
    rows = estimate_memory(config)
    for row in rows:
        size = f"{row.gib_each:7.2f}" if row.known else "      ?"
        where = "host" if not row.on_gpu else f"GPU of {device:g}" if device else "GPU"
        said = "" if row.on_gpu and row.known else " = " + " + ".join(f"{t.name} {t.formula}" for t in row.terms)
        said = f"  N={row.num_params:,}{said}" if row.num_params else said
        lines.append(f"{row.role:<15}{row.count:>3} x {size} GiB {where}{said if row.known else f', {UNKNOWN}'}")
        if row.on_gpu and row.known:
            lines += [f"    {term.name:<15}{term.gib:8.2f} GiB = {term.formula}" for term in row.terms]
    here = f" ({available_bytes() / (1 << 30):.1f} GiB free on this machine)" if not config.cluster.joined else ""
    lines.append(f"{'host together':<15}    {host_gib(config):7.2f} GiB{here}")
    if device is None and any(row.on_gpu for row in rows):
        lines.append("the GPUs' memory is not known here: give cluster.gpu_memory_gib to hold the plan against it")
    return lines


def changed(config: Job) -> list[str]:
    """The choices of kinds, and the keys with effect that differ from the defaults of the same ones, as overrides."""
    families = {} if isinstance(config, SftConfig) else FAMILIES
    kinds = {name: getattr(getattr(config, name), family.tag) for name, family in families.items()}
    # Not validated: the defaults of other sections need not go with the method.
    default = type(config).model_construct(
        **{name: FAMILIES[name][kind].model_validate({FAMILIES[name].tag: kind}) for name, kind in kinds.items()}
    )
    ours, theirs = flat_keys(config.model_dump(mode="json")), flat_keys(default.model_dump(mode="json"))
    changed = [key for key, value in ours.items() if value != theirs.get(key) and not is_idle(config, key)]
    differ = [f"{key}={json.dumps(ours[key])}" for key in changed]
    return [*(f"{name}={kind}" for name, kind in kinds.items() if kind != "none"), *differ]


def _lesson_words(config: SftConfig) -> list[str]:
    updates, size = config.run.num_updates, config.batch_size
    return [
        f"{size} examples per update (at most {config.max_tokens} tokens each; longer ones are left out)",
        f"{updates} updates x {size} = {updates * size:,} examples in all",
    ]


def _slots(config: TrainConfig) -> str:
    if config.stream.slots:
        return f"{config.num_slots} slots (stream.slots)"
    return f"{config.learner.groups_per_batch} x (max_age {config.stream.max_age} + 1) = {config.num_slots} slots"


def _batch_words(config: TrainConfig, batch: dict[str, int]) -> list[str]:
    groups, size = batch["groups_per_update"], batch["responses_per_group"]
    words = [
        f"{groups} groups x {size} responses = {batch['responses_per_update']} responses per update "
        f"(at most {batch['max_response_tokens_per_update']:,} tokens)",
        f"{batch['optimizer_moves_per_update']} optimizer moves per update (learner.num_epochs passes over the batch)",
        f"{_slots(config)}: groups generated, waiting or in training at any time",
    ]
    if batch["max_critiques_per_update"]:
        words.append(
            f"{batch['responses_per_update']} responses x {config.critic.num_votes} votes = "
            f"at most {batch['max_critiques_per_update']} critiques per update"
        )
    if config.data.kind == "chains" and config.model.path not in SHIPPED["policy"]:
        words.append("note: data=chains is the laptop's world of one-digit sums; give this model data=… data.path=…")
    words.append(
        f"{batch['updates']} updates x {batch['responses_per_update']} = {batch['responses']:,} responses in all"
    )
    return words
