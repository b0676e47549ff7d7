"""Samples to one update's batch: the weight of every token in the loss, and who computes what.

    samples --weigh, mask--> weighted samples --longest first, into cells--> grid[microbatch][rank]

The batch loss is sum_t w_t * loss_t over all tokens of the batch, and the weights are fixed here, before anything is
divided: neither the cut into microbatches nor the number of ranks can change the gradient.

Tokens that are too old have weight 0, and what they had goes to all others of the batch alike: the weights of any two
trained tokens stand to each other as without masking, and together they weigh what the whole batch would have. (Were
it shared out inside each response instead, the last tokens of a long one would count for all that it lost.)

Cells are filled without padding, each prompt and what siblings wrote alike once (`shared`), or padded to their longest
sample (`padded`).
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

from capo_ray.arrays import Runs, exact_sum
from capo_ray.packing.padded import padded_grid, padded_tokens
from capo_ray.packing.shared import computed_tokens, families, key_of, shared_grid
from capo_ray.types import Batch, Sample, VersionRun, WeightedSample

__all__ = ["build_batch", "computed_tokens", "families", "key_of", "padded_tokens", "token_weights", "young_tokens"]


def build_batch(
    samples: Sequence[Sample],
    *,
    num_ranks: int,
    microbatch_tokens: int,
    aggregation: str,
    max_response_tokens: int = 0,
    oldest_version: int = 0,
    packing: str = "shared",
) -> Batch:
    """The batch of all samples, each exactly once; every rank has the same number of microbatches (cells may be empty).

    `microbatch_tokens` bounds the tokens that a cell computes; `max_response_tokens` is read by constant_length alone.
    Tokens of versions before `oldest_version` are masked, and a sample of which none is left is not in the batch.
    """
    if num_ranks < 1 or microbatch_tokens < 1:
        raise ValueError(
            f"a batch needs num_ranks >= 1 and microbatch_tokens >= 1 (got {num_ranks} and {microbatch_tokens})"
        )
    for sample in samples:
        _require_aligned(sample)
    lengths = [sample.num_response_tokens for sample in samples]
    weights = token_weights(lengths, aggregation, max_response_tokens)
    weighted = [
        WeightedSample(sample=sample, loss_weights=Runs.constant(weight, length))
        for sample, weight, length in zip(samples, weights, lengths, strict=True)
    ]
    weighted = _mask(weighted, oldest_version)
    # The key breaks ties, so that the grid does not depend on the order in which groups happened to end.
    weighted.sort(key=lambda w: (-len(w.sample.token_ids), str(w.sample.key)))
    into_cells = shared_grid if packing == "shared" else padded_grid
    return Batch(grid=into_cells(weighted, num_ranks, microbatch_tokens))


def young_tokens(versions: Sequence[VersionRun], oldest_version: int) -> Runs:
    """1 for each token [T] sampled under `oldest_version` or a later one, 0 for the others."""
    ends = [run.end for run in versions]
    return Runs.over(
        list(zip([0, *ends[:-1]], ends, strict=True)), [float(r.version >= oldest_version) for r in versions]
    )


def token_weights(lengths: Sequence[int], aggregation: str, max_response_tokens: int = 0) -> list[float]:
    """The loss weight of each token of each of n responses with `lengths` L_i.

    sequence_mean (1/n)(1/L_i): the loss of 2508.02298, which averages over the responses of a group; with groups of
    equal size that is the mean over all samples, and with unequal ones (invalid verdicts) every response still counts
    the same (our choice). token_mean 1/sum L (2503.14476). constant_length 1/(n * max_response_tokens) (2503.20783),
    the only one whose weights do not sum to 1.
    """
    n = len(lengths)
    if n == 0:
        raise ValueError("a batch needs at least one sample (got 0)")
    if aggregation == "sequence_mean":
        return [1.0 / (n * length) for length in lengths]
    if aggregation == "token_mean":
        return [1.0 / sum(lengths)] * n
    if aggregation == "constant_length":
        if max_response_tokens < max(lengths):
            raise ValueError(
                f"aggregation=constant_length divides by max_response_tokens, which must be at least the longest "
                f"response, {max(lengths)} tokens (got {max_response_tokens})"
            )
        return [1.0 / (n * max_response_tokens)] * n
    raise ValueError(f"aggregation must be sequence_mean, token_mean or constant_length (got {aggregation!r})")


def _mask(weighted: list[WeightedSample], oldest_version: int) -> list[WeightedSample]:
    """The samples with a token left, weight 0 on those of versions before `oldest_version`, scaled to the old total."""
    if all(run.version >= oldest_version for w in weighted for run in w.sample.versions):
        return weighted
    masked = [
        WeightedSample(
            w.sample, w.loss_weights.with_each(young_tokens(w.sample.versions, oldest_version), operator.mul)
        )
        for w in weighted
    ]
    before, after = (
        exact_sum(pair for w in ws for pair in w.loss_weights.counts().items()) for ws in (weighted, masked)
    )
    if not after:
        raise ValueError(
            f"a batch needs a token of version {oldest_version} or later, got none in {len(weighted)} samples"
        )
    left = [w for w in masked if w.loss_weights.any()]
    return [WeightedSample(w.sample, w.loss_weights.map(lambda x: x * before / after)) for w in left]


def _require_aligned(sample: Sample) -> None:
    """Raises ValueError unless the sample has a prompt, a response, and one number of each kind per response token."""
    length = sample.num_response_tokens
    for name in ("entropy_weights", "imitation_weights"):
        if len(getattr(sample, name)) not in (0, length):
            raise ValueError(
                f"sample {sample.key} needs one of {name} per response token, or none at all "
                f"(got {len(getattr(sample, name))} for {length} tokens)"
            )
    if length == 0 or len(sample.sampler_logprobs) != length or len(sample.token_ids) <= length:
        raise ValueError(
            f"sample {sample.key} needs a prompt token and one advantage and one sampler logprob per response token "
            f"(got {len(sample.token_ids)} tokens, {length} advantages, {len(sample.sampler_logprobs)} logprobs)"
        )
    if (acted := sum(end - start for start, end in sample.spans)) != length:
        raise ValueError(f"sample {sample.key} needs one advantage per sampled token (got {length} for {acted} tokens)")
