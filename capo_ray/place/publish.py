"""Both ends of a publish in one hand: what the learner sends, what the engines hold, and who comes late.

publish: learner ranks gather ----bytes----> engines begin on them, and serve on
                       seal ------seal-----> compare, swap, canary; the driver sees versions and fingerprint only
"""

from __future__ import annotations

from capo_ray.place.roles.learner import LearnerActors
from capo_ray.place.roles.rollout import RolloutPool


class HostPublisher:
    """`protocols.Publisher` through host memory: Ray carries the bytes once to each node.

    Its object store keeps the last version, from which late engines are brought to it (`RolloutPool.load_weights`).
    """

    def __init__(self, learner: LearnerActors, engines: RolloutPool) -> None:
        self._learner, self._engines = learner, engines

    async def publish(self) -> int:
        """As `Publisher.publish`."""
        return await self._engines.load_weights(await self._learner.publishable(self._engines.expect_weights))
