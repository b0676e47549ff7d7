"""A cell of samples as tensors: rows padded on the right, and flat indices of the positions that predict a response.

B rows, W padded width, N sampled tokens of the cell, one sample after another. What a policy read between its turns is
context, as its prompt: nothing is predicted there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from capo_ray.arrays import IntArray, Runs
from capo_ray.types import Span, WeightedSample


@dataclass(frozen=True)
class Inputs:
    """What a forward pass reads; `predictors` index the flattened [B * W] positions that predict `targets`."""

    input_ids: torch.Tensor  # [B, W]
    predictors: torch.Tensor  # [N]
    targets: torch.Tensor  # [N]


@dataclass(frozen=True)
class Microbatch:
    """A cell ready for the loss; all but `inputs` are [N]. An empty cell is one token of weight 0.

    `entropy_weights` and `imitation_weights` are None where no sample of the cell has any: they then cost nothing.
    """

    inputs: Inputs
    sampler_logprobs: torch.Tensor
    advantages: torch.Tensor
    weights: torch.Tensor
    sequences: torch.Tensor  # number of each token's sample within the cell
    padded_tokens: int
    entropy_weights: torch.Tensor | None = None
    imitation_weights: torch.Tensor | None = None


def to_inputs(token_ids: Sequence[Sequence[int] | IntArray], starts: Sequence[int], device: torch.device) -> Inputs:
    """The inputs that predict tokens [start, end) of each sequence; every start must be at least 1."""
    spans = [((start, len(ids)),) for ids, start in zip(token_ids, starts, strict=True)]
    return span_inputs(token_ids, spans, device)


def span_inputs(
    token_ids: Sequence[Sequence[int] | IntArray], spans: Sequence[Sequence[Span]], device: torch.device
) -> Inputs:
    """The inputs that predict the tokens in the spans of each sequence; none may begin at 0 or be empty."""
    width = max(len(ids) for ids in token_ids)
    rows = np.zeros((len(token_ids), width), np.int64)
    predictors: list[np.ndarray] = []
    for row, (ids, own) in enumerate(zip(token_ids, spans, strict=True)):
        rows[row, : len(ids)] = ids
        for start, end in own:
            if not 1 <= start < end <= len(ids):
                raise ValueError(
                    f"a scored span must start at 1 or later, hold a token and end at {len(ids)} or before (got "
                    f"{start}, {end})"
                )
            predictors.append(np.arange(row * width + start - 1, row * width + end - 1))
    at = np.concatenate(predictors)
    return Inputs(
        input_ids=torch.from_numpy(rows).to(device),
        predictors=torch.from_numpy(at).to(device),
        targets=torch.from_numpy(rows.reshape(-1)[at + 1]).to(device),
    )


def to_microbatch(cell: Sequence[WeightedSample], device: torch.device) -> Microbatch:
    """The tensors of a cell."""
    if not cell:
        zero = torch.zeros(1, device=device)
        return Microbatch(to_inputs([[0, 0]], [1], device), zero, zero, zero, zero.long(), 0)
    samples = [w.sample for w in cell]
    inputs = span_inputs([s.token_ids for s in samples], [s.spans for s in samples], device)

    def flat(rows: Sequence[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(rows)).to(device)

    def spread(rows: Sequence[Runs]) -> torch.Tensor:
        return flat([row.expand(np.float32) for row in rows])

    def optional(rows: Sequence[Runs]) -> torch.Tensor | None:
        if not any(row.any() for row in rows):
            return None
        return spread([row or Runs.constant(0.0, s.num_response_tokens) for row, s in zip(rows, samples, strict=True)])

    lengths = [s.num_response_tokens for s in samples]
    return Microbatch(
        inputs=inputs,
        sampler_logprobs=flat([s.sampler_logprobs for s in samples]),
        advantages=spread([s.advantages for s in samples]),
        weights=spread([w.loss_weights for w in cell]),
        sequences=torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)).to(device),
        padded_tokens=inputs.input_ids.numel(),
        entropy_weights=optional([s.entropy_weights for s in samples]),
        imitation_weights=optional([s.imitation_weights for s in samples]),
    )
