"""On which node an actor goes: fences by custom resources, and placement groups, reserved before anything is loaded.

node_resource           the role's workers take a grain of it, so they go only where nodes announce it
critic.placement        anywhere: Ray's choice; same_node, colocated: a placement group per rollout worker

same_node   {rollout} {critic} {critic}   on one node      colocated   {rollout + critics}   in one bundle, one GPU

Reserved in this order, the largest first, so that one-GPU actors do not strand those that need a node's many:
neighbourhoods and engines over several GPUs, then the ranks of a group (one node where one has room, else as few as
can be). What needs one GPU or none takes what is left, by Ray's own choice.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from capo_ray.config import Job, TrainConfig
from capo_ray.demand import Demand, demand, neighbourhoods, without_neighbours
from capo_ray.protocols import RunFailed

GRAIN = 0.001
"""Of a node's custom resource that one worker takes: a fence, not a count."""
ONE_NODE_S = 10.0
"""How long ranks wait for room on a single node that is large enough, before they take several."""
POLL_S = 0.1
FITS_NOWHERE_S = 15.0
"""For no living node to be large enough, or within the fence: one that has just died may have been counted before."""

Bundle = dict[str, float]


def ask_of(part: Demand) -> dict[str, Any]:
    """The options of an actor of this role: CPUs, GPUs and the fence. One without GPUs sees none."""
    resources = {part.node_resource: GRAIN} if part.node_resource else {}
    options: dict[str, Any] = {"num_cpus": part.num_cpus, "num_gpus": part.num_gpus, "resources": resources}
    if part.num_gpus == 0:
        # Ray leaves the variable alone for actors without GPUs, and engines and ranks would all take the first one.
        options["runtime_env"] = {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
    return options


@dataclass(frozen=True, slots=True)
class _Home:
    """Bundles that belong together, and who lives in them: (role, index) by bundle."""

    bundles: list[Bundle]
    members: dict[tuple[str, int], int]
    what: str
    """For the sentence that says what was not free."""


class Places:
    """The placement groups of a run; none where Ray's own choice is good enough."""

    def __init__(self, config: Job) -> None:
        self.config = config
        self._groups: list[PlacementGroup] = []
        self._seats: dict[tuple[str, int], tuple[PlacementGroup, int]] = {}

    def of(self, role: str, index: int) -> dict[str, Any]:
        """The options of a role's actor number `index`."""
        (part,) = (one for one in demand(self.config) if one.role == role)
        if (role, index) not in self._seats:
            return ask_of(part)
        group, bundle = self._seats[role, index]
        strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)
        return ask_of(part) | {"scheduling_strategy": strategy}

    async def reserve(self) -> None:
        """Returns once the cluster holds a place for every group; RunFailed where it does not in time."""
        loads = self.config.engine if isinstance(self.config, TrainConfig) else self.config.cluster
        ends = time.monotonic() + loads.start_deadline_s
        for home in _engine_homes(self.config):
            await self._take(home, "STRICT_PACK", ends)
        for home in _rank_homes(self.config):
            whole = {name: sum(b.get(name, 0.0) for b in home.bundles) for b in home.bundles for name in b}
            if any(fits(whole, node) for node in node_resources()):
                try:
                    await self._take(home, "STRICT_PACK", min(ends, time.monotonic() + ONE_NODE_S))
                    continue
                except RunFailed:
                    remove_placement_group(self._groups.pop())
            await self._take(home, "PACK", ends)

    def close(self) -> None:
        """Give the places back."""
        for group in self._groups:
            remove_placement_group(group)

    async def _take(self, home: _Home, strategy: str, ends: float) -> None:
        began = fitted = time.monotonic()
        group = placement_group(home.bundles, strategy=strategy)
        self._groups.append(group)
        while placement_group_table(group)["state"] != "CREATED":
            now, nodes = time.monotonic(), node_resources()
            if all(any(fits(bundle, node) for node in nodes) for bundle in home.bundles):
                fitted = now
            if now > min(ends, fitted + FITS_NOWHERE_S + self.config.cluster.wait_s):
                raise RunFailed(
                    f"expected room for {home.what}, which asks for {home.bundles}"
                    f"{' on one node' if strategy == 'STRICT_PACK' else ''}, and got none within "
                    f"{now - began:.0f} s; add nodes, or lower what is asked for (see --dry-run)"
                )
            await asyncio.sleep(POLL_S)
        self._seats |= {member: (group, bundle) for member, bundle in home.members.items()}


def shares_devices(config: Job) -> bool:
    """Whether two engines may stand on one GPU: then one profiles its memory only when the other is at rest."""
    return any(0 < one.num_gpus < 1 for one in demand(config) if not one.is_group)


def node_resources() -> list[dict[str, float]]:
    """What every living node of the joined cluster has in all."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def fits(bundle: Bundle, have: Bundle) -> bool:
    """Whether what there is, of a node, is as much as a bundle asks for."""
    return all(have.get(name, 0.0) >= amount for name, amount in bundle.items())


def _engine_homes(config: Job) -> list[_Home]:
    """The neighbourhoods, and each engine over several GPUs, the largest first."""
    homes, placement = [], config.critic.placement if isinstance(config, TrainConfig) else "anywhere"
    for near in neighbourhoods(config):
        bundles = [bundle_of(ask_of(one)) for one, _ in near]
        if placement == "colocated":
            bundles = [{name: sum(b.get(name, 0.0) for b in bundles) for b in bundles for name in b}]
        members = {(one.role, index): min(at, len(bundles) - 1) for at, (one, index) in enumerate(near)}
        what = f"rollout worker {near[0][1]} and its critics (critic.placement={placement})"
        homes.append(_Home(bundles, members, what))
    for one in without_neighbours(config):
        if one.num_gpus > 1 and not one.is_group:
            homes += [
                _Home([bundle_of(ask_of(one))], {(one.role, i): 0}, f"{one.role} worker {i}") for i in range(one.count)
            ]
    return sorted(homes, key=lambda home: -sum(bundle.get("GPU", 0.0) for bundle in home.bundles))


def _rank_homes(config: Job) -> list[_Home]:
    """The ranks of each group, where there are several."""
    return [
        _Home(
            [bundle_of(ask_of(one)) for _ in range(one.count)],
            {(one.role, rank): rank for rank in range(one.count)},
            f"the {one.count} ranks of {one.role}",
        )
        for one in demand(config)
        if one.is_group and one.count > 1
    ]


def bundle_of(options: dict[str, Any]) -> Bundle:
    """What an actor with these options takes; never nothing, which is no bundle."""
    named = {"CPU": options["num_cpus"], "GPU": options["num_gpus"], **options["resources"]}
    return {name: float(amount) for name, amount in named.items() if amount} or {"CPU": GRAIN}
