"""A fixed number of slots that groups pass through; whoever wants to start a group waits for one.

    admit -> [held by a producer] -> finish -> [ready] -> take -> [taken] -> release   (slot free)
                       \\-> abandon (slot free)    \\-> too old: on_stale (slot free)

Invariants, at every moment:
    1. a ticket ends exactly once: released, abandoned or stale; any other call on it raises `TicketMisuse`;
    2. held + ready + taken <= num_slots;
    3. an item given out by `take` has a token young enough: age = version - newest_version <= max_age;
    4. no deadlock: whenever a slot is free, nobody waits in `admit`; whenever enough fresh items are ready, nobody
       waits in `take`;
    5. no starvation: `admit` and `take` are served first come first served, and ready items oldest ticket first.

Why no item is lost to its length, for batches of B and num_slots <= B * (max_age + 1), tickets released only once
engines hold the update. Let an item be finished while engines hold version e and j batches are taken but not released
(in training, or being published). Those j batches make versions e + 1 .. e + j, so the next batch is taken at version
e + j. At most num_slots - 1 - j * B untaken tickets are ahead, and later ones get in line behind. Taken B at a time,
the item is in the (max_age + 1 - j)-th next batch at the latest, taken at version e + j + (max_age - j) = e + max_age:
its newest token, sampled at version e, is young enough however long the item took. Its older tokens may be too old;
whoever trains gives those no weight. Stale are only items that were finished long after their newest token (a slow
critic), and the argument does not ask how long they are.
"""

from __future__ import annotations

import asyncio
from bisect import insort
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from capo_ray.protocols import PartTimeout

T = TypeVar("T")


class TicketMisuse(RuntimeError):
    """A ticket was ended twice, or moved out of turn."""


@dataclass(frozen=True, slots=True, order=True)
class Ticket:
    """The right to one slot; `id` counts admissions, `version` is what the producer saw when it asked."""

    id: int
    version: int


@dataclass(frozen=True, slots=True)
class Taken(Generic[T]):
    """A finished item; `newest_version` is that of its newest token, `age` is the age of that when taken."""

    ticket: Ticket
    item: T
    newest_version: int
    age: int


@dataclass(slots=True)
class _Taker(Generic[T]):
    n: int
    version: int
    future: asyncio.Future[list[Taken[T]]]


