"""When a vote is over before all critiques are in."""

from __future__ import annotations

from collections.abc import Sequence

from capo_ray.config.credit import asks_once
from capo_ray.votes.weights import VOTES, count_flags


def is_decided(
    flagged: Sequence[frozenset[int]], num_remaining: int, num_steps: int, vote: str, quorum: int = 1
) -> bool:
    """Whether no outcome of the remaining votes can change `step_weights` or whether the quorum is met.

    Exact: each remaining vote may flag any set of steps or turn out invalid. `flagged` are the valid ones so far, and
    remaining votes come after them.
    """
    if vote not in VOTES:
        raise ValueError(f"unknown vote {vote!r}; known: {', '.join(sorted(VOTES))}")
    if num_remaining <= 0:
        return True
    n = len(flagged)
    if n < quorum <= n + num_remaining:
        return False
    if num_steps == 0:
        return True
    if n == 0:
        return False
    if asks_once(vote):
        return True
    return not any(_can_change(c, n, num_remaining, vote) for c in set(count_flags(flagged, num_steps)))


def first_wave(
    flagged: Sequence[frozenset[int]], num_remaining: int, num_steps: int, vote: str, quorum: int = 1
) -> int:
    """How many of the remaining votes to ask for first: as many as decide it when none of them flags a step.

    That is the common case (a critic that finds nothing), and the others need all votes anyway: majority 3 of 4 and 5
    of 8, intersection 1, union and average all.
    """
    for count in range(1, num_remaining):
        if is_decided([*flagged, *[frozenset[int]()] * count], num_remaining - count, num_steps, vote, quorum):
            return count
    return num_remaining


def _can_change(c: int, n: int, m: int, vote: str) -> bool:
    """Whether a step flagged by c of n valid critiques (n >= 1) can change its weight with m votes to come."""
    weigh = VOTES[vote]
    return len({weigh(c + flags, n + valid) for valid in range(m + 1) for flags in range(valid + 1)}) > 1
