"""The tokens of a batch that clip-cov and KL-cov hold back (2505.22617), chosen alike however the batch was cut.

    sampler logprobs, advantages --means over all ranks--> cov_t --share of the whole batch--> marks per cell

Invariant: a token's mark depends on the batch and on the name of its sample, never on its cell or rank. That is why the
covariance is taken of the sampler's logprobs, which are known before the first pass (our choice; the paper takes the
learner's own as they change), and why draws are seeded by the sample: clip-cov's, and KL-cov's among equal covariances.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch

from capo_ray.config.loss import LossConfig
from capo_ray.learners.backend import Backend
from capo_ray.learners.microbatch import Microbatch
from capo_ray.loss import covariance_band, covariances
from capo_ray.types import WeightedSample


def picked_tokens(
    column: Sequence[Sequence[WeightedSample]],
    cells: Sequence[Microbatch],
    config: LossConfig,
    backend: Backend,
    num_ranks: int,
    copies: int = 1,
) -> list[torch.Tensor | None]:
    """For each cell the tokens [N] (bool) to hold back, None without covariance control; collective.

    `copies`: on how many ranks each cell is.
    """
    if config.covariance == "none":
        return [None] * len(cells)
    counted = [cell.weights != 0 for cell in cells]
    covs, total = _covariances(cells, counted, backend)
    if config.covariance == "kl":
        count = copies * max(1, round(config.picked_frac * total / copies))
        threshold = _threshold(covs, count, backend, num_ranks)
        above, tied = [cov > threshold for cov in covs], [cov == threshold for cov in covs]
        # Many tokens of a sure policy have logprob 0 and one advantage: only so many of them are wanted.
        chance = (count - _size(above, backend)) / max(1.0, _size(tied, backend))
        return [
            mask | (ties & (_draws(cell).to(ties.device) < chance))
            for mask, ties, cell in zip(above, tied, column, strict=True)
        ]
    bands = [covariance_band(cov, config.covariance_low, config.covariance_high) for cov in covs]
    size = _size(bands, backend)
    # The paper draws exactly frac * N of the band; here each token is drawn with the chance that makes it as many.
    chance = min(1.0, config.picked_frac * total / size) if size else 0.0
    return [band & (_draws(cell).to(band.device) < chance) for band, cell in zip(bands, column, strict=True)]


def _size(masks: Sequence[torch.Tensor], backend: Backend) -> float:
    """How many tokens of all ranks are marked."""
    return float(backend.sum_over_ranks(torch.stack([mask.sum() for mask in masks]).sum().double()))


def _covariances(
    cells: Sequence[Microbatch], counted: Sequence[torch.Tensor], backend: Backend
) -> tuple[list[torch.Tensor], float]:
    """cov_t of each cell's tokens (-inf for those of weight 0), and the number of counted tokens of all ranks."""
    sums = torch.zeros(3, dtype=torch.float64, device=backend.device)
    for cell, mask in zip(cells, counted, strict=True):
        kept = mask.double()
        sums += torch.stack([kept.sum(), (cell.sampler_logprobs * kept).sum(), (cell.advantages * kept).sum()])
    total, logprobs, advantages = backend.sum_over_ranks(sums).tolist()
    means = (logprobs / total, advantages / total) if total else (0.0, 0.0)
    return [
        covariances(cell.sampler_logprobs, cell.advantages, *means).masked_fill(~mask, -math.inf)
        for cell, mask in zip(cells, counted, strict=True)
    ], total


def _threshold(covs: Sequence[torch.Tensor], count: int, backend: Backend, num_ranks: int) -> float:
    """The `count`-th largest covariance of all ranks."""
    mine = torch.cat(list(covs)).double()
    best = torch.full((num_ranks, count), -math.inf, dtype=torch.float64, device=backend.device)
    largest = mine.topk(min(count, mine.numel())).values
    best[backend.rank, : largest.numel()] = largest
    # Every row is one rank's and -inf elsewhere, so the maximum is all rows together.
    together = backend.max_over_ranks(best).flatten()
    return float(together.topk(count).values[-1])


def _draws(cell: Sequence[WeightedSample]) -> torch.Tensor:
    """A number in [0, 1) for each token [N], by the sample's key and the token's place alone."""
    if not cell:
        return torch.ones(1)
    rows = []
    for weighted in cell:
        digest = hashlib.sha256(f"clip-cov/{weighted.sample.key}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        rows.append(torch.rand(weighted.sample.num_response_tokens, generator=generator))
    return torch.cat(rows)
