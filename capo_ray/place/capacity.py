"""Whether the cluster has what the actors of a run ask for, and the wait for nodes that join late.

Invariant: nothing is loaded before every role has nodes that could hold it, or one sentence says what is missing.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence

from capo_ray.config import Job
from capo_ray.demand import demand, in_all
from capo_ray.place.placement import ask_of, bundle_of, node_resources
from capo_ray.protocols import RunFailed

POLL_S = 1.0
ASK_EVERY_S = 30.0
"""Ray holds one request for a whole cluster: another run's, or its taking back, takes the place of ours."""
Node = dict[str, float]


def bundles_of(config: Job) -> list[Node]:
    """What each actor that asks for anything asks for, its fence included."""
    asking = [one for one in demand(config) if one.num_cpus or one.num_gpus or one.node_resource]
    return [bundle_of(ask_of(one)) for one in asking for _ in range(one.count)]


def shortage(config: Job, nodes: Sequence[Node]) -> str:
    """What these nodes lack for the run, with what to do about it; empty where nothing."""
    for part in demand(config):
        name = part.section
        fenced = [node for node in nodes if not part.node_resource or part.node_resource in node]
        if not fenced:
            return (
                f"{name}.node_resource={part.node_resource} is announced by no node of the cluster; start nodes with "
                f"`ray start --resources '{{\"{part.node_resource}\": 1}}'` (KubeRay: rayStartParams.resources)"
            )
        for kind, amount in (("CPU", part.num_cpus), ("GPU", part.num_gpus)):
            largest = max(node.get(kind, 0.0) for node in fenced)
            if amount > largest:
                return (
                    f"too few {kind}s on one node: {name} asks for {amount:g} on each, and the largest"
                    f"{f' with {part.node_resource}' if part.node_resource else ''} has {largest:g}; "
                    f"add larger nodes, or lower {name}.num_{kind.lower()}s (see --dry-run)"
                )
    for kind, wanted in zip(("CPU", "GPU"), in_all(config), strict=True):
        have = sum(node.get(kind, 0.0) for node in nodes)
        if wanted > have:
            return (
                f"too few {kind}s: expected a cluster with {wanted:g} for this run's actors, got {have:g} on "
                f"{len(nodes)} node(s); add nodes, or lower num_workers, num_ranks, num_{kind.lower()}s (see --dry-run)"
            )
    return ""


def ask_autoscaler(bundles: Sequence[Node]) -> None:
    """Tell an autoscaler, where there is one, to hold nodes for these bundles in place of those told before.

    By whomever: there is one request for the cluster, and nothing that tells whose it is.
    """
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=list(bundles))


class Muster:
    """The wait, of `cluster.wait_s`, for nodes that join late.

    While something lacks, an autoscaler is told of every bundle, again and again, since there are no actors yet that it
    could see; at the end it is told of none, so that it holds no node for a run that has gone.
    """

    def __init__(
        self,
        config: Job,
        nodes: Callable[[], Sequence[Node]] = node_resources,
        ask: Callable[[Sequence[Node]], None] = ask_autoscaler,
    ) -> None:
        self._config, self._nodes, self._ask = config, nodes, ask
        self.wait_s = config.cluster.wait_s

    async def wait(self, tell: Callable[[str], None]) -> None:
        """Returns once the cluster could hold every actor; RunFailed with what is missing after `wait_s`."""
        began, asked = time.monotonic(), -math.inf
        try:
            while missing := shortage(self._config, self._nodes()):
                now = time.monotonic()
                if now - began >= self.wait_s:
                    hint = f"waited cluster.wait_s={self.wait_s:g}" if self.wait_s else "cluster.wait_s waits for nodes"
                    raise RunFailed(f"{missing} ({hint})")
                if now - asked >= ASK_EVERY_S:
                    asked = now
                    self._ask(bundles_of(self._config))
                tell(f"waiting up to {self.wait_s:.0f} s for nodes: {missing.partition(';')[0]}")
                await asyncio.sleep(min(POLL_S, self.wait_s))
        finally:
            if asked >= began:
                self._ask(())
