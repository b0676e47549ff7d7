"""A microbatch under training, and what it tells of single samples."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

import torch

from capo_ray.learners.microbatch import Microbatch
from capo_ray.types import TrajectoryKey, Watched

MAX_TOKEN_LOSS = 1e18  # beyond it the square of a gradient leaves fp32: one stage would skip, another clip to it alone


@dataclass(frozen=True)
class Cell:
    """A microbatch with what is known of its tokens before the first pass; tensors are [N] or None."""

    keys: tuple[TrajectoryKey, ...]
    tokens: Microbatch
    reference: torch.Tensor | None
    picked: torch.Tensor | None
    kl_coef: float


def spoilers(cells: Sequence[Cell], losses: Sequence[torch.Tensor]) -> tuple[TrajectoryKey, ...]:
    """The samples with a token whose loss [N] is not finite, or too large for a finite gradient."""
    keys: list[TrajectoryKey] = []
    for cell, loss in zip(cells, losses, strict=True):
        bad = cell.tokens.sequences[~(loss.abs() <= MAX_TOKEN_LOSS)]
        keys += [cell.keys[i] for i in bad.unique().tolist() if cell.keys]
    return tuple(keys)


def figures_of(
    watched: Set[TrajectoryKey], cells: Sequence[Cell], starts: Sequence[tuple[torch.Tensor, torch.Tensor]]
) -> Watched:
    """As `UpdateReport.watched`, from the first pass's logprobs and entropies [N] of each cell."""
    names = ("policy_logprobs", "policy_entropies")
    return {
        key: {name: row[cell.tokens.sequences == i].cpu().numpy() for name, row in zip(names, start, strict=True)}
        for cell, start in zip(cells, starts, strict=True)
        for i, key in enumerate(cell.keys)
        if key in watched
    }
