"""The actors of one run: made together, started side by side, ended together."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

from capo_ray.checkpoint import write_state
from capo_ray.config import TrainConfig
from capo_ray.config.credit import Critiques, TokenRewards
from capo_ray.place import build
from capo_ray.place.agreement import agree_at_start
from capo_ray.place.learner import LearnerActors
from capo_ray.place.placement import Places, shares_devices
from capo_ray.place.reward_model import RewardModelActors
from capo_ray.place.tiers import CriticPool, RolloutPool, VerifierTier
from capo_ray.runs.layout import WORKERS_FILE


@dataclass(frozen=True, slots=True)
class Actors:
    """All tiers of a run; `critic` and `reward_model` are None where the credit rule does not read them."""

    rollout: RolloutPool
    verifier: VerifierTier
    critic: CriticPool | None
    learner: LearnerActors
    reward_model: RewardModelActors | None
    places: Places

    @classmethod
    def build(cls, config: TrainConfig, run_dir: Path) -> Actors:
        """The actors that a configuration asks for, not started."""
        places = Places(config)
        return cls(
            build.build_rollout_pool(config, places),
            build.build_verifier_tier(config),
            build.build_critic_pool(config, run_dir, places) if config.credit.asked(Critiques) else None,
            build.build_learner(config, places),
            build.build_reward_model(config, places) if config.credit.asked(TokenRewards) else None,
            places,
        )

    async def start(self, canary: tuple[int, ...], run_dir: Path) -> None:
        """Start all side by side, the slowest decides; engines that share a GPU start in turn.

        From then on `workers.json` names their processes, and engines and learner have scored `canary` alike under the
        weights that they were started with.
        """
        pools = [tier.pool for tier in (self.rollout, self.verifier, self.critic) if tier is not None]

        def note() -> None:
            roles = {pool.role: pool.pids() for pool in pools}
            roles["learner"] = self.learner.pids
            if self.reward_model is not None:
                roles["reward_model"] = self.reward_model.pids
            write_state(run_dir / WORKERS_FILE, {"driver": os.getpid(), **roles})

        for pool in pools:
            pool.on_ready = note
        await self.places.reserve()
        ranks = [self.learner.start(canary)]
        if self.reward_model is not None:
            ranks.append(self.reward_model.start())
        if not shares_devices(self.places.config):
            judges = [self.critic.start()] if self.critic is not None else []
            await asyncio.gather(*ranks, self.rollout.pool.start(), self.verifier.pool.start(), *judges)
        else:
            # An engine counts what others allocate on its GPU while it measures, so each finds the one before at rest.
            await asyncio.gather(*ranks, self.verifier.pool.start())
            await self.rollout.pool.start()
            if self.critic is not None:
                await self.critic.start()
        note()
        self.learner.allowed = await agree_at_start(self.places.config, canary, self.rollout, self.learner)
        await self.learner.require_sight(run_dir)
        if self.reward_model is not None:
            await self.reward_model.require_sight(run_dir)

    def stats(self) -> dict[str, float]:
        """The figures of all pools, names as in metrics."""
        figures = {**self.rollout.pool.stats(), **self.verifier.pool.stats()}
        return figures | self.critic.stats() if self.critic is not None else figures

    def restarts(self) -> dict[str, float]:
        """How often the workers of each role were replaced."""
        return {name: value for name, value in self.stats().items() if name.endswith("/restarts_total")}

    def close(self) -> None:
        """Kill every actor; called once."""
        self.rollout.pool.close()
        self.verifier.pool.close()
        self.learner.close()
        if self.reward_model is not None:
            self.reward_model.close()
        if self.critic is not None:
            self.critic.close()
        self.places.close()
