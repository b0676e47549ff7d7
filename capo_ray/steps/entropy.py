"""Entropy-based cuts: a delimiter ends a step only where the policy then has a decision to make.

After the idea of ACPO (arXiv 2510.08899, which cuts responses by entropy); this rule and its constants are our own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from capo_ray.config.steps import EntropySteps
from capo_ray.steps.segmenters import sentences
from capo_ray.steps.spans import SpanError
from capo_ray.types import Completion


def decisions(response: Completion, steps: EntropySteps) -> list[int]:
    """The rule of steps=entropy; without entropies the surprisals of the sampled tokens stand for them."""
    ends = sentences(response, steps)
    # What was read between turns is nobody's decision: 0.
    known = response.over_tokens(response.entropies if len(response.entropies) else -response.logprobs)
    if len(known) != len(response.token_ids):
        raise SpanError(f"expected one entropy for each of the {len(response.token_ids)} tokens, got {len(known)}")
    # Python numbers: they are compared one by one.
    return keep_decisions(ends, known.astype(np.float64).tolist(), steps) if ends else ends


def keep_decisions(ends: Sequence[int], entropies: Sequence[float], cuts: EntropySteps) -> list[int]:
    """Those of the step ends (token indices, T last) whose next piece has a top-entropy token in its first few tokens.

    `entropies` [T] may be surprisals (-logprob of the sampled token): their expectation is the entropy.
    """
    num_tokens = len(entropies)
    ranked = sorted(range(num_tokens), key=lambda t: (-entropies[t], t))
    top = set(ranked[: math.ceil(num_tokens * cuts.top_frac)])
    heights: dict[int, float] = {}
    for end, next_end in pairwise(ends):
        # A decision opens the piece it stands in, not the pieces before it that happen to be near.
        following = [entropies[t] for t in range(end, min(end + cuts.window, next_end)) if t in top]
        if following:
            heights[end] = max(following)
    kept = _join_short(sorted(heights), num_tokens, cuts.min_tokens)
    if len(kept) >= cuts.max_steps:
        kept = sorted(sorted(kept, key=lambda end: (-heights[end], end))[: cuts.max_steps - 1])
    return [*kept, num_tokens]


def _join_short(ends: Sequence[int], num_tokens: int, min_tokens: int) -> list[int]:
    """The ends without those that would end a step of fewer than `min_tokens`, or leave so few after the last."""
    kept = [0]
    for end in ends:
        if end - kept[-1] >= min_tokens:
            kept.append(end)
    if len(kept) > 1 and num_tokens - kept[-1] < min_tokens:
        kept.pop()
    return kept[1:]
