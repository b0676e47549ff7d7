"""The learning rate as a pure function of the optimizer's moves, so that resuming needs nothing but their number."""

from __future__ import annotations

import math


def learning_rate(
    move: int, *, peak: float, total_moves: int, warmup_moves: int, schedule: str, min_frac: float
) -> float:
    """The rate of the move with 0-based index `move`.

    Linear from peak/warmup to peak over `warmup_moves`, then constant, or half a cosine down to `min_frac` of the peak
    at the last of `total_moves` (and there beyond it).
    """
    if move < warmup_moves:
        return peak * (move + 1) / warmup_moves
    if schedule == "constant":
        return peak
    span = max(1, total_moves - 1 - warmup_moves)
    progress = min(1.0, (move - warmup_moves) / span)
    return peak * (min_frac + (1.0 - min_frac) * 0.5 * (1.0 + math.cos(math.pi * progress)))