class SlotBuffer(Generic[T]):
    """Slots between producers and one learner in one event loop; `on_stale` is told of each item too old as a whole."""

    def __init__(self, num_slots: int, max_age: int, on_stale: Callable[[Ticket, T], None] | None = None) -> None:
        if num_slots < 1 or max_age < 0:
            raise ValueError(f"expected num_slots >= 1 and max_age >= 0, got {num_slots} and {max_age}")
        self.num_slots = num_slots
        self.max_age = max_age
        self._on_stale = on_stale
        self._next_id = 0
        self._out: set[Ticket] = set()
        self._ready: list[tuple[Ticket, T, int]] = []  # by ticket
        self._taken: set[Ticket] = set()
        self._admits: deque[tuple[int, asyncio.Future[Ticket]]] = deque()
        self._takers: deque[_Taker[T]] = deque()

    async def admit(self, version: int) -> Ticket:
        """A ticket, once a slot is free and all who asked before have theirs."""
        if self._free() > 0:
            return self._new_ticket(version)
        future: asyncio.Future[Ticket] = asyncio.get_running_loop().create_future()
        self._admits.append((version, future))
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.abandon(future.result())  # the slot came in the same turn as the cancellation
            raise

    def finish(self, ticket: Ticket, item: T, newest_version: int) -> None:
        """Hand in the ticket's item, whose newest token was sampled at `newest_version`."""
        self._end(self._out, ticket, "finish")
        insort(self._ready, (ticket, item, newest_version), key=lambda entry: entry[0].id)
        self._serve()

    def abandon(self, ticket: Ticket) -> None:
        """Give the slot back without an item."""
        self._end(self._out, ticket, "abandon")
        self._grant()

    async def take(self, n: int, version: int, deadline_s: float) -> list[Taken[T]]:
        """The `n` oldest finished items fit for a learner at `version`; `PartTimeout` after `deadline_s` seconds.

        Their slots stay occupied until `release`. After a time-out nothing is lost: ready items stay ready.
        """
        if not 1 <= n <= self.num_slots:
            raise ValueError(f"take(n) needs 1 <= n <= num_slots={self.num_slots}, else it could never end (got {n})")
        future: asyncio.Future[list[Taken[T]]] = asyncio.get_running_loop().create_future()
        self._takers.append(_Taker(n, version, future))
        self._serve()
        try:
            async with asyncio.timeout(deadline_s):
                return await future
        except (asyncio.CancelledError, TimeoutError) as error:
            if future.done() and not future.cancelled():
                self._put_back(future.result())  # served in the same turn as the cancellation or deadline
            if isinstance(error, asyncio.CancelledError):
                raise
            raise PartTimeout(
                f"the buffer had {len(self._ready)} of {n} finished groups after {deadline_s:g} s "
                f"({len(self._out)} in production, {len(self._taken)} in training, {self._free()} slots free)"
            ) from None

    def release(self, tickets: Sequence[Ticket]) -> None:
        """Free the slots of taken tickets; to be called once engines hold the update that was made of them."""
        for ticket in tickets:
            self._end(self._taken, ticket, "release")
        self._grant()

    @property
    def num_finished(self) -> int:
        """Finished items that wait to be taken."""
        return len(self._ready)

    def _free(self) -> int:
        return self.num_slots - len(self._out) - len(self._ready) - len(self._taken)

    def _new_ticket(self, version: int) -> Ticket:
        ticket = Ticket(self._next_id, version)
        self._next_id += 1
        self._out.add(ticket)
        return ticket

    def _grant(self) -> None:
        """Give free slots to those who wait, in the order in which they asked."""
        while self._admits and self._free() > 0:
            version, future = self._admits.popleft()
            if not future.done():
                future.set_result(self._new_ticket(version))

    def _serve(self) -> None:
        """Give ready items to those who wait for them, in the order in which they asked."""
        while self._takers:
            taker = self._takers[0]
            if taker.future.done():
                self._takers.popleft()
                continue
            self._drop_stale(taker.version)
            if len(self._ready) < taker.n:
                return
            self._takers.popleft()
            first, self._ready = self._ready[: taker.n], self._ready[taker.n :]
            self._taken.update(ticket for ticket, _, _ in first)
            taker.future.set_result([Taken(t, item, newest, taker.version - newest) for t, item, newest in first])

    def _drop_stale(self, version: int) -> None:
        stale = [entry for entry in self._ready if version - entry[2] > self.max_age]
        if not stale:
            return
        self._ready = [entry for entry in self._ready if version - entry[2] <= self.max_age]
        self._grant()
        if self._on_stale is not None:
            for ticket, item, _ in stale:
                self._on_stale(ticket, item)

    def _put_back(self, items: Sequence[Taken[T]]) -> None:
        """Undo a `take` whose caller was cancelled in the turn in which it was served."""
        for taken in items:
            self._taken.remove(taken.ticket)
            insort(self._ready, (taken.ticket, taken.item, taken.newest_version), key=lambda entry: entry[0].id)
        self._serve()

    def _end(self, where: set[Ticket], ticket: Ticket, verb: str) -> None:
        if ticket not in where:
            place = "in production" if where is self._out else "in training"
            raise TicketMisuse(f"{verb} needs a ticket {place}, but ticket {ticket.id} is {self._whereabouts(ticket)}")
        where.remove(ticket)

    def _whereabouts(self, ticket: Ticket) -> str:
        if ticket in self._out:
            return "in production"
        if ticket in self._taken:
            return "in training"
        return "ready" if any(entry[0] == ticket for entry in self._ready) else "ended (a ticket ends once)"
