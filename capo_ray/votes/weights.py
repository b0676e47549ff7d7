"""The weight of each step under a vote over the valid critiques."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from capo_ray.config.credit import asks_once
from capo_ray.types import Critique

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
    counted = flagged[:1] if asks_once(vote) else flagged
    counts = count_flags(counted, num_steps)
    if not counted:
        return (0.0,) * num_steps
    weights = [VOTES[vote](c, len(counted)) for c in range(len(counted) + 1)]
    return tuple(weights[c] for c in counts)


def voted_steps(flagged: Sequence[frozenset[int]], num_steps: int, vote: str) -> frozenset[int]:
    """The steps that a vote holds to be wrong: those of a weight of 1/2 and more."""
    return frozenset(step for step, weight in enumerate(step_weights(flagged, num_steps, vote)) if weight >= 0.5)


def majority_word(critiques: Sequence[Critique]) -> bool | None:
    """Whether most overall verdicts of valid critiques hold the answer to be right; None in a tie or without any."""
    balance = sum(1 if c.overall else -1 for c in critiques if c.valid and c.overall is not None)
    return balance > 0 if balance else None


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
