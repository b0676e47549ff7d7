"""What is looked at before a run starts, so that it does not fail minutes later: files, memory, cores.

Invariant: every check raises `RunFailed` with one sentence (expected, got, what to do) and changes nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from capo_ray.cli.architecture import check_adapters, check_architecture
from capo_ray.cli.fit import refuse_idle_gpus, refuse_misfit
from capo_ray.cli.memory import available_bytes, estimate_memory, host_gib, sized
from capo_ray.cli.models import (
    Role,
    find_model,
    head_dim_of,
    is_fetched,
    read_facts,
    size_of,
)
from capo_ray.cli.rules import check_rules
from capo_ray.cli.settings import check_settings
from capo_ray.config import Job, SftConfig, TrainConfig
from capo_ray.config.shipped import SHIPPED
from capo_ray.demand import ModelUse, bfloat16_on_gpus, demand, in_all, models, policy_model
from capo_ray.place.transport import choose_transport
from capo_ray.place.trust import trust_solutions
from capo_ray.problems import asset_path, data_files, reads_hub
from capo_ray.protocols import RunFailed
from capo_ray.sizing import unshared_heads
from capo_ray.sizing.engine import CPU_HEAD_DIMS
from capo_ray.sizing.gpus import BF16_CAPABILITY, found_gpus, sizes_of
from capo_ray.written import require_written

GIB = 1 << 30
LOOK_BYTES = 256 << 20
"""Of weights that a look before the run compares with their recipe; larger ones are compared where they are loaded."""
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def check_plan(config: TrainConfig) -> None:
    """Raise the first reason why this run could not go well wherever it is started: what a dry run tells."""
    for model in models(config):
        check_model(model.name, model.shipped, model.key, model.max_model_len)
    check_architecture(config)
    check_adapters(config)
    check_lengths(config)
    check_engine_arguments(config)
    check_tensor_parallel(config)
    check_sequence_parallel(config)
    if not config.cluster.joined:  # elsewhere the files lie on the cluster's nodes
        check_data(config)
    check_rules(config)
    check_settings(config)
    choose_transport(config)
    refuse_misfit(config)


def check_train(config: TrainConfig) -> None:
    """Raise the first reason why this run could not go well on this machine."""
    check_run_dir(config)
    check_plan(config)
    check_data(config)
    trust_solutions(config)
    check_gpus(config)
    if not config.cluster.joined:
        check_memory(config)


def check_run_dir(config: Job) -> None:
    """The named run directory is free, and the one to go on with exists."""
    if config.resume:
        if not Path(config.resume).expanduser().is_dir():
            raise RunFailed(
                f"resume: expected a run directory, got {config.resume}; see the names in {config.run.dir}/"
            )
        return
    parent = Path(config.run.dir).expanduser()
    folder = parent / config.run.name
    if config.run.name and folder.exists():
        raise RunFailed(
            f"run.name: {folder} already holds a run; choose another run.name, or go on with resume={folder}"
        )
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise RunFailed(f"run.dir: expected a directory that can be written, got {config.run.dir}; choose another")


def check_model(name: str, role: Role, key: str, max_model_len: int = 0) -> None:
    """A local model is whole and its tokenizer fits; a hub name is plausible and, offline, already fetched."""
    folder = find_model(name, role)
    if folder is None:
        if name in SHIPPED[role]:
            raise RunFailed(
                f"{key}: expected the shipped {role} in {asset_path(name, role)}, found none; install again"
            )
        _check_hub_name(name, key)
    if folder is None or not is_fetched(name, folder):
        shape = size_of(name, role, key)[1]
        _check_positions(key, name, shape.positions if shape else None, max_model_len)
        return
    require_written(folder, LOOK_BYTES)
    facts = read_facts(folder, key)
    if facts.max_token_id is not None and facts.max_token_id >= facts.vocab:
        raise RunFailed(
            f"{key}: the tokenizer in {folder} has ids up to {facts.max_token_id}, but the model embeds only "
            f"{facts.vocab}; put the model's own tokenizer there"
        )
    _check_positions(key, str(folder), facts.max_positions, max_model_len)


def _check_positions(key: str, name: str, positions: int | None, max_model_len: int) -> None:
    if positions is not None and max_model_len > positions:
        section = "critic" if key == "critic.model" else "model"
        raise RunFailed(
            f"{section}.max_model_len must be <= {positions}, the positions of {name} (got {max_model_len})"
        )


def _check_hub_name(name: str, key: str) -> None:
    parent = Path(name).parent
    local = name.startswith(("/", ".", "~")) or (str(parent) != "." and parent.is_dir())
    if local or not _HUB_NAME.fullmatch(name):
        raise RunFailed(
            f"{key}: expected a Hugging Face model directory or hub name, but there is no {name}; check the path"
        )
    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        raise RunFailed(
            f"{key}: {name} is no directory here and not in the hub cache, and HF_HUB_OFFLINE is set; "
            "give a directory, or unset it"
        )


def check_data(config: Job) -> None:
    """Named files exist and are not empty."""
    data = config.data
    if data.makes_problems:
        return
    if not data.path:
        raise RunFailed(
            f"data.path: expected the {'name' if data.kind == 'hub' else 'file or folder'} for data.kind={data.kind}, "
            "got nothing"
        )
    if reads_hub(data):
        return
    named = [("data.path", data.path, data.split)]
    if isinstance(config, TrainConfig) and config.data.eval_path:
        named.append(("data.eval_path", config.data.eval_path, config.data.eval_split))
    for key, name, split in named:
        try:
            files = data_files(name, split)
        except RunFailed as error:
            raise RunFailed(str(error).replace("data.path", key)) from error
        if all(path.stat().st_size == 0 for path in files):
            raise RunFailed(f"{key}: expected at least one row in {name}, got an empty file")


def check_lengths(config: TrainConfig) -> None:
    """A response fits the context that it is sampled in."""
    if config.rollout.max_response_tokens >= config.model.max_model_len:
        raise RunFailed(
            f"rollout.max_response_tokens must be < model.max_model_len, which holds the prompt too "
            f"(got {config.rollout.max_response_tokens} >= {config.model.max_model_len})"
        )


def check_tensor_parallel(config: TrainConfig) -> None:
    """Every engine on GPUs has one per tensor-parallel rank, and so many ranks can share its model."""
    for name, part in (("engine", config.engine), ("critic", config.critic)):
        if part.tensor_parallel > 1 and 0 < part.num_gpus < part.tensor_parallel:
            raise RunFailed(
                f"{name}.num_gpus must be >= {name}.tensor_parallel (got {part.num_gpus:g} < {part.tensor_parallel}); "
                f"set {name}.num_gpus={part.tensor_parallel}"
            )
    for one in demand(config):
        if one.engine is None or one.model is None or one.engine.tensor_parallel == 1:
            continue
        shape = sized(one.model).shape
        if shape is not None and (what := shape.unshared(one.engine.tensor_parallel)):
            could = [n for n in range(2, 17) if not shape.unshared(n)]
            raise RunFailed(
                f"{one.section}.tensor_parallel={one.engine.tensor_parallel} cannot share {what} of "
                f"{one.model.name or 'the shipped model'}; set {', '.join(map(str, [1, *could]))}"
            )


def check_sequence_parallel(config: Job) -> None:
    """The ranks that compute a microbatch together can share the policy's heads."""
    size, model = config.learner.sequence_parallel, policy_model(config)
    shape = sized(model).shape if size > 1 else None
    if shape is None:
        return

    def unshared(size: int) -> str:
        return unshared_heads((shape.heads, shape.kv_heads), size)

    if what := unshared(size):
        could = [n for n in range(2, 17) if not unshared(n)]
        raise RunFailed(
            f"learner.sequence_parallel={size} cannot share {what} of {model.name or 'the shipped model'}; set "
            f"{', '.join(map(str, [1, *could]))}"
        )


