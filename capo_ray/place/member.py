"""One place of a pool, and the actor that fills it until it is replaced."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from ray.actor import ActorHandle

from capo_ray.place.face import PoolWorker

W = TypeVar("W", bound=PoolWorker)


@dataclass(eq=False)
class Member(Generic[W]):
    """An actor of a pool and what is known of it."""

    index: int
    handle: ActorHandle[W] | None = None
    ready: bool = False
    in_flight: int = 0
    num_late: int = 0
    """Calls in a row that passed their deadline."""
    pid: int = 0
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def actor(self) -> ActorHandle[W]:
        """The actor, once it was made."""
        assert self.handle is not None
        return self.handle
