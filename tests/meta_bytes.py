"""Bytes of a real transformers model on the meta device, counted: what autograd keeps, and the most that ever lives.

Attention is replaced by one that keeps what a flash kernel keeps (q, k, v, output and one number per row and head),
since the meta device would choose the kernel that holds every score.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from capo_ray.learners.backend import trained
from capo_ray.learners.microbatch import Inputs
from capo_ray.learners.policy import Policy

ATTENTION = "kernel_like"  # transformers would take a name with "flash" for a package


class _FlashLike(torch.autograd.Function):
    """Attention's shapes without its arithmetic; [B, H, T, D]."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output, torch.empty(query.shape[:3], device=query.device))
        return output

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, ...]:
        query, key, value, _, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _attend(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    return _FlashLike.apply(query, key, value).transpose(1, 2), None


def build_policy(config: dict[str, Any], dtype: torch.dtype, *, checkpointing: bool) -> Policy:
    """The learner's policy of a `config.json`, with weights that take no memory."""
    from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModelForCausalLM

    AttentionInterface.register(ATTENTION, _attend)
    AttentionMaskInterface.register(ATTENTION, lambda *args, **kwargs: None)
    settings = AutoConfig.for_model(**config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(settings, dtype=dtype, attn_implementation=ATTENTION)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return Policy(model.train())


@dataclass
class Counted:
    """Bytes: kept between forward and backward, and the most at any moment; weights and their gradients left out."""

    kept: int
    peak: int


class _Live(TorchDispatchMode):
    """The bytes of all storages made under it that still live."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.known = known
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        torch.utils._pytree.tree_map_only(torch.Tensor, self._see, result)
        return result

    def _see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.known:
            return
        self.known.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key, storage.nbytes())

    def _drop(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def count_pass(
    policy: Policy, num_tokens: int, num_responses: int, temperature: float = 1.0, linear: Any = torch._C._nn.linear
) -> Counted:
    """The bytes of one forward and backward pass over a row of `num_tokens`, the last `num_responses` of them scored.

    `linear` in place of torch's, or of DeepSpeed's, which a learner of ZeRO-3 leaves there for the whole process.

    Gradients are dropped as they come, as a sharded learner reduces them.
    """
    ids = torch.zeros((1, num_tokens), dtype=torch.long, device="meta")
    at = torch.zeros(num_responses, dtype=torch.long, device="meta")
    for parameter in trained(policy):
        parameter.register_post_accumulate_grad_hook(_forget)
    # Whether rows are packed is read off position ids, which the meta device does not hold: they are not.
    unpacked = patch("transformers.masking_utils.find_packed_sequence_indices", lambda *_: None)
    with unpacked, patch("torch.nn.functional.linear", linear), _count(policy) as live:
        logprobs, entropies = policy(Inputs(ids, at, at, at), temperature)
        loss = logprobs.sum() + entropies.sum()
        kept = live.now
        loss.backward()
    return Counted(kept, live.peak)


def count_weights(policy: nn.Module) -> int:
    """The bytes of all weights, tied ones once."""
    return sum(p.numel() * p.element_size() for p in policy.parameters())


def _forget(parameter: torch.Tensor) -> None:
    parameter.grad = None


@contextmanager
def _count(policy: nn.Module) -> Iterator[_Live]:
    live = _Live({t.untyped_storage()._cdata for t in (*policy.parameters(), *policy.buffers())})
    with live:
        yield live
