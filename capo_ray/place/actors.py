"""The actors of one run: made together, started side by side, ended together."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from capo_ray.checkpoint import write_state
from capo_ray.config import TrainConfig
from capo_ray.demand import demand
from capo_ray.place.placement import Places, shares_devices
from capo_ray.place.publish import build_publisher
from capo_ray.place.ranks import RankActors
from capo_ray.place.role import Part, Role, Site
from capo_ray.place.roles.critic import CRITIC
from capo_ray.place.roles.learner import LEARNER
from capo_ray.place.roles.reward_model import REWARD_MODEL
from capo_ray.place.roles.rollout import ROLLOUT
from capo_ray.place.roles.verifier import VERIFIER
from capo_ray.runs.layout import WORKERS_FILE

ROLES: tuple[Role[Any], ...] = (ROLLOUT, VERIFIER, CRITIC, LEARNER, REWARD_MODEL)

P = TypeVar("P", bound=Part)


class Actors:
    """The parts of a run, one for each role in its demand; made, and not started."""

    def __init__(self, config: TrainConfig, run_dir: Path, canary_ids: tuple[int, ...]) -> None:
        self._config, self._run_dir, self._places = config, run_dir, Places(config)
        site = Site(config, run_dir, self._places, canary_ids)
        wanted = {one.role for one in demand(config)}
        self._parts: dict[str, Part] = {role.name: role.build(site) for role in ROLES if role.name in wanted}
        self._say: Callable[[str], None] | None = None
        self.publisher = build_publisher(config, self.part(LEARNER), self.part(ROLLOUT))

    def find(self, role: Role[P]) -> P | None:
        """The part of a role; None where the run does without it."""
        return cast("P | None", self._parts.get(role.name))

    def part(self, role: Role[P]) -> P:
        """The part of a role that every run has."""
        return cast(P, self._parts[role.name])

    def groups(self) -> dict[str, RankActors[Any]]:
        """The groups of ranks by role, which is also the name of their folder in a checkpoint."""
        return {name: part for name, part in self._parts.items() if isinstance(part, RankActors)}

    async def start(self, say: Callable[[str], None]) -> None:
        """Start all side by side, the slowest decides; engines that share a GPU start in turn.

        From then on `workers.json` names their processes. `say` is told whom the start waits for.
        """
        await self._places.reserve()
        self._say = say
        self._note()
        engines = [one.role for one in demand(self._config) if one.engine is not None]
        in_turn = engines if shares_devices(self._config) else []
        await asyncio.gather(*(part.start(self._note) for name, part in self._parts.items() if name not in in_turn))
        for name in in_turn:
            # An engine counts what others allocate on its GPU while it measures, so each finds the one before at rest.
            await self._parts[name].start(self._note)
        self._say = None

    def stats(self) -> dict[str, float]:
        """The figures of all parts, names as in metrics."""
        own = {name: value for part in self._parts.values() for name, value in part.stats().items()}
        return own | self.publisher.stats()

    def restarts(self) -> dict[str, float]:
        """How often the workers of each role were replaced."""
        return {name: value for name, value in self.stats().items() if name.endswith("/restarts_total")}

    def close(self) -> None:
        """Kill every actor; called once."""
        for part in self._parts.values():
            part.close()
        self._places.close()

    def _note(self) -> None:
        pids = {name: part.pids() for name, part in self._parts.items()}
        write_state(self._run_dir / WORKERS_FILE, {"driver": os.getpid(), **pids})
        if self._say is not None:
            counts = {one.role: one.count for one in demand(self._config)}
            late = [f"{name} {len(there)}/{counts[name]}" for name, there in pids.items() if len(there) < counts[name]]
            self._say("waiting for " + ", ".join(late) if late else "comparing what engine and learner compute")
