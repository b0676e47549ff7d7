"""Whether an actor finds room: Ray lets one that fits nowhere wait for ever, without a word.

Judged by what living nodes have in all, and by what is free on them. What an actor was given counts as taken while its
process starts, which takes a minute on a busy machine: so whether room is free is asked before the actor is made, and
where some was, only a cluster that is too small ends the wait. A node that has just died may still be counted then.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray import ObjectRef
from ray._private.state import available_resources_per_node

from capo_ray.config import Job
from capo_ray.demand import find
from capo_ray.place.placement import FITS_NOWHERE_S, Bundle, ask_of, bundle_of, fits, node_resources
from capo_ray.protocols import RunFailed

POLL_S = 1.0
FREE_S = 5.0
"""For what a lost actor held to be given back."""
TAKEN_S = 50.0
"""For the room on those that are to be taken by others."""
GROUP = "_group_"
TAKEN = "others have taken what there is"


class NoRoom(RunFailed):
    """The run cannot go on: nobody is left of a role, and nowhere to put another."""


@dataclass(frozen=True, slots=True)
class Room:
    """What one worker of a role asks for, and how long it may wait where a node could still join."""

    ask: Bundle
    wait_s: float
    """`cluster.wait_s`."""

    async def free(self) -> bool:
        """Whether some node has room now or within `FREE_S`: an actor that is made then gets it."""
        ends = time.monotonic() + FREE_S
        while await asyncio.to_thread(self._lack, False):
            if time.monotonic() > ends:
                return False
            await asyncio.sleep(POLL_S / 4)
        return True

    async def found(self, there: ObjectRef[Any], alone: Callable[[], bool], given: bool = False) -> None:
        """Returns once the actor that answers `there` has its process, however it ends.

        Raises `NoRoom` where there was no room all the while that it was `alone`: with no worker of its role ready.
        `given`: room was free when it was made, so that what is taken may be its own.
        """
        answer = asyncio.wrap_future(there.future())
        lacking_since = time.monotonic()
        while not (await asyncio.wait({answer}, timeout=POLL_S))[0]:
            lack = await asyncio.to_thread(self._lack, given) if alone() else ""
            limit_s = TAKEN_S if lack == TAKEN else FITS_NOWHERE_S
            if not lack:
                lacking_since = time.monotonic()
            elif (waited_s := time.monotonic() - lacking_since) > limit_s + self.wait_s:
                answer.cancel()
                raise NoRoom(
                    f"no node has had room for {waited_s:.0f} s for a worker that asks for {self.ask} ({lack}); add "
                    f"nodes, or let cluster.wait_s wait for some, and go on with resume="
                )
        answer.exception()  # seen; whoever waits for the actor's first call is told

    def _lack(self, given: bool) -> str:
        """What is missing now; nothing where some node has room, or has as much in all and it is `given`."""
        if not any(map(self._fits, node_resources())):
            return "no living node has as much"
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        free = [have for node, have in available_resources_per_node().items() if node in alive]
        return "" if given or any(map(self._fits, free)) or any(map(self._seats, free)) else TAKEN

    def _seats(self, have: Bundle) -> bool:
        """Whether a place that was reserved is empty here: Ray counts it under names of its own, CPU_group_0_1a2b…"""
        places = {name.partition(GROUP)[2] for name in have if GROUP in name}
        return any(all(have.get(f"{n}{GROUP}{at}", 0.0) >= amount for n, amount in self.ask.items()) for at in places)

    def _fits(self, have: Bundle) -> bool:
        return fits(self.ask, have)


def room_of(config: Job, role: str) -> Room:
    """Room for one worker of a role that the run has."""
    part = find(config, role)
    assert part is not None, role
    return Room(bundle_of(ask_of(part)), config.cluster.wait_s)