def _check_heads(model: ModelUse) -> None:
    """vLLM's CPU build has kernels for some sizes of a head alone, which it says only when the engine starts."""
    head_dim = head_dim_of(model.name, model.shipped, model.key)
    if head_dim is not None and head_dim not in CPU_HEAD_DIMS:
        sizes = ", ".join(map(str, CPU_HEAD_DIMS))
        raise RunFailed(
            f"{model.key}: expected attention heads (head_dim) of {sizes}, those that vLLM computes on CPUs, got "
            f"{head_dim} in {model.name}; take another model, or GPUs (engine=gpu)"
        )


def check_engine_arguments(config: TrainConfig) -> None:
    """What is passed through exists in vLLM, and a step holds a whole prompt where it must."""
    for one in demand(config):
        if one.engine is None or one.model is None:
            continue
        name, part, length = one.section, one.engine, one.model.max_model_len
        if part.num_gpus == 0:
            _check_heads(one.model)
        if part.num_gpus == 0 and 0 < part.max_batched_tokens <= length:
            raise RunFailed(
                f"{name}.max_batched_tokens must be > {length}, the model length, since a prompt is computed whole on "
                f"CPUs (got {part.max_batched_tokens}); raise it, or set 0"
            )
        if 0 < part.max_batched_tokens <= part.max_num_seqs:
            raise RunFailed(
                f"{name}.max_batched_tokens must be > {name}.max_num_seqs, one token each (got "
                f"{part.max_batched_tokens} <= {part.max_num_seqs})"
            )
        if part.extra:
            from capo_ray.engines.extra import check_extra

            try:
                check_extra(part.extra, name, on_gpu=part.num_gpus > 0)
            except ValueError as error:
                raise RunFailed(str(error)) from error


