"""Attention over segments through the flash kernels of the device, forward and backward.

A response's row is the softmax over two ranges of keys: its own segment, and the prompt. Each range goes through the
kernel by itself, which also gives the log of its sum, and the two are put together by these sums; backward, the kernel
is given the joint output and sum, so that its gradients are those of the joint softmax. Nothing is masked, padded or
computed twice, and the prompt's keys get the gradients of all siblings added up.

W tokens of the row, H heads (fewer of keys and values where they are grouped), D numbers a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from capo_ray.learners.segments import Segments, Span


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
    """One call a segment. Sums are [1, H, W] in fp32."""

    @staticmethod
    def forward(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        output = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        sums = query.new_empty(query.shape[0], *query.shape[2:0:-1], dtype=torch.float32).transpose(1, 2)
        for rows, keys, causal in _calls(segments):
            q, k, v, out, total = (
                *map(_cut, (query, key, value), (rows, keys, keys)),
                _cut(output, rows),
                sums[..., slice(*rows)],
            )
            part, its = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scale)
            if causal:
                out.copy_(part)
                total.copy_(its)
            else:
                _join(out, total, part, its)
        return output, sums

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
        by_query, by_key, by_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        for rows, keys, causal in _calls(segments):
            parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                _cut(grad, rows), _cut(query, rows), _cut(key, keys), _cut(value, keys),
                _cut(output, rows), sums[..., slice(*rows)], 0.0, causal, scale=scale,
            )  # fmt: skip
            for whole, span, part in zip((by_query, by_key, by_value), (rows, keys, keys), parts, strict=True):
                place = _cut(whole, span)
                place.copy_(part) if causal else place.add_(part)
        return by_query, by_key, by_value


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


def _calls(segments: Segments) -> Iterator[tuple[Span, Span, bool]]:
    """(rows, keys, whether causal) of every call, those of own segments first."""
    for span in segments.own:
        yield span, span, True
    for rows, keys in segments.seen:
        yield rows, keys, False


def _join(out: torch.Tensor, total: torch.Tensor, part: torch.Tensor, its: torch.Tensor) -> None:
    """Adds to `out` [..., W, D] with log sums `total` [..., W] a part over other keys, in place."""
    both = torch.logaddexp(total, its)
    joined = out * torch.exp(total - both)[..., None] + part * torch.exp(its - both)[..., None]
    out.copy_(joined)
    total.copy_(both)


def _cut(heads: torch.Tensor, span: Span) -> torch.Tensor:
    return heads[:, :, span[0] : span[1]]


def _flat(heads: torch.Tensor) -> torch.Tensor:
    """[W, H, D] of [1, H, W, D]."""
    return heads[0].transpose(0, 1)


def _longest(spans: Sequence[Span]) -> int:
    return max(end - start for start, end in spans)
