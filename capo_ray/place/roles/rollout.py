"""Rollout workers: vLLM engines that sample from the policy, and the pool of them behind `TextEngine`."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, cast

from ray.actor import ActorHandle

from capo_ray.config import TrainConfig
from capo_ray.demand import adapters_alone, policy_model
from capo_ray.engines import EngineSpec
from capo_ray.place.calls import await_ref
from capo_ray.place.face import send, spawn
from capo_ray.place.placement import shares_devices
from capo_ray.place.pool import MANY_AT_ONCE, WorkerPool
from capo_ray.place.role import Role, Site, Tier, path_of
from capo_ray.place.room import room_of
from capo_ray.protocols import PartLost, PartTimeout, RunFailed, Sampling, WeightsHandle
from capo_ray.sizing import transfer_deadline_s
from capo_ray.types import Completion
from capo_ray.weights import Meeting, WireLost

SWAP_S = 600.0
"""For an engine to take in new weights where `weights.deadline_s` is left to their size, which the driver counts."""
LOOK_S = 0.1
"""Between two looks for a version that is to be announced."""
NOT_COME = -1
"""In place of a version: the transport failed, and what served before serves on."""
Latest = Callable[[], Awaitable[WeightsHandle]]
"""A version in host memory, as new as the one announced or newer."""


class RolloutWorker:
    """A vLLM engine that holds the policy."""

    def __init__(self, spec: EngineSpec) -> None:
        from capo_ray.engines import VllmEngine  # it imports torch, which the driver does without

        self._engine, self._began = VllmEngine(spec), time.monotonic()

    async def start(self) -> int:
        """Load the model; the process id."""
        await asyncio.to_thread(self._engine.start)
        self._began = time.monotonic()
        return os.getpid()

    async def ping(self) -> dict[str, float]:
        """The engine's figures; raises if it is broken."""
        self._engine.ping()
        return self._engine.stats() | {"rollout/up_s_total": time.monotonic() - self._began}

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> tuple[Completion, ...]:
        """As `TextEngine.generate`."""
        return await self._engine.generate(prompt_ids, sampling)

    async def score(self, token_ids: Sequence[Sequence[int]], starts: Sequence[int]) -> tuple[tuple[float, ...], ...]:
        """As `TextEngine.score`."""
        return await self._engine.score(token_ids, starts)

    async def expect_weights(self, gathered: WeightsHandle) -> None:
        """As `VllmEngine.expect_weights`."""
        self._engine.expect_weights(gathered)

    async def load_weights(self, handle: WeightsHandle, version: int, fingerprint: str) -> int:
        """As `VllmEngine.load_weights`, or `NOT_COME`; the driver has version and fingerprint from the learner."""
        if isinstance(handle.payload, list):  # the bytes came by themselves, before the seal
            gathered: WeightsHandle = await handle.payload[0]
            handle = replace(handle, payload=gathered.payload)
        try:
            return await self._engine.load_weights(replace(handle, version=version, fingerprint=fingerprint))
        except WireLost:
            return NOT_COME


