"""Both ends of a publish in one hand: what the learner sends, what the engines hold, and who comes late.

    publish: learner ranks send ----bytes----> engines begin on them, and serve on
                           seal ----seal-----> compare, swap, canary; the driver sees versions and fingerprint only

Invariant: whoever was not sent a version as the others were takes it from host memory, before it serves.
"""

from __future__ import annotations

import logging

from capo_ray.config import TrainConfig
from capo_ray.place.roles.learner import LearnerActors
from capo_ray.place.roles.rollout import RolloutPool
from capo_ray.place.transport import choose_transport
from capo_ray.weights import Backend, Meeting, WireLost

MOST_LOST = 3
"""Failures of a transport in a row after which it is not tried again."""
WAIT_S = 60.0
"""For a bucket to be taken by all, and for a group to come together."""

_log = logging.getLogger(__name__)


class HostPublisher:
    """`protocols.Publisher` through host memory: Ray carries the bytes once to each node.

    Its object store keeps the last version, from which late engines are brought to it (`RolloutPool.load_weights`).
    """

    def __init__(self, learner: LearnerActors, engines: RolloutPool) -> None:
        self._learner, self._engines = learner, engines

    async def publish(self) -> int:
        """As `Publisher.publish`."""
        return await self._engines.load_weights(await self._learner.publishable(self._engines.expect_weights))

    def stats(self) -> dict[str, float]:
        """Nothing that the parts do not tell."""
        return {}


class WirePublisher:
    """`protocols.Publisher` to all engines at once, in a process group that is made anew when their workers change.

    A version that did not reach all of them so goes through host memory. No copy of it is kept: an engine that comes
    late is given the learner's present weights.
    """

    def __init__(self, learner: LearnerActors, engines: RolloutPool, config: TrainConfig, backend: Backend) -> None:
        self._learner, self._engines, self._config, self._backend = learner, engines, config, backend
        self._by_host = HostPublisher(learner, engines)
        self._members: list[int] = []
        self._address = ""
        self._in_a_row = self._fallbacks = 0

    async def publish(self) -> int:
        """As `Publisher.publish`."""
        members = self._engines.pids()
        if members and self._in_a_row < MOST_LOST:
            try:
                handle = await self._learner.publishable(self._engines.expect_weights, await self._meet(members))
                version = await self._engines.load_weights(handle, self._learner.latest)
            except WireLost as error:
                self._lose(error)
            else:
                self._in_a_row = 0
                return version
        return await self._by_host.publish()

    def stats(self) -> dict[str, float]:
        """What the last version took, and how often the transport failed."""
        return {"weights/fallbacks_total": float(self._fallbacks), **self._learner.sent}

    async def _meet(self, members: list[int]) -> Meeting:
        """Where this version is sent: to the group that is there, or to a new one if other workers are ready."""
        if members != self._members or not self._address:
            self._members, self._address = members, await self._learner.meeting_place()
        weights = self._config.weights
        return Meeting(
            address=self._address,
            num_members=1 + len(members) * self._config.engine.tensor_parallel,
            backend=self._backend,
            version=self._learner.version,
            deadline_s=min(weights.deadline_s or WAIT_S, self._config.learner.deadline_s / 4),
            bucket_bytes=weights.bucket_mib << 20,
            delta_frac=weights.delta_frac,
        )

    def _lose(self, error: WireLost) -> None:
        """Tell it, and meet anew next time."""
        self._address = ""
        self._in_a_row += 1
        self._fallbacks += 1
        last = self._in_a_row == MOST_LOST
        _log.warning(
            "weights.transport=%s failed (%s); this version goes through host memory%s",
            self._backend, error, f", and so do all later ones, after {MOST_LOST} failures in a row" if last else "",
        )  # fmt: skip


def build_publisher(config: TrainConfig, learner: LearnerActors, engines: RolloutPool) -> HostPublisher | WirePublisher:
    """The publisher of the transport that the run takes."""
    transport = choose_transport(config)
    if transport.name == "host":
        return HostPublisher(learner, engines)
    return WirePublisher(learner, engines, config, transport.name)
