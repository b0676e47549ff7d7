"""How often the workers of a role may be replaced before the run ends: counts, no clock and no Ray of its own.

Invariants
- A place whose workers break by themselves (not killed from outside) more than `MAX_BROKEN` times in a row, with no
  call answered in between, ends the run with the last one's own words. An answer begins the row anew.
- More than `max_restarts` replacements in `RESTART_WINDOW_S` end it too: something kills them faster than they start.
"""

from __future__ import annotations

from collections import Counter, deque

from capo_ray.place.calls import ActorGone, one_line

RESTART_WINDOW_S = 300.0
MAX_BROKEN = 3
MAX_WAIT_S = 30.0


class Restarts:
    """The replacements of one role; a place is a worker's index."""

    def __init__(self, role: str, max_restarts: int) -> None:
        self.total = 0
        self._role, self._max_restarts = role, max_restarts
        self._recent: deque[float] = deque()
        self._broken: Counter[int] = Counter()

    def lost(self, index: int, cause: BaseException, now: float) -> str:
        """Count one replacement; the sentence that ends the run, or nothing."""
        self.total += 1
        self._recent.append(now)
        while self._recent[0] < now - RESTART_WINDOW_S:
            self._recent.popleft()
        if len(self._recent) > self._max_restarts:
            return (
                f"{self._role} workers died {len(self._recent)} times in {RESTART_WINDOW_S:.0f} s, "
                f"the last with: {one_line(cause)}"
            )
        self._broken[index] += not isinstance(cause, ActorGone)
        if self._broken[index] > MAX_BROKEN:
            return (
                f"{self._role} worker {index} broke {self._broken[index]} times in a row, "
                f"the last with: {one_line(cause)}"
            )
        return ""

    def answered(self, index: int) -> None:
        """A call was answered at this place."""
        self._broken[index] = 0

    def wait_s(self, index: int) -> float:
        """The wait before the next worker starts at this place: 0, then 1, 2, 4 … s as its row of breaks grows."""
        return min(MAX_WAIT_S, 2.0 ** (self._broken[index] - 1)) if self._broken[index] else 0.0
