"""Sequence parallelism: S ranks compute one row of segments together, each a stretch of its tokens (DeepSpeed-Ulysses,
2309.14509).

    row [W] -> stretches [W / S] -> layers, token by token, S ranks beside each other
               attention:  [w tokens, H heads] --all to all--> [W tokens, H / S heads] -> attend --back--> [w, H]
               head: each rank scores the targets that its own stretch predicts -> all of them on all S ranks

What a rank holds of a layer is its stretch's share, so that a context grows with S. Every rank of the S has the same
cell and, in the end, the same logprobs and loss; its gradient is that of what it scored itself, through what all of
them attended to, so that the sum over all ranks is the gradient of each cell once.

Invariant: all S ranks go through the same collectives in the same order, also one whose stretch predicts nothing.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from capo_ray.learners.segments import Segments


@dataclass(frozen=True)
class SequenceGroup:
    """The ranks that share a row; this one is number `rank` of `size`."""

    group: Any
    rank: int
    size: int

    @classmethod
    def meet(cls, rank: int, world_size: int, size: int, deadline_s: float) -> SequenceGroup:
        """This rank's group, of those of `size` ranks that follow each other; collective over all ranks."""
        timeout = datetime.timedelta(seconds=deadline_s)
        groups = [dist.new_group(range(at, at + size), timeout=timeout) for at in range(0, world_size, size)]
        return cls(groups[rank // size], rank % size, size)

    def stretch(self, row: torch.Tensor) -> torch.Tensor:
        """[1, w] of [1, W]: this rank's tokens, the last rank's filled up with zeros."""
        width = self._width(row.shape[1])
        own = row[:, self.rank * width : (self.rank + 1) * width]
        return torch.nn.functional.pad(own, (0, width - own.shape[1]))

    def own(self, predictors: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(which of the N targets this rank scores, where in its stretch they are predicted)."""
        width = self._width(length)
        index = (predictors // width == self.rank).nonzero()[:, 0]
        return index, predictors[index] - self.rank * width

    def together(self, scored: torch.Tensor, index: torch.Tensor, total: int) -> torch.Tensor:
        """[K, N] on every rank from each one's [K, n] at its `index`; columns of `scored` beyond the index are no
        target's."""
        whole: torch.Tensor = _Together.apply(scored, index, total, self.group)
        return whole

    def to_heads(self, x: torch.Tensor, length: int) -> torch.Tensor:
        """[1, H / S, W, D] of [1, H, w, D]: every token of some heads in place of some tokens of every head.

        Fewer heads than ranks (keys and values) are given to several.
        """
        heads = x.shape[1]
        if heads % self.size:
            x = x.repeat_interleave(self.size // heads, 1)
        parts = x[0].unflatten(0, (self.size, -1))  # [S, H / S, w, D]
        met: torch.Tensor = _AllToAll.apply(parts, self.group)
        return met.transpose(0, 1).flatten(1, 2)[None, :, :length]

    def to_tokens(self, x: torch.Tensor) -> torch.Tensor:
        """[1, w, H, D] of [1, W, H / S, D], the way back; zeros where the row was filled up."""
        length = x.shape[1]
        filled = torch.nn.functional.pad(x[0], (0, 0, 0, 0, 0, self.size * self._width(length) - length))
        met: torch.Tensor = _AllToAll.apply(filled.unflatten(0, (self.size, -1)), self.group)  # [S, w, H / S, D]
        return met.transpose(0, 1).flatten(1, 2)[None]

    def _width(self, length: int) -> int:
        return -(-length // self.size)


@dataclass(frozen=True)
class Stretch:
    """What attention is told: the segments of the whole row, and who has its other stretches."""

    segments: Segments
    sequence: SequenceGroup
    length: int
    """W."""


class _AllToAll(torch.autograd.Function):
    """Part s of every rank goes to rank s; its gradient comes back the same way."""

    @staticmethod
    def forward(ctx: Any, parts: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        return _exchange(parts, group)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _exchange(grads[0], ctx.group), None


class _Together(torch.autograd.Function):
    """Every rank's columns at their places; a rank's gradient is that of its own, since all compute one loss."""

    @staticmethod
    def forward(ctx: Any, scored: torch.Tensor, index: torch.Tensor, total: int, group: Any) -> torch.Tensor:
        ctx.index, ctx.shape = index, scored.shape
        whole = scored.new_zeros(scored.shape[0], total)
        whole[:, index] = scored[:, : len(index)]
        dist.all_reduce(whole, group=group)  # zeros elsewhere, so the sum is each one's own to the last digit
        return whole

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        grad = grads[0].new_zeros(ctx.shape)
        grad[:, : len(ctx.index)] = grads[0][:, ctx.index]
        return grad, None, None, None


def _exchange(parts: torch.Tensor, group: Any) -> torch.Tensor:
    met = torch.empty_like(parts, memory_format=torch.contiguous_format)
    dist.all_to_all_single(met, parts.contiguous(), group=group)
    return met
