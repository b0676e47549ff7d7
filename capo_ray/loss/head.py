"""Log-probabilities of given tokens from hidden states, without the logits: head and softmax in one, tile by tile.

    hidden [N, h] x weight [V, h] --tile [n, v]--> largest logit, sum of exponentials, their mean --> log p, H
                                  --the same tile again, backward--> p --> gradients of hidden and weight

Memory: a few tiles, N numbers kept between the passes, and the gradients themselves, whatever N x V is; naively all
logits and their gradient live at once. The price is that the backward pass computes the logits again: 4 products in
place of 3. Where all logits are few bytes they are kept (`logprobs`).

N tokens, V words, h hidden numbers, n and v those of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.functional import linear

from capo_ray.loss.logprobs import CPU_BLOCK_BYTES, GPU_BLOCK_BYTES, require_temperature, token_logprobs

# At most so many rows and bytes in fp32. A core's cache holds what is done to a tile of 4 MiB: with 152k words and 64
# hidden numbers 16 MiB take 1.5 times as long, and so do 32 rows. A square one adds the fewest numbers to gradients:
# with 896 hidden numbers in bf16 256 rows take 1.3 times as long. A GPU wants work for all its cores.
CPU_TILE_ROWS, CPU_TILE_BYTES = 1024, 4 << 20
GPU_TILE_ROWS, GPU_TILE_BYTES = 4096, 256 << 20


def tile_of(num_tokens: int, vocab: int, device: str) -> tuple[int, int]:
    """(rows, columns) of a tile on a device of this type."""
    most, size = (CPU_TILE_ROWS, CPU_TILE_BYTES) if device == "cpu" else (GPU_TILE_ROWS, GPU_TILE_BYTES)
    rows = max(1, min(num_tokens, most))
    return rows, max(1, min(vocab, size // (4 * rows)))


def keeps_logits(num_tokens: int, vocab: int, device: str) -> bool:
    """Whether there are so few logits that computing them again costs more than keeping them."""
    return num_tokens * vocab * 4 <= (CPU_BLOCK_BYTES if device == "cpu" else GPU_BLOCK_BYTES)


def head_logprobs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    temperature: float = 1.0,
    tile: tuple[int, int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `token_logprobs` of the logits hidden [N, h] @ weight [V, h].T + bias [V]: ([N], [N]) in fp32.

    Both carry gradients to hidden, weight and bias. `tile`: in place of `tile_of`.
    """
    require_temperature(temperature)
    size = hidden.shape[0], weight.shape[0], hidden.device.type
    if tile is None and keeps_logits(*size):
        return token_logprobs(linear(hidden, weight, bias), targets, temperature)
    rows, columns = tile or tile_of(*size)
    logprobs, entropies = _HeadLogprobs.apply(hidden, weight, bias, targets, temperature, rows, columns)
    return logprobs, entropies


