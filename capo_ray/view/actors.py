"""Who worked for whom, and who waited: a lane for each actor, made of the works that the ledger keeps.

An actor waits between two works. What ended its wait is the group that it then takes up: the actor that had that group
last is the one that was waited for. Of a batch that a learner takes up at once it is the group that came last.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import islice, takewhile
from typing import Any

from capo_ray.ledger.lives import Lives
from capo_ray.work import LEARNER, Work

TIERS = ("rollout", "verifier", "critic", "reward model", LEARNER)
"""In the order of a group's way."""
SHORTEST_S = 0.002
"""A pause that is told as a wait."""

Lane = dict[str, Any]


def lanes_of(lives: Lives) -> list[Lane]:
    """By tier and actor: `works` [began, ended, group, errand], `waits` [began, ended, for whom, group], `idle_s`."""
    by_actor: dict[tuple[str, int], list[Work]] = defaultdict(list)
    by_group: dict[int, list[Work]] = defaultdict(list)
    for work in lives.works:
        by_actor[work.tier, work.actor].append(work)
        if work.group is not None:
            by_group[work.group].append(work)
    order = sorted(by_actor, key=lambda place: (TIERS.index(place[0]) if place[0] in TIERS else len(TIERS), place))
    return [_lane(tier, actor, by_actor[tier, actor], by_group) for tier, actor in order]


def _lane(tier: str, actor: int, own: Sequence[Work], by_group: dict[int, list[Work]]) -> Lane:
    waits: list[list[Any]] = []
    until = own[0].began_s
    for place, work in enumerate(own):
        if work.began_s - until > SHORTEST_S:
            latest = work.began_s + SHORTEST_S
            taken_up = list(takewhile(lambda one: one.began_s <= latest, islice(own, place, None)))  # noqa: B023
            waits.append([until, work.began_s, *_waited_for(taken_up, by_group)])
        until = max(until, work.ended_s)
    works = [[work.began_s, work.ended_s, work.group, work.errand] for work in own]
    return {"tier": tier, "actor": actor, "works": works, "waits": waits, "idle_s": sum(w[1] - w[0] for w in waits)}


def _waited_for(taken_up: Sequence[Work], by_group: dict[int, list[Work]]) -> tuple[str, int | None]:
    """Who had the group that ended a wait, and the group: of several the one that came last."""
    began = taken_up[0].began_s + SHORTEST_S
    before = [
        one for work in taken_up if work.group is not None for one in by_group[work.group] if one.ended_s <= began
    ]
    if before:
        last = max(before, key=lambda work: work.ended_s)
        return f"{last.tier} {last.actor}", last.group
    first = taken_up[0]
    return ("a new group" if first.group is not None else first.errand), first.group
