"""What passes between the pool and its lanes: a pair to check, what became of it, and how long it may take."""

from __future__ import annotations

from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

WALL_FACTOR = 20  # wall seconds for each of a limit in another clock


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one pair: reward 1, 0 or None (invalid); `lasting` where a second check would say the same.

    `value` is what an environment replied (`kind=environment`), whose reward is then 1.
    """

    reward: int | None
    reason: str
    lasting: bool = True
    value: Any = None


@dataclass(slots=True)
class Job:
    """One pair for the children; `future` ends exactly once, with an `Outcome` or `PartLost`."""

    answer: str
    response: str
    future: Future[Outcome] = field(default_factory=Future)
    spent_s: float = 0.0  # wall time in the hands of checkers, from hand-over to the reply or the end of its time

    def end(self, outcome: Outcome) -> None:
        """End the job with its outcome, unless it was lost meanwhile."""
        with suppress(InvalidStateError):
            self.future.set_result(outcome)

    def lose(self, why: Exception) -> None:
        """End the job without an outcome, unless it has ended: a pool that closes and its lane may both try."""
        with suppress(InvalidStateError):
            self.future.set_exception(why)


@dataclass(frozen=True, slots=True)
class Limit:
    """How long a lane lets one pair be checked, each in seconds from its hand-over."""

    wall_s: float  # by the clock: only a machine that stands still is cut off by it
    cpu_s: float = float("inf")  # of the checker's processor time
    own_s: float = float("inf")  # by the clock, less the wait for a free core: what may wait for others has this one

    @classmethod
    def of_function(cls, timeout_s: float) -> Limit:
        """That of code which is not ours: it may wait, for others or for ever, but is not blamed for a busy machine."""
        return cls(WALL_FACTOR * timeout_s, own_s=timeout_s)
