"""A role of a run, as the driver sees it: how its part is made, and what every part can do.

actors.ROLES -> Role.build(Site) -> Part: start, stats, pids, close
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from capo_ray.config import TrainConfig
from capo_ray.demand import ModelUse
from capo_ray.place.face import PoolWorker
from capo_ray.place.placement import Places
from capo_ray.place.pool import WorkerPool


@dataclass(frozen=True, slots=True)
class Site:
    """What the parts of a run are made from. `canary_ids`: what engines and learner score to be compared."""

    config: TrainConfig
    run_dir: Path
    places: Places
    canary_ids: tuple[int, ...] = ()


class Part(Protocol):
    """The actors of one role; made without starting any."""

    async def start(self, on_ready: Callable[[], None] = ...) -> None:
        """Returns once all are ready; `on_ready` is called then and whenever one was replaced."""

    def stats(self) -> dict[str, float]:
        """Their figures, names as in metrics."""

    def pids(self) -> list[int]:
        """Their process ids."""

    def close(self) -> None:
        """End them; called once."""


PartT = TypeVar("PartT", bound=Part)
W = TypeVar("W", bound=PoolWorker)


@dataclass(frozen=True, slots=True)
class Role(Generic[PartT]):
    """`name` is that of its demand, whose being there decides whether a run has this role."""

    name: str
    build: Callable[[Site], PartT]


class Tier(Generic[W]):
    """A part whose actors are a pool of workers; a role's own class adds the door that the flow knows."""

    pool: WorkerPool[W]

    async def start(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """As `Part.start`."""
        await self.pool.start(on_ready)

    def stats(self) -> dict[str, float]:
        """As `WorkerPool.stats`."""
        return self.pool.stats()

    def pids(self) -> list[int]:
        """As `WorkerPool.pids`."""
        return self.pool.pids()

    def close(self) -> None:
        """Kill the workers."""
        self.pool.close()


def path_of(model: ModelUse) -> str:
    """A model's directory, or its name on the hub."""
    from capo_ray.problems import asset_path  # for the driver alone, and actors import this file

    return str(asset_path(model.name, model.shipped))
