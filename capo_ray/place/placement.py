"""On which node an actor goes: fences by custom resources, and critics beside rollout workers.

node_resource           the role's workers take a grain of it, so they go only where nodes announce it
critic.placement        anywhere: Ray's choice; same_node, colocated: a placement group per rollout worker

same_node   {rollout} {critic} {critic}   on one node      colocated   {rollout + critics}   in one bundle, one GPU
"""

from __future__ import annotations

from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from capo_ray.config import TrainConfig
from capo_ray.config.reward_model import RewardModelConfig
from capo_ray.config.sections import CriticConfig, EngineConfig, LearnerConfig
from capo_ray.place.pool import await_ref
from capo_ray.protocols import PartTimeout, RunFailed

GRAIN = 0.001
"""Of a node's custom resource that one worker takes: a fence, not a count."""


Part = EngineConfig | CriticConfig | LearnerConfig | RewardModelConfig


def ask_of(part: Part) -> dict[str, Any]:
    """The options of an actor of this role: CPUs, GPUs and the fence."""
    resources = {part.node_resource: GRAIN} if part.node_resource else {}
    return {"num_cpus": part.num_cpus, "num_gpus": part.num_gpus, "resources": resources}


class Neighbourhoods:
    """A placement group for each rollout worker and the critics beside it; none with `critic.placement=anywhere`."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self._groups: list[PlacementGroup] = []
        engine, critic = config.engine, config.critic
        if "critiques" not in config.credit.needs or critic.placement == "anywhere":
            return
        for index in range(engine.num_workers):
            num_critics = len(range(index, critic.num_workers, engine.num_workers))
            bundles = [_bundle(ask_of(engine)), *(_bundle(ask_of(critic)) for _ in range(num_critics))]
            if critic.placement == "colocated":
                bundles = [{name: sum(b.get(name, 0.0) for b in bundles) for b in bundles for name in b}]
            self._groups.append(placement_group(bundles, strategy="STRICT_PACK"))

    def rollout(self, index: int) -> dict[str, Any]:
        """The options of a rollout worker."""
        return self._place(ask_of(self.config.engine), index, 0)

    def critic(self, index: int) -> dict[str, Any]:
        """The options of a critic worker; worker i stands beside rollout worker i modulo their number."""
        home, place = index % self.config.engine.num_workers, 1 + index // self.config.engine.num_workers
        colocated = self.config.critic.placement == "colocated"
        return self._place(ask_of(self.config.critic), home, 0 if colocated else place)

    async def reserve(self) -> None:
        """Returns once the cluster holds a place for every group; RunFailed where it does not in time."""
        deadline_s = self.config.engine.start_deadline_s
        for index, group in enumerate(self._groups):
            try:
                await await_ref(group.ready(), deadline_s, f"the place of rollout worker {index} and its critics")
            except PartTimeout as error:
                raise RunFailed(
                    f"critic.placement={self.config.critic.placement} needs {group.bundle_specs} on one node, and no "
                    f"node had that free within {deadline_s:.0f} s; add nodes, or choose critic.placement=anywhere"
                ) from error

    def close(self) -> None:
        """Give the places back."""
        for group in self._groups:
            remove_placement_group(group)

    def _place(self, options: dict[str, Any], group: int, bundle: int) -> dict[str, Any]:
        if not self._groups:
            return options
        return options | {
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                self._groups[group], placement_group_bundle_index=bundle
            )
        }


def check_fences(config: TrainConfig) -> None:
    """Every `node_resource` is announced by some node of the joined cluster; RunFailed otherwise."""
    parts: dict[str, Part] = {"engine": config.engine, "learner": config.learner}
    if "critiques" in config.credit.needs:
        parts["critic"] = config.critic
    if "token_rewards" in config.credit.needs:
        parts["reward_model"] = config.reward_model
    have = ray.cluster_resources()
    for name, part in parts.items():
        if part.node_resource and part.node_resource not in have:
            raise RunFailed(
                f"{name}.node_resource={part.node_resource} is announced by no node of the cluster; start nodes with "
                f"`ray start --resources '{{\"{part.node_resource}\": 1}}'` (KubeRay: rayStartParams.resources)"
            )


def _bundle(options: dict[str, Any]) -> dict[str, float]:
    named = {"CPU": options["num_cpus"], "GPU": options["num_gpus"], **options["resources"]}
    return {name: float(amount) for name, amount in named.items() if amount} or {"CPU": GRAIN}
