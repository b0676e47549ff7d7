"""The weight of each step under a vote over the valid critiques."""

from __future__ import annotations

from collections.abc import Callable, Sequence

# count of critiques that flag the step (c), number of valid critiques (n >= 1) -> how wrong the step is held to be
VOTES: dict[str, Callable[[int, int], float]] = {
    "intersection": lambda c, n: float(c == n),
    "majority": lambda c, n: float(2 * c >= n),
    "union": lambda c, n: float(c >= 1),
    "average": lambda c, n: c / n,
    "greedy": lambda c, n: float(c >= 1),  # of the first critique alone
}


def step_weights(flagged: Sequence[frozenset[int]], num_steps: int, vote: str) -> tuple[float, ...]:
    """How wrong each of the K steps is held to be, 0..1, by the valid critiques (2508.02298, section 3.3).

    All zero without a critique. `greedy` reads the first one only (the paper draws one, at temperature 0).
    """
    if vote not in VOTES:
        raise ValueError(f"unknown vote {vote!r}; known: {', '.join(sorted(VOTES))}")
    counted = flagged[:1] if vote == "greedy" else flagged
    counts = count_flags(counted, num_steps)
    if not counted:
        return (0.0,) * num_steps
    weights = [VOTES[vote](c, len(counted)) for c in range(len(counted) + 1)]
    return tuple(weights[c] for c in counts)


def count_flags(flagged: Sequence[frozenset[int]], num_steps: int) -> list[int]:
    """For each of the K steps, how many critiques flag it; raises `ValueError` on an index outside 0..K-1."""
    counts = [0] * num_steps
    for critique in flagged:
        for step in critique:
            if not 0 <= step < num_steps:
                raise ValueError(
                    f"flagged steps must be in 0..{num_steps - 1}, got {step}; such a critique is invalid and abstains"
                )
            counts[step] += 1
    return counts
