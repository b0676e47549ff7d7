"""Who worked for a group, and from when to when: noted where calls are sent, kept by the ledger, drawn by the page.

    the walk of a group: with noting(group=7) as works:    a pool that it asks: with working("rollout", 2):
      -> works: rollout 2 from 3.1 to 4.0, verifier 0 from 4.0 to 4.1, …

Notes follow the context of a task into the tasks that it makes; a call that nobody notes costs two looks at the clock.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Protocol

LEARNER = "learner"
"""The tier whose actors are the learner's ranks."""


@dataclass(frozen=True, slots=True)
class Work:
    """What one actor of a tier did for a group, or else on an errand (`evaluation`, `publish`); seconds since 1970.

    With an engine or a critic it includes what the call waited in that actor's own queue.
    """

    tier: str
    actor: int
    began_s: float
    ended_s: float
    group: int | None = None
    errand: str = ""


class Logbook(Protocol):
    """Where works are kept."""

    def note(self, works: Sequence[Work]) -> None:
        """Keep them, for people to look at: nothing that a run does depends on it."""


class Works(list[Work]):
    """Notes of one group or errand, as calls end."""

    def __init__(self, group: int | None, errand: str) -> None:
        super().__init__()
        self.group, self.errand = group, errand

    def merged(self) -> list[Work]:
        """The notes in order of time; what one actor did at once is one of them."""
        last: dict[tuple[str, int], Work] = {}
        found: list[Work] = []
        for work in sorted(self, key=lambda work: work.began_s):
            place = work.tier, work.actor
            before = last.get(place)
            if before is None or work.began_s > before.ended_s:
                last[place] = work
                found += [before] if before is not None else []
            else:
                last[place] = replace(before, ended_s=max(before.ended_s, work.ended_s))
        return sorted([*found, *last.values()], key=lambda work: work.began_s)


_NOTES: ContextVar[Works | None] = ContextVar("works", default=None)


@contextmanager
def noting(*, group: int | None = None, errand: str = "") -> Iterator[Works]:
    """The notes of what is worked within, also by tasks that are made within."""
    works = Works(group, errand)
    before = _NOTES.set(works)
    try:
        yield works
    finally:
        _NOTES.reset(before)


@contextmanager
def working(tier: str, actors: Iterable[int]) -> Iterator[None]:
    """Those actors of a tier work within, together; noted at the end, whatever that is."""
    began = time.time()
    try:
        yield
    finally:
        if (works := _NOTES.get()) is not None:
            ended = time.time()
            works.extend(Work(tier, actor, began, ended, works.group, works.errand) for actor in actors)
