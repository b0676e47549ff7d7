"""What the critic tier cost and how far its votes agree, counted where it happens."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

from capo_ray.critics.quality import vote_agreement
from capo_ray.types import Critique

WINDOW = 512
"""Responses over which shares and means are taken."""


@dataclass(frozen=True, slots=True)
class _Seen:
    votes: int
    valid: int
    cached: int
    early: bool
    agreement: float
    seconds: tuple[float, ...]


class Tally:
    """Counters of one judge; figures may be read at any time and by anyone."""

    def __init__(self) -> None:
        self._totals: Counter[str] = Counter()
        self._recent: deque[_Seen] = deque(maxlen=WINDOW)

    def add_group(self, num_responses: int, num_distinct: int) -> None:
        """Count a group and its duplicates."""
        self._totals["groups"] += 1
        self._totals["responses"] += num_responses
        self._totals["duplicates"] += num_responses - num_distinct

    def add_response(self, votes: Sequence[Critique], num_steps: int, *, early: bool) -> None:
        """Count the votes on one distinct response."""
        valid = [c.flagged for c in votes if c.flagged is not None]
        fresh = [c.provenance for c in votes if not c.provenance.cached]
        failed = sum(c.flagged is None and not c.text for c in votes)
        self._totals["votes"] += len(votes)
        self._totals["invalid"] += len(votes) - len(valid)
        self._totals["failed"] += failed
        self._totals["cache_hits"] += len(votes) - len(fresh)
        self._totals["early_stopped"] += early
        # One prefill serves all votes of a response.
        self._totals["prompt_tokens"] += max((p.prompt_tokens for p in fresh), default=0)
        self._totals["output_tokens"] += sum(p.output_tokens for p in fresh)
        self._recent.append(
            _Seen(
                votes=len(votes),
                valid=len(valid),
                cached=len(votes) - len(fresh),
                early=early,
                agreement=vote_agreement(valid, num_steps),
                seconds=tuple(p.seconds for p in fresh if p.seconds),
            )
        )

    def figures(self) -> dict[str, float]:
        """Totals since the start (`…_total`) and, over recent responses, shares (`…_frac`) and means."""
        out = {f"critic/{name}_total": float(count) for name, count in sorted(self._totals.items())}
        seen = list(self._recent)
        votes = sum(s.votes for s in seen)
        if not seen or not votes:
            return out
        seconds = [x for s in seen for x in s.seconds]
        agreements = [s.agreement for s in seen if not math.isnan(s.agreement)]
        out["critic/votes_per_response"] = votes / len(seen)
        out["critic/valid_votes_per_response"] = sum(s.valid for s in seen) / len(seen)
        out["critic/invalid_frac"] = 1 - sum(s.valid for s in seen) / votes
        out["critic/abstained_frac"] = sum(s.valid == 0 for s in seen) / len(seen)
        out["critic/early_stopped_frac"] = sum(s.early for s in seen) / len(seen)
        out["critic/cache_hit_frac"] = sum(s.cached for s in seen) / votes
        if agreements:
            out["critic/agreement"] = sum(agreements) / len(agreements)
        if seconds:
            out["critic/critique_s"] = sum(seconds) / len(seconds)
        return out
