"""A publish where learner and engine are in one process: the handle goes from hand to hand."""

from __future__ import annotations

from typing import Protocol

from capo_ray.protocols import WeightsHandle


class Sends(Protocol):
    """A learner that gives its weights away whole."""

    async def publishable(self) -> WeightsHandle:
        """The present weights."""


class Takes(Protocol):
    """An engine that takes them."""

    async def load_weights(self, handle: WeightsHandle) -> int:
        """The version now held."""


class Direct:
    """`protocols.Publisher` between one learner and one engine."""

    def __init__(self, learner: Sends, engine: Takes) -> None:
        self._learner, self._engine = learner, engine

    async def publish(self) -> int:
        """As `Publisher.publish`."""
        return await self._engine.load_weights(await self._learner.publishable())
