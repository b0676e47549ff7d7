"""Updates a policy with the project's loss and batch weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from capo_ray.learners.microbatch import to_inputs
from capo_ray.loss import policy_loss, token_logprobs
from capo_ray.packing import token_weights
from capo_ray.types import Group, GroupCredit
from plain_torch.model import Model

MICROBATCH_TOKENS = 2048


@dataclass(frozen=True)
class Row:
    """One response as the learner sees it; `weight` multiplies its loss (how many siblings were the same)."""

    ids: tuple[int, ...]
    start: int
    sampler_logprobs: tuple[float, ...]
    advantages: tuple[float, ...]
    weight: float
    imitation_weights: tuple[float, ...] = ()  # as in `Sample`; empty for none


class Learner:
    """A policy and its optimizer; `tokens` counts what it trained, repeats included."""

    def __init__(self, model: Model, lr: float, num_epochs: int) -> None:
        self.model, self.num_epochs, self.tokens = model.trainable(), num_epochs, 0
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0)

    def update(self, groups: Sequence[Group], credits: Sequence[GroupCredit]) -> float:
        """The mean clipped share of tokens, after `num_epochs` passes over the samples of a batch."""
        rows = merge_equal(groups, credits)
        if not rows:
            return 0.0
        trained = [g for g, c in zip(groups, credits, strict=True) if c.has_signal]
        total = sum(len(m.trajectory.prompt_ids) + m.num_tokens for g in trained for m in g.members)
        clipped = 0.0
        for _ in range(self.num_epochs):
            self._optimizer.zero_grad(set_to_none=True)
            for cell in cut(rows):
                clipped += self._backward(cell)
            move(self._optimizer, self.model)
            self.tokens += total
        return clipped / self.num_epochs

    def _backward(self, cell: Sequence[Row]) -> float:
        logprobs = response_logprobs(self.model, cell)
        weights = torch.cat([torch.full((len(r.advantages),), r.weight) for r in cell])
        sequences = torch.repeat_interleave(torch.arange(len(cell)), torch.tensor([len(r.advantages) for r in cell]))
        imitation = [x for r in cell for x in r.imitation_weights or (0.0,) * len(r.advantages)]
        loss, figures = policy_loss(
            logprobs,
            torch.tensor([x for r in cell for x in r.sampler_logprobs]),
            torch.tensor([x for r in cell for x in r.advantages]),
            weights,
            sequences,
            imitation_weights=torch.tensor(imitation) if any(imitation) else None,
        )
        loss.backward()
        return float(figures.sums["clipped"] / figures.sums["tokens"] * weights.sum())


def merge_equal(groups: Sequence[Group], credits: Sequence[GroupCredit]) -> list[Row]:
    """The responses of the groups with credit, equal ones with equal credit as one row: the same gradient, cheaper."""
    kept = [(g, c) for g, c in zip(groups, credits, strict=True) if c.has_signal]
    members = [m for g, _ in kept for m in g.members]
    each = token_weights([m.num_tokens for m in members], "sequence_mean") if members else []
    merged: dict[tuple[tuple[float, ...], ...], list[float]] = {}
    first: dict[tuple[tuple[float, ...], ...], Row] = {}
    rows = [row for _, credit in kept for row in credit.advantages]
    imitation = [row for g, c in kept for row in c.imitation_weights or ((),) * len(g.members)]
    for member, advantages, imitated, weight in zip(members, rows, imitation, each, strict=True):
        path = member.trajectory
        ids, start = tuple(path.token_ids.tolist()), len(path.prompt_ids)
        row = Row(ids, start, tuple(path.response.logprobs.tolist()), tuple(advantages), 0.0, tuple(imitated))
        key = (ids, row.advantages, row.imitation_weights)
        merged.setdefault(key, []).append(weight)
        first.setdefault(key, row)
    return [replace(row, weight=sum(merged[key])) for key, row in first.items()]


def cut(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows in cells of about `MICROBATCH_TOKENS`, the longest first."""
    ordered = sorted(rows, key=lambda r: -len(r.ids))
    cells: list[list[Row]] = []
    at = 0
    while at < len(ordered):
        size = max(1, MICROBATCH_TOKENS // len(ordered[at].ids))
        cells.append(ordered[at : at + size])
        at += size
    return cells


def response_logprobs(model: Model, rows: Sequence[Row]) -> torch.Tensor:
    """The logprobs [N] of the response tokens of the rows, one row after another."""
    inputs = to_inputs([r.ids for r in rows], [r.start for r in rows], torch.device("cpu"))
    hidden = model.forward(inputs.input_ids).flatten(0, 1).index_select(0, inputs.predictors)
    return token_logprobs(model.logits(hidden), inputs.targets)[0]


def move(optimizer: torch.optim.Optimizer, model: Model) -> None:
    """One optimizer move, the gradient's norm held to 1."""
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