class RolloutPool(Tier[RolloutWorker]):
    """Engines that all hold the same announced version (`TextEngine`)."""

    def __init__(self, config: TrainConfig, spawn: Callable[[int], ActorHandle[RolloutWorker]]) -> None:
        self._config = config
        self._weights: WeightsHandle | None = None
        self._latest: Latest | None = None
        self.pool = WorkerPool(
            "rollout",
            spawn,
            config.engine.num_workers,
            start_deadline_s=config.engine.start_deadline_s,
            prepare=self._bring_to_version,
            in_turn=shares_devices(config),
            room=room_of(config, "rollout"),
        )

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> tuple[Completion, ...]:
        """As `TextEngine.generate`, on the least loaded worker."""
        deadline_s = self._config.rollout.deadline_s
        completions = await self.pool.call(RolloutWorker.generate, tuple(prompt_ids), sampling, deadline_s=deadline_s)
        # Ray's arrays lie in its object store and would keep a group's place there until it is trained.
        return tuple(completion.owned() for completion in completions)

    async def score(self, token_ids: Sequence[Sequence[int]], starts: Sequence[int]) -> tuple[tuple[float, ...], ...]:
        """As `TextEngine.score`, on the least loaded worker."""
        return await self.pool.call(RolloutWorker.score, token_ids, starts, deadline_s=self._config.rollout.deadline_s)

    def expect_weights(self, handle: WeightsHandle) -> None:
        """As `VllmEngine.expect_weights`, on every ready worker."""
        self.pool.tell(RolloutWorker.expect_weights, _sent(handle))

    async def load_weights(self, handle: WeightsHandle, latest: Latest | None = None) -> int:
        """The version held by every ready worker; one that refuses or is lost is replaced by one that holds it.

        One that answers with another version is replaced as well: its tokens would all be dropped as too old. `latest`
        is for workers that come later, where `handle` is of no use to them. Raises `WireLost` where one says that the
        version did not come to it.
        """
        self._weights, self._latest = handle, latest
        results = await self.pool.broadcast(
            RolloutWorker.load_weights,
            *(_sent(handle), handle.version, handle.fingerprint),
            deadline_s=self._deadline_s(handle),
            accept=lambda held: None if held == NOT_COME else _require_version(held, handle),
        )
        if NOT_COME in results:
            raise WireLost(f"version {handle.version} did not come to {results.count(NOT_COME)} of the engines")
        refusals = [r for r in results if isinstance(r, Exception) and not isinstance(r, PartLost | PartTimeout)]
        if refusals:
            first = refusals[0]
            raise RunFailed(f"an engine refused version {handle.version} of the weights: {first}") from first
        return handle.version

    async def scores_at_start(self, token_ids: Sequence[int]) -> list[tuple[float, ...]]:
        """The logprobs of tokens [1, end) by every worker; raises what a worker raised."""
        results = await self.pool.broadcast(
            RolloutWorker.score, [token_ids], [1], deadline_s=self._config.engine.start_deadline_s
        )
        scores: list[tuple[float, ...]] = []
        for result in results:
            if isinstance(result, Exception):
                raise RunFailed(f"an engine could not score the canary at its start: {result}") from result
            scores += result
        return scores

    def _deadline_s(self, handle: WeightsHandle) -> float:
        """The seconds for an engine to hold a version."""
        return self._config.weights.deadline_s or transfer_deadline_s(handle.num_bytes)

    async def _bring_to_version(self, worker: ActorHandle[RolloutWorker]) -> None:
        """Load the announced weights into a fresh worker, again if a newer version was announced meanwhile.

        One that was brought to a version before its publish serves nobody until then, unless it is the only one.
        """
        while (announced := self._weights) is not None:
            handle = announced if self._latest is None else await self._latest()
            ref = send(worker, RolloutWorker.load_weights, _sent(handle), handle.version, handle.fingerprint)
            held = await await_ref(ref, self._deadline_s(handle), "rollout worker (first weights)")
            _require_version(held, handle)
            while handle.version > self._announced and self.pool.num_ready:
                await asyncio.sleep(LOOK_S)
            if handle.version >= self._announced:
                return

    @property
    def _announced(self) -> int:
        """The version that was announced last."""
        return self._weights.version if self._weights is not None else 0


def _sent(handle: WeightsHandle) -> WeightsHandle:
    """The sealed handle: what is announced refers to it, and Ray puts it in the reference's place."""
    if isinstance(handle.payload, Meeting):
        return handle
    reference: Any = handle.payload
    return cast(WeightsHandle, reference)


def _require_version(held: int, handle: WeightsHandle) -> None:
    """Raises `PartLost` for an engine that answered a publish without holding what was published."""
    if held != handle.version:
        raise PartLost(f"the engine answered version {handle.version} of the weights with version {held}")


def engine_spec(config: TrainConfig) -> EngineSpec:
    """The engine of a rollout worker."""
    return EngineSpec.of(
        config.engine,
        model_path=path_of(policy_model(config)),
        dtype=config.model.dtype,
        max_model_len=config.model.max_model_len,
        seed=config.run.seed,
        running=config.weights.running,
        deadline_s=config.rollout.deadline_s,
        start_deadline_s=config.engine.start_deadline_s,
        swap_deadline_s=config.weights.deadline_s or SWAP_S,
        adapters=config.learner.lora if adapters_alone(config) else None,
    )


def build(site: Site) -> RolloutPool:
    """Rollout workers, not started."""
    spec = engine_spec(site.config)
    return RolloutPool(
        site.config, lambda index: spawn(RolloutWorker, site.places.of("rollout", index) | MANY_AT_ONCE, spec)
    )


ROLLOUT = Role("rollout", build)
