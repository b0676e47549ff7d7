"""Entropy-based cuts: a delimiter ends a step only where the policy then has a decision to make.

After the idea of ACPO (arXiv 2510.08899, which cuts responses by entropy); this rule and its constants are our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

TOP_FRAC = 0.1  # share of the tokens that count as decisions
WINDOW = 8  # tokens of a piece in which its decision must fall
MIN_TOKENS = 4  # shorter steps are joined to the one after
MAX_STEPS = 32


def keep_decisions(ends: Sequence[int], entropies: Sequence[float]) -> list[int]:
    """Those of the step ends (token indices, T last) whose next piece has a top-entropy token in its first few tokens.

    `entropies` [T] may be surprisals (-logprob of the sampled token): their expectation is the entropy.
    """
    num_tokens = len(entropies)
    count = -(-num_tokens * TOP_FRAC // 1)
    ranked = sorted(range(num_tokens), key=lambda t: (-entropies[t], t))
    top = set(ranked[: int(count)])
    heights: dict[int, float] = {}
    for end, next_end in pairwise(ends):
        # A decision opens the piece it stands in, not the pieces before it that happen to be near.
        following = [entropies[t] for t in range(end, min(end + WINDOW, next_end)) if t in top]
        if following:
            heights[end] = max(following)
    kept = _join_short(sorted(heights), num_tokens)
    if len(kept) >= MAX_STEPS:
        kept = sorted(sorted(kept, key=lambda end: (-heights[end], end))[: MAX_STEPS - 1])
    return [*kept, num_tokens]


def _join_short(cuts: Sequence[int], num_tokens: int) -> list[int]:
    """The cuts without those that would end a step of fewer than MIN_TOKENS, or leave so few after the last."""
    kept = [0]
    for cut in cuts:
        if cut - kept[-1] >= MIN_TOKENS:
            kept.append(cut)
    if len(kept) > 1 and num_tokens - kept[-1] < MIN_TOKENS:
        kept.pop()
    return kept[1:]
