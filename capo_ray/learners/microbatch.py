"""A cell of samples as tensors: one row of segments or padded rows, and the flat positions that predict a response.

    shared    one row without padding: prompts that siblings share, their responses, then samples that share nothing
    padded    a row a sample, padded on the right to the longest, its prompt computed anew

B rows, W width, N sampled tokens of the cell, one sample after another, whatever their place in the rows. The first
token of a response is predicted at the last of its prompt, where siblings share it as well; siblings that wrote the
same share all of their places. What a policy read between its turns is context, as its prompt: nothing is predicted
there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from capo_ray.arrays import IntArray, Runs
from capo_ray.learners.segments import Segments, Span
from capo_ray.packing import families, key_of
from capo_ray.types import WeightedSample


@dataclass(frozen=True)
class Inputs:
    """What a forward pass reads; `predictors` and `places` index the flattened [B * W] positions.

    Those that predict `targets`, and those where the targets stand themselves. Padded rows have no `segments`.
    """

    input_ids: torch.Tensor  # [B, W]
    predictors: torch.Tensor  # [N]
    targets: torch.Tensor  # [N]
    places: torch.Tensor  # [N]
    segments: Segments | None = None


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
    """Padded rows that predict tokens [start, end) of each sequence; every start must be at least 1."""
    return padded_inputs(
        token_ids, [((start, len(ids)),) for ids, start in zip(token_ids, starts, strict=True)], device
    )


def padded_inputs(
    token_ids: Sequence[Sequence[int] | IntArray], spans: Sequence[Sequence[Span]], device: torch.device
) -> Inputs:
    """The inputs that predict the tokens in the spans of each sequence; none may begin at 0 or be empty."""
    width = max(len(ids) for ids in token_ids)
    rows = np.zeros((len(token_ids), width), np.int64)
    places: list[np.ndarray] = []
    for row, (ids, own) in enumerate(zip(token_ids, spans, strict=True)):
        rows[row, : len(ids)] = ids
        places.append(row * width + _span_indices(ids, own))
    at = np.concatenate(places)
    return _inputs(rows, at - 1, at, None, device)


def shared_inputs(
    token_ids: Sequence[Sequence[int] | IntArray], spans: Sequence[Sequence[Span]], device: torch.device
) -> Inputs:
    """As `padded_inputs`, in one row of segments: equal prompts, up to the first span, and equal siblings are one."""
    starts = [own[0][0] for own in spans]
    groups = families(token_ids, starts)
    pieces: list[Sequence[int] | IntArray] = []
    segments: list[Span] = []

    def add(ids: Sequence[int] | IntArray) -> Span:
        begin = segments[-1][1] if segments else 0
        pieces.append(ids)
        segments.append((begin, begin + len(ids)))
        return segments[-1]

    shared = [members for members in groups if len(members) > 1]
    prompts = [add(token_ids[members[0]][: starts[members[0]]]) for members in shared]
    columns: list[np.ndarray] = [np.empty(0, np.int64)] * len(starts)  # of each token of a sequence, its place
    seen: list[tuple[Span, Span]] = []
    for prompt, members in zip(prompts, shared, strict=True):
        tails: dict[bytes, Span] = {}
        for member in members:
            ids = token_ids[member][starts[member] :]
            key = key_of(ids)
            if key not in tails:
                tails[key] = add(ids)
            columns[member] = np.concatenate([np.arange(*prompt), np.arange(*tails[key])])
        begins, ends = zip(*tails.values(), strict=True)
        seen.append(((begins[0], ends[-1]), prompt))
    for (member,) in (members for members in groups if len(members) == 1):
        columns[member] = np.arange(*add(token_ids[member]))
    targets = [_span_indices(ids, own) for ids, own in zip(token_ids, spans, strict=True)]
    row = np.concatenate([np.asarray(ids, np.int64) for ids in pieces])[None]
    return _inputs(
        row,
        np.concatenate([column[at - 1] for column, at in zip(columns, targets, strict=True)]),
        np.concatenate([column[at] for column, at in zip(columns, targets, strict=True)]),
        Segments.of(segments, seen, device),
        device,
    )


def to_microbatch(cell: Sequence[WeightedSample], device: torch.device, *, shared: bool = False) -> Microbatch:
    """The tensors of a cell, in one row of segments where `shared`."""
    make = shared_inputs if shared else padded_inputs
    if not cell:
        zero = torch.zeros(1, device=device)
        return Microbatch(make([[0, 0]], [((1, 2),)], device), zero, zero, zero, zero.long(), 0)
    samples = [w.sample for w in cell]
    inputs = make([s.token_ids for s in samples], [s.spans for s in samples], device)

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


def _span_indices(ids: Sequence[int] | IntArray, spans: Sequence[Span]) -> np.ndarray:
    """The indices of the tokens in the spans."""
    for start, end in spans:
        if not 1 <= start < end <= len(ids):
            raise ValueError(
                f"a scored span must start at 1 or later, hold a token and end at {len(ids)} or before (got "
                f"{start}, {end})"
            )
    return np.concatenate([np.arange(start, end) for start, end in spans])


def _inputs(
    rows: np.ndarray, predictors: np.ndarray, places: np.ndarray, segments: Segments | None, device: torch.device
) -> Inputs:
    def on_device(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(device)

    targets = rows.reshape(-1)[places]
    return Inputs(on_device(rows), on_device(predictors), on_device(targets), on_device(places), segments)
