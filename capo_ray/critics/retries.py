"""What keeps a sick endpoint from eating a run: a budget of retries, and a breaker that stops asking.

closed --failures in a row--> open --after a while--> one probe --success--> closed
                               ^-------------------------failure--'
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

BURST = 10.0
SHARE = 0.2
"""Retries and hedges together: at most BURST, and SHARE of the requests beyond."""


class RetryBudget:
    """Spends what requests earn, so that retries cannot multiply the load on a tier that is down."""

    def __init__(self) -> None:
        self._left = BURST
        self.spent = 0

    def earn(self) -> None:
        """One request was sent."""
        self._left = min(BURST, self._left + SHARE)

    def spend(self) -> bool:
        """Whether one more try may be sent."""
        if self._left < 1:
            return False
        self._left -= 1
        self.spent += 1
        return True


class Breaker:
    """Whether to ask at all; the clock is in seconds."""

    def __init__(self, failures: int, open_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._open_s, self._clock = failures, open_s, clock
        self._streak, self._until, self._probing = 0, 0.0, False
        self.times_opened = 0

    def allows(self) -> bool:
        """Whether a request may be sent now; when half open, one may at a time."""
        if self._streak < self._limit:
            return True
        if self._clock() < self._until or self._probing:
            return False
        self._probing = True
        return True

    def succeeded(self) -> None:
        """A request was answered."""
        self._streak, self._probing = 0, False

    def abandoned(self) -> None:
        """A request was cancelled: it tells nothing, and leaves the place of a probe free."""
        self._probing = False

    def failed(self) -> None:
        """A request failed."""
        self._streak += 1
        self._probing = False
        if self._streak >= self._limit:
            self.times_opened += 1
            self._until = self._clock() + self._open_s


def backoff_s(attempt: int, first_s: float, asked_s: float | None, rng: random.Random) -> float:
    """Seconds before retry `attempt` (0-based): doubling with jitter, at least what the server asked, at most 30."""
    wait = first_s * 2**attempt * (0.5 + rng.random())
    return min(30.0, max(wait, asked_s or 0.0))