class _HeadLogprobs(torch.autograd.Function):
    """See the module; gradients by each logit are those of `logprobs`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        temperature: float,
        rows: int,
        columns: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        kept = [torch.empty(hidden.shape[0], dtype=torch.float32, device=hidden.device) for _ in range(4)]
        logprobs, entropies, tops, normalisers = kept
        for block in _spans(hidden.shape[0], rows):
            top, total, mean, own = _scan(hidden[block], weight, bias, targets[block], temperature, columns)
            tops[block], normalisers[block] = top, total.log()
            logprobs[block] = own - top - normalisers[block]
            entropies[block] = normalisers[block] - mean / total
        # Not saved by autograd: a sharded weight is whole during the module's passes alone, and then at another place.
        ctx.weight, ctx.bias = weight, bias
        ctx.save_for_backward(hidden, targets, tops, normalisers, entropies)
        ctx.temperature, ctx.tile = temperature, (rows, columns)
        ctx.set_materialize_grads(False)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        hidden, targets, tops, normalisers, entropies = ctx.saved_tensors
        weight, bias = ctx.weight.detach(), None if ctx.bias is None else ctx.bias.detach()
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        by_hidden = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device) if needs_hidden else None
        by_weight = torch.empty_like(weight) if needs_weight else None
        by_bias = torch.zeros(len(weight), device=hidden.device) if needs_bias else None
        for words in _spans(len(weight), ctx.tile[1]):
            part = weight[words]
            summed = torch.zeros(part.shape, dtype=torch.float32, device=hidden.device) if needs_weight else None
            for block in _spans(len(hidden), ctx.tile[0]):
                logp = _tile(hidden[block], part, bias, words, ctx.temperature)
                logp.sub_((tops[block] + normalisers[block])[:, None])
                given = [None if grad is None else grad[block] for grad in grads]
                by_logits = _by_logits(logp, targets[block] - words.start, entropies[block], *given)
                by_logits = by_logits.div_(ctx.temperature).to(weight.dtype)
                if by_hidden is not None:
                    _add_product(by_hidden[block], by_logits, part)
                if summed is not None:
                    _add_product(summed, by_logits.T, hidden[block])
                if by_bias is not None:
                    by_bias[words] += by_logits.sum(0)
                del logp, by_logits  # or they would stand beside the next tile
            if by_weight is not None and summed is not None:
                by_weight[words] = summed
        return (
            None if by_hidden is None else by_hidden.to(hidden.dtype),
            by_weight,
            None if by_bias is None else by_bias.to(weight.dtype),
            *[None] * 4,
        )


def _scan(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    temperature: float,
    columns: int,
) -> tuple[torch.Tensor, ...]:
    """Of each row: its largest logit l*, sum of exp(l - l*), sum of (l - l*) exp(l - l*), the target's logit; [n]."""
    top = total = mean = own = torch.empty(0)
    for words in _spans(len(weight), columns):
        logits = _tile(hidden, weight[words], bias, words, temperature)
        at, here = targets - words.start, _inside(targets, words)
        its = logits.gather(1, at.clamp(0, logits.shape[1] - 1)[:, None]).squeeze(1)
        own = its if words.start == 0 else torch.where(here, its, own)
        highest = logits.amax(dim=-1)
        if words.start:
            highest = torch.maximum(highest, top)
            shift = top - highest
            shrunk = torch.exp(shift)
            mean = shrunk * (mean + shift * total)
            total = shrunk * total
        logits.sub_(highest[:, None])
        exps = torch.exp(logits)
        total = exps.sum(-1) if words.start == 0 else total + exps.sum(-1)
        weighed = logits.mul_(exps).sum(-1)  # in place: a product by itself would be a third tile
        mean = weighed if words.start == 0 else mean + weighed
        top = highest
        del logits, exps  # or they would stand beside the next tile
    return top, total, mean, own


def _tile(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, words: slice, temperature: float
) -> torch.Tensor:
    """Logits [n, v] / temperature in fp32, rounded as the head's own dtype rounds them."""
    logits = linear(hidden, weight, None if bias is None else bias[words]).float()
    return logits if temperature == 1.0 else logits.div_(temperature)


def _by_logits(
    logp: torch.Tensor,
    at: torch.Tensor,
    entropies: torch.Tensor,
    by_logprobs: torch.Tensor | None,
    by_entropies: torch.Tensor | None,
) -> torch.Tensor:
    """The gradient by each logit of a tile [n, v] of log p, which it overwrites; `at` are the targets' columns."""
    probs = torch.exp(logp)
    if by_entropies is None:
        grad = probs
        grad.mul_(0.0 if by_logprobs is None else -by_logprobs[:, None])
    else:
        grad = logp.add_(entropies[:, None]).mul_(by_entropies[:, None])
        if by_logprobs is not None:
            grad.add_(by_logprobs[:, None])
        grad.mul_(probs).neg_()
    if by_logprobs is not None:
        here = (at >= 0) & (at < logp.shape[1])
        added = torch.where(here, by_logprobs, torch.zeros_like(by_logprobs))
        grad.scatter_add_(1, at.clamp(0, logp.shape[1] - 1)[:, None], added[:, None])
    return grad


def _add_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """Adds a @ b to an fp32 `total`, in place."""
    if a.dtype == torch.float32:
        total.addmm_(a, b)
    elif a.device.type == "cpu":  # whose products have the dtype of their factors
        total.add_(a @ b)
    else:
        total.add_(torch.mm(a, b, out_dtype=torch.float32))


def _inside(targets: torch.Tensor, words: slice) -> torch.Tensor:
    return (targets >= words.start) & (targets < words.stop)


def _spans(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))
