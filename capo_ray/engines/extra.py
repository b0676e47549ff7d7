"""Engine arguments of vLLM that a run passes through: which exist, of what type, and which are set by other keys.

Invariant: vLLM is not imported (that takes seconds, and a dry run starts nothing): its source is read.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path

Value = bool | int | float | str

_KEYS = {
    "model": "{model}",
    "tokenizer": "{model}",
    "hf_config_path": "{model}",
    "model_weights": "{model}",
    "revision": "{model}",
    "tokenizer_revision": "{model}",
    "code_revision": "{model}",
    "dtype": "{dtype}",
    "max_model_len": "{max_model_len}",
    "seed": "run.seed",
    "max_num_seqs": "{section}.max_num_seqs",
    "max_num_batched_tokens": "{section}.max_batched_tokens",
    "tensor_parallel_size": "{section}.tensor_parallel",
    "gpu_memory_utilization": "{section}.gpu_memory_frac",
}
"""Arguments that a key of this house sets; vLLM and the rest of the run would otherwise believe different things."""

_FIXED = {
    "distributed_executor_backend": "it follows from {section}.tensor_parallel",
    "pipeline_parallel_size": "an engine is split by {section}.tensor_parallel alone",
    "data_parallel_size": "more engines are {section}.num_workers",
    "nnodes": "an engine lives on one node",
    "trust_remote_code": "code of a model directory is never run",
    "logprobs_mode": "credit and loss need the logprobs of what was sampled from",
    "max_logprobs": "entropies are read off that many",
    "scheduling_policy": "the canary of a publish goes first",
    "weight_transfer_config": "the engine's place decides",
    "worker_extension_cls": "the engine's place decides",
    "worker_cls": "vLLM chooses it by device",
    "scheduler_cls": "versions of tokens rely on vLLM's own",
    "disable_log_stats": "the run's figures are its own",
}
_CPU_FIXED = {
    "kv_cache_memory_bytes": "on CPUs set {section}.kv_cache_gib",
    "async_scheduling": "vLLM never schedules ahead on CPUs",
    "enable_chunked_prefill": "on CPUs vLLM cannot take back what a seeded request sampled in a part of its prompt",
}


@cache
def engine_arguments() -> dict[str, str]:
    """Every argument of the installed vLLM's `EngineArgs` with its annotation; empty where vLLM is not installed."""
    found = find_spec("vllm")
    if found is None or not found.submodule_search_locations:
        return {}
    source = Path(found.submodule_search_locations[0]) / "engine" / "arg_utils.py"
    if not source.is_file():
        return {}
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == "EngineArgs":
            fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
            return {
                item.target.id: ast.unparse(item.annotation) for item in fields if isinstance(item.target, ast.Name)
            }
    return {}


def check_extra(extra: Mapping[str, Value], section: str, *, on_gpu: bool) -> None:
    """Raises ValueError for the first argument that vLLM does not have, of a wrong type, or that is not the user's."""
    known = engine_arguments()
    fixed = _FIXED if on_gpu else _FIXED | _CPU_FIXED
    own = "critic" if section == "critic" else "model"
    words = {
        "section": section,
        "model": "critic.model" if own == "critic" else "model.path",
        "dtype": f"{own}.dtype",
        "max_model_len": f"{own}.max_model_len",
    }
    for name, value in extra.items():
        key = f"{section}.extra.{name}"
        if name in _KEYS:
            raise ValueError(f"{key} is set by a key of its own; use {_KEYS[name].format(**words)}")
        if name in fixed:
            raise ValueError(f"{key} cannot be set: {fixed[name].format(**words)}; remove it")
        if known and name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"; did you mean {section}.extra.{near[0]}?" if near else "; see vLLM's engine arguments"
            raise ValueError(f"{key} is no engine argument of the installed vLLM{hint}")
        wanted = _scalars(known.get(name, ""))
        if wanted and not _fits(value, wanted):
            raise ValueError(f"{key}: expected {' or '.join(wanted)}, got {value!r}")


def _scalars(annotation: str) -> tuple[str, ...]:
    """The names of the scalar types that an annotation allows; empty where it also names something else."""
    parts = [part.strip() for part in annotation.split("|")]
    scalars = tuple(part for part in parts if part in ("bool", "int", "float", "str"))
    return scalars if len(scalars) + parts.count("None") == len(parts) else ()


def _fits(value: Value, wanted: tuple[str, ...]) -> bool:
    name = type(value).__name__
    return name in wanted or (name == "int" and "float" in wanted)
