"""What keeps a sick endpoint from eating a run: a budget of retries, and a breaker that stops asking.

closed --failures in a row--> open --after a while--> one probe --success--> closed
                               ^-------------------------failure--'
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime

BURST = 10.0
SHARE = 0.2
"""Retries and hedges together: at most BURST, and SHARE of the requests beyond."""
MAX_BACKOFF_S, MAX_ASKED_S = 30.0, 300.0


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

    def failed(self, asked_s: float = 0.0) -> None:
        """A request failed; the server asked to be left alone for `asked_s` (taken up to `MAX_ASKED_S`)."""
        self._streak += 1
        self._probing = False
        if self._streak >= self._limit:
            self.times_opened += 1
            self._until = self._clock() + max(self._open_s, min(MAX_ASKED_S, asked_s))


def backoff_s(attempt: int, first_s: float, asked_s: float | None, rng: random.Random) -> float:
    """Seconds before retry `attempt` (0-based): doubling with jitter up to 30, and what the server asked up to 300."""
    wait = first_s * 2**attempt * (0.5 + rng.random())
    return max(min(MAX_BACKOFF_S, wait), min(MAX_ASKED_S, asked_s or 0.0))


def retry_after_s(header: str, now: float | None = None) -> float | None:
    """The seconds of a `Retry-After` header (a number or an HTTP date); None where it cannot be read."""
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - (time.time() if now is None else now)
        except (ValueError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
