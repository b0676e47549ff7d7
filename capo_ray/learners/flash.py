"""Attention over segments through the flash kernels of the device, forward and backward.

A response's row is the softmax over two ranges of keys: its own segment, and the prompt. Each range goes through the
kernel by itself, which also gives the log of its sum, and the two are put together by these sums; backward, the kernel
is given the joint output and sum, so that its gradients are those of the joint softmax. Nothing is masked or computed
twice, and the prompt's keys get the gradients of all siblings added up. On a CPU segments of about one length are
padded to one call: a call for each would take longer than what it computes.

W tokens of the row, H heads (fewer of keys and values where they are grouped), D numbers a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from capo_ray.learners.segments import Segments, Span

_BACKWARD_DTYPE = torch.float32
"""Of a CPU's backward kernel: in bf16 it takes six times as long with 40 keys, with 500 as long, with 3,000 a seventh
less."""


def attend_segments(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, scale: float
) -> torch.Tensor:
    """The output [1, H, W, D] of causal segments that also see their prefix."""
    output: torch.Tensor = _Segmented.apply(query, key, value, segments, scale)
    return output


def can_attend(query: torch.Tensor) -> bool:
    """Whether the device has a kernel for such numbers."""
    return query.device.type != "cuda" or (query.dtype != torch.float32 and query.shape[-1] <= 256)


class _Segmented(torch.autograd.Function):
    """The output [1, H, W, D] of causal segments that also see their prefix; see the module."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, scale: float
    ) -> torch.Tensor:
        kernel: Any = _Cuda if query.device.type == "cuda" else _Cpu
        output, sums = kernel.forward(query, key, value, segments, scale)
        ctx.save_for_backward(query, key, value, output, sums)
        ctx.segments, ctx.scale, ctx.kernel = segments, scale, kernel
        return output

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return (*ctx.kernel.backward(grads[0], *ctx.saved_tensors, ctx.segments, ctx.scale), None, None)


class _Cpu:
    """One call for all segments of about one length, and one for all prompts of one length. Sums are [W, H] in fp32."""

    @staticmethod
    def forward(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        q, k, v = (_flat(x) for x in (query, key, value))
        output, sums = torch.empty_like(q, memory_format=torch.contiguous_format), q.new_empty(q.shape[:2]).float()
        for call in segments.padded:
            heads = call.heads(q, call.row_ids), *(call.heads(x, call.key_ids) for x in (k, v))
            made = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*heads, 0.0, call.causal, scale=scale)
            part, its = map(call.unpadded, made)
            if not call.causal:
                own = part, its
                part, its = (x.index_select(0, call.rows) for x in (output, sums))
                _join(part, its, *own)
            output.index_copy_(0, call.rows, part)
            sums.index_copy_(0, call.rows, its)
        return output.transpose(0, 1)[None], sums

    @staticmethod
    def backward(
        grad: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        output: torch.Tensor,
        sums: torch.Tensor,
        segments: Segments,
        scale: float,
    ) -> tuple[torch.Tensor, ...]:
        g, q, k, v, out = (_flat(x) for x in (grad, query, key, value, output))
        by_query, by_key, by_value = (torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
        for call in segments.padded:
            grads, queries, outputs, its = (call.heads(x, call.row_ids) for x in (g, q, out, sums))
            # A row that stands there to pad has no gradient, and so gives none to the keys that it sees.
            grads.transpose(1, 2).flatten(0, 1).index_fill_(0, call.made, 0.0)
            keys, values = (call.heads(x, call.key_ids) for x in (k, v))
            heads = tuple(x.to(_BACKWARD_DTYPE) for x in (grads, queries, keys, values, outputs))
            made = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                *heads, its.contiguous(), 0.0, call.causal, scale=scale
            )
            for_query, *for_keys = (x.to(q.dtype) for x in made)
            by_query.index_add_(0, call.rows, call.unpadded(for_query))
            for whole, part in zip((by_key, by_value), for_keys, strict=True):
                if call.causal:
                    whole.index_add_(0, call.rows, call.unpadded(part))
                else:
                    whole.index_add_(0, call.key_ids, part.transpose(1, 2).flatten(0, 1))
        return tuple(x.transpose(0, 1)[None] for x in (by_query, by_key, by_value))


