"""Who waited for whom: the share of each tier's time in which it had nothing to do, from row to row."""

from __future__ import annotations

from collections.abc import Mapping

TIERS = {
    "rollout/idle_frac": ("rollout/busy_s_total", "rollout/up_s_total"),
    "critic/idle_frac": ("critic/engine_busy_s_total", "critic/engine_up_s_total"),
    "verifier/idle_frac": ("verifier/busy_s_total", "verifier/up_s_total"),
}
"""Of each tier the seconds that it worked and those that it was there, both as of the same pings of its workers."""
LEARNER = ("time/wait_for_batch_s", "time/update_s", "time/publish_s")


class Idle:
    """What the counters were when they last told something new."""

    def __init__(self) -> None:
        self._before: dict[str, tuple[float, float]] = {}

    def figures(self, row: Mapping[str, float]) -> dict[str, float]:
        """The shares since the row before; of a tier that told nothing since, or whose worker was replaced, none."""
        waited, whole = row[LEARNER[0]], sum(row[name] for name in LEARNER)
        found = {"learner/idle_frac": waited / whole} if whole else {}
        for share, names in TIERS.items():
            if not all(name in row for name in names):
                continue
            busy, there = (row[name] for name in names)
            busy_before, there_before = self._before.get(share, (0.0, 0.0))
            if there != there_before:
                self._before[share] = busy, there
            if there > there_before and busy >= busy_before:
                found[share] = min(1.0, max(0.0, 1 - (busy - busy_before) / (there - there_before)))
        return found
