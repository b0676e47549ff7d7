"""Seconds of an update per tier, by stated rates: enough to see which tier the others wait for, no promise of a clock.

    decoding   a step reads the weights and the cache of its sequences, then the host schedules the next
    prefill    2 FLOP a parameter and token
    learning   6 FLOP a parameter and token and pass, 2 more where activations are recomputed, 2 for the reference

The device is an H100 SXM by its data sheet; the shares of it that are reached are ours (docs/clusters.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from capo_ray.sizing.engine import kv_bytes_per_token
from capo_ray.sizing.shapes import Shape

FLOPS = 989e12  # dense bf16, per second
BANDWIDTH = 3.35e12  # bytes of device memory per second
READ_SHARE = 0.7  # of the bandwidth, while decoding
PREFILL_SHARE = 0.5  # of the FLOPs
LEARN_SHARE = 0.25
HOST_S = 25e-6  # of the host for each sequence of a decoding step: half of what a busy core took (docs/clusters.md)
ALL_REDUCE_S = 15e-6  # one, over the GPUs of an engine; two a layer


@dataclass(frozen=True, slots=True)
class Decode:
    """What a tier of engines has to generate in an update."""

    shape: Shape
    num_params: int
    unit: int
    tensor_parallel: int
    num_engines: int
    sequences: int
    """Texts of the tier."""
    prompt_tokens: float
    """Of one text, prefilled anew."""
    tokens: float
    """Generated for one text."""
    max_num_seqs: int
    cache_tokens: float
    """Tokens that the cache of one engine holds."""


@dataclass(frozen=True, slots=True)
class Train:
    """What a learner group has to train in an update."""

    num_params: int
    num_ranks: int
    tokens: float
    num_epochs: int
    checkpointing: bool
    reference: bool


def decode_s(load: Decode, sharing: int = 1) -> float:
    """Seconds of generation and prefill, spread evenly over the tier's engines, which are never short of work.

    `sharing` texts have one prompt in common: it is prefilled and kept once, and read for each of them.
    """
    shape, tp = load.shape, load.tensor_parallel
    context = load.prompt_tokens + load.tokens / 2
    held = load.prompt_tokens / sharing + load.tokens / 2
    running = max(1.0, min(load.max_num_seqs, load.cache_tokens / held, load.sequences / load.num_engines))
    kv = running * context * kv_bytes_per_token(shape, load.unit, tp)
    step = (load.num_params * load.unit / tp + kv) / (BANDWIDTH * READ_SHARE)
    if tp > 1:
        step += 2 * shape.layers * ALL_REDUCE_S
    decoding = load.sequences * load.tokens / running * (step + HOST_S * running)
    prefill = 2 * load.num_params * load.sequences * load.prompt_tokens / sharing / (FLOPS * PREFILL_SHARE * tp)
    return (decoding + prefill) / load.num_engines


def train_s(load: Train) -> float:
    """Seconds of the passes over a batch."""
    per_token = load.num_epochs * (8 if load.checkpointing else 6) + (2 if load.reference else 0)
    return load.tokens * per_token * load.num_params / (FLOPS * LEARN_SHARE * load.num_ranks)