class _Cuda:
    """Two calls by cumulative lengths. Sums are [H, W] in fp32."""

    @staticmethod
    def forward(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        q, k, v = (_flat(x) for x in (query, key, value))
        ends, longest = segments.own_ends, _longest(segments.own)
        output, sums = _varlen(q, k, v, ends, ends, longest, longest, True, scale)
        for rows, keys, lengths in _joint(segments):
            part, its = _varlen(q[rows], k[keys], v[keys], *lengths, False, scale)
            _join(output[rows].transpose(0, 1), sums[:, rows], part.transpose(0, 1), its)
        return output.transpose(0, 1)[None], sums

    @staticmethod
    def backward(
        grad: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        output: torch.Tensor,
        sums: torch.Tensor,
        segments: Segments,
        scale: float,
    ) -> tuple[torch.Tensor, ...]:
        g, q, k, v, out = (_flat(x) for x in (grad, query, key, value, output))
        ends, longest = segments.own_ends, _longest(segments.own)
        by_query, by_key, by_value = _varlen_backward(g, q, k, v, out, sums, ends, ends, longest, longest, True, scale)
        for rows, keys, lengths in _joint(segments):
            parts = _varlen_backward(
                g[rows], q[rows], k[keys], v[keys], out[rows], sums[:, rows].contiguous(), *lengths, False, scale
            )
            for whole, span, part in zip((by_query, by_key, by_value), (rows, keys, keys), parts, strict=True):
                whole[span] += part
        return tuple(x.transpose(0, 1)[None] for x in (by_query, by_key, by_value))


def _varlen(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, q_ends: torch.Tensor, k_ends: torch.Tensor,
    max_q: int, max_k: int, causal: bool, scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """(output [W, H, D], sums [H, W]) of the flash kernel."""
    made = torch.ops.aten._flash_attention_forward(
        q, k, v, q_ends, k_ends, max_q, max_k, 0.0, causal, False, scale=scale
    )
    return made[0], made[1]


def _varlen_backward(
    grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, sums: torch.Tensor,
    q_ends: torch.Tensor, k_ends: torch.Tensor, max_q: int, max_k: int, causal: bool, scale: float,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """The gradients of q, k, v; nothing was dropped, so the state of the generator is not read."""
    none = torch.zeros(2, dtype=torch.uint64, device=q.device)
    made: tuple[torch.Tensor, ...] = torch.ops.aten._flash_attention_backward(
        grad, q, k, v, out, sums, q_ends, k_ends, max_q, max_k, 0.0, causal, none, none, scale=scale
    )
    return made


def _joint(segments: Segments) -> Iterator[tuple[slice, slice, tuple[torch.Tensor, torch.Tensor, int, int]]]:
    """All `seen` as one call: rows, keys, and their lengths for the kernel; nothing where nobody shares."""
    if segments.seen:
        rows, keys = zip(*segments.seen, strict=True)
        lengths = (segments.row_ends, segments.key_ends, _longest(rows), _longest(keys))
        yield slice(rows[0][0], rows[-1][1]), slice(keys[0][0], keys[-1][1]), lengths


def _join(out: torch.Tensor, total: torch.Tensor, part: torch.Tensor, its: torch.Tensor) -> None:
    """Adds to `out` [..., W, D] with log sums `total` [..., W] a part over other keys, in place."""
    both = torch.logaddexp(total, its)
    joined = out * torch.exp(total - both)[..., None] + part * torch.exp(its - both)[..., None]
    out.copy_(joined)
    total.copy_(both)


def _flat(heads: torch.Tensor) -> torch.Tensor:
    """[W, H, D] of [1, H, W, D]."""
    return heads[0].transpose(0, 1)


def _longest(spans: Sequence[Span]) -> int:
    return max(end - start for start, end in spans)