def check_gpus(config: Job) -> None:
    """The GPUs that actors of an own cluster ask for are here, with the memory that the plan counts on.

    CPUs are shares, not needs: a cluster of the run's own has as many as its actors ask for.
    """
    refuse_idle_gpus(config)
    _, wanted = in_all(config)
    in_process = isinstance(config, SftConfig) and config.in_process
    if not wanted or not (not config.cluster.joined or in_process):
        return
    here = sum(1 for _ in Path("/dev").glob("nvidia[0-9]*"))
    if wanted > here and not Path("/dev/kfd").exists():
        cure = (
            "set learner.num_gpus=0"
            if isinstance(config, SftConfig)
            else "choose engine=cpu learner=cpu, fewer ranks and workers"
        )
        raise RunFailed(f"expected {wanted:g} GPU(s), found {here or 'none'} here; {cure}, or name a cluster.address")
    if isinstance(config, TrainConfig):
        check_devices(config, sizes_of(found_gpus()))


def check_devices(config: TrainConfig, found: Sequence[tuple[float, float]]) -> None:
    """These GPUs (GiB, compute capability) have the memory that the plan counts on, and bf16 where it is asked for."""
    if not found:
        return
    capability = min(capability for _, capability in found)
    for key in bfloat16_on_gpus(config):
        if capability < BF16_CAPABILITY:
            raise RunFailed(
                f"{key}=bfloat16 needs GPUs of compute capability {BF16_CAPABILITY} (Ampere) or more, got {capability}"
                f"; set {key}=float32, or use other GPUs"
            )
    smallest = min(gib for gib, _ in found)
    if smallest < config.cluster.gpu_memory_gib:
        cluster = config.cluster.model_copy(update={"gpu_memory_gib": smallest})
        refuse_misfit(config.model_copy(update={"cluster": cluster}))


def check_memory(config: TrainConfig) -> None:
    """The estimate fits into what is free."""
    wanted, free = host_gib(config), available_bytes() / GIB
    if wanted > free:
        largest = max(
            (row for row in estimate_memory(config) if not row.on_gpu), key=lambda row: row.count * row.gib_each
        )
        raise RunFailed(
            f"expected {wanted:.1f} GiB of free memory (most of it: {largest.role}, {largest.count} x "
            f"{largest.gib_each:.1f}), got {free:.1f}; lower engine.kv_cache_gib, critic.kv_cache_gib or the "
            "numbers of workers, or see capo-ray train --dry-run"
        )
