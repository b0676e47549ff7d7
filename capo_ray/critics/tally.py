"""What one judge did, counted where it happens; shares of an update are `flow.judging`'s."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from capo_ray.types import Critique


class Tally:
    """Counters of one judge since its start; figures may be read at any time and by anyone."""

    def __init__(self) -> None:
        self._totals: Counter[str] = Counter()

    def add_group(self, num_responses: int, num_distinct: int) -> None:
        """Count a group and its duplicates."""
        self._totals["groups"] += 1
        self._totals["responses"] += num_responses
        self._totals["duplicates"] += num_responses - num_distinct

    def add_response(self, votes: Sequence[Critique], *, early: bool) -> None:
        """Count the votes on one distinct response."""
        fresh = [c.provenance for c in votes if not c.provenance.cached]
        self._totals["votes"] += len(votes)
        self._totals["invalid"] += sum(not c.valid for c in votes)
        self._totals["failed"] += sum(c.flagged is None and not c.text for c in votes)
        self._totals["cache_hits"] += len(votes) - len(fresh)
        self._totals["early_stopped"] += early
        # One prefill serves all votes of a response.
        self._totals["prompt_tokens"] += max((p.prompt_tokens for p in fresh), default=0)
        self._totals["output_tokens"] += sum(p.output_tokens for p in fresh)

    def figures(self) -> dict[str, float]:
        """Totals by name."""
        return {f"critic/{name}_total": float(count) for name, count in sorted(self._totals.items())}
