"""How long a run still takes, as a range, from the updates that it has done."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections import deque

WINDOW = 8  # updates over which the pace is measured
SPREADS = 1.3
"""Standard deviations on either side: four of five ends of a run with such updates lie between."""


class Pace:
    """The ends of updates, and the longest wait for an evaluation: another one comes after the last update."""

    def __init__(self) -> None:
        self._ends: deque[tuple[int, float]] = deque(maxlen=WINDOW + 1)
        self._evaluating: float | None = None
        self._evaluation_s = 0.0

    def ended(self, update: int) -> None:
        """An update is done."""
        if not self._ends or update > self._ends[-1][0]:
            self._ends.append((update, time.monotonic()))

    def entered(self, phase: str) -> None:
        """What the run does now."""
        now = time.monotonic()
        if self._evaluating is not None:
            self._evaluation_s = max(self._evaluation_s, now - self._evaluating)
        self._evaluating = now if phase == "evaluation" else None

    def left_s(self, num_updates: int) -> tuple[float, float] | None:
        """The least and most seconds that are likely left; None before there is a pace.

        n updates of seconds with mean m and spread s, known from k of them, take n m, with a spread of
        s sqrt(n + n^2 / k): their own, and that of the mean.
        """
        if len(self._ends) < 2 or not num_updates:
            return None
        ends = list(self._ends)
        each = [(b - a) / (v - u) for (u, a), (v, b) in itertools.pairwise(ends)]
        n, k, last = num_updates - ends[-1][0], len(each), ends[-1][1]
        if n <= 0:
            return 0.0, self._evaluation_s
        spread = SPREADS * (statistics.stdev(each) if k > 1 else each[0] / 2) * math.sqrt(n + n * n / k)
        mean = statistics.fmean(each) * n - (time.monotonic() - last)
        return max(0.0, mean - spread), max(0.0, mean + spread) + self._evaluation_s
