"""The memory of one GPU of a vLLM engine: what its share leaves for the KV cache, and how many tokens that holds."""

from __future__ import annotations

from dataclasses import dataclass

from capo_ray.sizing.bytes import Term
from capo_ray.sizing.shapes import Shape

BASE_BYTES = 2 << 30  # CUDA context, NCCL, kernels and CUDA graphs: an allowance, not a count
BATCHED_TOKENS = 16384  # of one step where nothing is asked for, at most (engines/runtime.py)


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What one GPU of an engine is asked to hold."""

    shape: Shape
    num_params: int
    unit: int
    tensor_parallel: int
    max_num_seqs: int
    share_bytes: float
    """Of the device, for this engine (gpu_memory_frac of it)."""
    batched_tokens: int = BATCHED_TOKENS
    """Tokens of one scheduling step, for the working memory."""


CPU_HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Sizes of an attention head that vLLM computes on CPUs; a test compares them with vLLM's own."""


def kv_bytes_per_token(shape: Shape, unit: int, tensor_parallel: int = 1) -> float:
    """Bytes of keys and values of one token on one GPU; a head is never split, so small models keep whole copies."""
    heads = max(1.0, shape.kv_heads / tensor_parallel)
    return 2 * shape.layers * heads * shape.head_dim * unit


def engine_terms(load: EngineLoad) -> list[Term]:
    """Weights, working memory and cache; the cache is what is left, and negative where nothing is."""
    shape, unit, tp = load.shape, load.unit, load.tensor_parallel
    split = f" / {tp}" if tp > 1 else ""
    weights = Term("weights", load.num_params * unit / tp, f"{unit} B x N{split}")
    work = (
        load.batched_tokens * unit * (3 * shape.inner / tp + 6 * shape.hidden) + 3 * 4 * load.max_num_seqs * shape.vocab
    )
    working = Term(
        "working memory",
        BASE_BYTES + work,
        f"2 GiB + {load.batched_tokens:,} tokens x {unit} B x (3 i{split} + 6 h) + {load.max_num_seqs} x 12 B x V",
    )
    cache = load.share_bytes - weights.num_bytes - working.num_bytes
    per_token = kv_bytes_per_token(shape, unit, tp)
    tokens = int(max(0.0, cache) // per_token)
    return [weights, working, Term("KV cache", cache, f"the rest: {tokens:,} tokens x {per_token:,.0f} B")]
