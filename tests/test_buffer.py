"""The slot buffer under random schedules on a simulated clock, and its single promises by hand."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capo_ray.buffer import SlotBuffer, Ticket, TicketMisuse
from capo_ray.protocols import PartTimeout
from tests.clock import simulate
from tests.examples import examples


def depths_of(buffer: SlotBuffer[Any]) -> dict[str, int]:
    """Slots by what they hold, and producers waiting for one."""
    waiting = sum(not future.done() for _, future in buffer._admits)
    held, ready, taken = len(buffer._out), len(buffer._ready), len(buffer._taken)
    return {"producing": held, "ready": ready, "training": taken, "free": buffer._free(), "waiting": waiting}


@dataclass
class World:
    """Producers and a learner with random service times around one buffer; checks the invariants at every touch."""

    seed: int
    batch: int
    max_age: int
    in_order: bool = False
    overlap: bool = False
    engine_version: int = 0
    learner_version: int = 0
    ended: list[int] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    served: dict[int, int] = field(default_factory=dict)  # ticket -> who asked

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.buffer: SlotBuffer[int] = SlotBuffer(self.batch * (self.max_age + 1), self.max_age, self.on_stale)
        self.tail = [0.0, 1.0, 30.0][self.seed % 3]

    def on_stale(self, ticket: Ticket, item: int) -> None:
        assert not self.in_order, f"ticket {ticket.id} is stale although groups finish in order"
        assert item == ticket.id
        self.ended.append(ticket.id)

    def check(self) -> None:
        depths = depths_of(self.buffer)
        assert depths["free"] >= 0
        assert depths["free"] == 0 or depths["waiting"] == 0
        assert len(set(self.ended)) == len(self.ended)
        assert sum(depths[name] for name in ("producing", "ready", "training", "free")) == self.buffer.num_slots
        held = {ticket.id for ticket in [*self.buffer._out, *(entry[0] for entry in self.buffer._ready)]}
        held |= {ticket.id for ticket in self.buffer._taken}
        assert len(held) == self.buffer.num_slots - depths["free"], "a ticket is in one place"
        assert held.isdisjoint(self.ended) and set(self.served) <= held.union(self.ended), "and none is lost"

    async def pause(self) -> None:
        rng = self.random
        await asyncio.sleep(rng.choice((0.0, 1.0, rng.random())) + (self.tail if rng.random() < 0.1 else 0.0))

    async def produce(self, previous: asyncio.Event, done: asyncio.Event, number: int) -> None:
        """One group, or none, after a while."""
        ticket = await self.buffer.admit(self.engine_version)
        self.served[ticket.id] = number
        version = self.engine_version
        self.check()
        await self.pause()
        if self.in_order:
            await previous.wait()
        if self.random.random() < 0.15:
            self.buffer.abandon(ticket)
            self.ended.append(ticket.id)
        else:
            self.buffer.finish(ticket, ticket.id, version)
        done.set()
        self.check()

    async def impatient(self) -> None:
        """Ask for a slot and give up at a random moment."""
        while True:
            task = asyncio.ensure_future(self.buffer.admit(self.engine_version))
            await asyncio.sleep(self.random.random())
            task.cancel()
            if isinstance(result := (await asyncio.gather(task, return_exceptions=True))[0], Ticket):
                self.ended.append(result.id)
                self.buffer.abandon(result)
            await self.pause()

    async def publish(self, version: int, tickets: list[Ticket]) -> None:
        await self.pause()
        self.engine_version = max(self.engine_version, version)
        self.buffer.release(tickets)
        self.ended += [ticket.id for ticket in tickets]
        self.check()

    async def learn(self, num_updates: int) -> None:
        publishing: asyncio.Task[None] | None = None
        for _ in range(num_updates):
            taken = await self.buffer.take(self.batch, self.learner_version, deadline_s=1e3)
            ids = [t.ticket.id for t in taken]
            assert ids == sorted(ids) and len(ids) == self.batch and all(t.item == t.ticket.id for t in taken)
            assert all(t.age == self.learner_version - t.newest_version <= self.max_age for t in taken)
            self.check()
            await self.pause()
            self.learner_version += 1
            if publishing is not None:
                await publishing
            publishing = asyncio.ensure_future(self.publish(self.learner_version, [t.ticket for t in taken]))
            if not self.overlap:
                await publishing

    async def run(self, num_updates: int) -> None:
        previous = asyncio.Event()
        previous.set()
        async with asyncio.TaskGroup() as tasks:  # any failed assertion ends the whole schedule
            learning = tasks.create_task(self.learn(num_updates))
            others = [] if self.in_order else [tasks.create_task(self.impatient())]
            while not learning.done():
                while len(self.asked) - len(self.served) < 6:
                    number, done = len(self.asked), asyncio.Event()
                    self.asked.append(number)
                    others.append(tasks.create_task(self.produce(previous, done, number)))
                    previous = done
                await asyncio.wait([learning], timeout=0.3)
            for task in others:
                task.cancel()
        order = [self.served[ticket] for ticket in sorted(self.served)]
        assert order == self.asked[: len(order)], "slots were not given in the order in which they were asked for"


schedules = settings(max_examples=examples(60))


@schedules
@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(0, 3), st.booleans())
def test_random_schedules_keep_every_invariant_and_every_update_comes(
    seed: int, batch: int, max_age: int, overlap: bool
) -> None:
    simulate(World(seed, batch, max_age, overlap=overlap).run(num_updates=12))


@schedules
@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(0, 3), st.booleans())
def test_groups_that_finish_in_order_are_never_stale(seed: int, batch: int, max_age: int, overlap: bool) -> None:
    simulate(World(seed, batch, max_age, in_order=True, overlap=overlap).run(num_updates=12))


def in_simulation(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        simulate(test())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


async def filled(num_slots: int, max_age: int = 1, **more: Any) -> tuple[SlotBuffer[str], list[Ticket]]:
    buffer: SlotBuffer[str] = SlotBuffer(num_slots, max_age, **more)
    return buffer, [await buffer.admit(0) for _ in range(num_slots)]


@in_simulation
async def test_a_slot_is_free_for_the_next_only_after_release() -> None:
    buffer, (first, second) = await filled(2)
    waiting = asyncio.ensure_future(buffer.admit(1))
    buffer.finish(second, "b", 0)
    buffer.finish(first, "a", 0)
    taken = await buffer.take(2, 1, 1.0)
    assert [(t.item, t.age) for t in taken] == [("a", 1), ("b", 1)]
    await asyncio.sleep(1)
    assert not waiting.done() and depths_of(buffer) == {
        "producing": 0,
        "ready": 0,
        "training": 2,
        "free": 0,
        "waiting": 1,
    }
    buffer.release([first])
    assert (await waiting).id == 2


@in_simulation
async def test_items_too_old_are_handed_over_and_their_slots_freed() -> None:
    stale: list[tuple[int, str]] = []
    buffer, (first, second) = await filled(2, on_stale=lambda ticket, item: stale.append((ticket.id, item)))
    buffer.finish(first, "old", 0)
    buffer.finish(second, "new", 1)
    assert [t.item for t in await buffer.take(1, 2, 1.0)] == ["new"]
    assert stale == [(0, "old")] and depths_of(buffer)["free"] == 1


@in_simulation
async def test_a_ticket_ends_once() -> None:
    buffer, (first, second) = await filled(2)
    buffer.abandon(first)
    for end in (lambda: buffer.abandon(first), lambda: buffer.finish(first, "x", 0), lambda: buffer.release([first])):
        with pytest.raises(TicketMisuse, match=r"ticket 0 is ended"):
            end()
    buffer.finish(second, "x", 0)
    with pytest.raises(TicketMisuse, match=r"ticket 1 is ready"):
        buffer.release([second])
    await buffer.take(1, 0, 1.0)
    with pytest.raises(TicketMisuse, match=r"abandon needs a ticket in production, but ticket 1 is in training"):
        buffer.abandon(second)


@in_simulation
async def test_waiting_for_groups_has_a_deadline_and_loses_nothing() -> None:
    buffer, (first, second) = await filled(2)
    buffer.finish(first, "a", 0)
    with pytest.raises(PartTimeout, match=r"had 1 of 2 finished groups after 5 s \(1 in production"):
        await buffer.take(2, 0, 5.0)
    buffer.finish(second, "b", 0)
    assert [t.item for t in await buffer.take(2, 0, 5.0)] == ["a", "b"]


@in_simulation
async def test_a_batch_larger_than_the_buffer_is_refused_instead_of_waited_for() -> None:
    buffer, _ = await filled(2)
    with pytest.raises(ValueError, match=r"num_slots=2"):
        await buffer.take(3, 0, 5.0)


@in_simulation
async def test_a_slot_granted_to_a_task_cancelled_in_the_same_turn_is_not_lost() -> None:
    buffer, (first, second) = await filled(2)
    waiting = asyncio.ensure_future(buffer.admit(0))
    await asyncio.sleep(0)
    buffer.abandon(first)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert depths_of(buffer)["free"] == 1
    taking = asyncio.ensure_future(buffer.take(1, 0, 60.0))
    await asyncio.sleep(0)
    buffer.finish(second, "b", 0)
    taking.cancel()
    await asyncio.gather(taking, return_exceptions=True)
    assert [t.item for t in await buffer.take(1, 0, 60.0)] == ["b"] and depths_of(buffer)["training"] == 1
