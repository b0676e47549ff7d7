"""Log-probabilities of given tokens from logits, a block of rows at a time.

A full softmax in fp32 of 8192 tokens and 150k words takes 5 GB; here only a block of rows exists in fp32 at once,
forward and backward, and only the logits in their own dtype are kept between the two.
"""

from __future__ import annotations

from typing import Any

import torch

# Bytes of a block in fp32. On a CPU larger ones leave the cache and are mapped and unmapped by the system for each of a
# dozen temporaries: with 152k words 1,024 rows (622 MB) take twice the time of 27. A GPU wants work for all its cores.
CPU_BLOCK_BYTES = 16 << 20
GPU_BLOCK_BYTES = 256 << 20


def rows_at_once(vocab: int, device: str) -> int:
    """The rows of `vocab` logits that make a block on a device of this type."""
    return max(1, (CPU_BLOCK_BYTES if device == "cpu" else GPU_BLOCK_BYTES) // (4 * vocab))


def token_logprobs(
    logits: torch.Tensor, targets: torch.Tensor, temperature: float = 1.0, rows: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(logprobs [N] of `targets` [N], entropies [N]) in nats of softmax(logits [N, V] / temperature), both fp32.

    Both carry gradients to the logits. `rows`: those of a block, in place of `rows_at_once`.
    """
    require_temperature(temperature)
    rows = rows or rows_at_once(logits.shape[1], logits.device.type)
    logprobs, entropies = _TokenLogprobs.apply(logits, targets, temperature, rows)
    return logprobs, entropies


def require_temperature(temperature: float) -> None:
    """Raises ValueError for a temperature at which tokens have no probabilities between 0 and 1."""
    if temperature <= 0:
        raise ValueError(f"logprobs need a temperature > 0 (got {temperature}); greedy tokens have no policy gradient")


class _TokenLogprobs(torch.autograd.Function):
    """log p(target) and H(p), with the closed-form gradients (onehot - p) and -p (log p + H).

    The largest logit is taken off each row first, or large logits would leave few digits to their differences.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, targets: torch.Tensor, temperature: float, rows: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logprobs = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
        tops = torch.empty_like(logprobs)
        normalisers = torch.empty_like(logprobs)
        entropies = torch.empty_like(logprobs)
        for start in range(0, logits.shape[0], rows):
            block = slice(start, start + rows)
            tops[block] = logits[block].amax(dim=-1).float()
            scaled = (logits[block].float() - tops[block, None]) / temperature
            normalisers[block] = torch.logsumexp(scaled, dim=-1)
            logprobs[block] = scaled.gather(1, targets[block, None]).squeeze(1) - normalisers[block]
            probs = torch.exp(scaled - normalisers[block, None])
            entropies[block] = normalisers[block] - torch.linalg.vecdot(probs, scaled)
        ctx.save_for_backward(logits, targets, tops, normalisers, entropies)
        ctx.temperature, ctx.rows = temperature, rows
        ctx.set_materialize_grads(False)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor, None, None, None]:
        grad_logprobs, grad_entropies = grads
        logits, targets, tops, normalisers, entropies = ctx.saved_tensors
        grad_logits = torch.zeros_like(logits)
        for start in range(0, logits.shape[0], ctx.rows):
            block = slice(start, start + ctx.rows)
            logp = (logits[block].float() - tops[block, None]) / ctx.temperature - normalisers[block, None]
            probs = torch.exp(logp)
            grad = torch.zeros_like(probs)
            if grad_logprobs is not None:
                grad -= probs * grad_logprobs[block, None]
                grad.scatter_add_(1, targets[block, None], grad_logprobs[block, None])
            if grad_entropies is not None:
                grad -= probs * (logp + entropies[block, None]) * grad_entropies[block, None]
            grad_logits[block] = (grad / ctx.temperature).to(logits.dtype)
        return grad_logits, None, None, None
